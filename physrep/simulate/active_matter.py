"""Active matter: apolar rods that swim, align and stir the viscous fluid that carries them, periodic in x and y.

Kinetic theory of Maddu, Weady & Shelley (https://arxiv.org/abs/2308.06675), by its moments c = <1> and D = <pp> with
the Bingham closure. In two dimensions tensors are complex numbers: z2 = <e^2it> = Dxx - Dyy + 2i Dxy = q + i r,
z4 = <e^4it> (closed), e = Exx + i Exy for the strain rate E. With the vorticity w of the flow u and W = e + zeta z2,

    z2_t + u.grad z2 = i w z2 + c W - conj(W) z4 + d_T lap z2 - 4 d_R z2,    c_t + u.grad c = d_T lap c,
    -lap u + grad P = div S,    S = alpha z2 / 2 + beta (conj(e) z4 + c e - zeta (c z2 - conj(z2) z4)) / 4

Fourier in space, RK4 with an integrating factor in time, a fixed point for the strain rate in the stress. Domain,
fields and initial states follow The Well's active_matter (https://polymathic-ai.org/the_well/datasets/active_matter).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor

from physrep.simulate.spectral import Fourier2D, as_column, smooth_noise, stack_frames, substeps

CLOSURE_DEGREE = 12


class Flow(NamedTuple):
    """Strain rate e (real, imaginary) and velocity of the fluid [B, 2, Nx, Ny], and its vorticity [B, Nx, Ny]."""

    strain: Tensor
    velocity: Tensor
    vorticity: Tensor


class ActiveMatter:
    """Solver with parameters alpha (activity) and zeta (alignment); an initial state is [3, Nx, Ny]: q, r, c."""

    name: ClassVar = "active_matter"
    fields: ClassVar = {"concentration": 0, "velocity": 1, "D": 2, "E": 2}
    boundaries: ClassVar = {"x": "PERIODIC", "y": "PERIODIC"}
    parameters: ClassVar = ("alpha", "zeta")

    def __init__(
        self,
        grid: Sequence[int] = (64, 64),
        length: float = 10.0,
        beta: float = 0.8,
        translational: float = 0.05,
        rotational: float = 0.05,
        iterations: int = 1,
        dtype: torch.dtype = torch.float32,
        device: str = "cpu",
    ) -> None:
        self.box = box = Fourier2D(grid, (length, length), dtype, device, band=1.0)
        self.grid, self.constants = box.grid, {"L": length}
        self.beta, self.translational, self.rotational = beta, translational, rotational
        self.iterations = iterations
        across = torch.stack([2 * box.kx * box.ky, box.ky**2 - box.kx**2]) * box.inverse_k2 * box.keep
        stream = box.inverse_k2 * box.keep  # of the stream function, per strain rate along `across`
        rotation = [-2j * box.ky * stream, 2j * box.kx * stream, -2 * box.keep + 0j]
        self.to_strain = across * (-0.5 / (1 + beta / 8)) + 0j
        self.to_flow = torch.stack([*(across + 0j), *rotation])
        self.divergence = torch.stack([(-1j * k * box.keep).expand_as(box.k2) for k in (box.kx, box.ky)])[:, None]
        loss = translational * box.exact_k2
        self.loss = torch.stack([loss + 4 * rotational, loss + 4 * rotational, loss])
        self.closure_coefficients = fit_closure()

    def coords(self) -> dict[str, Tensor]:
        """Return the coordinates of the grid, x [Nx] and y [Ny]."""
        x, y = self.box.coords((0.0, 0.0))
        return {"x": x.flatten(), "y": y.flatten()}

    def initial(self, generator: torch.Generator, order: float = 0.05, unevenness: float = 0.01) -> Tensor:
        """Draw an initial state [3, Nx, Ny], float64: weak smooth disorder in orientation and concentration."""
        q, r, c = (smooth_noise(self.grid, self.box.length, 6, generator) for _ in range(3))
        return torch.stack([order * q, order * r, 1 + unevenness * c])

    def simulate(
        self, theta: Mapping[str, Tensor], initial: Tensor, frames: int, dt: float, longest_step: float | None = None
    ) -> dict[str, Tensor]:
        """Return the fields [B, T, Nx, Ny, ...] at times 0, dt, ... of initial states [B, 3, Nx, Ny] at theta's [B].

        The default step resolves advection, whose speed |u| + |v| comes to about |alpha|, and alignment, of rate zeta.
        """
        box, kind = self.box, self.to_flow.dtype
        alpha, zeta = (as_column(theta[name]).to(box.device, box.dtype) for name in ("alpha", "zeta"))
        if longest_step is None:
            cell = min(length / n for length, n in zip(box.length, box.grid, strict=True))
            longest_step = min(0.0625, cell / max(1.0, float(alpha.abs().max())), 0.55 / float(zeta.abs().max()))
        count, step = substeps(dt, longest_step)
        decay = torch.exp(-self.loss * step / 2).to(box.device, kind)
        state = (box.forward(initial.to(box.device, box.dtype)) * box.keep).to(kind)
        at_rest = torch.zeros((len(initial), 2, *self.grid), dtype=box.dtype, device=box.device)
        slope, flow = self.tendency(state, at_rest, alpha, zeta, iterations=12)
        before, out = flow.strain, [self.output(state, flow)]
        for _ in range(frames - 1):
            for left in reversed(range(count)):
                now = flow.strain  # extrapolated in time, strain rates are guesses that leave little to iterate
                half, k1 = decay * state, decay * slope
                guess = torch.lerp(before, now, 1.5)
                k2, flow = self.tendency(torch.add(half, k1, alpha=step / 2), guess, alpha, zeta)
                k3, flow = self.tendency(torch.add(half, k2, alpha=step / 2), flow.strain, alpha, zeta)
                full, guess = decay * half, torch.lerp(now, flow.strain, 2.0)
                k4, flow = self.tendency(torch.addcmul(full, decay, k3, value=step), guess, alpha, zeta)
                state = full.add_(k2.add_(k3).mul_(2).add_(k1).mul_(decay).add_(k4), alpha=step / 6)
                slope, flow = self.tendency(state, flow.strain, alpha, zeta, self.iterations + 3 * (left == 0))
                before = now
            out.append(self.output(state, flow))
        return stack_frames(out)

    def tendency(
        self, state: Tensor, guess: Tensor, alpha: Tensor, zeta: Tensor, iterations: int | None = None
    ) -> tuple[Tensor, Flow]:
        """Return the tendencies [B, 3, K, Nx] of q, r, c without diffusion, and the flow from a near strain."""
        box, b = self.box, self.beta / 4
        fields = box.inverse(state)
        q, r, c = fields.unbind(1)
        z4, z4i = self.closure(q, r, c)
        linear, uneven = alpha / 2 - zeta * b * c, b * (c - 1)
        active = linear * q + zeta * b * (q * z4 + r * z4i)
        active_i = linear * r + zeta * b * (q * z4i - r * z4)
        strain = guess
        for left in reversed(range(iterations or self.iterations)):
            e, ei = strain.unbind(1)
            stress = active + b * (e * z4 + ei * z4i) + uneven * e
            stress_i = active_i + b * (e * z4i - ei * z4) + uneven * ei
            along = (self.to_strain * box.forward(torch.stack([stress, stress_i], 1))).sum(1, keepdim=True)
            flow = box.inverse((self.to_flow if left == 0 else self.to_flow[:2]) * along)
            strain = flow[:, :2]
        e, ei, u, v, vorticity = flow.unbind(1)
        w, wi = e + zeta * q, ei + zeta * r
        source = c * w - (w * z4 + wi * z4i) - vorticity * r
        source_i = c * wi - (w * z4i - wi * z4) + vorticity * q
        carried = [fields * u[:, None], fields * v[:, None]]
        spectra = box.forward(torch.cat([*carried, source[:, None], source_i[:, None]], 1))
        slope = spectra[:, :3] * self.divergence[0] + spectra[:, 3:6] * self.divergence[1]
        slope[:, :2] += spectra[:, 6:] * box.keep
        return slope, Flow(strain, flow[:, 2:4], vorticity)

    def closure(self, q: Tensor, r: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        """Return z4, real and imaginary part, of the Bingham density with moments c and z2."""
        order = ((q * q + r * r) / (c * c)).clamp_(max=0.9999)
        ratio = torch.full_like(order, self.closure_coefficients[-1])
        for coefficient in self.closure_coefficients[-2::-1]:
            ratio.mul_(order).add_(coefficient)
        ratio.div_(c)
        return ratio * (q * q - r * r), 2 * ratio * q * r

    def output(self, state: Tensor, flow: Flow) -> dict[str, Tensor]:
        """Return the fields of a state and its flow."""
        q, r, c = self.box.inverse(state).unbind(1)
        e, ei = flow.strain.unbind(1)
        return {
            "concentration": c,
            "velocity": flow.velocity.movedim(1, -1),
            "D": torch.stack([c + q, r, r, c - q], -1).unflatten(-1, (2, 2)) / 2,
            "E": torch.stack([e, ei, ei, -e], -1).unflatten(-1, (2, 2)),
        }


def bingham(order: Tensor) -> Tensor:
    """Return <cos 4t> of the density exp(b cos 2t) on the circle whose <cos 2t> is `order`, in [0, 1), float64.

    <cos 2t> = I1(b) / I0(b) is solved for b by Newton's method, then <cos 4t> = 1 - 2 <cos 2t> / b.
    """
    b = torch.where(order < 0.5, 2 * order, 0.5 / (1 - order).clamp_min(1e-9))
    for _ in range(100):
        ratio = torch.special.i1e(b) / torch.special.i0e(b)
        slope = torch.where(b < 1e-4, 0.5, (1 - ratio / b.clamp_min(1e-30) - ratio**2).clamp_min(1e-16))
        b = torch.minimum(torch.maximum(b - (ratio - order) / slope, b / 2), 2 * b + 1e-12)
    return torch.where(order < 1e-4, order**2 / 2, 1 - 2 * order / b.clamp_min(1e-30))


def fit_closure() -> list[float]:
    """Return the coefficients of a polynomial in s^2 that gives <cos 4t> / s^2, s = <cos 2t>, within 3e-6."""
    nodes = (torch.arange(400, dtype=torch.float64) + 0.5) / 400
    s = ((1 - torch.cos(torch.pi * nodes)) / 2).sqrt() * 0.99999 + 1e-6
    fit = np.polynomial.chebyshev.Chebyshev.fit
    series = fit((s**2).numpy(), (bingham(s) / s**2).numpy(), CLOSURE_DEGREE, domain=[0, 1])
    power = series.convert(kind=np.polynomial.Polynomial, domain=[0, 1], window=[0, 1])
    return [float(coefficient) for coefficient in power.coef]
