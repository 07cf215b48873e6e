"""Drawings of a dataset: trajectories over channels and over time, and an animation."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from physrep.figures import STYLE

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.image import AxesImage

Array = NDArray[Any]

WIDTH, FILM = 7.2, 5.0  # inches: the figure and the animation
LARGE, SMALL, WIDEST, TALLEST = 1.2, 0.5, 2.4, 3.0  # panels: square inches to aim at, and the longest sides
GAP, LINE, BAR, LETTER = 0.05, 0.16, 0.34, 0.06  # between panels, a line of text, a colour bar with its numbers
LEVELS = 65  # colours of the animation: few, so that it stays small; odd, so that zero has one


@dataclass(frozen=True)
class Look:
    """What is drawn of a dataset: R trajectories in C channels at a late time, S of them in one field over T times."""

    title: str
    centres: tuple[Array, Array]
    """x [X] and y [Y] of the cells"""
    walls: tuple[bool, bool]
    """whether x and y end in walls"""
    labels: Sequence[str]
    """a trajectory's parameters, a line each, [R]"""
    channels: Sequence[str]
    late: Array
    """[R, C, X, Y]"""
    field: str
    corners: Sequence[int]
    """which of the R are shown over time, [S]"""
    film: Array
    """the field, [S, T, X, Y]"""
    times: Sequence[str]
    strip: Sequence[int]
    """which of the T times the figure shows"""

    @property
    def domain(self) -> tuple[float, float, float, float]:
        """The domain: x from and to, y from and to."""
        return *edges(self.centres[0]), *edges(self.centres[1])

    @property
    def ratio(self) -> float:
        """Height by width of the domain."""
        left, right, bottom, top = self.domain
        return (top - bottom) / (right - left)

    def scales(self) -> dict[str, Scale]:
        """Return the colours of every channel, of the field over all its times too."""
        late = dict(zip(self.channels, np.moveaxis(self.late, 1, 0), strict=True))
        return {name: scale(np.append(v, self.film) if name == self.field else v) for name, v in late.items()}


def edges(centres: Array) -> tuple[float, float]:
    """Return where an axis begins and ends, of which the cells' centres are given."""
    return float(1.5 * centres[0] - 0.5 * centres[1]), float(1.5 * centres[-1] - 0.5 * centres[-2])


def minus(text: str) -> str:
    """Write numbers with the sign that they have in print."""
    return text.replace("-", "−")


class Scale(NamedTuple):
    """The colours of a channel: a colour map, or its name, and the values at its ends."""

    colours: Any
    low: float
    high: float


def scale(values: Array) -> Scale:
    """Return colours for the middle 98 % of values: diverging about zero where both signs matter."""
    low, high = (float(v) for v in np.nanpercentile(values, [1, 99]))
    if low < 0 < high and min(-low, high) > 0.05 * max(-low, high):
        return Scale("RdBu_r", -max(-low, high), max(-low, high))
    return Scale("viridis", low, high)


class Table:
    """Panels of one size, in inches; where columns are few, rows are dealt to several blocks side by side.

    A row's label stands upright on its left, flat where it is longer than the panels are tall, or `over` its panels.
    """

    def __init__(
        self, look: Look, labels: Sequence[str], heads: Sequence[str], width: float, area: float, over: bool = False
    ) -> None:
        self.look, self.labels, self.heads, self.over = look, labels, heads, over
        want = width / math.sqrt(area / look.ratio) / len(heads)
        even = [n for n in range(1, len(labels) + 1) if len(labels) % n == 0]
        self.blocks = min(even, key=lambda n: abs(math.log(n / want)))
        self.lines = len(labels) // self.blocks
        depth = LINE * max(label.count("\n") + 1 for label in labels)
        plain = [re.sub(r" ?\\\w+ ?", "x", line) for label in labels for line in label.splitlines()]
        length = LETTER * max(len(re.sub(r"[${}^]", "", line)) for line in plain)
        for self.turned, self.margin in ((0, GAP),) if over else ((90, depth), (0, length + 2 * GAP)):
            room = (width / self.blocks - self.margin) / len(heads) - GAP
            self.side = min(room, WIDEST, TALLEST / look.ratio)
            self.tall = self.side * look.ratio
            if self.tall + GAP > length:
                break
        self.block, self.line = self.margin + len(heads) * (self.side + GAP), self.tall + GAP + depth * over
        self.width, self.height = self.blocks * self.block, LINE * any(heads) + self.lines * self.line

    def draw(self, figure: Figure, top: float, values: Array, scales: Sequence[Scale]) -> list[list[AxesImage]]:
        """Draw values [rows, columns, X, Y] from `top` down, as images [rows][columns]."""
        images = list[list[Any]]()
        for row, label in enumerate(self.labels):
            block, line = divmod(row, self.lines)
            left, down = block * self.block, top + LINE * any(self.heads) + (line + 1) * self.line - self.tall - GAP
            if self.over:
                _text(figure, left + self.margin + self.side / 2, down - 0.04, label, ha="center", va="bottom")
            else:
                style = {"ha": "center", "va": "center", "rotation": self.turned}
                _text(figure, left + self.margin / 2, down + self.tall / 2, label, **style)
            images.append([])
            for column, head in enumerate(self.heads):
                x = left + self.margin + column * (self.side + GAP)
                axis = _axes(figure, x, down, self.side, self.tall)
                images[-1].append(_picture(axis, self.look, values[row, column], scales[column]))
                if line == 0:
                    _text(figure, x + self.side / 2, down - 0.04, head, ha="center", va="baseline", fontsize=8)
        return images

    def bars(self, figure: Figure, top: float, images: Sequence[AxesImage]) -> None:
        """Draw a colour bar below every column of every block."""
        for block in range(self.blocks):
            for column, image in enumerate(images):
                left = block * self.block + self.margin + column * (self.side + GAP)
                _bar(figure, image, left, top, self.side)


def overview(look: Look) -> Figure:
    """Draw a row a trajectory and a column a channel at a late time, and below how the field evolves at the corners.

    Axes are to scale, x to the right and y up; a thick edge is a wall, a colour scale holds for a channel.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure

    scales = look.scales()
    above = Table(look, look.labels, look.channels, WIDTH, LARGE)
    first, *later = (look.times[i] for i in look.strip)
    heads = [first, *(time.split()[-1] for time in later)]
    below = Table(look, [look.labels[i] for i in look.corners], heads, WIDTH, SMALL)
    second = 1.5 * LINE + above.height + BAR
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(max(above.width, below.width), second + 1.3 * LINE + below.height))
        _text(figure, 0.03, 0.03, look.title, va="top", fontsize=9)
        images = above.draw(figure, 1.5 * LINE, look.late, [scales[name] for name in look.channels])
        above.bars(figure, 1.5 * LINE + above.height, images[0])
        _text(figure, 0.03, second, f"{look.field} over time", va="top", fontsize=9)
        below.draw(figure, second + 1.3 * LINE, look.film[:, list(look.strip)], [scales[look.field]] * len(heads))
    return figure


def film(look: Look) -> tuple[Figure, Callable[[int], None]]:
    """Draw the field at the corners side by side; returns the figure and what turns it to the n-th time."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    colours = look.scales()[look.field]
    few = colours._replace(colours=mpl.colormaps[colours.colours].resampled(LEVELS))
    table = Table(look, [look.labels[i] for i in look.corners], [""], FILM, LARGE, over=True)
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(table.width, 1.5 * LINE + table.height + BAR))
        title = _text(figure, 0.03, 0.03, f"{look.field}, {look.times[0]}", va="top", fontsize=9)
        images = [row[0] for row in table.draw(figure, 1.5 * LINE, look.film[:, :1], [few])]
        _bar(figure, images[0], table.margin, 1.5 * LINE + table.height, table.width - table.margin - GAP)

    def turn(n: int) -> None:
        title.set_text(f"{look.field}, {look.times[n]}")
        for image, values in zip(images, look.film[:, n], strict=True):
            _fill(image, look, values)

    return figure, turn


def _text(figure: Figure, left: float, down: float, text: str, **style: Any) -> Any:
    width, height = figure.get_size_inches()
    return figure.text(left / width, 1 - down / height, text, **{"fontsize": 7.5, "linespacing": 1.2} | style)


def _axes(figure: Figure, left: float, down: float, width: float, height: float) -> Axes:
    w, h = figure.get_size_inches()
    return figure.add_axes((left / w, 1 - (down + height) / h, width / w, height / h))


def _picture(axis: Axes, look: Look, values: Array, colours: Scale) -> AxesImage:
    """Draw values [X, Y] over the domain, whether its cells are of one size or not."""
    from matplotlib.image import AxesImage, NonUniformImage

    kind = AxesImage if all(np.allclose(np.diff(c), c[1] - c[0], rtol=1e-2) for c in look.centres) else NonUniformImage
    image = kind(axis, cmap=colours.colours, extent=look.domain, interpolation="bilinear", origin="lower")
    image.set_clim(colours.low, colours.high)
    _fill(image, look, values)
    axis.add_image(image)
    left, right, bottom, top = look.domain
    axis.set(xlim=(left, right), ylim=(bottom, top), xticks=[], yticks=[])
    for side, wall in zip(("left", "right", "bottom", "top"), np.repeat(look.walls, 2), strict=True):
        axis.spines[side].set(visible=True, linewidth=1.2 if wall else 0.4)
    return image


def _fill(image: AxesImage, look: Look, values: Array) -> None:
    from matplotlib.image import NonUniformImage

    if isinstance(image, NonUniformImage):
        image.set_data(*look.centres, values.T)
    else:
        image.set_data(values.T)


def _bar(figure: Figure, image: AxesImage, left: float, down: float, width: float) -> None:
    """Draw a colour bar with its ends, and zero where it is the middle, below `down`."""
    axis = _axes(figure, left, down + 0.02, width, 0.07)
    low, high = image.get_clim()
    ticks = [low, 0, high] if low == -high else [low, high]
    places = 1 - math.floor(math.log10((high - low) / 2 or 1))
    bar = figure.colorbar(image, cax=axis, orientation="horizontal", ticks=ticks)
    bar.outline.set_linewidth(0.4)
    bar.ax.set_xticklabels([minus(f"{round(tick, places) + 0.0:.6g}") for tick in ticks], fontsize=6.5)
    bar.ax.tick_params(length=1.5, width=0.4, pad=1)
    first, *_, last = bar.ax.get_xticklabels()
    first.set_horizontalalignment("left")
    last.set_horizontalalignment("right")
