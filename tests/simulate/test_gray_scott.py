"""The Gray-Scott solver against an ODE solver, linear theory and itself on finer grids and steps."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.linalg
import torch
from scipy.integrate import solve_ivp
from torch import Tensor

from physrep.simulate.gray_scott import GrayScott, phi

F64 = torch.float64
PATTERNS = {"F": torch.tensor([0.03, 0.058, 0.014], dtype=F64), "k": torch.tensor([0.062, 0.065, 0.054], dtype=F64)}


def theta(feed: float, kill: float) -> dict[str, Tensor]:
    return {"F": torch.tensor([feed], dtype=F64), "k": torch.tensor([kill], dtype=F64)}


def drawn(solver: GrayScott, count: int, seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.stack([solver.initial(generator) for _ in range(count)])


def error(got: Tensor, exact: Tensor) -> float:
    return float((got.double() - exact).norm() / exact.norm())


def test_a_homogeneous_mixture_follows_the_kinetics() -> None:
    feed, kill, start = 0.04, 0.06, (0.6, 0.35)

    def rate(_: float, z: np.ndarray) -> list[float]:
        reaction = z[0] * z[1] ** 2
        return [feed * (1 - z[0]) - reaction, reaction - (feed + kill) * z[1]]

    exact = solve_ivp(rate, (0, 200), start, rtol=1e-12, atol=1e-14, method="DOP853").y[:, -1]
    state = torch.tensor(start, dtype=F64)[None, :, None, None].expand(1, 2, 8, 8)
    out = GrayScott((8, 8), dtype=F64).simulate(theta(feed, kill), state, 2, 200.0, longest_step=1.0, settling=0)
    np.testing.assert_allclose([float(out[name][0, -1, 3, 5]) for name in "AB"], exact, atol=5e-8)
    assert out["A"][0, -1].std() < 1e-12


def test_small_waves_grow_and_decay_as_linear_theory_says() -> None:
    feed, kill, time, solver = 0.04, 0.055, 100.0, GrayScott((64, 8), dtype=F64)
    g = math.sqrt(feed) / (feed + kill)
    root = math.sqrt(g * g - 4)
    a, b = (g - root) / (2 * g), math.sqrt(feed) * (g + root) / 2
    x, _ = solver.box.coords((0.0, 0.0))
    for waves in (0, 3, 6, 8, 10):
        k2 = (2 * math.pi * waves) ** 2
        d_a, d_b = solver.diffusivities
        jacobian = np.array([[-(b**2) - feed - d_a * k2, -2 * a * b], [b**2, 2 * a * b - feed - kill - d_b * k2]])
        rates, modes = np.linalg.eig(jacobian)
        mode = 1e-7 * modes[:, rates.real.argmax()].real
        wave = torch.cos(2 * math.pi * waves * x).expand(64, 8)
        start = torch.stack([a + mode[0] * wave, b + mode[1] * wave])
        out = solver.simulate(theta(feed, kill), start[None], 2, time, longest_step=2.0, settling=0)
        got = [float(((out[n][0, -1] - at) * wave).mean() / wave.square().mean()) for n, at in (("A", a), ("B", b))]
        exact = scipy.linalg.expm(jacobian * time) @ mode
        np.testing.assert_allclose(got, exact, atol=1e-4 * abs(exact).max())


def test_the_error_falls_with_the_fourth_power_of_the_step() -> None:
    solver = GrayScott((32, 32), (0.5, 0.5), dtype=F64)
    start = drawn(solver, 3)

    def end(step: float) -> Tensor:
        return solver.simulate(PATTERNS, start, 2, 40.0, longest_step=step, settling=0)["B"][:, -1]

    exact = end(0.05)
    order = math.log2(error(end(0.5), exact) / error(end(0.25), exact))
    assert 3.8 < order < 4.7


def test_the_default_steps_and_single_precision_are_accurate() -> None:
    solver = GrayScott(dtype=F64)
    start = drawn(solver, 3)
    fine = solver.simulate(PATTERNS, start, 3, 60.0, longest_step=0.5, settling=0)["B"][:, -1]
    assert error(solver.simulate(PATTERNS, start, 3, 60.0)["B"][:, -1], fine) < 5e-4
    assert error(GrayScott().simulate(PATTERNS, start, 3, 60.0)["B"][:, -1], fine) < 1e-3


def test_the_grid_of_the_presets_resolves_the_patterns() -> None:
    coarse, fine = (GrayScott(grid, (0.5, 0.5), dtype=F64) for grid in ((32, 32), (64, 64)))
    start = drawn(fine, 3)
    exact = fine.simulate(PATTERNS, start, 2, 320.0)["B"][:, -1, ::2, ::2]
    got = coarse.simulate(PATTERNS, start[..., ::2, ::2], 2, 320.0)["B"][:, -1]
    assert error(got, exact) < 0.05


def test_a_batch_of_parameters_equals_one_by_one() -> None:
    solver = GrayScott((16, 16), (0.25, 0.25), dtype=F64)
    start = drawn(solver, 3)
    together = solver.simulate(PATTERNS, start, 3, 60.0)
    for i in range(3):
        at = {name: value[i : i + 1] for name, value in PATTERNS.items()}
        alone = solver.simulate(at, start[i : i + 1], 3, 60.0)
        for name in "AB":
            torch.testing.assert_close(together[name][i : i + 1], alone[name], rtol=0, atol=1e-12)


def test_initial_states_fill_the_unit_interval() -> None:
    start = drawn(GrayScott(dtype=F64), 5)
    assert start.amin((-2, -1)).abs().max() == 0 and (start.amax((-2, -1)) == 1).all()


@pytest.mark.parametrize("z", [-1e-9, -0.3, -0.999, -1.001, -5.0, -300.0])
def test_phi_functions_equal_their_integrals(z: float) -> None:
    nodes, weights = np.polynomial.legendre.leggauss(200)
    s, weights = (nodes + 1) / 2, weights / 2
    for order, got in enumerate(phi(torch.tensor(z, dtype=F64))):
        exact = (weights * np.exp((1 - s) * z) * s**order / math.factorial(order)).sum()
        assert float(got) == pytest.approx(exact, rel=1e-12)
