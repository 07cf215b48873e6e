"""Riemann problems of the compressible Euler equations in quadrants."""

from __future__ import annotations

from typing import Any, ClassVar

from physrep.data.module import WellDataModule


class EulerQuadrants(WellDataModule):
    r"""Compressible gas in quadrants of different pressure and density, whose shocks meet; periodic boundaries.

    $\partial_t U + \nabla\cdot F(U) = 0$ for $U = (\rho, \rho u, E)$ with $E = p/(\gamma - 1) + \rho u^2/2$; fields
    energy, density, pressure, momentum. Gamma takes ten values between 1.13 and 1.76; 2.6 TB of files.
    """

    targets: ClassVar[dict[str, str]] = {"gamma": "linear"}
    mirrors: ClassVar[tuple[str, ...]] = ("x", "y")
    transposes: ClassVar[bool] = True

    def __init__(self, name: str = "euler_multi_quadrants_periodicBC", **options: Any) -> None:
        super().__init__(name, **options)


class EulerQuadrantsOpen(WellDataModule):
    """`EulerQuadrants` with open boundaries."""

    targets: ClassVar[dict[str, str]] = {"gamma": "linear"}
    mirrors: ClassVar[tuple[str, ...]] = ("x", "y")
    transposes: ClassVar[bool] = True

    def __init__(self, name: str = "euler_multi_quadrants_openBC", **options: Any) -> None:
        super().__init__(name, **options)
