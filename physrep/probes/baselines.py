"""The hand-made control: statistics of raw clips that a physicist would try before a network."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from physrep.errors import UserError

BANDS = 8
LAGS = (1, 2, 4, 8)  # grid points
PRODUCTS = 20  # most monomials of the channels in an equation: cubic for up to three, linear for six or more
SHRINK = 1e-6  # of an equation's standardised coefficients: ridge against columns that cannot be told apart
TINY = 1e-12  # in variances of the clip: below it is rounding


@torch.no_grad()
def statistics(clip: Tensor) -> Tensor:
    """Describe clips [B, C, T, H, W] by F numbers each, [B, F] float32: a system-blind set, finite on flat fields.

    Of each channel: moments; energy in bands of |k|, its direction, its rate of change and its decay; structure
    functions along both axes with skewness and flatness of the gradients; curvature; differences, correlation,
    correlation times and decay in time; diffusivities from the budget of variance and from a fit of ds/dt to the
    Laplacian; an equation of motion (`equations`). Of pairs: correlations, third moments, correlations with the other's
    rate of change, joint variance budgets. Squares enter as logarithms, so that a linear probe can form ratios and
    powers. Lengths are in grid points, times in frames. What needs two frames is left out of a single one. UserError if
    the grid is smaller than 3 x 3.
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
    out += [_direction(spectrum, clip.shape[-1])]
    if frames == 1:
        return torch.cat([o.reshape(batch, -1) for o in out], 1)

    rate = z[:, :, 1:] - z[:, :, :-1]
    out += [_log(_difference(z, 2, lag).square().mean((2, 3, 4))) for lag in (1, 4) if lag < frames]
    out += [_log(z.diff(n=2, dim=2).square().mean((2, 3, 4)))] if frames > 2 else []
    first, final = fluctuation[:, :, 0], fluctuation[:, :, -1]
    out += [(first * final).mean((2, 3)) / (variance[..., 0] * variance[..., -1] + TINY**2).sqrt()]
    out += [_log(_bands(spectrum[:, :, 1:] - spectrum[:, :, :-1], clip.shape[-1]).mean(2)) - _log(energy.mean(2))]
    out += [*correlation_times(fluctuation), *_described(*equations(clip))]
    out += [_decay(energy), _decay(variance), _decay(gradient)]
    out += [_product(rate.flatten(2), z[:, :, 1:].flatten(2)).flatten(1)]

    # Variance budget: d<s^2>/dt = -2 kappa <|grad s|^2>; and ds/dt ~ kappa lap s in least squares.
    lost = (variance[..., 0] - variance[..., -1]) / (frames - 1)
    middle = (laplacian[:, :, 1:] + laplacian[:, :, :-1]) / 2
    fit = (rate[..., 1:-1, 1:-1] * middle).mean((2, 3, 4)) / (middle.square().mean((2, 3, 4)) + TINY)
    out += [_log(lost.abs()) - _log(gradient.mean(2)), fit, _log(fit.abs())]
    square = spread.square()
    both = [square, square * lost, square * gradient.mean(2)]
    scale, lost, slope = (_pairs(v[:, :, None] + v[:, None]) for v in both)
    out += [_log(lost.abs() / scale) - _log(slope / scale)]
    return torch.cat([o.reshape(batch, -1) for o in out], 1)


def correlation_times(x: Tensor) -> tuple[Tensor, Tensor]:
    """Log integral and e-folding times, in frames, of fluctuations [B, C, T, H, W] -> [B, C] each.

    Of the correlation over all pairs of frames a lag apart: its integral up to the first zero, and where it falls to
    1/e, between lags by its logarithm. Neither is longer than the clip.
    """
    flat, frames = x.flatten(3), x.shape[2]
    product = flat @ flat.mT / flat.shape[3]
    own = product.diagonal(dim1=2, dim2=3)
    found = [torch.ones_like(own[..., 0])]
    for lag in range(1, frames):
        scale = (own[..., lag:].sum(2) * own[..., :-lag].sum(2)).sqrt() + TINY
        found.append(product.diagonal(lag, 2, 3).sum(2) / scale)
    r = torch.stack(found, 2).clamp_max(1)
    positive = r.clamp_min(0) * (r > 0).cumprod(2)
    integral = (positive[..., 1:] + positive[..., :-1]).sum(2) / 2
    fall = r.clamp_min(1e-6).log()
    before, after = fall[..., :-1], fall[..., 1:]
    crossing = torch.arange(frames - 1, device=x.device) + (before + 1) / (before - after).clamp_min(1e-6)
    efold = torch.where((before > -1) & (after <= -1), crossing, float(frames - 1)).amin(2)
    return integral.log(), efold.log()


def equations(s: Tensor) -> tuple[Tensor, ...]:
    """Fit an equation of motion to every channel s_i of clips [B, C, T, H, W] by least squares over all points.

    Its columns are the monomials of the channels, M, as in reactions and forcing; the slopes of all channels along both
    axes, 2 C, as in pressure gradients; the products of each channel with the slopes of s_i, 2 C, as in advection by
    whichever channels are velocities; lap s_i; and ds_i/dt, midway between frames. Returns it solved for the rate, its
    coefficients [B, C, M + 4 C + 1] in the order above without ds_i/dt, constant [B, C] and residual share [B, C]; and
    solved for lap s_i, in the standardised form that a field at rest leaves well-posed, with ds_i/dt the last column.
    """
    s = s / (s.abs().amax((1, 2, 3, 4), keepdim=True) / 1e3).clamp_min(1)  # cubes of wild values must not overflow
    channels, frames = s.shape[1:3]
    now, pivot, totals, products = _columns(s[:, :, 0]), None, [], []
    for t in range(1, frames):
        last, now = now, _columns(s[:, :, t])
        change = now[:, :channels] - last[:, :channels]
        x = torch.cat([(last + now) / 2, change], 1)  # [B, K, N]: monomials, slopes, products, Laplacians, rates
        pivot = x.mean(2, keepdim=True) if pivot is None else pivot
        x = x - pivot
        totals.append(x.mean(2).double())
        products.append((x @ x.mT / x.shape[2]).double())
    assert pivot is not None  # there are two frames
    total = torch.stack(totals).mean(0)
    covariance = torch.stack(products).mean(0) - total[:, :, None] * total[:, None]
    mean = total + pivot[..., 0].double()
    spread = covariance.diagonal(dim1=1, dim2=2).clamp_min(0).sqrt() + 1e-6 * (1 + mean.abs())
    correlation = covariance / (spread[:, :, None] * spread[:, None])

    i, columns = torch.arange(channels, device=s.device)[:, None], covariance.shape[1]
    shared = columns - 2 * channels - 2 * channels**2
    advection = shared + 2 * channels * i + torch.arange(2 * channels, device=s.device)
    common = torch.arange(shared, device=s.device).expand(channels, -1)
    place = torch.cat([common, advection, columns - 2 * channels + i, columns - channels + i], 1)  # [C, L]
    mean, spread = mean[:, place], spread[:, place]
    correlation = correlation[:, place[:, :, None], place[:, None]]  # [B, C, L, L]

    rate, rest = _regression(correlation, -1)
    weight = rate * spread[..., -1:] / spread[..., :-1]
    constant = mean[..., -1] - (weight * mean[..., :-1]).sum(-1)
    curvature, other = _regression(correlation, -2)
    return tuple(x.float() for x in (weight, constant, rest, curvature, other))


def _columns(s: Tensor) -> Tensor:
    """Return monomials, slopes, slopes times channels and Laplacians of frames [B, C, H, W], [B, K, inner points]."""
    channels = s.shape[1]
    degree = max(d for d in (1, 2, 3) if d == 1 or math.comb(channels + d, d) - 1 <= PRODUCTS)
    inner = s[..., 1:-1, 1:-1]
    out, grown = [inner], list(inner.split(1, 1))  # by the first channel of a monomial, in order
    for _ in range(degree - 1):
        grown = [inner[:, i : i + 1] * torch.cat(grown[i:], 1) for i in range(channels)]
        out += grown
    along = (s[..., 2:, 1:-1] - s[..., :-2, 1:-1]) / 2, (s[..., 1:-1, 2:] - s[..., 1:-1, :-2]) / 2
    products = torch.cat([inner[:, None] * slope[:, :, None] for slope in along], 2).flatten(1, 2)
    return torch.cat([*out, *along, products, _laplacian(s)], 1).flatten(2)


def _regression(correlation: Tensor, column: int) -> tuple[Tensor, Tensor]:
    """Regress a column on the others by correlations [..., L, L] -> weights [..., L - 1], residual share [...]."""
    size = correlation.shape[-1]
    rest = [n for n in range(size) if n != column % size]
    inner, outer = correlation[..., rest, :][..., rest], correlation[..., rest, column]
    damped = inner + SHRINK * torch.eye(size - 1).to(inner)
    weight = torch.linalg.solve(damped, outer)
    error = correlation[..., column, column] - (weight * outer).sum(-1)
    return weight, (error - SHRINK * weight.square().sum(-1)).clamp_min(0)


def _described(rate: Tensor, constant: Tensor, rest: Tensor, curvature: Tensor, other: Tensor) -> list[Tensor]:
    """Choose from `equations`: all but the weights of slopes, whose signs average out, and of linear equations.

    Those of six channels or more are linear, and their weights would be as many as the channels squared.
    """
    channels = rate.shape[1]
    kappa, inverse, monomials = rate[..., -1], curvature[..., -1], rate.shape[-1] - 4 * channels - 1
    out = [kappa, (kappa.square() + 1e-8).log(), inverse, (inverse.square() + 1e-8).log(), constant]
    out += [rest, rest.clamp_min(1e-6).log(), other, other.clamp_min(1e-6).log()]
    return out + ([rate[..., :monomials], curvature[..., :monomials]] if monomials > channels else [])


def _direction(spectrum: Tensor, width: int) -> Tensor:
    """Mean of cos 2 phi of the wave vectors, 1 along H and -1 along W, by energy in half of the bands."""
    power = torch.view_as_real(spectrum).square().sum(-1).mean(2)
    along, every = (_sum(power, width, turned).unflatten(-1, (-1, 2)).sum(-1) for turned in (True, False))
    share: Tensor = along / (every + TINY)
    return share


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
    """Sum |.|^2 of [..., H, width // 2 + 1] over bands of |k| -> [..., BANDS]."""
    return _sum(torch.view_as_real(spectrum).square().sum(-1), width)


def _sum(power: Tensor, width: int, turned: bool = False) -> Tensor:
    """Sum [..., H, width // 2 + 1] over logarithmic bands of |k|, the corners in the last -> [..., BANDS].

    `turned` weighs every wave by cos 2 phi: 1 along H, -1 along W.
    """
    height, half = power.shape[-2:]
    kx = torch.fft.fftfreq(height, device=power.device)[:, None]
    ky = torch.fft.rfftfreq(width, device=power.device)
    longest = 1 / max(height, width)
    place = (torch.hypot(kx, ky) / longest).log() / math.log(0.5 / longest)  # 0 at the longest wave, 1 at the shortest
    band = (place * BANDS + 1e-4).floor().clamp_max(BANDS - 1)
    twice = torch.full((half,), 2.0, device=power.device)  # columns that stand for their complex conjugates too
    twice[0] = 1
    if width % 2 == 0:
        twice[-1] = 1
    share = (band[..., None] == torch.arange(BANDS, device=power.device)) * twice[:, None]
    if turned:
        share = share * ((kx**2 - ky**2) / (kx**2 + ky**2).clamp_min(TINY))[..., None]
    return power.flatten(-2) @ share.flatten(0, 1)


def _decay(x: Tensor) -> Tensor:
    """Log ratio of the last quarter of the frames to the first, [B, C, T, ...] -> [B, C, ...]."""
    n = max(1, x.shape[2] // 4)
    return _log(x[:, :, -n:].mean(2)) - _log(x[:, :, :n].mean(2))
