"""Shear flow: two-dimensional incompressible flow that carries a passive tracer s, periodic in x and y.

    u_t + u.grad u = -grad p + lap u / Re,    s_t + u.grad s = lap s / (Re Sc),    div u = 0

Vorticity form, Fourier with the 2/3 rule, RK4 with an integrating factor. Domain, fields and initial states follow
The Well's shear_flow (https://polymathic-ai.org/the_well/datasets/shear_flow), at Reynolds numbers that small grids
resolve.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor

from physrep.simulate.spectral import Fourier2D, as_column, smooth_noise, stack_frames, substeps


class ShearFlow:
    """Solver with parameters Reynolds and Schmidt; an initial state is [3, Nx, Ny]: velocity x, velocity y, tracer."""

    name: ClassVar = "shear_flow"
    fields: ClassVar = {"tracer": 0, "pressure": 0, "velocity": 1}
    constants: ClassVar[Mapping[str, float]] = {}
    boundaries: ClassVar = {"x": "PERIODIC", "y": "PERIODIC"}
    parameters: ClassVar = ("Reynolds", "Schmidt")

    def __init__(
        self,
        grid: Sequence[int] = (64, 128),
        length: Sequence[float] = (1.0, 2.0),
        origin: Sequence[float] = (0.0, -1.0),
        dtype: torch.dtype = torch.float32,
        device: str = "cpu",
    ) -> None:
        self.box = box = Fourier2D(grid, length, dtype, device)
        self.grid, self.origin = box.grid, tuple(origin)
        self.to_velocity = torch.stack([1j * box.ky * box.inverse_k2, -1j * box.kx * box.inverse_k2]) * box.keep
        curl = [box.kx**2 - box.ky**2, box.kx * box.ky]  # of -div(u u), from uv and v^2 - u^2
        transport = [-1j * box.kx * box.keep, -1j * box.ky * box.keep]  # -div(u s), from us and vs
        self.to_tendency = torch.stack([*(c * box.keep + 0j for c in curl), *transport])

    def coords(self) -> dict[str, Tensor]:
        """Return the coordinates of the grid, x [Nx] and y [Ny]."""
        x, y = self.box.coords(self.origin)
        return {"x": x.flatten(), "y": y.flatten()}

    def initial(self, generator: torch.Generator) -> Tensor:
        """Draw an initial state [3, Nx, Ny], float64: The Well's layers and blobs, shifted at random, with weak noise.

        Shift and noise are ours: The Well's 40 states are reused for all parameters, these are all distinct.
        """

        def pick(*choices: float) -> float:
            return choices[int(torch.randint(len(choices), (1,), generator=generator))]

        layers, blobs, width = int(pick(2, 4)), pick(2, 3, 4, 5), pick(0.5, 1.0, 2.0)
        x, y = self.box.coords(self.origin)
        y = 2 * (y - self.origin[1]) / self.box.length[1] - 1
        u, v = torch.full(self.grid, 0.5, dtype=torch.float64), torch.zeros(self.grid, dtype=torch.float64)
        for layer in range(layers):
            sign = 2 * (layer % 2) - 1
            distance = layers * (y - (2 * layer + 1) / layers + 1) / (2 * width)
            u += sign * 0.5 * torch.tanh(distance / 0.1)
            v += 0.1 * torch.sin(sign * blobs * math.pi * x / self.box.length[0]) * torch.exp(-(distance**2) / 0.01)
        v += 0.02 * smooth_noise(self.grid, self.box.length, 4, generator)
        shift = [int(torch.randint(n, (1,), generator=generator)) for n in self.grid]
        return torch.stack([u, v, u]).roll(shift, (-2, -1))

    def simulate(
        self, theta: Mapping[str, Tensor], initial: Tensor, frames: int, dt: float, longest_step: float | None = None
    ) -> dict[str, Tensor]:
        """Return the fields [B, T, Nx, Ny(, 2)] at times 0, dt, ... of initial states [B, 3, Nx, Ny] at theta's [B].

        The default step is 4/3 grid cells: speeds |u| + |v| reach about 0.9, and RK4 is stable to 1.5 cells then.
        """
        box = self.box
        viscosity = 1 / as_column(theta["Reynolds"])
        diffusivity = viscosity / as_column(theta["Schmidt"])
        cell = min(length / n for length, n in zip(box.length, box.grid, strict=True))
        count, step = substeps(dt, longest_step or 4 / 3 * cell)
        decay = torch.stack([torch.exp(-d * box.exact_k2 * step / 2) for d in (viscosity, diffusivity)], 1)
        decay = decay.to(box.device, self.to_velocity.dtype)
        state, wind = self.start(initial)
        out = [self.output(state, wind)]
        for _ in range(frames - 1):
            for _ in range(count):
                state = self.step(state, wind, decay, step)
            out.append(self.output(state, wind))
        return stack_frames(out)

    def start(self, initial: Tensor) -> tuple[Tensor, Tensor]:
        """Return the spectra of vorticity and tracer [B, 2, K, Nx] and of the mean velocity [B, 2]."""
        box = Fourier2D(self.box.grid, self.box.length, torch.float64)
        u, v, tracer = (box.forward(initial) * box.keep).unbind(1)
        state = torch.stack([1j * (box.kx * v - box.ky * u), tracer], 1)
        wind = initial[:, :2].sum((-2, -1))
        return state.to(self.box.device, self.to_velocity.dtype), wind.to(self.box.device, self.to_velocity.dtype)

    def velocity(self, state: Tensor, wind: Tensor) -> Tensor:
        """Return the spectrum of the velocity [B, 2, K, Nx]."""
        velocity: Tensor = self.to_velocity * state[:, :1]
        velocity[:, :, 0, 0] = wind
        return velocity

    def tendency(self, state: Tensor, wind: Tensor) -> Tensor:
        """Return the advective tendencies [B, 2, K, Nx] of vorticity and tracer."""
        u, v, s = self.box.inverse(torch.cat([self.velocity(state, wind), state[:, 1:]], 1)).unbind(1)
        products = self.box.forward(torch.stack([u * v, v * v - u * u, u * s, v * s], 1)).mul_(self.to_tendency)
        return products[:, 0::2] + products[:, 1::2]

    def step(self, state: Tensor, wind: Tensor, decay: Tensor, step: float) -> Tensor:
        """Advance by one RK4 step; `decay` is the exact diffusion over half a step."""
        k1 = decay * self.tendency(state, wind)
        half = decay * state
        k2 = self.tendency(torch.add(half, k1, alpha=step / 2), wind)
        k3 = self.tendency(torch.add(half, k2, alpha=step / 2), wind)
        full = half.mul_(decay)
        k4 = self.tendency(torch.addcmul(full, decay, k3, value=step), wind)
        slope = k2.add_(k3).mul_(2).add_(k1).mul_(decay).add_(k4)
        return full.add_(slope, alpha=step / 6)

    def output(self, state: Tensor, wind: Tensor) -> dict[str, Tensor]:
        """Return the fields of a state; the pressure solves lap p = -div(u.grad u) and has zero mean."""
        box = self.box
        velocity = box.inverse(self.velocity(state, wind))
        u, v = velocity.unbind(1)
        uu, uv, vv = box.forward(torch.stack([u * u, u * v, v * v], 1)).unbind(1)
        pressure = -(box.kx**2 * uu + 2 * box.kx * box.ky * uv + box.ky**2 * vv) * box.inverse_k2 * box.keep
        tracer, pressure = box.inverse(torch.stack([state[:, 1], pressure], 1)).unbind(1)
        return {"tracer": tracer, "pressure": pressure, "velocity": velocity.movedim(1, -1)}
