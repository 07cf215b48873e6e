"""The convection solver against stability theory, published heat fluxes, budgets and the equations themselves."""

from __future__ import annotations

import math

import pytest
import torch
from scipy.integrate import simpson
from torch import Tensor

from physrep.simulate.rayleigh_benard import RayleighBenard, polynomials

F64 = torch.float64
TWO_PI = 2 * math.pi
CRITICAL_WAVENUMBER = 3.117


def theta(rayleigh: float | list[float], prandtl: float | list[float]) -> dict[str, Tensor]:
    ra, pr = torch.broadcast_tensors(torch.tensor(rayleigh).reshape(-1), torch.tensor(prandtl).reshape(-1))
    return {"Rayleigh": ra, "Prandtl": pr}


def solver_of(*grid: int, length: float = 4.0, dtype: torch.dtype = F64) -> RayleighBenard:
    return RayleighBenard(grid, length, points="chebyshev", dtype=dtype)


def roll(solver: RayleighBenard, size: float) -> Tensor:
    """Conduction disturbed by one pair of rolls, [Nx, Nz]."""
    x = solver.coords()["x"][:, None]
    return 1 - solver.z + size * torch.cos(TWO_PI * x / solver.length) * torch.sin(math.pi * solver.z)


def plumes(solver: RayleighBenard) -> Tensor:
    """Conduction disturbed by three smooth waves, [Nx, Nz]."""
    phase = TWO_PI * solver.coords()["x"][:, None] / solver.length
    waves = torch.cos(phase) + 0.7 * torch.sin(2 * phase + 0.3) + 0.5 * torch.cos(3 * phase + 1)
    return 1 - solver.z + 0.1 * torch.sin(math.pi * solver.z) * waves


def drawn(solver: RayleighBenard, count: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.stack([solver.initial(generator) for _ in range(count)])


def error(got: Tensor, exact: Tensor) -> float:
    return float((got.double() - exact).norm() / exact.norm())


class Across:
    """Exact operations on polynomials in z that are given at a solver's stored points (the last axis)."""

    def __init__(self, solver: RayleighBenard) -> None:
        n = solver.grid[1]
        self.solver = solver
        to_lobatto = polynomials(solver.z, n) @ torch.linalg.inv(polynomials(solver.points, n))
        self.d = (torch.linalg.inv(to_lobatto) @ solver.d @ to_lobatto).T
        self.plates = to_lobatto[[0, -1]].T
        self.weights = solver.quadrature @ to_lobatto
        waves = torch.fft.rfftfreq(solver.grid[0], 1 / solver.grid[0], dtype=F64)
        self.ik = 1j * TWO_PI / solver.length * waves[:, None]

    def x(self, f: Tensor) -> Tensor:
        return torch.fft.irfft(self.ik * torch.fft.rfft(f, dim=-2), n=self.solver.grid[0], dim=-2)

    def z(self, f: Tensor) -> Tensor:
        return f @ self.d

    def mean(self, f: Tensor) -> Tensor:
        return f.mean(-2) @ self.weights

    def fluxes(self, b: Tensor) -> Tensor:
        """The heat flux that conducts through the lower and the upper plate."""
        return -(self.z(b) @ self.plates).mean(-2)

    def gradient_squared(self, *fields: Tensor) -> Tensor:
        return self.mean(sum(self.x(f) ** 2 + self.z(f) ** 2 for f in fields))

    def nusselt(self, out: dict[str, Tensor], kappa: Tensor) -> Tensor:
        """Four Nusselt numbers of fields [..., Nx, Nz]: of the volume, both plates and the dissipation."""
        b, w = out["buoyancy"], out["velocity"][..., 1]
        volume = 1 + self.mean(w * b) / kappa
        return torch.stack([volume, *self.fluxes(b).unbind(-1), self.gradient_squared(b)], -1)


def test_convection_begins_at_the_critical_rayleigh_number() -> None:
    solver = RayleighBenard((8, 32), TWO_PI / CRITICAL_WAVENUMBER, dtype=F64)
    below, above = 1700.0, 1715.0
    out = solver.simulate(theta([below, above], 1.0), roll(solver, 1e-6).expand(2, -1, -1), 4, 20.0, longest_step=0.1)
    size = (out["buoyancy"] - (1 - solver.points)).abs().amax((-2, -1))
    rate = (size[:, 3] / size[:, 2]).log() / 20
    assert rate[0] < 0 < rate[1]
    critical = below - rate[0] * (above - below) / (rate[1] - rate[0])
    assert float(critical) == pytest.approx(1707.762, abs=0.05)


@pytest.mark.slow
def test_steady_rolls_carry_the_published_heat() -> None:
    solver = solver_of(24, 24, length=TWO_PI / CRITICAL_WAVENUMBER)
    rayleigh = [2500.0, 5000.0, 10000.0]
    out = solver.simulate(theta(rayleigh, 0.71), roll(solver, 0.2).expand(3, -1, -1), 2, 150.0, longest_step=0.15)
    at_end = {name: value[:, -1] for name, value in out.items()}
    nusselt = Across(solver).nusselt(at_end, (torch.tensor(rayleigh, dtype=F64) * 0.71).rsqrt())
    for got, published in zip(nusselt, (1.474, 2.116, 2.661), strict=True):  # Clever & Busse, 1974
        assert got.tolist() == pytest.approx([published] * 4, rel=4e-3)


@pytest.mark.slow
def test_four_nusselt_numbers_agree_in_the_mean_of_turbulent_convection() -> None:
    solver, prandtl = solver_of(128, 40), torch.tensor([1.0, 5.0], dtype=F64)
    out = solver.simulate(theta(3e5, prandtl.tolist()), plumes(solver).expand(2, -1, -1), 201, 0.5)
    kappa = (3e5 * prandtl).rsqrt()[:, None]
    nusselt = Across(solver).nusselt({name: value[:, 60:] for name, value in out.items()}, kappa).mean(1)
    spread = (nusselt.amax(-1) - nusselt.amin(-1)) / nusselt.mean(-1)
    assert (nusselt > 4).all() and spread.max() < 0.012


def test_heat_buoyancy_variance_and_energy_are_balanced() -> None:
    solver, dt = solver_of(64, 32), 0.05
    ra, pr = 1e5, torch.tensor([0.7, 4.0], dtype=F64)
    kappa, nu = (ra * pr).rsqrt()[:, None], (pr / ra).sqrt()[:, None]
    start = plumes(solver).expand(2, -1, -1)
    out = solver.simulate(theta(ra, pr.tolist()), start, 161, dt, longest_step=0.025)
    across, b, (u, w) = Across(solver), out["buoyancy"], out["velocity"].unbind(-1)
    bottom, top = across.fluxes(b).unbind(-1)
    budgets = {
        "heat": (across.mean(b), kappa * (bottom - top)),
        "variance": (across.mean(b**2) / 2, kappa * (bottom - across.gradient_squared(b))),
        "energy": (across.mean(u**2 + w**2) / 2, across.mean(w * b) - nu * across.gradient_squared(u, w)),
    }
    for name, (held, gained) in budgets.items():
        change, integral = held[:, -1] - held[:, 0], torch.tensor(simpson(gained.numpy(), dx=dt))
        torch.testing.assert_close(change, integral, rtol=0, atol=2e-5, msg=lambda said, name=name: f"{name}: {said}")
    assert (across.mean(u**2 + w**2)[:, -1] > 0.01).all()


def test_the_stored_fields_obey_the_momentum_equation() -> None:
    solver, step = solver_of(96, 48), 0.0025
    ra = 1e5
    at = torch.tensor([ra], dtype=F64), torch.ones(1, dtype=F64)
    diffusion = solver.diffusion(*at, 0.04)
    state = solver.start(plumes(solver)[None], 1)
    for _ in range(300):
        state = solver.step(state, diffusion, 0.04)
    small, out = solver.diffusion(*at, step), []
    for _ in range(5):
        out.append({name: value[0] for name, value in solver.output(state, small).items()})
        state = solver.step(state, small, step)
    across, nu = Across(solver), ra**-0.5
    (u, w), p, b = out[2]["velocity"].unbind(-1), out[2]["pressure"], out[2]["buoyancy"]
    rate = (out[3]["velocity"] - out[1]["velocity"]) / (2 * step)
    modes = len(solver.k)

    def residual(i: int, f: Tensor, slope: Tensor, force: Tensor | float) -> float:
        carried, diffused = u * across.x(f) + w * across.z(f), across.x(across.x(f)) + across.z(across.z(f))
        left = rate[..., i] + carried + slope - nu * diffused - force
        kept = torch.fft.irfft(torch.fft.rfft(left, dim=0)[:modes], n=solver.grid[0], dim=0)
        return float(kept[:, 2:-2].norm() / slope[:, 2:-2].norm())

    assert residual(0, u, across.x(p), 0) < 1e-2
    assert residual(1, w, across.z(p), b) < 1e-2
    assert (across.x(u) + across.z(w)).abs().max() < 1e-10
    assert (torch.stack([u, w]) @ across.plates).abs().max() < 1e-12
    assert across.mean(p).abs() < 1e-12
    plates = (b @ across.plates).mean(0).tolist()
    assert plates == pytest.approx([1, 0], abs=1e-12)


def test_the_error_falls_at_least_with_the_square_of_the_step() -> None:
    solver = RayleighBenard((48, 24), dtype=F64)
    start = plumes(solver)[None]

    def end(step: float) -> Tensor:
        return solver.simulate(theta(1e5, 1.0), start, 2, 5.0, longest_step=step)["buoyancy"][:, -1]

    exact = end(0.008)
    assert 1.9 < math.log2(error(end(0.1), exact) / error(end(0.05), exact)) < 3.1


def test_the_grid_default_step_and_single_precision_of_the_presets_are_accurate() -> None:
    fine, coarse = solver_of(128, 48), solver_of(64, 24)
    at = theta(5e4, 1.0)
    exact = fine.simulate(at, plumes(fine)[None], 2, 10.0, longest_step=0.05)["buoyancy"][0, -1]
    to_coarse = polynomials(coarse.points, 48) @ torch.linalg.inv(polynomials(fine.points, 48))
    got = coarse.simulate(at, plumes(coarse)[None], 2, 10.0)["buoyancy"][0, -1]
    assert error(got, exact[::2] @ to_coarse.T) < 5e-3
    single = solver_of(64, 24, dtype=torch.float32).simulate(at, plumes(coarse)[None], 2, 10.0)["buoyancy"][0, -1]
    assert error(single, got) < 1e-4


def test_a_batch_equals_one_by_one_for_one_and_for_many_parameters() -> None:
    solver = RayleighBenard((32, 16), dtype=F64)
    start = drawn(solver, 3)
    for at in (theta([2e4] * 3, 1.0), theta([1e4, 3e4, 3e4], [1.0, 1.0, 5.0])):
        together = solver.simulate(at, start, 3, 1.0)
        for i in range(3):
            one = {name: value[i : i + 1] for name, value in at.items()}
            alone = solver.simulate(one, start[i : i + 1], 3, 1.0)
            for name in together:
                torch.testing.assert_close(together[name][i : i + 1], alone[name], rtol=0, atol=1e-11)


def test_uniform_points_hold_the_same_fields_as_chebyshev_points() -> None:
    uniform, chebyshev = RayleighBenard((32, 16), dtype=F64), solver_of(32, 16)
    there, here = (s.simulate(theta(2e4, 1.0), drawn(s, 1), 3, 1.0) for s in (uniform, chebyshev))
    move = polynomials(uniform.points, 16) @ torch.linalg.inv(polynomials(chebyshev.points, 16))
    torch.testing.assert_close(there["pressure"], here["pressure"] @ move.T, rtol=0, atol=1e-12)
    assert torch.allclose(uniform.points.diff(), torch.tensor(1 / 16, dtype=F64))
