"""Gray-Scott: two reacting and diffusing species that form spots, stripes, waves and labyrinths, periodic in x and y.

    A_t = d_A lap A - A B^2 + F (1 - A),    B_t = d_B lap B + A B^2 - (F + k) B

Fourier in space, ETDRK4 in time (Cox & Matthews, https://doi.org/10.1006/jcph.2002.6995). Equations, diffusivities and
initial states follow The Well's gray_scott_reaction_diffusion
(https://polymathic-ai.org/the_well/datasets/gray_scott_reaction_diffusion); a box of side 1 instead of 2 holds patterns
of the same size on half the grid.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor

from physrep.simulate.spectral import Fourier2D, as_column, stack_frames, substeps

Weights = tuple[Tensor, ...]


class GrayScott:
    """Solver with parameters F (feed) and k (kill); an initial state is [2, Nx, Ny]: A, B."""

    name: ClassVar = "gray_scott_reaction_diffusion"
    fields: ClassVar = {"A": 0, "B": 0}
    constants: ClassVar[Mapping[str, float]] = {}
    boundaries: ClassVar = {"x": "PERIODIC", "y": "PERIODIC"}
    parameters: ClassVar = ("F", "k")

    def __init__(
        self,
        grid: Sequence[int] = (64, 64),
        length: Sequence[float] = (1.0, 1.0),
        diffusivities: Sequence[float] = (2e-5, 1e-5),
        dtype: torch.dtype = torch.float32,
        device: str = "cpu",
    ) -> None:
        self.box = Fourier2D(grid, length, dtype, device, band=1.0)
        self.grid, self.diffusivities = self.box.grid, tuple(diffusivities)
        self.origin = (-length[0] / 2, -length[1] / 2)

    def coords(self) -> dict[str, Tensor]:
        """Return the coordinates of the grid, x [Nx] and y [Ny]."""
        x, y = self.box.coords(self.origin)
        return {"x": x.flatten(), "y": y.flatten()}

    def initial(self, generator: torch.Generator) -> Tensor:
        """Draw an initial state [2, Nx, Ny], float64, in [0, 1]: The Well's 10 to 100 Gaussians in a box of side 2."""
        (lx, ly), (x, y) = self.box.length, self.box.coords(self.origin)
        images = torch.arange(-1, 2, dtype=torch.float64)[:, None, None]

        def clusters() -> Tensor:
            count = int(torch.randint(10, 101, (1,), generator=generator))
            draws = torch.rand((max(3, round(count * lx * ly / 4)), 4), generator=generator, dtype=torch.float64)
            height, sharpness = 1 + 2 * draws[:, 0], 150 * (1 + draws[:, 1, None])
            along_x = x[:, 0] - self.origin[0] - lx * draws[:, 2, None] + lx * images
            along_y = y[0] - self.origin[1] - ly * draws[:, 3, None] + ly * images
            bumps_x, bumps_y = (torch.exp(-sharpness * along**2).sum(0) for along in (along_x, along_y))
            return torch.einsum("m,mx,my->xy", height, bumps_x, bumps_y)

        state = torch.stack([-clusters(), clusters()])
        state = state - state.amin((-2, -1), keepdim=True)
        return state / state.amax((-2, -1), keepdim=True)

    def simulate(
        self,
        theta: Mapping[str, Tensor],
        initial: Tensor,
        frames: int,
        dt: float,
        longest_step: float = 2.0,
        settling: float = 60.0,
    ) -> dict[str, Tensor]:
        """Return the fields [B, T, Nx, Ny] at times 0, dt, ... of initial states [B, 2, Nx, Ny] at theta's [B].

        Frames that begin before the time `settling`, while reactions are fast, take steps of a quarter of the longest.
        """
        early, late = (substeps(dt, longest) for longest in (longest_step / 4, longest_step))
        feed, kill = as_column(theta["F"]), as_column(theta["k"])
        plans = [(count, self.weights(feed, kill, step)) for count, step in (early, late)]
        shift = torch.tensor([1.0, 0.0], dtype=torch.float64)[:, None, None]  # A - 1 decays to 0: no constant source
        state = self.box.forward((initial - shift).to(self.box.device, self.box.dtype)) * self.box.keep
        shift = shift.to(self.box.device, self.box.dtype)
        out = []
        for frame in range(frames):
            a, b = (self.box.inverse(state) + shift).unbind(1)
            out.append({"A": a, "B": b})
            if frame < frames - 1:
                count, weights = plans[frame * dt >= settling]
                for _ in range(count):
                    state = self.step(state, weights)
        return stack_frames(out)

    def weights(self, feed: Tensor, kill: Tensor, step: float) -> Weights:
        """Return exp(L h), exp(L h / 2) and ETDRK4's four weights of the reaction, each [B, 2, K, Nx].

        The reaction enters A and B with opposite signs, which the weights hold.
        """
        box = self.box
        decay = zip(self.diffusivities, (feed, feed + kill), strict=True)
        z = torch.stack([-step * (d * box.exact_k2.cpu() + loss) for d, loss in decay], 1)
        sign = torch.tensor([-step, step], dtype=torch.float64)[:, None, None] * box.keep.cpu()
        p1, p2, p3 = phi(z)
        means = (phi(z / 2)[0] / 2, p1 - 3 * p2 + 4 * p3, 2 * p2 - 4 * p3, 4 * p3 - p2)
        kind = torch.complex64 if box.dtype == torch.float32 else torch.complex128
        return tuple(w.to(box.device, kind) for w in (torch.exp(z), torch.exp(z / 2), *(sign * mean for mean in means)))

    def reaction(self, state: Tensor) -> Tensor:
        """Return the spectrum of A B^2, [B, 1, K, Nx]."""
        a, b = self.box.inverse(state).unbind(1)
        return self.box.forward(((a + 1) * b.square())[:, None])

    def step(self, state: Tensor, weights: Weights) -> Tensor:
        """Advance by one ETDRK4 step."""
        full, half, q, f1, f2, f3 = weights
        decayed = half * state
        n0 = self.reaction(state)
        first = torch.addcmul(decayed, q, n0)
        n1 = self.reaction(first)
        n2 = self.reaction(decayed.addcmul_(q, n1))
        n3 = self.reaction(first.mul_(half).addcmul_(q, 2 * n2 - n0))
        return (full * state).addcmul_(f1, n0).addcmul_(f2, n1.add_(n2)).addcmul_(f3, n3)


def phi(z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return (e^z - 1) / z, (e^z - 1 - z) / z^2 and (e^z - 1 - z - z^2 / 2) / z^3 to double precision, for z <= 0."""
    third = torch.zeros_like(z)
    for n in range(20, 2, -1):
        third = 1 / math.factorial(n) + z * third
    near = (1 + z * (0.5 + z * third), 0.5 + z * third, third)
    first = torch.expm1(z) / z
    second = (first - 1) / z
    far = (first, second, (second - 0.5) / z)
    one, two, three = (torch.where(z > -1, n, f) for n, f in zip(near, far, strict=True))
    return one, two, three
