"""Rows of results: one JSON object a line, each with its protocol, its errors by trajectory and where it came from."""

from __future__ import annotations

import errno
import fcntl
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import cache
from itertools import chain
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import numpy as np
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from physrep.errors import UserError
from physrep.files import write_text


@dataclass(frozen=True)
class Row:
    """How well one probe on one frozen encoder gives one physical parameter on one split; ValueError if malformed.

    z = (scale(theta) - center) / spread. Lists hold one entry per trajectory; equal `key` means the same number again.
    """

    data: str
    objective: str
    encoder: str
    variant: str  # what else the run was given, such as noise=0.3
    probe: str
    seed: int
    splits: Literal["well", "holdout", "extrapolate"]  # how trajectories were shared out
    split: str
    shared: int  # trajectories of the split that start from a state that one of train starts from
    labels: float  # the share of train's and valid's trajectories whose parameters the probe was told
    layer: str  # of the encoder; "" is its output
    parameter: str
    scale: Literal["log10", "linear"]
    center: float
    spread: float
    metric: str
    value: float  # "mse": mean over windows of the squared error of z; predicting the mean scores 1
    n: int  # windows
    trajectories: list[int]
    windows: list[int]
    truth: list[float]  # z
    prediction: list[float]  # z, mean over the trajectory's windows
    squared_error: list[float]  # of z, mean over the trajectory's windows
    absolute_error: list[float]  # physical units, mean over the trajectory's windows
    plane: list[list[float]]  # means of the features along train's two principal components; [] of none
    space: dict[str, Any]  # rank (effective) of the split's features, std of them between and within trajectories
    cost: dict[str, Any]  # of pretraining: the encoder's weights, windows seen, seconds, on what; of finetune its own
    run: str
    config: str
    commit: str
    fingerprint: str
    step: int
    chosen: dict[str, Any]
    key: str
    setting: str = ""  # digest of the probe's options and code; "" in rows that are older than this field
    starts: list[int] = field(default_factory=list)
    """for each trajectory the first of the split with its starting state; [] where all differ, and in older rows"""

    def __post_init__(self) -> None:
        for name, hint in _hints().items():
            if not _is(getattr(self, name), hint):
                raise ValueError(f"{name} is not {getattr(hint, '__name__', hint)}")
        lists: list[list[Any]] = [self.windows, self.truth, self.prediction, self.squared_error, self.absolute_error]
        lists += [some for some in (self.starts, self.plane) if some]
        if {len(values) for values in lists} != {len(set(self.trajectories))} or min(self.windows, default=0) < 1:
            raise ValueError("the lists do not hold one entry for each of the trajectories")


@cache
def _hints() -> dict[str, Any]:
    return get_type_hints(Row)


def _is(value: Any, hint: Any) -> bool:
    if get_origin(hint) is list:
        return type(value) is list and _all_are(value, get_args(hint)[0])
    if get_origin(hint) is Literal:
        return value in get_args(hint)
    return _all_are([value], hint)


def _all_are(values: list[Any], hint: Any) -> bool:
    """Say whether values are of a type, in few passes: a file of results holds a million."""
    if get_origin(hint) is list:
        return {*map(type, values)} <= {list} and _all_are(list(chain.from_iterable(values)), get_args(hint)[0])
    if hint is float:
        return {*map(type, values)} <= {float, int} and all(map(math.isfinite, values))
    return {*map(type, values)} <= {get_origin(hint) or hint}


def inverse(z: ArrayLike, row: Row) -> NDArray[np.float64]:
    """Return standardised values of the row's parameter in physical units."""
    return _physical(z, row.scale, row.center, row.spread)


def _physical(z: ArrayLike, scale: str, center: float, spread: float) -> NDArray[np.float64]:
    value = np.asarray(z, dtype=np.float64) * spread + center
    with np.errstate(over="ignore"):
        return np.power(10.0, value) if scale == "log10" else value


def make_rows(
    prediction: Tensor,
    truth: Tensor,
    trajectory: Tensor,
    *,
    scales: Mapping[str, str],
    centers: Sequence[float],
    spreads: Sequence[float],
    key: str,
    starts: Sequence[int] = (),
    plane: Tensor | None = None,
    **about: Any,
) -> list[Row]:
    """Return a row per parameter from standardised prediction and truth [M, P] of windows of trajectory [M].

    `scales` names the parameters, in the order of P; `key` is the identity of (run, probe), to which a row adds its
    parameter; `starts` gives for every trajectory of the split the first that starts from the same state; `plane`
    [M, 2] places the windows' features; `about` holds the other fields of Row. Raises UserError where a prediction is
    not finite, ValueError where truth varies within a trajectory.
    """
    from torchmetrics.functional import mean_squared_error

    z_hat, z = prediction.detach().cpu().double(), truth.detach().cpu().double()
    value = mean_squared_error(z_hat, z, num_outputs=len(scales)).reshape(-1).tolist()
    ids, first, member, windows = np.unique(trajectory.cpu().numpy(), True, True, True)

    def mean(x: NDArray[np.float64]) -> list[float]:
        return (np.bincount(member, weights=x) / windows).tolist()  # type: ignore[no-any-return]

    x_y = [] if plane is None else [mean(axis) for axis in plane.detach().cpu().double().T.numpy()]
    recurs = [starts[i] for i in ids] if len(set(starts)) < len(starts) else []
    places = [[float(f"{v:.4g}") for v in place] for place in zip(*x_y, strict=True)]
    rows = []
    for p, (name, scale) in enumerate(scales.items()):
        guess, right, units = z_hat[:, p].numpy(), z[:, p].numpy(), (scale, float(centers[p]), float(spreads[p]))
        off = np.abs(_physical(guess, *units) - _physical(right, *units))
        if not np.isfinite([guess, off]).all():
            what = f"{about['run']}: probe {about['probe']} predicts {name} that is not finite"
            raise UserError(f"{what}; pretraining or the probe diverged: lower its learning rate")
        if not np.allclose(right, right[first][member], atol=1e-5):
            raise ValueError(f"{name} varies within a trajectory")
        numbers: dict[str, Any] = {
            "value": value[p],
            "n": len(guess),
            "trajectories": ids.tolist(),
            "starts": recurs,
            "windows": windows.tolist(),
            "truth": right[first].tolist(),
            "prediction": mean(guess),
            "squared_error": mean((guess - right) ** 2),
            "absolute_error": mean(off),
            "plane": places,
        }
        target: dict[str, Any] = dict(zip(("scale", "center", "spread"), units, strict=True))
        rows.append(Row(parameter=name, metric="mse", key=f"{key}/{name}", **target, **numbers, **about))
    return rows


def read(path: str | Path) -> list[Row]:
    """Return the rows of a results.jsonl in their order; UserError names the first line that is not a row."""
    rows = []
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError:
        raise UserError(f"{path}: is no text; name a results.jsonl that physrep.probe wrote") from None
    for number, line in enumerate(lines, 1):
        try:
            rows.append(Row(**json.loads(line)))
        except (ValueError, TypeError) as error:
            what = f"{path} line {number}: not a row ({str(error).removeprefix('Row.__init__() ')})"
            raise UserError(f"{what}; delete the line and run the probe again") from None
    return rows


def append(path: str | Path, rows: Iterable[Row]) -> int:
    """Add rows whose key is not there yet, the others are skipped, and return how many were added.

    The file is replaced whole under a lock: a reader sees all new rows or none, a kill or a full disk leaves the old
    file, and processes may append at once.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with _lock(path):
        there = {row.key for row in read(path)} if path.exists() else set()
        new: dict[str, Row] = {}
        for row in rows:
            if row.key not in there:
                new.setdefault(row.key, row)
        if new:
            old = path.read_text(encoding="utf-8").splitlines() if there else []
            lines = old + [json.dumps(asdict(row), allow_nan=False) for row in new.values()]
            write_text(path, "".join(f"{line}\n" for line in lines))
    return len(new)


@contextmanager
def _lock(path: Path) -> Iterator[None]:
    with path.with_name(f".{path.name}.lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError as error:
            if error.errno not in (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK):
                raise
            raise UserError(f"{path}: this file system has no locks; write to another, runs=<folder>") from None
        yield
