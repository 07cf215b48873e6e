"""Simulate a sample data set in The Well's format.

    python -m physrep.simulate system=shear_flow preset=tiny
    python -m physrep.simulate system=shear_flow preset=small name=longer system.frames=65

An interrupted run continues with the same command; the files depend on the configuration alone.
"""

from __future__ import annotations

from collections.abc import Sequence

from physrep.config import cli
from physrep.errors import run


def main(argv: Sequence[str]) -> None:
    """Simulate what the command line asks for into <root>/<name>."""
    cfg = cli(argv, base="simulate", doc=__doc__)
    from physrep.simulate.engine import simulate

    simulate(cfg)


if __name__ == "__main__":
    run(main)
