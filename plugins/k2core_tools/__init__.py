"""The tools that come with k2core: calculator, facts, units, and search and read over a local folder.

This module registers them; each is loaded when it is first used.
"""

from k2core import hookimpl
from k2core.hookspecs import RegisterTool


@hookimpl
def register_tools(register: RegisterTool) -> None:
    """Register the five tools by where they are found."""
    documents = "k2core_tools.documents"
    register("k2core_tools.calculator:calculator", name="calculator", summary="exact arithmetic")
    register(
        "k2core_tools.facts:make_shipped_facts", name="facts", summary="countries and elements, each figure with its source"
    )
    register("k2core_tools.units:units", name="units", summary="exact unit conversion")
    register(
        f"{documents}:make_search",
        name="search",
        summary="passages of the documents",
        needs=("documents",),
        compare="lines",  # passages that fit equally well may be ranked otherwise
    )
    register(f"{documents}:make_read", name="read", summary="lines of a document", needs=("documents",))
