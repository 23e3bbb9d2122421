"""k2core: a plugin-based agent framework around thinking models of the Kimi K2 family.

What a plugin needs is here: ``from k2core import hookimpl, tool``. `k2core.interfaces` has every seam.
"""

from k2core.hookspecs import hookimpl
from k2core.tools import tool

__version__ = "0.1.0"

__all__ = ["__version__", "hookimpl", "tool"]
