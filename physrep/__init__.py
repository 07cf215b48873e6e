"""Does a self-supervised representation of a physical simulation hold the physics?"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from physrep.run import load as load

# OpenMP threads that spin while they wait take ten times as long where another process wants the core.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

__version__ = "0.1.0"
__all__ = ["load"]


def __getattr__(name: str) -> Any:
    if name == "load":
        from physrep.run import load

        return load
    raise AttributeError(f"module 'physrep' has no attribute {name!r}")
