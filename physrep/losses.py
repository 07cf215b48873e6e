"""Losses as pure functions, in float32 whatever the precision around them."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def variance_hinge(x: Tensor, eps: float = 1e-4) -> Tensor:
    """Push every feature's standard deviation over the rows of x [N, D] up to one; zero when it is there -> scalar."""
    return torch.relu(1 - (x.float().var(0, unbiased=False) + eps).sqrt()).mean()


def covariance(x: Tensor) -> Tensor:
    """Penalise correlated features of x [N, D]: squared off-diagonal covariances, summed, over D -> scalar."""
    with torch.autocast(x.device.type, enabled=False):
        x = x.float() - x.float().mean(0)
        c = x.T @ x / max(len(x) - 1, 1)
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


def barlow_twins(x: Tensor, y: Tensor, eps: float = 1e-5) -> dict[str, Tensor]:
    """Barlow Twins' two terms, unweighted, of two views' rows x, y [N, D] -> scalars (Zbontar et al. 2021).

    Of the correlations between the features of one view and of the other, on: squared distance of the diagonal from
    one, off: squares of the rest; both summed.
    """
    with torch.autocast(x.device.type, enabled=False):
        x, y = ((v - v.mean(0)) / (v.var(0, unbiased=False) + eps).sqrt() for v in (x.float(), y.float()))
        c = x.T @ y / len(x)
        return {
            "on": (1 - c.diagonal()).square().sum(),
            "off": c.square().sum() - c.diagonal().square().sum(),
        }


def nt_xent(x: Tensor, y: Tensor, trajectory: Tensor, temperature: float = 0.1) -> Tensor:
    """Tell a row's pair by its cosine from the rows of other trajectories, x, y [N, D] -> scalar (Chen et al. 2020).

    trajectory [N]: the rows of one trajectory share their physics, so they are no negatives of one another.
    """
    with torch.autocast(x.device.type, enabled=False):
        rows = F.normalize(torch.cat([x, y]).float(), dim=1)
        pair = torch.arange(len(rows), device=x.device).roll(len(x))
        owner = trajectory.repeat(2)
        skip = (owner[:, None] == owner).scatter(1, pair[:, None], False)
        return F.cross_entropy((rows @ rows.T / temperature).masked_fill(skip, -torch.inf), pair)


def directions(width: int, number: int, seed: int) -> Tensor:
    """Draw unit vectors, uniform on the sphere, as the columns of [D, K]: a function of the seed, on the CPU."""
    return F.normalize(torch.randn(width, number, generator=torch.Generator().manual_seed(seed)), dim=0)


def sigreg(x: Tensor, directions: Tensor, nodes: int = 17) -> Tensor:
    """Push the rows of x [N, D] towards N(0, I): SIGReg of LeJEPA (Balestriero and LeCun 2025) -> scalar.

    The statistic of Epps and Pulley of the rows along each of the directions [D, K], averaged: N times the squared
    distance of their characteristic function from a Gaussian's, under its weight, by the trapezoid rule over |t| <= 3.
    Rows drawn from N(0, I) have 1.053 at every N; rows that are all zero 0.402 N.
    """
    with torch.autocast(x.device.type, enabled=False):
        t = torch.linspace(0, 3, nodes, device=x.device)
        step = torch.full_like(t, 2 * 3 / (nodes - 1))  # both signs of t
        step[[0, -1]] /= 2
        gaussian = (-t.square() / 2).exp()
        angle = (x.float() @ directions.to(x.device)).unsqueeze(-1) * t  # [N, K, nodes]
        distance = (angle.cos().mean(0) - gaussian).square() + angle.sin().mean(0).square()
        return len(x) * (distance @ (step * gaussian)).mean()


def lejepa(x: Tensor, y: Tensor, directions: Tensor) -> dict[str, Tensor]:
    """LeJEPA's two terms, unweighted, of two views' rows x, y [N, D] and directions [D, K] -> scalars.

    sim: mean squared distance; sigreg: mean of both views' SIGReg.
    """
    return {
        "sim": (x.float() - y.float()).square().mean(),
        "sigreg": 0.5 * (sigreg(x, directions) + sigreg(y, directions)),
    }


def weigh(terms: dict[str, Tensor], **weights: float) -> dict[str, Tensor]:
    """Return the terms with their weighted sum as `loss`."""
    return {"loss": torch.stack([weights[k] * v for k, v in terms.items()]).sum(), **terms}
