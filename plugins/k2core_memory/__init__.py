"""The memories that come with k2core: by rules with a line per call, written by the model, and none at all."""

from k2core import hookimpl
from k2core.hookspecs import Register


@hookimpl
def register_memories(register: Register) -> None:
    """Register the memories by where they are found."""
    register("k2core_memory.rules:RulesMemory", name="rules", summary="hides and leaves out the oldest; a line for each call")
    register(
        "k2core_memory.written:WrittenMemory", name="model", summary="the model writes what to remember of the steps that go"
    )
    register("k2core.agent.window:Window", name="window", summary="hides and leaves out the oldest, without a word")
