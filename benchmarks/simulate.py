"""Trajectories per second of every small preset on one and two processes, and of a shear flow in plain numpy.fft.

`make bench` or `python -m benchmarks.simulate`. Twelve trajectories of each of eight parameter combinations are
simulated and written; the clock runs from the second that is done to the last. The plain solver has the same equations
and steps, one trajectory at a time in float64, and computes and writes nothing but the tracer.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import OmegaConf

from physrep.config import build, compose
from physrep.simulate.engine import Ensemble, run
from physrep.simulate.spectral import substeps

SYSTEMS, EACH, JOBS = ("shear_flow", "active_matter", "rayleigh_benard", "gray_scott"), 12, range(0, 16, 2)


def config(system: str) -> Any:
    return compose([f"system={system}", "preset=small", f"system.trajectories={{train: {EACH}}}"], base="simulate")


def rate(system: str, processes: int) -> float:
    with tempfile.TemporaryDirectory() as folder:
        plan = OmegaConf.to_container(config(system), resolve=True)
        done = [time.perf_counter() for _ in run(plan, Path(folder), JOBS, processes)]
    return EACH * (len(JOBS) - 2) / (done[-1] - done[1])


def plain(reynolds: float, schmidt: float, u: Any, v: Any, tracer: Any, length: Any, steps: int, step: float) -> Any:
    """Advance a shear flow [Nx, Ny] by RK4 with an integrating factor, dealiased; return the tracer."""
    (nx, ny), (lx, ly) = u.shape, length
    kx, ky = np.meshgrid(*(2j * np.pi * np.fft.fftfreq(n, d / n) for n, d in ((nx, lx), (ny, ly))), indexing="ij")
    keep = (abs(kx) * lx < 2 * np.pi * nx / 3) & (abs(ky) * ly < 2 * np.pi * ny / 3)
    square, wind = -(kx**2 + ky**2).real, (u.mean(), v.mean())
    inverse = np.where(square > 0, 1 / np.where(square > 0, square, 1), 0)
    u, v, tracer = (np.fft.fft2(x) for x in (u, v, tracer))
    state = np.stack([kx * v - ky * u, tracer]) * keep
    half = np.exp(-square * step / 2 / reynolds / np.array([1, schmidt])[:, None, None])

    def tendency(state: Any) -> Any:
        stream = state[0] * inverse
        u, v = (np.fft.ifft2(x).real + mean for x, mean in zip((ky * stream, -kx * stream), wind, strict=True))
        slopes = np.fft.ifft2(kx * state).real * u + np.fft.ifft2(ky * state).real * v
        return -np.fft.fft2(slopes) * keep

    for _ in range(steps):
        first = half * tendency(state)
        second = tendency(half * state + step / 2 * first)
        third = tendency(half * state + step / 2 * second)
        last = tendency(half * half * state + step * half * third)
        state = half * half * state + step / 6 * (half * (first + 2 * second + 2 * third) + last)
    return np.fft.ifft2(state[1]).real


def shear_flow() -> tuple[float, float]:
    """Trajectories per second of the plain solver, and how far its tracer is from ours, relative, at the end."""
    plan: Ensemble = build(config("shear_flow").system)
    box, (reynolds, schmidt) = plan.solver.box, plan.combinations()[0].values()
    initial = plan.solver.initial(plan.generator("train", 0, 0))
    cell = min(length / n for length, n in zip(box.length, box.grid, strict=True))
    count, step = substeps(plan.dt, 4 / 3 * cell)
    began = time.perf_counter()
    theirs = plain(reynolds, schmidt, *initial.numpy(), box.length, count * (plan.frames - 1), step)
    took = time.perf_counter() - began
    theta = {"Reynolds": torch.tensor([reynolds]), "Schmidt": torch.tensor([schmidt])}
    ours = plan.solver.simulate(theta, initial[None], plan.frames, plan.dt)["tracer"][0, -1].numpy()
    return 1 / took, float(np.linalg.norm(ours - theirs) / np.linalg.norm(theirs))


def main() -> None:
    print(f"{'trajectories/s':16s} one process  two processes")
    for system in SYSTEMS:
        one, two = rate(system, 1), rate(system, 2)
        print(f"{system:16s} {one:11.2f} {two:14.2f}  {two / one:.2f} x", flush=True)
        if system == "shear_flow":
            numpy, off = shear_flow()
            print(f"{'  plain':16s} {numpy:11.2f}  ours {one / numpy:.1f} x as fast; tracers differ by {off:.0e}")


if __name__ == "__main__":
    main()
