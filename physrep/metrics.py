"""What is measured: errors of probes, with intervals over trajectories and seeds, and the width an embedding uses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from statistics import NormalDist
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from physrep.results import Row, inverse

Array = NDArray[np.float64]
By = Literal["window", "trajectory"]
BOUNDS = {"mse": (0.0, np.inf), "r2": (-np.inf, 1.0), "mae": (0.0, np.inf)}  # what a metric can be


@dataclass(frozen=True)
class Errors:
    """What S seeds of one probe got wrong on N trajectories, [S, N] each; a trajectory that a seed lacks weighs 0."""

    squared: Array  # of z
    absolute: Array  # physical units
    truth: Array  # z
    weight: Array


@dataclass(frozen=True)
class Interval:
    """A number and its 95 % interval; NaN where it is undefined."""

    value: float
    low: float
    high: float


def errors(rows: Sequence[Row], trajectories: Sequence[int], by: By = "window") -> Errors:
    """Return the errors of one parameter's rows, a seed each, on the trajectories.

    By window every window counts once; by trajectory every trajectory does, with the mean prediction over its windows.
    """
    column = {trajectory: n for n, trajectory in enumerate(trajectories)}
    found = Errors(*np.zeros((4, len(rows), len(column))))
    for s, row in enumerate(rows):
        at = [column[trajectory] for trajectory in row.trajectories]
        found.truth[s, at] = row.truth
        if by == "window":
            found.squared[s, at], found.absolute[s, at] = row.squared_error, row.absolute_error
            found.weight[s, at] = row.windows
        else:
            found.squared[s, at] = np.subtract(row.prediction, row.truth) ** 2
            found.absolute[s, at] = np.abs(inverse(row.prediction, row) - inverse(row.truth, row))
            found.weight[s, at] = 1
    return found


def scores(found: Errors, counts: Array) -> dict[str, Array]:
    """Return mse of z, r2 and mae in physical units, [S, R] each, of samples with counts [R, N] of the trajectories.

    Undefined is NaN: r2 where all truth is equal, everything where a seed has none of a sample's trajectories.
    """
    parts = np.stack([np.ones_like(found.truth), found.squared, found.absolute, found.truth, found.truth**2])
    flat = (found.weight * parts).reshape(-1, counts.shape[1])
    total, *sums = (flat @ counts.T).reshape(len(parts), -1, len(counts))
    with np.errstate(invalid="ignore", divide="ignore"):
        mse, mae, truth, square = (each / total for each in sums)
        variance = square - truth**2
        return {"mse": mse, "r2": 1 - mse / np.where(variance > 1e-9, variance, np.nan), "mae": mae}


def draw(starts: Sequence[int], resamples: int, seed: int = 0) -> Array:
    """Return how often each of N trajectories is drawn, [1 + resamples, N]: once each, then bootstrap samples.

    Those of one starting state, equal in `starts` [N], are drawn together. A sample of n states is n - 1 draws with
    replacement, so that the variance of a mean is unbiased also for few (McCarthy and Snowden 1985; Rao and Wu 1988).
    """
    states, member = np.unique(starts, return_inverse=True)
    n = len(states)
    drawn = np.random.default_rng([seed, n]).integers(n, size=(resamples, max(n - 1, 1)))
    flat = drawn + n * np.arange(resamples)[:, None]
    counts = np.bincount(flat.ravel(), minlength=resamples * n).reshape(resamples, n)
    return np.concatenate([np.ones((1, n)), counts])[:, member]


def common(cells: Sequence[Errors]) -> Array:
    """Return for each trajectory 1 where all seeds of all cells have it and else 0, [N]."""
    there: Array = np.prod([(found.weight > 0).all(0) for found in cells], axis=0)
    return there


def states(cells: Sequence[Errors], starts: Sequence[int]) -> int:
    """Return how many states the trajectories start from that all seeds of all cells have; `starts` [N] are of all."""
    return len(set(np.array(starts)[common(cells) > 0].tolist()))


def interval(*groups: Array, n: int, within: tuple[float, float] = (-np.inf, np.inf), level: float = 0.95) -> Interval:
    """Return the sum of the groups' means over seeds with its interval over seeds and trajectories, cut to `within`.

    A group [S, 1 + R] holds scores of S seeds of its own: of the sample, then of R draws of the trajectories that all
    groups share, which start from n states. Two distances from the value are added in quadrature (MOVER: Zou and
    Donner 2008). Of trajectories: to the percentiles, which are skewed as errors are. Of seeds: their standard error,
    less what the draws explain of it, times Student's t at Satterthwaite's (1946) degrees of freedom, S - 1 for one
    group; one seed has none, and the interval is of trajectories alone. One state allows of no interval: its ends are
    NaN.
    """
    value = float(sum(group[:, 0].mean() for group in groups))
    defined = np.isfinite(sum(group.sum(0) for group in groups))
    if n < 2 or not defined[0] or not defined[1:].any():
        return Interval(value, np.nan, np.nan)
    drawn = [group[:, 1:][:, defined[1:]] for group in groups]
    normal = NormalDist().inv_cdf((1 + level) / 2)
    ends = np.quantile(np.sum([of.mean(0) for of in drawn], axis=0), [(1 - level) / 2, (1 + level) / 2])
    reach = np.maximum([value - ends[0], ends[1] - value], 0) * student(n - 1, level) / normal
    variances, freedom = [0.0], [1]
    for group, of in zip(groups, drawn, strict=True):
        if (seeds := len(group)) > 1:
            explained = (of - of.mean(0)).var(1).sum() / (seeds - 1)
            variances.append(max(group[:, 0].var(ddof=1) - explained, 0.0) / seeds)
            freedom.append(seeds - 1)
    if total := sum(variances):
        df = total**2 / sum(variance**2 / df for variance, df in zip(variances, freedom, strict=True))
        reach = np.hypot(reach, student(df, level) * np.sqrt(total))
    low, high = np.clip([value - reach[0], value + reach[1]], *within)
    return Interval(value, float(low), float(high))


@cache
def student(freedom: float, level: float = 0.95) -> float:
    """Return t that Student's distribution exceeds on either side with probability (1 - level) / 2.

    With t = sqrt(df) tan(a), the density of the angle a is cos(a)^(df - 1): its integral is inverted on a grid.
    """
    df = min(max(freedom, 1.0), 1e5)
    angle = np.linspace(0, min(np.pi / 2, 12 / np.sqrt(df)), 5001)
    density = np.cos(angle) ** (df - 1)
    below = np.concatenate([[0], (density[1:] + density[:-1]).cumsum()])
    return float(np.sqrt(df) * np.tan(np.interp(level, below / below[-1], angle)))


def paired(a: Sequence[Errors], b: Sequence[Errors], counts: Array, starts: Sequence[int]) -> Interval:
    """Return mse of a minus mse of b, each averaged over its parameters, on the trajectories that all of them have.

    The same draws [1 + R, N] of trajectories that begin in `starts` serve both sides, whose seeds are no pairs.
    """
    shared = common([*a, *b])
    one, two = (np.mean([scores(found, counts * shared)["mse"] for found in cell], axis=0) for cell in (a, b))
    return interval(one, -two, n=states([*a, *b], starts))


def effective_rank(x: Tensor) -> Tensor:
    """Return how many dimensions rows [M, D] fill, from 1 to min(M, D): exp of the entropy of their singular values.

    Rows are taken as they are, not centred (Roy and Vetterli 2007; RankMe, Garrido et al. 2023).
    """
    sigma = torch.linalg.svdvals(x.float())
    share = sigma / sigma.sum().clamp_min(torch.finfo(sigma.dtype).tiny)
    rank: Tensor = torch.special.entr(share).sum().exp()
    return rank


def between_within(x: Tensor, trajectory: Tensor) -> tuple[Tensor, Tensor]:
    """Return the standard deviation of rows [M, D] between trajectories [M] and within them, rms over dimensions.

    Between: of the trajectories' means. Within: of the rows about them, pooled; NaN if no trajectory has two rows.
    """
    x = x.float()
    _, member, count = trajectory.to(x.device).unique(return_inverse=True, return_counts=True)
    mean = x.new_zeros(len(count), x.shape[1]).index_add_(0, member, x) / count[:, None]
    within = (x - mean[member]).square().sum(0) / (len(x) - len(count))
    return mean.var(0).mean().sqrt(), within.mean().sqrt()
