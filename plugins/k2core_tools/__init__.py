"""The tools that come with k2core: calculator, facts, units, and search and read over a local folder.

This module registers them; each is loaded when it is first used.
"""

from k2core import hookimpl
from k2core.hookspecs import RegisterTool


@hookimpl
def register_tools(register: RegisterTool) -> None:
    """Register the tools by where they are found."""
    register("k2core_tools.calculator:calculator", name="calculator", summary="exact arithmetic")
