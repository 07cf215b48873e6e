"""Losses against naive loops and known values."""

import pytest
import torch

from physrep.losses import covariance, variance_hinge, vicreg, weigh


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


def test_float32_under_autocast():
    torch.manual_seed(0)
    x, y = torch.randn(256, 16) + 100, torch.randn(256, 16) + 100
    plain = vicreg(x, y)
    with torch.autocast("cpu", torch.bfloat16):
        cast = vicreg(x, y)
    for name in plain:
        assert cast[name].dtype == torch.float32
        assert torch.equal(cast[name], plain[name])


def test_weigh_sums():
    terms = weigh({"a": torch.tensor(2.0), "b": torch.tensor(3.0)}, a=10, b=0.5)
    assert float(terms["loss"]) == 21.5
    assert list(terms) == ["loss", "a", "b"]
