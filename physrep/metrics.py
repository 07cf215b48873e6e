"""What is measured: errors of probes, with intervals over trajectories and seeds, and the width an embedding uses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from physrep.results import Row, inverse

Array = NDArray[np.float64]
By = Literal["window", "trajectory"]
METRICS = ("mse", "r2", "mae")


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
    with np.errstate(invalid="ignore", divide="ignore"):
        total = found.weight @ counts.T

        def mean(x: Array) -> Array:
            average: Array = (found.weight * x) @ counts.T / total
            return average

        mse, mae = mean(found.squared), mean(found.absolute)
        variance = mean(found.truth**2) - mean(found.truth) ** 2
        return {"mse": mse, "r2": 1 - mse / np.where(variance > 1e-9, variance, np.nan), "mae": mae}


def draw(n: int, resamples: int, seed: int = 0) -> Array:
    """Return how often each of n things is drawn, [1 + resamples, n]: once each, then bootstrap samples.

    A sample is n - 1 draws with replacement, so that the variance of a mean is unbiased also for few seeds or
    trajectories (McCarthy and Snowden 1985; Rao and Wu 1988).
    """
    size = max(n - 1, 1)
    drawn = np.random.default_rng([seed, n]).integers(n, size=(resamples, size))
    flat = drawn + n * np.arange(resamples)[:, None]
    counts = np.bincount(flat.ravel(), minlength=resamples * n).reshape(resamples, n)
    return np.concatenate([np.ones((1, n)), counts])


def bootstrap(found: Errors, counts: Array, seed: int = 0) -> dict[str, Array]:
    """Return mse, r2 and mae, [1 + R] each: the mean over seeds, then the same of samples of seeds and trajectories.

    `counts` is draw(N, R). All cells of a table share it, and cells with equally many seeds share the seeds' draws, so
    samples may be averaged over parameters and subtracted between objectives (paired) one by one.
    """
    seeds = draw(len(found.weight), len(counts) - 1, seed + 1)
    return {name: (seeds.T * score).sum(0) / seeds.sum(1) for name, score in scores(found, counts).items()}


def interval(samples: Array, level: float = 0.95) -> Interval:
    """Return the first sample and the percentiles of the others, of those that are defined."""
    value, others = float(samples[0]), samples[1:][np.isfinite(samples[1:])]
    if not np.isfinite(value) or not len(others):
        return Interval(value, np.nan, np.nan)
    low, high = np.quantile(others, [(1 - level) / 2, (1 + level) / 2])
    return Interval(value, float(low), float(high))


def paired(a: Sequence[Errors], b: Sequence[Errors], counts: Array, seed: int = 0) -> Array:
    """Return samples [1 + R] of mse of a minus mse of b, each averaged over its parameters, on shared trajectories."""
    shared = np.prod([(found.weight > 0).all(0) for found in (*a, *b)], axis=0)
    one, two = ([bootstrap(found, counts * shared, seed)["mse"] for found in cell] for cell in (a, b))
    difference: Array = np.mean(one, axis=0) - np.mean(two, axis=0)
    return difference


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
