"""Turbulent, self-gravitating, cooling gas."""

from __future__ import annotations

from typing import Any, ClassVar

from physrep.data.module import WellDataModule


class TurbulenceGravityCooling(WellDataModule):
    r"""Interstellar gas that is stirred, falls together and radiates, in three dimensions with open boundaries.

    $\mathrm{d}\rho/\mathrm{d}t = -\rho\nabla\cdot v$, $\mathrm{d}v/\mathrm{d}t = -\nabla P/\rho + a_\mathrm{visc} -
    \nabla\Phi$, $\mathrm{d}u/\mathrm{d}t = -(P/\rho)\nabla\cdot v + (\Gamma - \Lambda)/\rho$; fields density, pressure,
    temperature, velocity. Targets: initial density, metallicity (which takes the value 0: linear) and temperature.
    """

    targets: ClassVar[dict[str, str]] = {"rho0": "log10", "Z": "linear", "T0": "log10"}

    def __init__(self, name: str = "turbulence_gravity_cooling", **options: Any) -> None:
        super().__init__(name, **options)
