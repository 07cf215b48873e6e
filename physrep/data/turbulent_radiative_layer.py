"""The turbulent radiative mixing layer, in two and three dimensions."""

from __future__ import annotations

from typing import Any, ClassVar

from physrep.data.module import WellDataModule


class TurbulentRadiativeLayer(WellDataModule):
    r"""Cold dense gas below, hot thin gas above, sheared and cooling where they mix (Athena++, gamma 5/3).

    $\partial_t\rho + \nabla\cdot(\rho v) = 0$, $\partial_t(\rho v) + \nabla\cdot(\rho vv + P) = 0$,
    $\partial_t E + \nabla\cdot((E + P)v) = -E/t_\mathrm{cool}$; fields density, pressure, velocity; periodic in x, open
    in y. Density spans two decades. Only 72 training trajectories.
    """

    targets: ClassVar[dict[str, str]] = {"tcool": "log10"}
    mirrors: ClassVar[tuple[str, ...]] = ("x",)
    start: ClassVar[tuple[str, ...]] = ("density", "velocity")
    shared_starts: ClassVar[bool] = True

    def __init__(self, name: str = "turbulent_radiative_layer_2D", **options: Any) -> None:
        super().__init__(name, **options)


class TurbulentRadiativeLayer3D(WellDataModule):
    """`TurbulentRadiativeLayer` in three dimensions, periodic in x and y, open in z."""

    targets: ClassVar[dict[str, str]] = {"tcool": "log10"}
    mirrors: ClassVar[tuple[str, ...]] = ("x", "y")
    start: ClassVar[tuple[str, ...]] = ("density", "velocity")
    shared_starts: ClassVar[bool] = True

    def __init__(self, name: str = "turbulent_radiative_layer_3D", **options: Any) -> None:
        super().__init__(name, **options)
