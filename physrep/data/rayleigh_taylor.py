"""Rayleigh-Taylor instability."""

from __future__ import annotations

from typing import Any, ClassVar

from physrep.data.module import WellDataModule


class RayleighTaylor(WellDataModule):
    r"""A heavy fluid that falls into a light one, in three dimensions; periodic in x and y, walls in z.

    $\partial_t\rho + \nabla\cdot(\rho u) = 0$, $\partial_t(\rho u) + \nabla\cdot(\rho uu) = -\nabla p +
    \nabla\cdot\tau + \rho g$, $\nabla\cdot u = -\kappa\nabla\cdot(\nabla\rho/\rho)$; fields density, velocity.
    Target: the Atwood number; the state at the start varies as well, and the time from frame to frame with it.
    """

    targets: ClassVar[dict[str, str]] = {"At": "log10"}
    mirrors: ClassVar[tuple[str, ...]] = ("x", "y")

    def __init__(self, name: str = "rayleigh_taylor_instability", **options: Any) -> None:
        super().__init__(name, **options)
