"""The shear flow solver against exact solutions, conservation laws and linear stability theory."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.integrate import simpson
from torch import Tensor

from physrep.simulate.shear_flow import ShearFlow

F64 = torch.float64
TWO_PI = 2 * math.pi
PLANE = {"origin": (0.0, 0.0), "length": (1.0, 1.0)}


def theta(reynolds: float | list[float], schmidt: float | list[float]) -> dict[str, Tensor]:
    re, sc = torch.broadcast_tensors(torch.tensor(reynolds).reshape(-1), torch.tensor(schmidt).reshape(-1))
    return {"Reynolds": re, "Schmidt": sc}


def drawn(solver: ShearFlow, count: int, seed: int = 3) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.stack([solver.initial(generator) for _ in range(count)])


def error(got: Tensor, exact: Tensor) -> float:
    return float((got.double() - exact).norm() / exact.norm())


@pytest.mark.parametrize(("dtype", "n", "u_error", "p_error"), [(F64, 32, 2e-9, 6e-9), (torch.float32, 64, 3e-6, 2e-5)])
def test_taylor_green_vortices_decay_and_drift_with_a_uniform_wind(
    dtype: torch.dtype, n: int, u_error: float, p_error: float
) -> None:
    solver = ShearFlow((n, n), dtype=dtype, **PLANE)
    x, y = solver.box.coords(solver.origin)
    k, re, wind = TWO_PI, 50.0, (0.37, -0.21)

    def exact(t: float) -> tuple[Tensor, Tensor, Tensor]:
        decay, a, b = math.exp(-2 * k * k * t / re), k * (x - wind[0] * t), k * (y - wind[1] * t)
        u = wind[0] + decay * torch.cos(a) * torch.sin(b)
        v = wind[1] - decay * torch.sin(a) * torch.cos(b)
        return u, v, -(decay**2) / 4 * (torch.cos(2 * a) + torch.cos(2 * b))

    u, v, _ = exact(0.0)
    out = solver.simulate(theta(re, 1.0), torch.stack([u, v, u])[None], 2, 1.0, longest_step=0.005)
    u, v, p = exact(1.0)
    assert error(out["velocity"][0, -1], torch.stack([u, v], -1)) < u_error
    assert error(out["pressure"][0, -1], p) < p_error


def test_the_tracer_is_carried_and_diffuses_as_its_equation_says() -> None:
    solver = ShearFlow((32, 32), dtype=F64, **PLANE)
    x, y = solver.box.coords(solver.origin)
    re, sc, (u, v) = 100.0, 2.0, (0.5, -0.3)
    tracer = torch.sin(TWO_PI * (x + 2 * y))
    start = torch.stack([torch.full_like(tracer, u), torch.full_like(tracer, v), tracer])
    out = solver.simulate(theta(re, sc), start[None], 2, 1.0, longest_step=0.01)
    exact = math.exp(-5 * TWO_PI**2 / (re * sc)) * torch.sin(TWO_PI * (x - u + 2 * (y - v)))
    assert error(out["tracer"][0, -1], exact) < 2e-11


def test_energy_and_tracer_variance_are_lost_to_dissipation_alone() -> None:
    solver, dt = ShearFlow((64, 128), dtype=F64), 0.05
    re, sc = torch.tensor([500.0, 1000.0]), torch.tensor([1.0, 2.0])
    out = solver.simulate({"Reynolds": re, "Schmidt": sc}, drawn(solver, 2), 61, dt)
    box = solver.box

    def gradient_squared(f: Tensor) -> Tensor:
        spectrum = box.forward(f)
        return (box.inverse(1j * box.kx * spectrum) ** 2 + box.inverse(1j * box.ky * spectrum) ** 2).mean((-2, -1))

    u, v = out["velocity"].unbind(-1)
    energy, variance = (u**2 + v**2).mean((-2, -1)) / 2, (out["tracer"] ** 2).mean((-2, -1)) / 2
    lost = simpson((gradient_squared(u) + gradient_squared(v)).numpy(), dx=dt) / re.numpy()
    mixed = simpson(gradient_squared(out["tracer"]).numpy(), dx=dt) / (re * sc).numpy()
    np.testing.assert_allclose((energy[:, 0] - energy[:, -1]).numpy(), lost, rtol=1e-6)
    np.testing.assert_allclose((variance[:, 0] - variance[:, -1]).numpy(), mixed, rtol=1e-6)


def test_the_error_falls_with_the_fourth_power_of_the_step() -> None:
    solver = ShearFlow((48, 96), dtype=F64)
    start, at = drawn(solver, 1), theta(1000.0, 1.0)

    def end(steps: int) -> Tensor:
        return solver.simulate(at, start, 2, 0.5, longest_step=0.5 / steps)["velocity"][:, -1]

    exact = end(256)
    order = math.log2(error(end(32), exact) / error(end(64), exact))
    assert order == pytest.approx(4, abs=0.1)


def test_a_shear_layer_grows_at_the_kelvin_helmholtz_rate() -> None:
    solver = ShearFlow((16, 256), dtype=F64)
    x, y = (c.numpy() for c in solver.box.coords(solver.origin))
    y, n, kx, width = y[0], 256, TWO_PI, 0.1
    profile = 0.5 * (np.tanh((y + 0.5) / width) - np.tanh((y - 0.5) / width)) - 0.5
    # Rayleigh's equation of the same periodic profile: lap psi_t = -i kx (U lap psi - U'' psi)
    fourier, ky = np.fft.fft(np.eye(n), axis=0), TWO_PI / 2 * np.fft.fftfreq(n, 1 / n)
    inverse = np.linalg.inv(fourier)
    second = (inverse @ np.diag(-(ky**2)) @ fourier).real
    laplacian = second - kx**2 * np.eye(n)
    rates, modes = np.linalg.eig(
        np.linalg.solve(laplacian, -1j * kx * (np.diag(profile) @ laplacian - np.diag(second @ profile)))
    )
    fastest = rates.real.argmax()
    psi = modes[:, fastest]
    u, v = inverse @ np.diag(1j * ky) @ fourier @ psi, -1j * kx * psi
    wave = np.exp(1j * kx * x) * 1e-5 / abs(v).max()
    start = torch.tensor(np.stack([profile + (wave * u).real, (wave * v).real, profile + 0 * x]))
    out = solver.simulate(theta(1e7, 1.0), start[None], 4, 0.5, longest_step=0.005)
    rms = out["velocity"][0, ..., 1].square().mean((-2, -1)).sqrt()
    assert math.log(rms[3] / rms[1]) == pytest.approx(rates[fastest].real, rel=3e-4)


def test_the_velocity_has_no_divergence_and_the_pressure_no_mean() -> None:
    solver = ShearFlow((32, 64), dtype=F64)
    out = solver.simulate(theta(400.0, 1.0), drawn(solver, 1), 5, 0.5)
    u, v = solver.box.forward(out["velocity"].movedim(-1, 0))
    divergence = solver.box.inverse(1j * (solver.box.kx * u + solver.box.ky * v))
    assert divergence.abs().max() < 1e-12
    assert out["pressure"].mean((-2, -1)).abs().max() < 1e-14
    assert out["pressure"].std() > 0.001


def test_a_batch_of_parameters_equals_one_by_one() -> None:
    solver = ShearFlow((32, 64), dtype=F64)
    start, at = drawn(solver, 3), theta([100.0, 300.0, 900.0], [2.0, 1.0, 0.5])
    together = solver.simulate(at, start, 3, 0.25)
    for i in range(3):
        alone = solver.simulate({name: value[i : i + 1] for name, value in at.items()}, start[i : i + 1], 3, 0.25)
        for name in together:
            torch.testing.assert_close(together[name][i : i + 1], alone[name], rtol=0, atol=1e-13)


def test_the_default_step_is_accurate_at_the_highest_reynolds_number_of_the_presets() -> None:
    solver = ShearFlow(dtype=F64)
    start, at = drawn(solver, 1), theta(1200.0, 2.0)
    default, fine = (solver.simulate(at, start, 2, 1.5, longest_step=step) for step in (None, 0.01))
    assert error(default["tracer"][:, -1], fine["tracer"][:, -1]) < 1e-5
    single = ShearFlow().simulate(at, start, 2, 1.5)
    assert error(single["tracer"][:, -1], fine["tracer"][:, -1]) < 1e-4
