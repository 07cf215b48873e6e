"""Losses against naive loops and known values."""

import math

import pytest
import torch

from physrep.losses import (
    barlow_twins,
    covariance,
    directions,
    lejepa,
    nt_xent,
    sigreg,
    variance_hinge,
    vicreg,
    weigh,
)


def naive(x, y):
    """VICReg's terms written out entry by entry."""
    n, d = x.shape
    sim = sum(float((x[i, j] - y[i, j]) ** 2) for i in range(n) for j in range(d)) / (n * d)
    std = cov = 0.0
    for a in (x, y):
        means = [sum(float(a[i, j]) for i in range(n)) / n for j in range(d)]
        for j in range(d):
            var = sum((float(a[i, j]) - means[j]) ** 2 for i in range(n)) / n
            std += 0.5 * max(0.0, 1 - (var + 1e-4) ** 0.5) / d
            for k in range(d):
                if k != j:
                    c = sum((float(a[i, j]) - means[j]) * (float(a[i, k]) - means[k]) for i in range(n)) / (n - 1)
                    cov += c * c / d
    return {"sim": sim, "std": std, "cov": cov}


def test_vicreg_equals_the_naive_loop():
    torch.manual_seed(0)
    x = torch.randn(17, 5) @ torch.randn(5, 5) * 0.4
    y = x + 0.3 * torch.randn(17, 5)
    for name, value in naive(x, y).items():
        assert float(vicreg(x, y)[name]) == pytest.approx(value, rel=1e-5), name


def test_known_values():
    zero = torch.zeros(32, 8)
    terms = vicreg(zero, zero)
    assert float(terms["std"]) == pytest.approx(0.99, abs=1e-6), "0.495 a branch"
    assert float(terms["sim"]) == float(terms["cov"]) == 0
    assert float(variance_hinge(torch.randn(100_000, 4))) < 0.01
    x = torch.randn(5000, 3)
    assert float(covariance(x)) < 1e-2
    assert float(covariance(x[:, :1].expand(-1, 3))) == pytest.approx(2.0, rel=0.1)


def test_barlow_twins_equals_the_naive_loop():
    torch.manual_seed(0)
    x = torch.randn(11, 4) @ torch.randn(4, 4) + 3
    y = x + 0.5 * torch.randn(11, 4)
    mean, std = [], []
    for v in (x, y):
        mean.append([sum(float(r[j]) for r in v) / 11 for j in range(4)])
        std.append([math.sqrt(sum((float(r[j]) - mean[-1][j]) ** 2 for r in v) / 11 + 1e-5) for j in range(4)])
    on = off = 0.0
    for i in range(4):
        for j in range(4):
            c = sum((float(a[i]) - mean[0][i]) * (float(b[j]) - mean[1][j]) for a, b in zip(x, y, strict=True)) / 11
            c /= std[0][i] * std[1][j]
            on, off = (on + (1 - c) ** 2, off) if i == j else (on, off + c * c)
    terms = barlow_twins(x, y)
    assert float(terms["on"]) == pytest.approx(on, rel=1e-4)
    assert float(terms["off"]) == pytest.approx(off, rel=1e-4)


def test_known_values_of_barlow_twins():
    torch.manual_seed(0)
    x, y = torch.randn(20_000, 6), torch.randn(20_000, 6)
    assert float(barlow_twins(x, 3 * x + 1)["on"]) < 1e-6, "scale and offset do not matter"
    assert float(barlow_twins(x, x)["off"]) < 0.01
    assert float(barlow_twins(x, y)["on"]) == pytest.approx(6, rel=0.05), "nothing in common"
    assert float(barlow_twins(x[:, :1].expand(-1, 6), x[:, :1].expand(-1, 6))["off"]) == pytest.approx(30, rel=1e-3)


def naive_nt_xent(x, y, trajectory, temperature):
    """Every row against its pair and the rows of other trajectories, one exponential at a time."""
    rows, owner = [*x, *y], [*trajectory, *trajectory]
    n, total = len(x), 0.0
    for i, row in enumerate(rows):
        pair = (i + n) % (2 * n)
        score = [math.exp(float(torch.cosine_similarity(row, other, dim=0)) / temperature) for other in rows]
        negatives = sum(s for j, s in enumerate(score) if owner[j] != owner[i])
        total -= math.log(score[pair] / (score[pair] + negatives)) / (2 * n)
    return total


@pytest.mark.parametrize("trajectory", [[0, 1, 2, 3, 4], [7, 7, 2, 5, 2]])
def test_nt_xent_equals_the_naive_loop(trajectory):
    torch.manual_seed(0)
    x, y = torch.randn(5, 3), torch.randn(5, 3)
    loss = nt_xent(x, y, torch.tensor(trajectory), 0.5)
    assert float(loss) == pytest.approx(naive_nt_xent(x, y, trajectory, 0.5), rel=1e-5)


def test_known_values_of_nt_xent():
    """Orthogonal rows, collapsed rows, and a batch of one trajectory, which has no negatives."""
    x = torch.eye(4)
    assert float(nt_xent(x, x, torch.arange(4), 0.5)) == pytest.approx(math.log(1 + 6 * math.exp(-2)), rel=1e-6)
    assert float(nt_xent(x[:1].expand(4, 4), x[:1].expand(4, 4), torch.arange(4))) == pytest.approx(math.log(7))
    assert float(nt_xent(x, x.flip(0), torch.zeros(4, dtype=torch.int64))) == 0


def characteristic(mean, std, nodes=17):
    """SIGReg per row of N(mean, std^2) without sampling noise: its characteristic function against a Gaussian's."""
    total, dt = 0.0, 3 / (nodes - 1)
    for j in range(nodes):
        t = j * dt
        gaussian, damped = math.exp(-t * t / 2), math.exp(-std * std * t * t / 2)
        distance = (damped * math.cos(mean * t) - gaussian) ** 2 + (damped * math.sin(mean * t)) ** 2
        total += (dt if j in {0, nodes - 1} else 2 * dt) * gaussian * distance
    return total


def naive_sigreg(x, slices, nodes=17):
    """One direction and one frequency at a time."""
    total = 0.0
    for k in range(slices.shape[1]):
        u = [sum(float(a) * float(b) for a, b in zip(row, slices[:, k], strict=True)) for row in x]
        for j in range(nodes):
            t = 3 * j / (nodes - 1)
            real, imaginary = (sum(f(t * v) for v in u) / len(u) for f in (math.cos, math.sin))
            gaussian = math.exp(-t * t / 2)
            weight = gaussian * 3 / (nodes - 1) * (1 if j in {0, nodes - 1} else 2)
            total += len(u) * weight * ((real - gaussian) ** 2 + imaginary**2) / slices.shape[1]
    return total


def test_sigreg_equals_the_naive_loop():
    torch.manual_seed(0)
    x, slices = 1.5 * torch.randn(9, 4) + 0.3, directions(4, 5, seed=3)
    assert float(sigreg(x, slices)) == pytest.approx(naive_sigreg(x, slices), rel=1e-5)
    terms = lejepa(x, 2 * x, slices)
    assert float(terms["sim"]) == pytest.approx(float(x.square().mean()))
    both = (naive_sigreg(x, slices) + naive_sigreg(2 * x, slices)) / 2
    assert float(terms["sigreg"]) == pytest.approx(both, rel=1e-5)


def test_directions_are_unit_and_a_function_of_the_seed():
    slices = directions(8, 4096, seed=1)
    torch.testing.assert_close(slices.norm(dim=0), torch.ones(4096))
    assert slices.mean(1).abs().max() < 0.03, "no side is preferred"
    torch.testing.assert_close(slices @ slices.T / 4096, torch.eye(8) / 8, atol=0.01, rtol=0)
    assert torch.equal(slices, directions(8, 4096, seed=1))
    assert not torch.equal(slices, directions(8, 4096, seed=2))


@pytest.mark.parametrize("rows", [64, 1024])
def test_sigreg_of_gaussian_rows_is_the_same_at_every_size(rows):
    torch.manual_seed(0)
    values = [float(sigreg(torch.randn(rows, 16), directions(16, 64, seed))) for seed in range(80)]
    assert sum(values) / 80 == pytest.approx(1.053, abs=0.05)


@pytest.mark.parametrize(("mean", "std", "known"), [(0, 0, 0.40205), (0, 2, 0.237), (1, 1, 0.444), (0, 1, 0.0)])
def test_sigreg_of_other_rows_grows_with_their_number(mean, std, known):
    assert characteristic(mean, std) == pytest.approx(known, abs=5e-3 if std else 5e-6)
    x = mean + std * torch.special.ndtri((torch.arange(2000.0) + 0.5) / 2000)  # quantiles, without a draw's noise
    assert float(sigreg(x[:, None], torch.ones(1, 1))) / 2000 == pytest.approx(characteristic(mean, std), abs=1e-3)


def test_float32_under_autocast():
    torch.manual_seed(0)
    x, y = torch.randn(256, 16) + 100, torch.randn(256, 16) + 100
    owner, slices = torch.arange(256), directions(16, 32, seed=0)

    def terms():
        return {**vicreg(x, y), **barlow_twins(x, y), **lejepa(x / 100, y, slices), "nce": nt_xent(x, y, owner)}

    plain = terms()
    with torch.autocast("cpu", torch.bfloat16):
        cast = terms()
    for name in plain:
        assert cast[name].dtype == torch.float32
        assert torch.equal(cast[name], plain[name])


def test_weigh_sums():
    terms = weigh({"a": torch.tensor(2.0), "b": torch.tensor(3.0)}, a=10, b=0.5)
    assert float(terms["loss"]) == 21.5
    assert list(terms) == ["loss", "a", "b"]
