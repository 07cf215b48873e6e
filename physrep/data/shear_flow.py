"""Shear flow with a passive tracer."""

from __future__ import annotations

from typing import Any, ClassVar

from physrep.data.module import WellDataModule


class ShearFlow(WellDataModule):
    r"""Incompressible periodic shear flow carrying a passive tracer.

    $\partial_t u + u\cdot\nabla u = -\nabla p + \nu\nabla^2 u$, $\nabla\cdot u = 0$,
    $\partial_t s + u\cdot\nabla s = D\nabla^2 s$ with $\nu = 1/\mathrm{Re}$ and $D = \nu/\mathrm{Sc}$; fields tracer,
    pressure, velocity. The tracer is passive: Schmidt shows in it alone, and in The Well one flow recurs in all seven
    Schmidt files. Schmidt is log10 here, linear in the paper (arXiv 2603.13227).
    """

    targets: ClassVar[dict[str, str]] = {"Reynolds": "log10", "Schmidt": "log10"}
    paper_targets: ClassVar[dict[str, str]] = {"Reynolds": "log10", "Schmidt": "linear"}
    mirrors: ClassVar[tuple[str, ...]] = ("x", "y")
    transposes: ClassVar[bool] = True
    start: ClassVar[tuple[str, ...]] = ("tracer", "velocity")
    shared_starts: ClassVar[bool] = True

    def __init__(self, name: str = "shear_flow", **options: Any) -> None:
        super().__init__(name, **options)
