"""Does a self-supervised representation of a physical simulation hold the physics?"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from physrep.run import load as load

__version__ = "0.1.0"
__all__ = ["load"]


def __getattr__(name: str) -> Any:
    if name == "load":
        from physrep.run import load

        return load
    raise AttributeError(f"module 'physrep' has no attribute {name!r}")
