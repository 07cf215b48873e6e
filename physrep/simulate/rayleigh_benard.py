"""Rayleigh-Benard convection: fluid between two no-slip plates, heated below (b = 1) and cooled above (b = 0).

    b_t + u.grad b = kappa lap b,    u_t + u.grad u = -grad p + nu lap u + b z,    div u = 0,
    kappa = (Ra Pr)^-1/2,    nu = (Ra / Pr)^-1/2

Fourier along the plates (the file's x), Chebyshev across (the file's y, here z). With b = 1 - z + s and the vertical
velocity w, f = lap w obeys, for every wavenumber k > 0,

    f_t = nu lap f - k^2 s + i k d/dz (w e) - k^2 (u e),    e = u_z - w_x = i f / k,    w = dw/dz = 0 at the plates,

where an influence matrix turns the second condition on w into wall values of f (Kleiser & Schumann); at k = 0, f holds
the mean flow. Time stepping is ARS(3,4,3) of Ascher, Ruuth & Spiteri (https://doi.org/10.1016/S0168-9274(97)00056-1):
diffusion is implicit, one dense inverse for each wavenumber and parameter. Domain, fields and initial states follow The
Well's rayleigh_benard (https://polymathic-ai.org/the_well/datasets/rayleigh_benard).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal, NamedTuple

import torch
from torch import Tensor

from physrep.simulate.spectral import TWO_PI, stack_frames, substeps

GAMMA = 0.4358665215084590  # the root of 6 g^3 - 18 g^2 + 9 g - 1 in (1/6, 1/2)
B1 = -1.5 * GAMMA**2 + 4 * GAMMA - 0.25
B2 = 1.5 * GAMMA**2 - 5 * GAMMA + 1.25
EXPLICIT = ((GAMMA,), (0.3212788860, 0.3966543747), (-0.105858296, 0.5529291479, 0.5529291479))
IMPLICIT = ((), ((1 - GAMMA) / 2,), (B1, B2))  # of the earlier stages; a stage's own weight is GAMMA
FINAL = (0.105858296, B1 - 0.5529291479, B2 - 0.5529291479, GAMMA)  # what the step adds to its last stage
INNER = slice(1, -1)  # the points between the plates


class Diffusion(NamedTuple):
    """The implicit part of one step, for P parameter sets."""

    inverse: Tensor  # [P, K, 2, Z, Z], of f and s
    projection: Tensor  # [P, K, Z, Z], of f: onto dw/dz = 0 at the plates
    viscosity: Tensor  # [P]


class RayleighBenard:
    """Solver with parameters Rayleigh and Prandtl; an initial state is the buoyancy [Nx, Nz] at Chebyshev points.

    Spectra are [P, K, 2, Z, I]: P parameter sets, K wavenumbers, f and s, Z inner points, I trajectories of each set.
    `points` is where the fields are given across: evenly, or at The Well's Chebyshev points.
    """

    name: ClassVar = "rayleigh_benard"
    fields: ClassVar = {"buoyancy": 0, "pressure": 0, "velocity": 1}
    constants: ClassVar[Mapping[str, float]] = {}
    boundaries: ClassVar = {"x": "PERIODIC", "y": "WALL"}
    parameters: ClassVar = ("Rayleigh", "Prandtl")

    def __init__(
        self,
        grid: Sequence[int] = (128, 32),
        length: float = 4.0,
        points: Literal["uniform", "chebyshev"] = "uniform",
        dtype: torch.dtype = torch.float32,
        device: str = "cpu",
    ) -> None:
        nx, nz = grid
        self.grid, self.length, self.dtype, self.device = (nx, nz), length, dtype, torch.device(device)
        self.z, self.d = chebyshev(nz)
        index = torch.arange(nz, dtype=torch.float64)
        middle = (index + 0.5) / nz
        self.points = middle if points == "uniform" else (1 - torch.cos(torch.pi * middle)) / 2
        values = polynomials(self.z, nz)
        coefficients = torch.linalg.inv(values)
        low = values * (index < math.ceil(nz * 2 / 3)) @ coefficients  # the 2/3 rule across
        self.quadrature = torch.where(index % 2 == 0, 1 / (1 - index**2), 0) @ coefficients  # Clenshaw & Curtis
        self.k = TWO_PI / length * torch.arange(math.ceil(nx / 3), dtype=torch.float64)  # the 2/3 rule along
        k, d2, eye = self.k[:, None, None], self.d @ self.d, torch.eye(nz, dtype=torch.float64)
        self.to_w = torch.linalg.inv(d2[INNER, INNER] - k**2 * eye[INNER, INNER])
        to_u = self.d[INNER, INNER] @ self.to_w / k.clamp_min(1e-30)
        to_u[0] = eye[INNER, INNER]
        self.flow = self._to(torch.cat([self.to_w * (k > 0), to_u], 1))
        neumann = d2 - k**2 * eye
        neumann[:, 0], neumann[:, -1] = self.d[0], self.d[-1]
        neumann[0, 0] = self.quadrature
        self.to_pressure = self._to(torch.linalg.inv(neumann))
        self.to_points = self._to(polynomials(self.points, nz) @ coefficients)
        self.filters = self._to(torch.cat([low[INNER, INNER], (self.d @ low)[INNER, INNER]], 1))
        one, k = torch.ones_like(self.k), self.k
        inverse = torch.where(k > 0, 1 / k, 0)
        self.turn = self._to_complex(torch.stack([one + 0j, torch.where(k > 0, 1j, 1), 1j * inverse, one + 0j], 1))
        self.scale = self._to_complex(torch.stack([-(k**2) + 0j, 1j * k, -1j * k, -one + 0j], 1))
        self.scale[0, :2] = self._to_complex(torch.tensor([-1, 0]))  # the mean flow feels -d/dz (w u), that is -w e
        self.k2 = self._to(k**2)[:, None, None]

    def _to(self, matrix: Tensor) -> Tensor:
        return matrix.to(self.device, self.dtype).contiguous()

    def _to_complex(self, factors: Tensor) -> Tensor:
        kind = torch.complex64 if self.dtype == torch.float32 else torch.complex128
        return factors.to(self.device, kind)[..., None, None]

    def coords(self) -> dict[str, Tensor]:
        """Return the coordinates of the stored fields, x [Nx] along the plates and y [Nz] across."""
        nx = self.grid[0]
        return {"x": torch.arange(nx, dtype=torch.float64) * self.length / nx, "y": self.points}

    def initial(self, generator: torch.Generator, noise: float = 0.3) -> Tensor:
        """Draw an initial state [Nx, Nz], float64: The Well's b = d (1 - z) + noise z (1 - z), d in {0.2, ..., 1}.

        The noise is 300 times The Well's, so that short simulations come to convect.
        """
        depth = 0.2 * (1 + int(torch.randint(5, (1,), generator=generator)))
        disorder = torch.randn(self.grid, generator=generator, dtype=torch.float64)
        return depth * (1 - self.z) + noise * disorder * self.z * (1 - self.z)

    def simulate(
        self, theta: Mapping[str, Tensor], initial: Tensor, frames: int, dt: float, longest_step: float | None = None
    ) -> dict[str, Tensor]:
        """Return the fields [B, T, Nx, Ny, ...] at times 0, dt, ... of initial states [B, Nx, Nz] at theta's [B].

        The default step is two grid cells along the plates: speeds reach about 0.8, and four cells are unstable.
        """
        rayleigh, prandtl = theta["Rayleigh"].double(), theta["Prandtl"].double()
        if (rayleigh == rayleigh[0]).all() and (prandtl == prandtl[0]).all():
            rayleigh, prandtl = rayleigh[:1], prandtl[:1]  # one set of matrices serves the batch
        count, step = substeps(dt, longest_step or 2 * self.length / self.grid[0])
        diffusion = self.diffusion(rayleigh, prandtl, step)
        state = self.start(initial, len(rayleigh))
        out = [self.output(state, diffusion)]
        for _ in range(frames - 1):
            for _ in range(count):
                state = self.step(state, diffusion, step)
            out.append(self.output(state, diffusion))
        return stack_frames(out)

    def start(self, initial: Tensor, sets: int) -> Tensor:
        """Return the spectra of a fluid at rest with the buoyancy [P * I, Nx, Nz]."""
        s = torch.fft.rfft(initial.double().cpu() - (1 - self.z), dim=1)[:, : len(self.k), INNER]
        s = s.unflatten(0, (sets, -1)).permute(0, 2, 3, 1)
        return torch.stack([torch.zeros_like(s), s], 2).to(self.device, self.turn.dtype).contiguous()

    def diffusion(self, rayleigh: Tensor, prandtl: Tensor, step: float) -> Diffusion:
        """Return the inverses of 1 - GAMMA step (diffusivity) lap with the conditions at the plates, float64 inside."""
        viscosity, conductivity = (prandtl / rayleigh).sqrt(), (rayleigh * prandtl).rsqrt()
        d2, eye = self.d @ self.d, torch.eye(self.grid[1] - 2, dtype=torch.float64)
        minus_laplacian = eye * self.k[:, None, None] ** 2 - d2[INNER, INNER]

        def inverse(diffusivity: Tensor) -> Tensor:
            matrix: Tensor = eye + GAMMA * step * diffusivity[:, None, None, None] * minus_laplacian
            return matrix.inverse()

        of_s, of_f = inverse(conductivity), inverse(viscosity)
        from_plates = GAMMA * step * viscosity[:, None, None, None] * (of_f @ d2[INNER][:, [0, -1]])
        slope = self.d[[0, -1]][:, INNER] @ self.to_w  # dw/dz at the plates
        influence = torch.linalg.solve(slope @ from_plates, slope.expand(len(viscosity), -1, -1, -1))
        projection = eye - from_plates @ influence
        projection[:, 0] = eye  # k = 0 is the mean flow, which vanishes at the plates as it is
        matrices = torch.stack([projection @ of_f, of_s], 2)
        return Diffusion(self._to(matrices), self._to(projection), self._to(viscosity))

    def along_plates(self, spectra: Tensor) -> Tensor:
        """Return the real fields [P, Nx, ...] of spectra [P, K, ...]."""
        x: Tensor = torch.fft.irfft(spectra.movedim(1, -1).contiguous(), n=self.grid[0])
        return x.movedim(-1, 1)

    def spectra(self, fields: Tensor) -> Tensor:
        """Return the spectra [P, K, ...] of real fields [P, Nx, ...]."""
        spectra: Tensor = torch.fft.rfft(fields.movedim(1, -1))[..., : len(self.k)].movedim(-1, 1)
        return spectra

    def tendency(self, state: Tensor) -> Tensor:
        """Return the tendencies of f and s but for diffusion, [P, K, 2, Z, I]."""
        f, s = state.unbind(2)
        flow = apply(self.flow, f).unflatten(2, (2, -1))
        spectra = torch.cat([flow, state], 2) * self.turn
        spectra[:, 0, 2] = apply(self._to(self.d[INNER, INNER]), f[:, 0])
        w, u, e, b = self.along_plates(spectra).unbind(2)
        products = self.spectra(torch.stack([u * e, w * e, u * b, w * b], 2)).contiguous()
        products[:, 0, 0] = products[:, 0, 1]
        products.mul_(self.scale)
        slope: Tensor = apply(self.filters, products.unflatten(2, (2, 2)).flatten(3, 4))
        slope[:, :, 0] -= self.k2 * s
        slope[:, :, 1] += flow[:, :, 0]
        return slope

    def step(self, state: Tensor, diffusion: Diffusion, step: float) -> Tensor:
        """Advance by one step of ARS(3,4,3)."""
        slopes, changes, stage = [], list[Tensor](), state
        for explicit, implicit in zip(EXPLICIT, IMPLICIT, strict=True):
            slopes.append(self.tendency(stage))
            known = state.clone()
            for weight, slope in zip(explicit, slopes, strict=True):
                known.add_(slope, alpha=weight * step)
            for weight, change in zip(implicit, changes, strict=True):
                known.add_(change, alpha=weight / GAMMA)
            stage = apply(diffusion.inverse, known)
            changes.append(stage - known)
        slopes.append(self.tendency(stage))
        for weight, slope in zip(FINAL, slopes, strict=True):
            stage.add_(slope, alpha=weight * step)
        stage[:, :, 0] = apply(diffusion.projection, stage[:, :, 0])
        return stage

    def output(self, state: Tensor, diffusion: Diffusion) -> dict[str, Tensor]:
        """Return the fields of a state at the stored points.

        The pressure p = h - |u|^2 / 2 has zero mean: lap h = b_z - (w e)_x + (u e)_z, h_z = b + nu w_zz at the plates.
        """
        nx, k = self.grid[0], self._to_complex(self.k)
        flow = apply(self.flow, state[:, :, 0]).unflatten(2, (2, -1)) * self.turn[:, :2]
        w, u, s = torch.nn.functional.pad(torch.cat([flow, state[:, :, 1:]], 2), (0, 0, 1, 1)).unbind(2)
        d = self._to(self.d)
        e, w_zz = apply(d, u) - 1j * k * w, apply(d, apply(d, w))
        s[:, 0] += nx * self._to(1 - self.z)[:, None]
        w_x, u_x, e_x, b_x = self.along_plates(torch.stack([w, u, e, s], 2)).unbind(2)
        we, ue = self.spectra(torch.stack([w_x * e_x, u_x * e_x], 2)).unbind(2)
        source = apply(d, s + ue) - 1j * k * we
        plates = s + diffusion.viscosity[:, None, None, None] * w_zz
        source[:, :, 0], source[:, :, -1] = plates[:, :, 0], plates[:, :, -1]
        source[:, 0, 0] = 0
        pressure = self.along_plates(apply(self.to_pressure, source)) - (u_x**2 + w_x**2) / 2
        pressure -= torch.einsum("z,pxzi->pi", self._to(self.quadrature) / nx, pressure)[:, None, None]
        fields = self.to_points @ torch.stack([b_x, pressure, u_x, w_x], 2)  # [P, Nx, 4, Nz, I]
        b, p, u, w = fields.permute(2, 0, 4, 1, 3).flatten(1, 2)
        return {"buoyancy": b, "pressure": p, "velocity": torch.stack([u, w], -1)}


def apply(matrix: Tensor, x: Tensor) -> Tensor:
    """Multiply complex x [..., Z, I] by a real matrix [..., Z', Z]."""
    product = matrix @ torch.view_as_real(x).flatten(-2)
    return torch.view_as_complex(product.unflatten(-1, (-1, 2)))


def chebyshev(n: int) -> tuple[Tensor, Tensor]:
    """Return the n Chebyshev-Lobatto points of [0, 1], rising, and the differentiation matrix on them, float64."""
    index = torch.arange(n, dtype=torch.float64)
    x = torch.cos(torch.pi * index / (n - 1))
    edge = torch.where((index == 0) | (index == n - 1), 2.0, 1.0) * (-1) ** index
    d = edge[:, None] / edge / (x[:, None] - x + torch.eye(n, dtype=torch.float64))
    return (1 - x) / 2, -2 * (d - torch.diag(d.sum(1)))


def polynomials(z: Tensor, n: int) -> Tensor:
    """Return the first n Chebyshev polynomials of [0, 1] at points z, [Z, n]."""
    angle = torch.arccos((1 - 2 * z).clamp(-1, 1))
    return torch.cos(angle[:, None] * torch.arange(n, dtype=torch.float64))
