"""The active matter solver against the kinetic theory that it closes, linear theory, power balance and symmetry."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.optimize import brentq
from scipy.special import i0e, i1e
from torch import Tensor

from physrep.simulate.active_matter import ActiveMatter

F64 = torch.float64
TWO_PI = 2 * math.pi


def theta(alpha: float | list[float], zeta: float | list[float]) -> dict[str, Tensor]:
    return {"alpha": torch.tensor(alpha, dtype=F64).reshape(-1), "zeta": torch.tensor(zeta, dtype=F64).reshape(-1)}


def drawn(solver: ActiveMatter, count: int, order: float = 0.05, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.stack([solver.initial(generator, order) for _ in range(count)])


def error(got: Tensor, exact: Tensor) -> float:
    return float((got - exact).norm() / exact.norm())


@pytest.fixture(scope="module")
def developed() -> tuple[ActiveMatter, dict[str, Tensor], dict[str, Tensor]]:
    """Three flows at t = 4, their solver and parameters."""
    solver, at = ActiveMatter((48, 48), 7.5, dtype=F64), theta([-2.0, -3.0, -5.0], [1.0, 5.0, 9.0])
    out = solver.simulate(at, drawn(solver, 3, 0.1), 2, 4.0)
    return solver, at, {name: value[:, -1] for name, value in out.items()}


def test_the_closure_is_the_bingham_density() -> None:
    solver, angle, one = (
        ActiveMatter((8, 8)),
        np.linspace(0, TWO_PI, 4000, endpoint=False),
        torch.ones(1, 1, 1, dtype=F64),
    )
    for b in (0.01, 0.5, 2.0, 8.0, 40.0):
        density = np.exp(b * (np.cos(2 * angle) - 1))
        s2, s4 = ((density * np.cos(n * angle)).sum() / density.sum() for n in (2, 4))
        z4, z4i = solver.closure(one * s2, one * 0, one)
        assert float(z4) == pytest.approx(s4, abs=4e-6)
        assert float(z4i) == 0
        turned, turned_i = solver.closure(one * 0, 3 * one * s2, 3 * one)  # by 45 degrees, at three times the density
        assert float(turned) == pytest.approx(-3 * s4, abs=1.2e-5)
        assert float(turned_i) == 0


@pytest.mark.parametrize(("alpha", "zeta"), [(-1.0, 1.0), (-5.0, 1.0), (-3.0, 9.0), (-5.0, 17.0), (2.0, 3.0)])
def test_small_waves_grow_at_the_rates_of_linear_theory(alpha: float, zeta: float) -> None:
    solver, time = ActiveMatter((16, 16), dtype=F64, iterations=4), 0.2
    x, y = solver.box.coords((0.0, 0.0))
    kx, ky = 2 * TWO_PI / 10, TWO_PI / 10
    wave, k2 = torch.cos(kx * x + ky * y), kx * kx + ky * ky
    for turn, coupled in ((1j, 1.0), (1.0, 0.0)):  # nematic order that shears the fluid, and that does not
        z = np.exp(2j * math.atan2(ky, kx)) * turn * 1e-6
        start = torch.stack([z.real * wave, z.imag * wave, torch.ones_like(wave)])
        out = solver.simulate(theta(alpha, zeta), start[None], 2, time, longest_step=0.002)
        grown = float((2 * out["D"][0, -1, ..., 0, 1] * wave).mean() / wave.square().mean()) / z.imag
        stress = 0.5 * (alpha / 2 - zeta * solver.beta / 4) / (1 + solver.beta / 8)
        rate = zeta - 4 * solver.rotational - solver.translational * k2 - coupled * stress
        assert math.log(grown) / time == pytest.approx(rate, rel=3e-8)


def test_a_uniform_nematic_settles_at_the_kinetic_equilibrium() -> None:
    solver, zetas = ActiveMatter((4, 4), dtype=F64), [1.0, 5.0, 17.0]
    start = torch.tensor([0.3, 0.0, 1.0], dtype=F64)[None, :, None, None].expand(3, 3, 4, 4)
    out = solver.simulate(theta([0.0] * 3, zetas), start, 2, 20.0, longest_step=0.02)
    for zeta, d in zip(zetas, out["D"][:, -1, 0, 0, 0, 0], strict=True):
        b = brentq(lambda b, zeta=zeta: 2 * i1e(b) / i0e(b) / b - 4 * solver.rotational / zeta, 1e-3, 5e3)
        assert float(2 * d - 1) == pytest.approx(i1e(b) / i0e(b), abs=5e-6)  # there zeta (1 - s4) = 4 d_R


def test_the_stress_does_the_work_that_the_fluid_dissipates(
    developed: tuple[ActiveMatter, dict[str, Tensor], dict[str, Tensor]],
) -> None:
    solver, at, out = developed
    alpha, zeta, b = at["alpha"][:, None, None], at["zeta"][:, None, None], solver.beta / 4
    c, d, e, ei = out["concentration"], out["D"], out["E"][..., 0, 0], out["E"][..., 0, 1]
    q, r = d[..., 0, 0] - d[..., 1, 1], 2 * d[..., 0, 1]
    z4, z4i = solver.closure(q, r, c)
    stress = alpha / 2 * q + b * (e * z4 + ei * z4i + c * e) - zeta * b * (c * q - q * z4 - r * z4i)
    stress_i = alpha / 2 * r + b * (e * z4i - ei * z4 + c * ei) - zeta * b * (c * r - q * z4i + r * z4)
    work = -2 * (e * stress + ei * stress_i).mean((-2, -1))
    dissipated = 4 * (e**2 + ei**2).mean((-2, -1))
    torch.testing.assert_close(work, dissipated, rtol=1e-4, atol=0)


def test_the_stored_fields_agree_with_each_other(
    developed: tuple[ActiveMatter, dict[str, Tensor], dict[str, Tensor]],
) -> None:
    box, out = developed[0].box, developed[2]
    u, v = box.forward(out["velocity"].movedim(-1, 0))
    assert error(box.inverse(1j * box.kx * u), out["E"][..., 0, 0]) < 1e-13
    assert error(box.inverse(1j * (box.ky * u + box.kx * v)) / 2, out["E"][..., 0, 1]) < 1e-13
    assert box.inverse(1j * (box.kx * u + box.ky * v)).abs().max() < 1e-12
    for name, trace in (("D", out["concentration"]), ("E", torch.zeros_like(out["concentration"]))):
        torch.testing.assert_close(out[name], out[name].mT, rtol=0, atol=0)
        torch.testing.assert_close(out[name][..., 0, 0] + out[name][..., 1, 1], trace, rtol=0, atol=1e-13)
    torch.testing.assert_close(out["concentration"].mean((-2, -1)), torch.ones(3, dtype=F64), rtol=0, atol=1e-12)
    assert torch.linalg.eigvalsh(out["D"]).min() > -0.02


def test_the_default_step_with_one_iteration_is_accurate() -> None:
    at = theta([-1.0, -3.5, -5.0], [9.0, 3.0, 9.0])
    solver, exact = (ActiveMatter((32, 32), 5.0, dtype=F64, iterations=n) for n in (1, 4))
    start = drawn(solver, 3, 0.1)
    fine = exact.simulate(at, start, 2, 1.0, longest_step=0.005)["D"][:, -1]
    assert error(solver.simulate(at, start, 2, 1.0)["D"][:, -1], fine) < 2e-3
    single = ActiveMatter((32, 32), 5.0).simulate(at, start, 2, 1.0)["D"][:, -1]
    assert error(single.double(), fine) < 2e-3


def test_the_error_falls_with_the_fourth_power_of_the_step() -> None:
    solver, at = ActiveMatter((32, 32), 5.0, dtype=F64, iterations=6), theta(-3.0, 5.0)
    start = drawn(solver, 1, 0.1)

    def end(steps: int) -> Tensor:
        return solver.simulate(at, start, 2, 1.0, longest_step=1 / steps)["D"][:, -1]

    exact = end(160)
    assert math.log2(error(end(20), exact) / error(end(40), exact)) == pytest.approx(4, abs=0.3)


def test_turning_the_initial_state_turns_the_solution() -> None:
    solver, at = ActiveMatter((32, 32), 5.0, dtype=F64), theta(-3.0, 3.0)
    start = drawn(solver, 1, 0.1, seed=5)

    def turn(field: Tensor) -> Tensor:
        return torch.rot90(field, 1, (-2, -1))

    straight = solver.simulate(at, start, 2, 1.5)["D"][0, -1]
    turned = solver.simulate(at, turn(start) * torch.tensor([-1, -1, 1])[:, None, None], 2, 1.5)["D"][0, -1]
    assert error(turned[..., 0, 0], turn(straight[..., 1, 1])) < 1e-12
    assert error(turned[..., 0, 1], -turn(straight[..., 0, 1])) < 1e-12


def test_a_batch_of_parameters_equals_one_by_one() -> None:
    solver, at = ActiveMatter((16, 16), 2.5, dtype=F64), theta([-1.0, -4.0], [5.0, 2.0])
    start = drawn(solver, 2, 0.1)
    together = solver.simulate(at, start, 3, 0.25, longest_step=0.03)
    for i in range(2):
        one = {name: value[i : i + 1] for name, value in at.items()}
        alone = solver.simulate(one, start[i : i + 1], 3, 0.25, longest_step=0.03)
        for name in together:
            torch.testing.assert_close(together[name][i : i + 1], alone[name], rtol=0, atol=1e-12)
