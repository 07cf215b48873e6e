"""Rayleigh-Taylor instability."""

from __future__ import annotations

from typing import Any, ClassVar

from physrep.data.module import WellDataModule


class RayleighTaylor(WellDataModule):
    r"""A heavy fluid that falls into a light one, in three dimensions; periodic in x and y, walls in z.

    $\partial_t\rho + u\cdot\nabla\rho = 0$, $\partial_t u + u\cdot\nabla u = -\nabla p/\rho + \nu\nabla^2 u + g$,
    $\nabla\cdot u = -\kappa\nabla\cdot(\nabla\rho/\rho)$; fields density, velocity. Target: the Atwood number; the
    state at the start varies as well, and the time from frame to frame with the Atwood number.
    """

    targets: ClassVar[dict[str, str]] = {"At": "log10"}
    mirrors: ClassVar[tuple[str, ...]] = ("x", "y")
    gigabytes: ClassVar[float | None] = 259.5

    def __init__(self, name: str = "rayleigh_taylor_instability", **options: Any) -> None:
        super().__init__(name, **options)
