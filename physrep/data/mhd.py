"""Compressible magnetohydrodynamic turbulence."""

from __future__ import annotations

from typing import Any, ClassVar

from physrep.data.module import WellDataModule


class MHD(WellDataModule):
    r"""Isothermal, driven, magnetised turbulence in a periodic cube of 64^3 cells (`name=MHD_256`: of 256^3).

    $\partial_t\rho + \nabla\cdot(\rho v) = 0$, $\partial_t(\rho v) + \nabla\cdot(\rho vv - BB) + \nabla P = f$ with
    $P = p + B^2/2$, $\partial_t B = \nabla\times(v\times B)$, $\nabla\cdot B = 0$; fields density, magnetic_field,
    velocity. Targets: the Alfven and the sonic Mach number. B is a pseudovector: a mirror image needs another sign, so
    none is declared.
    """

    targets: ClassVar[dict[str, str]] = {"Ma": "log10", "Ms": "log10"}

    def __init__(self, name: str = "MHD_64", **options: Any) -> None:
        super().__init__(name, **options)
