"""Isolation for code that a model wrote: the `python` tool and its workspace.

Read `levels` (which isolation there is), `process` (one sandbox), `interpreters` (one per run) and `tools`, in this order.
"""

from k2core import hookimpl
from k2core.hookspecs import RegisterTool


@hookimpl
def register_tools(register: RegisterTool) -> None:
    """Register the tools over a workspace by where they are found."""
    for name, summary in (("python", "run Python code; variables stay"), ("run_tests", "pytest over the workspace")):
        where, state = f"k2core_sandbox.tools:make_{name}", "k2core_sandbox.levels:state"
        register(where, name=name, summary=summary, needs=("workspace",), state=state)
    for name, summary in (
        ("write_file", "write a file of the workspace"),
        ("read_file", "lines of a file of the workspace"),
        ("list_files", "the files of the workspace"),
    ):
        register(f"k2core_sandbox.tools:make_{name}", name=name, summary=summary, needs=("workspace",))
