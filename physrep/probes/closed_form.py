"""Probes without training: ridge regression, nearest neighbours, and the mean that every probe has to beat."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from physrep.errors import UserError
from physrep.probes.features import Features, Standardiser

Strengths = Sequence[float]
DECADES: Strengths = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1e0, 1e1, 1e2, 1e3)
LIMIT = 5.0  # standard deviations: where one wild value of a heavy-tailed feature would decide a linear prediction


def solve(x: Tensor, y: Tensor, strengths: Strengths) -> tuple[Tensor, Tensor]:
    """Minimise |x w + b - y|^2 / M + strength |w|^2 for S strengths: x [M, F], y [M, P] -> w [S, F, P], b [S, 1, P].

    One eigendecomposition of the smaller Gram matrix serves them all; use float64. The bias b is not penalised.
    """
    centre, level, rows = x.mean(0), y.mean(0), len(x)
    x, y = x - centre, y - level
    wide = x.shape[1] > rows
    values, vectors = torch.linalg.eigh((x @ x.T if wide else x.T @ x) / rows)
    target = vectors.T @ (y if wide else x.T @ y) / rows
    shrunk = target / (values.clamp_min(0) + torch.tensor(strengths).to(x)[:, None])[..., None]
    weight = vectors @ shrunk
    weight = x.T @ weight if wide else weight
    return weight, level - centre @ weight[:, None]


@dataclass(frozen=True, eq=False)
class Affine:
    """A fitted linear map of the standardised pooled features: weight [F, P], bias [P]."""

    standardise: Standardiser
    weight: Tensor
    bias: Tensor
    chosen: dict[str, Any]

    def __call__(self, features: Features) -> Tensor:
        """Predict the standardised parameters of features, [M, P] float32."""
        return (self.standardise(features.pooled.double()) @ self.weight + self.bias).float()


class Ridge:
    """Ridge regression on standardised pooled features, its strength chosen on valid for each physical parameter.

    A strength is relative to the mean squared error. Standardised features are cut at five standard deviations, in
    train as elsewhere: a useful feature stays inside, also for parameters beyond those of train.
    """

    needs: Literal["pooled"] = "pooled"

    def __init__(self, strengths: Strengths = DECADES) -> None:
        if not min(strengths, default=0) > 0:
            raise UserError(f"probe.strengths: {list(strengths)} are not all above zero; take the smallest as 1e-6")
        self.strengths = tuple(strengths)

    def fit(self, train: Features, valid: Features) -> Affine:
        """Fit every strength on train; keep for each parameter the one of least squared error on valid."""
        standardise = Standardiser.of(train.pooled, LIMIT)
        weight, bias = solve(standardise(train.pooled.double()), train.theta.double(), self.strengths)
        prediction = standardise(valid.pooled.double()) @ weight + bias
        mse, best = (prediction - valid.theta).square().mean(1).min(0)
        column = torch.arange(len(best), device=best.device)
        chosen = {"strength": [self.strengths[i] for i in best.tolist()], "valid_mse": mse.tolist()}
        return Affine(standardise, weight[best, :, column].T, bias[best, 0, column], chosen)


def ridge_cv(
    x: Tensor, y: Tensor, groups: Tensor, strengths: Strengths = DECADES, folds: int = 5, seed: int = 0
) -> dict[str, Tensor]:
    """Predict each fold of groups from the others by ridge, whose strength cross-validation inside the others chooses.

    x [M, F], y [M, P], groups [M] (trajectories) -> predictions [M, P], mse [P], r2 [P], strengths [folds, P]. All
    rows share the standardisation, which sees no label. UserError if there are fewer than three groups.
    """
    names, member = groups.unique(return_inverse=True)
    if len(names) < 3:
        raise UserError(f"cross-validation over trajectories needs three or more, not {len(names)}; enlarge the split")
    folds = min(folds, len(names))
    order = torch.randperm(len(names), generator=torch.Generator().manual_seed(seed)).to(groups.device)
    fold = (order % folds)[member]
    x, y = Standardiser.of(x, LIMIT)(x.double()), y.double()

    def without(a: int, b: int) -> tuple[Tensor, Tensor]:
        kept = (fold != a) & (fold != b)
        return solve(x[kept], y[kept], strengths)

    fits = {(a, b): without(a, b) for a in range(folds) for b in range(a, folds)}
    predictions, chosen = torch.empty_like(y), []
    for a in range(folds):
        error = y.new_zeros(len(strengths), y.shape[1])
        for b in set(range(folds)) - {a}:
            weight, bias = fits[min(a, b), max(a, b)]
            error += (x[fold == b] @ weight + bias - y[fold == b]).square().sum(1)
        best, column = error.argmin(0), torch.arange(y.shape[1], device=y.device)
        weight, bias = fits[a, a]
        predictions[fold == a] = x[fold == a] @ weight[best, :, column].T + bias[best, 0, column]
        chosen.append(torch.tensor(strengths)[best.cpu()])
    mse = (predictions - y).square().mean(0)
    r2 = 1 - mse / y.var(0, correction=0)
    return {"predictions": predictions.float(), "mse": mse.float(), "r2": r2.float(), "strengths": torch.stack(chosen)}


@dataclass(frozen=True, eq=False)
class Neighbours:
    """Stored train rows x [M, F] with their theta [M, P], and the number of neighbours k for each parameter."""

    standardise: Standardiser
    x: Tensor
    theta: Tensor
    metric: Literal["cosine", "euclidean"]
    k: tuple[int, ...]
    chosen: dict[str, Any]

    def paths(self, features: Features, most: int) -> Tensor:
        """Predict with the nearest 1, 2, ... most rows, weighted by 1 / distance; [M, most, P] float64."""
        return torch.cat([self._paths(part, most) for part in self.standardise(features.pooled.double()).split(512)])

    def _paths(self, x: Tensor, most: int) -> Tensor:
        if self.metric == "cosine":
            unit = torch.nn.functional.normalize
            distance = 1 - unit(x) @ unit(self.x).T
        else:
            distance = torch.cdist(x, self.x)
        near, index = distance.topk(most, largest=False)
        weight = 1 / near.clamp_min(1e-9)[..., None]
        return (weight * self.theta[index]).cumsum(1) / weight.cumsum(1)

    def __call__(self, features: Features) -> Tensor:
        """Predict the standardised parameters of features, [M, P] float32."""
        paths = self.paths(features, max(self.k))
        return torch.stack([paths[:, k - 1, p] for p, k in enumerate(self.k)], 1).float()


class KNN:
    """Average of the nearest train windows, weighted by 1 / distance; k is chosen on valid for each parameter."""

    needs: Literal["pooled"] = "pooled"

    def __init__(self, metric: Literal["cosine", "euclidean"] = "cosine", most: int = 64) -> None:
        if metric not in ("cosine", "euclidean"):
            raise UserError(f"probe.metric: no metric {metric!r}; there is cosine, euclidean")
        if most < 1:
            raise UserError(f"probe.most={most}: must be 1 or more")
        self.metric: Literal["cosine", "euclidean"] = metric
        self.most = most

    def fit(self, train: Features, valid: Features) -> Neighbours:
        """Store train; keep for each parameter the k in 1 ... most of least squared error on valid."""
        standardise = Standardiser.of(train.pooled, LIMIT)
        stored = standardise, standardise(train.pooled.double()), train.theta.double(), self.metric
        paths = Neighbours(*stored, k=(), chosen={}).paths(valid, min(self.most, len(train)))
        mse, best = (paths - valid.theta[:, None]).square().mean(0).min(0)
        k = [i + 1 for i in best.tolist()]
        return Neighbours(*stored, k=tuple(k), chosen={"k": k, "valid_mse": mse.tolist()})
