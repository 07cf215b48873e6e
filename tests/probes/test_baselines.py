import math

import pytest
import torch

from physrep.errors import UserError
from physrep.probes.baselines import BANDS, statistics
from physrep.probes.closed_form import Ridge
from physrep.probes.features import Features


def decaying_waves(kappa, generator, frames=16, shape=(32, 48)):
    """Advected, diffusing Fourier modes of random amplitude, slope and wind: s_t + U.grad s = kappa lap s, exactly."""
    h, w = shape
    kx = torch.fft.fftfreq(h, 1 / h)[:, None] * 2 * math.pi / h
    ky = torch.fft.fftfreq(w, 1 / w) * 2 * math.pi / w
    square = kx**2 + ky**2
    slope = 1 + 2 * torch.rand(1, generator=generator)
    amplitude = torch.randn(h, w, dtype=torch.complex64, generator=generator) * (square + 0.02) ** (-slope / 2)
    amplitude[0, 0] = 0
    wind = torch.randn(2, generator=generator) * 0.2
    t = torch.arange(frames)[:, None, None]
    phase = -1j * (kx * wind[0] + ky * wind[1]) * t
    s = torch.fft.ifft2(amplitude * torch.exp(phase - kappa * square * t)).real
    return s / s.std() * (0.5 + torch.rand(1, generator=generator))


def diffusion(seed, rows):
    generator = torch.Generator().manual_seed(seed)
    theta = torch.rand(rows, 1, generator=generator) * 2 - 1  # log10 of kappa in units of 0.1 grid^2 / frame
    clips = torch.stack([decaying_waves(0.1 * 10 ** float(v), generator) for v in theta])[:, None]
    return Features(statistics(clips)[:, None], theta, torch.arange(rows))


def test_ridge_on_statistics_recovers_the_diffusivity():
    train, valid, test = diffusion(0, 160), diffusion(1, 40), diffusion(2, 60)
    prediction = Ridge().fit(train, valid)(test)
    r2 = 1 - (prediction - test.theta).square().mean() / test.theta.var(correction=0)
    assert r2 > 0.97


def test_clips_are_described_one_by_one():
    clips = torch.randn(5, 3, 6, 12, 20)
    every = statistics(clips)
    torch.testing.assert_close(every[2:3], statistics(clips[2:3]), rtol=0, atol=0)
    torch.testing.assert_close(every.flip(0), statistics(clips.flip(0)), rtol=0, atol=0)
    assert every.dtype == torch.float32 and not every.requires_grad
    assert torch.equal(statistics(clips.clone().requires_grad_()), every)


@pytest.mark.parametrize(
    "shape", [(1, 1, 1, 8, 8), (2, 1, 2, 3, 3), (2, 4, 1, 16, 5), (1, 11, 5, 8, 24), (2, 2, 3, 9, 7)]
)
@pytest.mark.parametrize("fill", ["noise", "zero", "constant", "flat frames", "tiny", "huge"])
def test_finite_for_any_shape_and_flat_fields(shape, fill):
    x = torch.randn(shape)
    x = {
        "noise": x,
        "zero": 0 * x,
        "constant": 0 * x + 0.1,
        "flat frames": 0 * x + torch.arange(shape[2])[:, None, None],
        "tiny": 1e-9 * x + 1,
        "huge": 1e12 * x,
    }[fill]
    f = statistics(x)
    assert f.shape[0] == shape[0] and f.isfinite().all() and f.abs().max() < 1e6 * x.abs().max().clamp_min(1)


def test_the_number_of_statistics_is_that_of_the_system():
    assert statistics(torch.randn(1, 2, 8, 16, 32)).shape[1] == statistics(torch.randn(1, 2, 16, 64, 64)).shape[1]


def test_a_grid_of_two_points_is_refused():
    with pytest.raises(UserError, match="too small"):
        statistics(torch.zeros(1, 1, 1, 2, 8))


def test_single_frame_statistics_against_loops():
    """Moments, cross moments, spectrum, structure functions and curvature of one frame, in the order of the code."""
    h, w = 12, 16
    clip = torch.randn(1, 2, 1, h, w, dtype=torch.float64).cumsum(-1).cumsum(-2) + 3
    mean, std = clip.mean((2, 3, 4)), clip.std((2, 3, 4), correction=0)
    z = ((clip - mean[..., None, None, None]) / std[..., None, None, None])[0, :, 0]
    want = [*mean[0].tolist(), *std[0].log().tolist(), *(z**4).mean((1, 2)).log().tolist()]
    want += [float((z[i] ** 2 * z[j]).mean()) for i in range(2) for j in range(2)]
    want += [float((z[0] * z[1]).mean()), 0.0, 0.0, math.log(1e-12), math.log(1e-12)]

    window = torch.tensor(
        [
            [(1 - math.cos(2 * math.pi * i / h)) * (1 - math.cos(2 * math.pi * j / w)) for j in range(w)]
            for i in range(h)
        ]
    )
    window = window / window.square().mean().sqrt()
    edges = [8 ** (b / BANDS) / 16 for b in range(BANDS + 1)]  # from 1/16 to 1/2 cycles a point
    for c in range(2):
        power = (torch.fft.fft2(z[c] * window) / (h * w)).abs() ** 2
        energy = [0.0] * BANDS
        for i in range(h):
            for j in range(w):
                k = math.hypot(min(i, h - i) / h, min(j, w - j) / w)
                if k > 0:
                    energy[min(BANDS - 1, sum(k >= e * (1 - 1e-5) for e in edges[1:]))] += float(power[i, j])
        want += [math.log(e + 1e-12) for e in energy]
    for axis, length in ((0, h), (1, w)):
        for lag in (1, 2, 4, 8):
            d = torch.stack(
                [z[c].narrow(axis, lag, length - lag) - z[c].narrow(axis, 0, length - lag) for c in range(2)]
            )
            want += (d**2).mean((1, 2)).log().tolist()
            if lag == 1:
                want += ((d**3).mean((1, 2)) / (d**2).mean((1, 2)) ** 1.5).tolist()
                want += ((d**4).mean((1, 2)) / (d**2).mean((1, 2)) ** 2).log().tolist()
    for c in range(2):
        total = 0.0
        for i in range(1, h - 1):
            for j in range(1, w - 1):
                total += float(z[c, i + 1, j] + z[c, i - 1, j] + z[c, i, j + 1] + z[c, i, j - 1] - 4 * z[c, i, j]) ** 2
        want.append(math.log(total / (h - 2) / (w - 2)))
    torch.testing.assert_close(statistics(clip.float())[0], torch.tensor(want), rtol=1e-3, atol=2e-4)


def test_decay_and_budget_of_a_single_diffusing_wave():
    """s = cos(kx) exp(-kappa k^2 t): the last statistics of one channel are known in closed form."""
    k, kappa, frames = 2 * math.pi / 32, 0.5, 8
    rate = kappa * k**2
    t = torch.arange(frames, dtype=torch.float64)[:, None, None]
    s = torch.cos(k * torch.arange(32))[:, None].expand(32, 32) * torch.exp(-rate * t)
    f = statistics(s[None, None].float())[0].double()
    budget, fit, log_fit = f[-3:]
    assert float(log_fit) == pytest.approx(math.log(abs(float(fit))))
    assert float(fit) == pytest.approx(kappa, rel=0.01)
    assert math.exp(float(budget)) / 2 == pytest.approx(kappa, rel=0.1)
    decay_variance, decay_gradient = f[-6:-4]
    assert float(decay_variance) == pytest.approx(-2 * rate * 6, rel=0.01)
    assert float(decay_gradient) == pytest.approx(-2 * rate * 6, rel=0.01)


def test_the_rate_of_one_channel_is_correlated_with_the_other():
    """b drives a: <da b> / (std a std b) stands at its place among the last statistics, and vanishes for a stranger."""
    generator = torch.Generator().manual_seed(0)
    b, stranger = torch.randn(2, 1, 1, 6, 32, 32, generator=generator)
    a = b.cumsum(2)
    of_a_with_b = statistics(torch.cat([a, b], 1))[0, -11:-7].view(2, 2)[0, 1]
    assert float(of_a_with_b) == pytest.approx(1 / float(a.std() / b.std()), rel=0.05)
    assert abs(float(statistics(torch.cat([a, stranger], 1))[0, -11:-7].view(2, 2)[0, 1])) < 0.05
