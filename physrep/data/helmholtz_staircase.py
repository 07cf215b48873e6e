"""Acoustic waves scattered by a staircase."""

from __future__ import annotations

from typing import Any, ClassVar

from physrep.data.module import WellDataModule


class HelmholtzStaircase(WellDataModule):
    r"""A point source's waves over a staircase that traps them, at one frequency a trajectory.

    $\nabla^2 U + \omega^2 U = \delta(x - x_0)$ with $\partial_n U = 0$ on the stairs, shown as real and imaginary
    part of $U e^{-i\omega t}$; fields pressure_re, pressure_im and the constant mask of the stairs. A run lasts
    one period whatever omega: it shows in space alone.
    """

    targets: ClassVar[dict[str, str]] = {"omega": "log10"}

    def __init__(self, name: str = "helmholtz_staircase", **options: Any) -> None:
        super().__init__(name, **options)
