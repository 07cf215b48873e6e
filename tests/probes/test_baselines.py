import math

import pytest
import torch

from physrep.errors import UserError
from physrep.probes.baselines import (
    BANDS,
    _direction,
    _spectrum,
    correlation_times,
    equations,
    statistics,
)
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
    """Moments, cross moments, spectrum, structure functions and curvature of one frame: the first that the code has."""
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
    torch.testing.assert_close(statistics(clip.float())[0, : len(want)], torch.tensor(want), rtol=1e-3, atol=2e-4)


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


def test_the_equation_of_an_advected_decaying_field_has_its_wind_and_diffusivity():
    """s_t = -U.grad s + kappa lap s: four waves, followed exactly."""
    (u, v), kappa = (0.3, -0.2), 0.4
    x, y, t = torch.meshgrid(*(torch.arange(n, dtype=torch.float64) for n in (64, 48, 8)), indexing="ij")
    s = torch.zeros(64, 48, 8, dtype=torch.float64)
    for n, (p, q) in enumerate(((1, 0), (0, 1), (2, 1), (1, 3))):
        kx, ky = 2 * math.pi * p / 64, 2 * math.pi * q / 48
        s += torch.cos(kx * (x - u * t) + ky * (y - v * t) + n) * torch.exp(-kappa * (kx**2 + ky**2) * t)
    weight, constant, rest, curvature, other = equations(s.permute(2, 0, 1)[None, None].float())
    s1, s2, s3, along_x, along_y, adverse_x, adverse_y, lap = weight[0, 0].tolist()
    assert along_x == pytest.approx(-u, rel=0.03) and along_y == pytest.approx(-v, rel=0.03)
    assert lap == pytest.approx(kappa, rel=0.03)
    assert max(abs(w) for w in (s1, s2, s3, adverse_x, adverse_y, float(constant))) < 0.003
    assert float(rest) < 1e-3 and float(other) < 0.05
    assert curvature.shape == weight.shape and float(curvature[0, 0, -1]) > 0


def smooth(generator, *shape):
    """A random field of long periodic waves along the last two axes."""
    h, w = shape[-2:]
    noise = torch.randn(*shape[:-2], h, w, dtype=torch.complex64, generator=generator)
    kx, ky = torch.fft.fftfreq(h, 1 / h)[:, None], torch.fft.fftfreq(w, 1 / w)
    field = torch.fft.ifft2(noise * (torch.hypot(kx, ky) < 4)).real
    return (field - field.mean()) / field.std()


def test_velocities_are_found_in_whatever_units_they_come():
    """s_t = -u s_x - v s_y with u = 2 u' + 1, v = v' / 2: the mean wind is the slope's, the rest the product's."""
    s, u, v = smooth(torch.Generator().manual_seed(0), 3, 64, 64)
    frames, dt = [s], 0.02
    for _ in range(6):
        s_x, s_y = ((torch.roll(frames[-1], -1, a) - torch.roll(frames[-1], 1, a)) / 2 for a in (0, 1))
        frames.append(frames[-1] - dt * ((2 * u + 1) * s_x + v / 2 * s_y))
    clip = torch.stack([torch.stack(frames), u.expand(7, -1, -1), v.expand(7, -1, -1)])
    weight, _, rest, *_ = equations(clip[None])
    monomials = math.comb(6, 3) - 1
    slopes, products = weight[0, 0, monomials : monomials + 6], weight[0, 0, monomials + 6 : -1]
    torch.testing.assert_close(slopes / dt, torch.tensor([-1.0, 0, 0, 0, 0, 0]), rtol=0, atol=0.05)
    torch.testing.assert_close(products / dt, torch.tensor([0.0, -2, 0, 0, 0, -0.5]), rtol=0, atol=0.05)
    assert float(rest[0, 0]) < 1e-3


def test_the_rates_of_reaction_and_diffusion_are_found():
    """Gray and Scott's a_t = lap a - a b^2 + F (1 - a) and b_t = lap b / 2 + a b^2 - (F + k) b, in small steps."""
    a, b = smooth(torch.Generator().manual_seed(0), 2, 48, 64)
    feed, kill, dt, frames = 0.2, 0.3, 0.001, []
    for _ in range(5):
        frames.append(torch.stack([a, b]))
        lap_a, lap_b = (sum(torch.roll(f, n, ax) for n in (-1, 1) for ax in (0, 1)) - 4 * f for f in (a, b))
        eaten = a * b**2
        a = a + dt * (lap_a - eaten + feed * (1 - a))
        b = b + dt * (lap_b / 2 + eaten - (feed + kill) * b)
    weight, constant, rest, *_ = equations(torch.stack(frames, 1)[None])
    of_a, of_b = weight[0] / dt
    assert float(constant[0, 0] / dt) == pytest.approx(feed, abs=0.02)
    assert float(of_a[0]) == pytest.approx(-feed, abs=0.05) and float(of_b[1]) == pytest.approx(-0.5, abs=0.05)
    assert float(of_a[7]) == pytest.approx(-1, abs=0.05) and float(of_b[7]) == pytest.approx(1, abs=0.05)  # a b b
    assert float(of_a[-1]) == pytest.approx(1, rel=0.05) and float(of_b[-1]) == pytest.approx(0.5, rel=0.05)
    assert rest.max() < 1e-3


def test_a_field_at_rest_has_a_balance():
    """lap s = -k^2 s and nothing moves: rates have no weights, and the standardised weight of s is -1."""
    k = 2 * math.pi / 32
    s = torch.cos(k * torch.arange(64))[:, None] + torch.sin(k * torch.arange(48))
    weight, constant, rest, curvature, other = equations(s.expand(1, 1, 5, -1, -1))
    assert weight.abs().max() < 1e-6 and constant.abs().max() < 1e-6 and rest.abs().max() < 1e-6
    want = torch.tensor([-1.0, *[0.0] * 7])
    torch.testing.assert_close(curvature[0, 0], want, rtol=0, atol=1e-3)
    assert float(other) < 1e-3


@pytest.mark.parametrize("tau", [0.7, 2.0, 4.0])
def test_correlation_times_of_noise_with_a_memory(tau):
    """Autoregressive noise of correlation exp(-lag / tau)."""
    rho = math.exp(-1 / tau)
    noise = torch.randn(16, 1, 1, 96, 96, generator=torch.Generator().manual_seed(0))
    frames = [noise[0]]
    for n in noise[1:]:
        frames.append(rho * frames[-1] + math.sqrt(1 - rho**2) * n)
    integral, efold = correlation_times(torch.stack(frames, 2))
    assert math.exp(float(efold)) == pytest.approx(tau, rel=0.05) or tau < 1
    want = 0.5 + sum(rho**lag for lag in range(1, 15)) + rho**15 / 2
    assert math.exp(float(integral)) == pytest.approx(want, rel=0.12)


def test_correlation_times_end_with_the_clip():
    still = torch.randn(1, 2, 1, 16, 16).expand(-1, -1, 6, -1, -1)
    for time in correlation_times(still):
        torch.testing.assert_close(time, torch.full((1, 2), math.log(5)))


def test_waves_have_a_direction():
    x, y = torch.arange(32)[:, None] / 32, torch.arange(48) / 48
    along_x, along_y = (torch.sin(2 * math.pi * 2 * v).expand(32, 48) for v in (x, y))
    clip = torch.stack([along_x, along_y])[None, :, None]
    spectrum = _spectrum(clip)
    direction = _direction(spectrum, 48)[0]
    assert direction.shape == (2, BANDS // 2)
    assert direction[0].max() > 0.6 and direction[1].min() < -0.6


def test_statistics_stay_moderately_many():
    """The published active matter has eleven channels; weights of its many monomials would double the number."""
    assert [statistics(torch.randn(1, c, 8, 16, 16)).shape[1] for c in (1, 2, 4, 6, 11)] == [74, 178, 420, 498, 1078]
