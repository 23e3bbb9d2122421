"""Another search over the documents: the same tool, carried out by tantivy's index in memory."""

from k2core import hookimpl
from k2core.hookspecs import RegisterTool


@hookimpl
def register_tools(register: RegisterTool) -> None:
    """Register it as an implementation of ``search``."""
    register(
        "k2core_tantivy.search:make_search",
        name="tantivy",
        summary="passages of the documents, by tantivy",
        needs=("documents",),
        state="k2core_tantivy.search:state",
        implements="search",
        compare="lines",
    )
