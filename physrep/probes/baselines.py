"""The hand-made control: statistics of raw clips that a physicist would try before a network."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from physrep.errors import UserError

BANDS = 8
LAGS = (1, 2, 4, 8)  # grid points
TINY = 1e-12  # in variances of the clip: below it is rounding


@torch.no_grad()
def statistics(clip: Tensor) -> Tensor:
    """Describe clips [B, C, T, H, W] by F numbers each, [B, F] float32: a system-blind set, finite on flat fields.

    Of each channel: moments; energy in bands of |k|, its rate of change and its decay; structure functions along both
    axes with skewness and flatness of the gradients; curvature; differences, correlation and decay in time;
    diffusivities from the budget of variance and from a fit of ds/dt to the Laplacian. Of pairs: correlations, third
    moments, correlations with the other's rate of change, joint variance budgets. Squares enter as logarithms, so that
    a linear probe can form ratios and powers. Lengths are in grid points, times in frames. What needs two frames is
    left out of a single one. UserError if the grid is smaller than 3 x 3.
    """
    if min(clip.shape[-2:]) < 3:
        raise UserError(f"statistics: a grid of {tuple(clip.shape[-2:])} is too small; three points an axis are needed")
    # Clips are independent, and one at a time stays in the cache.
    return torch.cat([_statistics(one) for one in clip.float().split(1)])


def _statistics(clip: Tensor) -> Tensor:
    batch, frames = len(clip), clip.shape[2]
    level = clip.mean((2, 3, 4), keepdim=True)
    spread = clip.sub(level).square().mean((2, 3, 4), keepdim=True).sqrt()
    spread = spread.maximum(1e-6 * level.abs()).clamp_min(1e-12)
    z = (clip - level) / spread
    flat = z.flatten(2)
    third = _product(flat.square(), flat)
    level, spread = level.flatten(1), spread.flatten(1)
    fourth = flat.square().square().mean(2)
    out = [level, spread.log(), _log(fourth), third.flatten(1), _pairs(_product(flat, flat))]

    mean = z.mean((3, 4))  # [B, C, T]
    fluctuation = z - mean[..., None, None]
    out += [mean[..., -1] - mean[..., 0], _log(mean.var(2, correction=0))]
    variance = fluctuation.square().mean((3, 4))
    spectrum = _spectrum(fluctuation)
    energy = _bands(spectrum, clip.shape[-1])  # [B, C, T, bands]
    out += [_log(energy.mean(2)), *_along(fluctuation, 3), *_along(fluctuation, 4)]
    gradient = _difference(z, 3, 1).square().mean((3, 4)) + _difference(z, 4, 1).square().mean((3, 4))  # [B, C, T]
    laplacian = _laplacian(z)
    out += [_log(laplacian.square().mean((2, 3, 4)))]
    if frames == 1:
        return torch.cat([o.reshape(batch, -1) for o in out], 1)

    rate = z[:, :, 1:] - z[:, :, :-1]
    out += [_log(_difference(z, 2, lag).square().mean((2, 3, 4))) for lag in (1, 4) if lag < frames]
    out += [_log(z.diff(n=2, dim=2).square().mean((2, 3, 4)))] if frames > 2 else []
    first, final = fluctuation[:, :, 0], fluctuation[:, :, -1]
    out += [(first * final).mean((2, 3)) / (variance[..., 0] * variance[..., -1] + TINY**2).sqrt()]
    out += [_log(_bands(spectrum[:, :, 1:] - spectrum[:, :, :-1], clip.shape[-1]).mean(2)) - _log(energy.mean(2))]
    out += [_decay(energy), _decay(variance), _decay(gradient)]
    out += [_product(rate.flatten(2), z[:, :, 1:].flatten(2)).flatten(1)]

    # Variance budget: d<s^2>/dt = -2 kappa <|grad s|^2>; and ds/dt ~ kappa lap s in least squares.
    lost = (variance[..., 0] - variance[..., -1]) / (frames - 1)
    middle = (laplacian[:, :, 1:] + laplacian[:, :, :-1]) / 2
    fit = (rate[..., 1:-1, 1:-1] * middle).mean((2, 3, 4)) / (middle.square().mean((2, 3, 4)) + TINY)
    square = spread.square()
    out += [_log(lost.abs()) - _log(gradient.mean(2)), fit, _log(fit.abs())]
    square = spread.square()
    both = [square, square * lost, square * gradient.mean(2)]
    scale, lost, slope = (_pairs(v[:, :, None] + v[:, None]) for v in both)
    out += [_log(lost.abs() / scale) - _log(slope / scale)]
    return torch.cat([o.reshape(batch, -1) for o in out], 1)


def _log(square: Tensor) -> Tensor:
    return (square + TINY).log()


def _product(a: Tensor, b: Tensor) -> Tensor:
    """Mean product of all channels of a with all of b: [B, C, X], [B, C, X] -> [B, C, C]."""
    return a @ b.transpose(1, 2) / a.shape[2]


def _pairs(matrix: Tensor) -> Tensor:
    """Return what lies above the diagonal of [B, C, C]."""
    channels = matrix.shape[1]
    i, j = torch.triu_indices(channels, channels, offset=1, device=matrix.device)
    return matrix[:, i, j]


def _difference(x: Tensor, axis: int, lag: int) -> Tensor:
    n = x.shape[axis] - lag
    return x.narrow(axis, lag, n) - x.narrow(axis, 0, n)


def _along(x: Tensor, axis: int) -> list[Tensor]:
    """Log structure functions at the lags that fit, skewness and log flatness of the gradient: [B, C] each."""
    out = []
    for lag in LAGS:
        if lag >= x.shape[axis]:
            continue
        d = _difference(x, axis, lag)
        square = d.square()
        second = square.mean((2, 3, 4)) + TINY
        out.append(second.log())
        if lag == 1:
            out.append((square * d).mean((2, 3, 4)) / second**1.5)
            out.append((square.square().mean((2, 3, 4)) / second.square() + TINY).log())
    return out


def _laplacian(x: Tensor) -> Tensor:
    inner = x[..., 1:-1, 1:-1]
    return x[..., 2:, 1:-1] + x[..., :-2, 1:-1] + x[..., 1:-1, 2:] + x[..., 1:-1, :-2] - 4 * inner


def _spectrum(x: Tensor) -> Tensor:
    """Fourier transform under a Hann window, since a crop is not periodic; the sum of |.|^2 is the mean square."""
    h, w = x.shape[-2:]
    window = torch.hann_window(h, device=x.device)[:, None] * torch.hann_window(w, device=x.device)
    spectrum: Tensor = torch.fft.rfft2(x * (window / window.square().mean().sqrt()), norm="forward")
    return spectrum


def _bands(spectrum: Tensor, width: int) -> Tensor:
    """Sum |.|^2 of [..., H, width // 2 + 1] over logarithmic bands of |k|, the corners in the last -> [..., BANDS]."""
    height, half = spectrum.shape[-2:]
    kx = torch.fft.fftfreq(height, device=spectrum.device)[:, None]
    ky = torch.fft.rfftfreq(width, device=spectrum.device)
    longest = 1 / max(height, width)
    place = (torch.hypot(kx, ky) / longest).log() / math.log(0.5 / longest)  # 0 at the longest wave, 1 at the shortest
    band = (place * BANDS + 1e-4).floor().clamp_max(BANDS - 1)
    twice = torch.full((half,), 2.0, device=spectrum.device)  # columns that stand for their complex conjugates too
    twice[0] = 1
    if width % 2 == 0:
        twice[-1] = 1
    share = (band[..., None] == torch.arange(BANDS, device=spectrum.device)) * twice[:, None]
    return torch.view_as_real(spectrum).square().sum(-1).flatten(-2) @ share.flatten(0, 1)


def _decay(x: Tensor) -> Tensor:
    """Log ratio of the last quarter of the frames to the first, [B, C, T, ...] -> [B, C, ...]."""
    n = max(1, x.shape[2] // 4)
    return _log(x[:, :, -n:].mean(2)) - _log(x[:, :, :n].mean(2))
