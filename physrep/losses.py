"""Losses as pure functions, in float32 whatever the precision around them."""

from __future__ import annotations

import torch
from torch import Tensor


def variance_hinge(x: Tensor, eps: float = 1e-4) -> Tensor:
    """Push every feature's standard deviation over the rows of x [N, D] up to one; zero when it is there -> scalar."""
    return torch.relu(1 - (x.float().var(0, unbiased=False) + eps).sqrt()).mean()


def covariance(x: Tensor) -> Tensor:
    """Penalise correlated features of x [N, D]: squared off-diagonal covariances, summed, over D -> scalar."""
    with torch.autocast(x.device.type, enabled=False):
        x = x.float() - x.float().mean(0)
        c = x.T @ x / (len(x) - 1)
        return (c.square().sum() - c.diagonal().square().sum()) / x.shape[1]


def vicreg(x: Tensor, y: Tensor) -> dict[str, Tensor]:
    """VICReg's three terms, unweighted, of two views' rows x, y [N, D] -> scalars (Bardes et al. 2022).

    sim: mean squared distance; std: variance hinge, mean of both; cov: covariance penalty, sum of both.
    """
    return {
        "sim": (x.float() - y.float()).square().mean(),
        "std": 0.5 * (variance_hinge(x) + variance_hinge(y)),
        "cov": covariance(x) + covariance(y),
    }


def weigh(terms: dict[str, Tensor], **weights: float) -> dict[str, Tensor]:
    """Return the terms with their weighted sum as `loss`."""
    return {"loss": torch.stack([weights[k] * v for k, v in terms.items()]).sum(), **terms}
