"""Rayleigh-Benard convection."""

from __future__ import annotations

from typing import Any, ClassVar

from physrep.data.module import WellDataModule


class RayleighBenard(WellDataModule):
    r"""Fluid between a hot plate below and a cold one above, periodic along the plates (x), no slip at them (y).

    $\partial_t b + u\cdot\nabla b = \kappa\nabla^2 b$, $\partial_t u + u\cdot\nabla u = -\nabla p + \nu\nabla^2 u +
    b\,e_y$, $\nabla\cdot u = 0$ with $\kappa = (\mathrm{Ra\,Pr})^{-1/2}$ and $\nu = (\mathrm{Ra}/\mathrm{Pr})^{-1/2}$;
    fields buoyancy, pressure, velocity. Gravity: mirrored along the plates alone. The published y is a Chebyshev grid.
    Early frames are at rest, and all parameters start from the same 50 states. Prandtl is log10 here, linear in the
    paper (arXiv 2603.13227).
    """

    targets: ClassVar[dict[str, str]] = {"Rayleigh": "log10", "Prandtl": "log10"}
    paper_targets: ClassVar[dict[str, str]] = {"Rayleigh": "log10", "Prandtl": "linear"}
    mirrors: ClassVar[tuple[str, ...]] = ("x",)
    start: ClassVar[tuple[str, ...]] = ("buoyancy",)
    shared_starts: ClassVar[bool] = True

    def __init__(self, name: str = "rayleigh_benard", **options: Any) -> None:
        super().__init__(name, **options)


class RayleighBenardUniform(WellDataModule):
    """`RayleighBenard` resampled to a uniform grid in y, with square cells; never mix the two in one folder."""

    targets: ClassVar[dict[str, str]] = {"Rayleigh": "log10", "Prandtl": "log10"}
    paper_targets: ClassVar[dict[str, str]] = {"Rayleigh": "log10", "Prandtl": "linear"}
    mirrors: ClassVar[tuple[str, ...]] = ("x",)
    start: ClassVar[tuple[str, ...]] = ("buoyancy",)
    shared_starts: ClassVar[bool] = True

    def __init__(self, name: str = "rayleigh_benard_uniform", **options: Any) -> None:
        super().__init__(name, **options)
