"""Look at a dataset: a figure of trajectories over parameters and channels, and a small animation.

Writes <out>/<data.name>.png and <data.name>.gif. Trajectories are the first of the outermost combinations of parameters
and of some between, on the whole domain; data.channels picks channels, `field` the one whose evolution is shown.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import numpy as np

from physrep import errors
from physrep.config import build, cli
from physrep.errors import UserError, did_you_mean
from physrep.files import whole

if TYPE_CHECKING:
    from physrep.data.module import WellDataModule
    from physrep.data.well import Array, Header, WellSplit
    from physrep.frames import Look

ROWS, COLUMNS, STRIP = 6, 8, 6  # of the figure, at most: trajectories, channels, times
CORNERS, FRAMES = 4, 60  # of the animation, at most: trajectories, frames
DPI, BYTES, RATE = 200, 1.4e6, 10  # of the figure; of the animation, with its frames a second


def main(argv: Sequence[str]) -> None:
    """Run `python -m physrep.show`."""
    cfg = cli(argv, base="show", doc=__doc__)
    from physrep.data.splits import SPLITS
    from physrep.frames import overview

    if cfg.split not in SPLITS:
        raise UserError(f"split={cfg.split}: no such split{did_you_mean(str(cfg.split), SPLITS)}")
    data: WellDataModule = build(cfg.data)
    look = read(data, cfg.split, cfg.field)
    picture, animation = (Path(cfg.out) / f"{data.name}.{suffix}" for suffix in ("png", "gif"))
    with whole(picture) as temporary:
        overview(look).savefig(temporary, format="png", dpi=DPI)
    with whole(animation) as temporary:
        temporary.write_bytes(animate(look))
    print(picture, animation, sep="\n")


def read(data: WellDataModule, split: str, field: str | None = None) -> Look:
    """Read what is drawn of a split; raises UserError where `field` is none of the data's channels.

    Of three dimensions the middle slice along the last is taken, of channels that repeat one another the first.
    """
    from physrep.frames import Look

    files, header = data.splits[split], data.header
    field = data.channels[0] if field is None else str(field)
    parts = [header.channels[c] for c in data.chosen if header.components[c][0] == field]
    field = parts[0] if parts else field
    if field not in data.channels:
        raise UserError(f"field={field}: {data.folder} has no such channel{did_you_mean(field, data.channels)}")
    names = list(data.scales) or [n for n in header.scalars if len(np.unique(files.theta([n]))) > 1]
    theta = files.theta(names) if names else np.arange(files.trajectories)[:, None]
    order = spread(theta, ROWS)
    rows = sorted(order, key=lambda row: tuple(theta[row]))
    corners = [i for i, row in enumerate(rows) if row in order[:CORNERS]]
    plane = {dim: (n // 2, n // 2 + 1) for dim, n in [*zip(header.dims, header.shape, strict=True)][2:]}

    def frame(row: int, at: int, channels: list[int]) -> Array:
        return files.read(row, at, 1, crop=plane, channels=channels).reshape(-1, *header.shape[:2])

    frames = min(files.locate(row)[0].frames for row in rows)
    at = [int(n) for n in np.linspace(0, frames - 1, min(frames, FRAMES)).round()]
    then = 2 * len(at) // 3
    late = np.stack([frame(row, at[then], data.chosen) for row in rows])
    number = data.channels.index(field)
    every = distinct(late) if data.kept is None else list(range(late.shape[1]))
    shown = every[:COLUMNS] if number in every[:COLUMNS] else sorted([*every[: COLUMNS - 1], number])
    some = f"; {len(shown)} of {len(every)} channels" if len(shown) < len(every) else ""
    clocks = [coordinate(files, row, "time")[:frames] for row in rows]
    alike = all(np.array_equal(clock, clocks[0]) for clock in clocks)
    times = [f"t = {clocks[0][n]:.4g}" if alike else f"frame {n}" for n in at]
    centres = [coordinate(files, rows[0], dim) for dim in header.dims]
    return Look(
        title=f"{data.name}, {split}, {times[then]}; {about(header, centres)}{some}",
        centres=(centres[0], centres[1]),
        walls=(header.boundaries.get(header.dims[0]) == "WALL", header.boundaries.get(header.dims[1]) == "WALL"),
        labels=["\n".join(map(label, names or ["trajectory"], theta[row])) for row in rows],
        channels=[data.channels[c] for c in shown],
        late=late[:, shown],
        field=field,
        corners=corners,
        film=np.stack([[frame(rows[i], n, [data.chosen[number]])[0] for n in at] for i in corners]),
        times=times,
        strip=sorted({round(n) for n in np.linspace(0, len(at) - 1, STRIP)}),
    )


def about(header: Header, centres: Sequence[Array]) -> str:
    """Say where the axes begin and end and how; of an axis beyond the second, where it is cut."""
    from physrep.frames import edges, minus

    kinds, said = {"PERIODIC": " (periodic)", "WALL": " (walls)", "OPEN": " (open)"}, []
    for dim, cells in list(zip(header.dims, centres, strict=True))[:2]:
        kind = header.boundaries.get(dim, "")
        low, high = edges(cells) if kind != "PERIODIC" else (cells[0], 2 * cells[-1] - cells[-2])
        low, high = (end if abs(end) > 0.01 * (high - low) else 0.0 for end in (low, high))
        said.append(minus(f"{dim} {low:.3g} to {high:.3g}{kinds.get(kind, '')}"))
    said += [minus(f"slice at {d} = {c[len(c) // 2]:.3g}") for d, c in list(zip(header.dims, centres, strict=True))[2:]]
    return ", ".join(said)


def spread(theta: Array, count: int) -> list[int]:
    """Return the first trajectories of combinations far from one another, the outermost first; theta [N, P].

    A parameter's values count by their rank. Begins with the lowest, goes on with what is furthest from all taken.
    """
    combinations, first = np.unique(theta, axis=0, return_index=True)
    ranks = np.stack([np.unique(values, return_inverse=True)[1] for values in combinations.T], axis=1)
    places = ranks / np.maximum(ranks.max(0), 1)
    taken = [0]
    while len(taken) < min(count, len(first)):
        apart = np.linalg.norm(places[:, None] - places[taken], axis=-1).min(1)
        taken.append(int(apart.argmax()))
    return [int(first[i]) for i in taken]


def distinct(late: Array) -> list[int]:
    """Return the channels of fields [R, C, X, Y] that are not, but for their sign, an earlier one."""
    kept = list[int]()
    for c in range(late.shape[1]):
        new, size = late[:, c], 1e-5 * np.abs(late[:, c]).max()
        if not any(np.allclose(new, sign * late[:, k], rtol=0, atol=size) for k in kept for sign in (1, -1)):
            kept.append(c)
    return kept


def coordinate(files: WellSplit, trajectory: int, name: str) -> Array:
    """Return what a trajectory's file says of `time` or of an axis, in its units."""
    from physrep.data.well import opened

    header, row = files.locate(trajectory)
    with opened(header.path) as file:
        values = np.asarray(file[f"dimensions/{name}"][()], np.float64)
    return values[row] if values.ndim == 2 else values


def label(name: str, value: float) -> str:
    """Return `name = value` as a figure writes it: Greek names as letters, large and small values as powers of ten."""
    from physrep.frames import minus

    with suppress(KeyError):
        name = unicodedata.lookup(f"GREEK SMALL LETTER {name}")
    if value == 0 or 1e-3 <= abs(value) < 1e4:
        return minus(f"{name} = {value:.4g}")
    digits, exponent = f"{value:.3e}".split("e")
    factor = "" if float(digits) == 1 else rf"{float(digits):g} \times "
    return f"{name} = ${factor}10^{{{int(exponent)}}}$"


def animate(look: Look) -> bytes:
    """Return the animation as a GIF, in a resolution at which it has no more than BYTES."""
    from matplotlib.animation import PillowWriter

    from physrep.frames import film

    figure, turn = film(look)
    dpi, image = 100.0, b""
    with TemporaryDirectory() as folder:  # the writer knows the format by the name
        while not image or (len(image) > BYTES and dpi > 50):
            dpi *= (BYTES / len(image)) ** 0.7 if image else 1
            writer, path = PillowWriter(fps=RATE), Path(folder) / "film.gif"
            with writer.saving(figure, path, dpi):
                for n in range(len(look.times)):
                    turn(n)
                    writer.grab_frame()
            image = path.read_bytes()
    return image


if __name__ == "__main__":
    errors.run(main)
