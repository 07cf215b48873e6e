"""Gray-Scott reaction and diffusion."""

from __future__ import annotations

from typing import Any, ClassVar

from physrep.data.module import WellDataModule


class GrayScott(WellDataModule):
    r"""Two species that react and diffuse into spots, stripes, mazes and spirals, periodic in x and y.

    $\partial_t A = D_A\nabla^2 A - AB^2 + F(1 - A)$, $\partial_t B = D_B\nabla^2 B + AB^2 - (F + k)B$; fields A, B. The
    Well holds six pairs (F, k), so that both targets are one label of six classes; more than a third of its "gliders"
    come to rest early, and its Gaussian starts recur in all six.
    """

    targets: ClassVar[dict[str, str]] = {"F": "linear", "k": "linear"}
    mirrors: ClassVar[tuple[str, ...]] = ("x", "y")
    transposes: ClassVar[bool] = True
    shared_starts: ClassVar[bool] = True

    def __init__(self, name: str = "gray_scott_reaction_diffusion", **options: Any) -> None:
        super().__init__(name, **options)
