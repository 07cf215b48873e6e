"""What the solvers share: the kept Fourier modes of a periodic box, smooth noise, steps that divide a frame."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

TWO_PI = 2 * math.pi


class Fourier2D:
    """The kept Fourier modes of a periodic box: fields [..., Nx, Ny] <-> spectra [..., K, Nx], K rows of ky >= 0.

    `band` is the kept fraction of the Nyquist wavenumber: 2/3 keeps quadratic terms free of aliasing; 1 drops only the
    Nyquist mode, for systems whose diffusion damps the tail. Multipliers built with `keep` stay inside the band.
    """

    def __init__(
        self,
        grid: Sequence[int],
        length: Sequence[float],
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        band: float = 2 / 3,
    ) -> None:
        (nx, ny), (lx, ly) = grid, length
        self.grid, self.length, self.dtype, self.device = (nx, ny), (lx, ly), dtype, torch.device(device)
        self.rows = math.ceil(band * ny / 2 - 1e-9)
        mx = torch.fft.fftfreq(nx, 1 / nx, dtype=torch.float64)[None, :].to(device)
        my = torch.arange(self.rows, dtype=torch.float64)[:, None].to(device)
        keep = (mx.abs() < band * nx / 2 - 1e-9).expand(self.rows, nx)
        self.exact_k2 = (TWO_PI / lx * mx) ** 2 + (TWO_PI / ly * my) ** 2  # float64, for factors such as exp(-nu k^2 t)
        inverse = torch.where(self.exact_k2 > 0, 1 / self.exact_k2.clamp_min(1e-300), 0)
        self.kx, self.ky = (TWO_PI / lx * mx).to(dtype), (TWO_PI / ly * my).to(dtype)
        self.k2, self.inverse_k2, self.keep = self.exact_k2.to(dtype), inverse.to(dtype), keep.to(dtype)

    def forward(self, x: Tensor) -> Tensor:
        """Return the spectrum [..., K, Nx] of real fields [..., Nx, Ny]; modes of kx outside the band are still in."""
        spectrum: Tensor = torch.fft.fft(torch.fft.rfft(x)[..., : self.rows].transpose(-1, -2))
        return spectrum

    def inverse(self, spectrum: Tensor) -> Tensor:
        """Return the real fields [..., Nx, Ny] of a spectrum [..., K, Nx]."""
        x: Tensor = torch.fft.irfft(torch.fft.ifft(spectrum).transpose(-1, -2), n=self.grid[1])
        return x

    def coords(self, origin: Sequence[float]) -> tuple[Tensor, Tensor]:
        """Return the grid's x [Nx, 1] and y [1, Ny], float64."""
        (nx, ny), (lx, ly) = self.grid, self.length
        x = origin[0] + torch.arange(nx, dtype=torch.float64) * lx / nx
        y = origin[1] + torch.arange(ny, dtype=torch.float64) * ly / ny
        return x[:, None], y[None, :]


def smooth_noise(grid: Sequence[int], length: Sequence[float], modes: int, generator: torch.Generator) -> Tensor:
    """Return smooth periodic noise [Nx, Ny] of zero mean and unit rms, with about `modes` waves along x, float64."""
    nx, ny = grid
    spectrum = torch.fft.rfft2(torch.randn((nx, ny), generator=generator, dtype=torch.float64))
    mx = torch.fft.fftfreq(nx, 1 / nx, dtype=torch.float64)[:, None]
    my = torch.fft.rfftfreq(ny, 1 / ny, dtype=torch.float64)[None, :]
    distance = (mx / modes) ** 2 + (my / (modes * length[1] / length[0])) ** 2
    noise: Tensor = torch.fft.irfft2(spectrum * torch.exp(-distance) * (distance > 0), s=(nx, ny))
    return noise / noise.square().mean().sqrt()


def substeps(dt: float, longest: float) -> tuple[int, float]:
    """Return how many equal steps, none above `longest`, make a frame of `dt`, and their length."""
    count = max(1, math.ceil(dt / longest - 1e-9))
    return count, dt / count


def as_column(values: Tensor) -> Tensor:
    """Return one physical parameter of a batch [B] as [B, 1, 1] float64, to stand beside fields and spectra."""
    return values.double()[:, None, None]


def stack_frames(frames: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Join frames of fields [B, Nx, Ny, ...] to trajectories [B, T, Nx, Ny, ...]."""
    return {name: torch.stack([frame[name] for frame in frames], 1) for name in frames[0]}
