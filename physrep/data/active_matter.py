"""Active rods in a viscous fluid."""

from __future__ import annotations

from typing import Any, ClassVar

from physrep.data.module import WellDataModule


class ActiveMatter(WellDataModule):
    r"""Rods that swim, align and stir the Stokes fluid that carries them, periodic in x and y (arXiv 2308.06675).

    $\partial_t\Psi + \nabla_x\cdot(\dot x\Psi) + \nabla_p\cdot(\dot p\Psi) = 0$ for the density $\Psi(x, p, t)$ of
    places and orientations, $\dot x = u - d_T\nabla_x\log\Psi$, $\dot p = (I - pp)\cdot(\nabla u + 2\zeta D)\cdot p -
    d_R\nabla_p\log\Psi$, $-\nabla^2 u + \nabla P = \nabla\cdot\Sigma$, $\Sigma = \alpha D + \beta S{:}E -
    2\zeta\beta(D\cdot D - S{:}D)$; fields concentration $c = \langle 1\rangle$, velocity, $D = \langle pp\rangle$ and
    $E = \mathrm{sym}\,\nabla u$. Tensors are symmetric, E is free of trace, and D has the trace c, which hardly varies.
    """

    targets: ClassVar[dict[str, str]] = {"alpha": "linear", "zeta": "linear"}
    paper_targets: ClassVar[dict[str, str]] = {"alpha": "linear", "zeta": "linear"}
    redundant: ClassVar[tuple[str, ...]] = ("concentration", "D_yx", "D_yy", "E_yx", "E_yy")
    mirrors: ClassVar[tuple[str, ...]] = ("x", "y")
    transposes: ClassVar[bool] = True
    start: ClassVar[tuple[str, ...]] = ("concentration", "D")

    def __init__(self, name: str = "active_matter", **options: Any) -> None:
        super().__init__(name, **options)
