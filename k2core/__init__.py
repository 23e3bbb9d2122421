"""k2core: a plugin-based agent framework around thinking models of the Kimi K2 family.

What a plugin needs is here: ``from k2core import hookimpl, tool``. `k2core.interfaces` has every seam.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from k2core.hookspecs import hookimpl
    from k2core.toolmaking import tool

__version__ = "0.1.0"

__all__ = ["__version__", "hookimpl", "tool"]

_HOMES = {"hookimpl": "k2core.hookspecs", "tool": "k2core.toolmaking"}  # imported on first use: ``k2 --help`` needs neither


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'k2core' has no attribute '{name}'")
    return getattr(import_module(home), name)
