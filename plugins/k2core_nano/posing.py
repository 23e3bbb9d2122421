"""Posing a question to an agent: the tools that it declares, over the question's own world."""

import json
import tempfile
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from attrs import evolve

from k2core.agent.session import Choice, session_tools
from k2core.errors import K2Error, ToolError
from k2core.interfaces import Tool
from k2core.plugins import Plugins
from k2core_nano.train.questions import Question
from k2core_nano.train.tool_sets import set_of
from k2core_nano.train.world import World
from k2core_specs import load

SPEC = load("formats/nano_episode.toml")
OURS = ("calculator", "facts")  # whose results are the world's in every question that is generated or brings facts


def posed(question: Question, world: World, shipped: Mapping[str, Tool]) -> list[Tool]:
    """The tools of a question: our own, those of its world in place of the shipped ones, and foreign ones.

    Args:
        question: what is asked.
        world: one of its worlds; it keeps what calls have done.
        shipped: the product's tools by name, as far as they are needed without a world.
    """
    tools = []
    ours = OURS if question.policy is not None or question.world else ()
    for name in set_of(question):
        if name in ours or name in world.handlers or name not in shipped:
            tools.append(in_world(declared(SPEC["tools"][name]), world))
        else:
            tools.append(shipped[name])
    return [*tools, *(in_world(declared(text), world) for text in question.declares.values())]


def declared(declaration: str) -> Tool:
    """A tool that does nothing yet, from its declaration in JSON."""
    own: Mapping[str, Any] = json.loads(declaration)["function"]
    return Tool(
        name=own["name"], description=own["description"], parameters=own["parameters"], effect="read", function=lambda **_: ""
    )


def in_world(tool: Tool, world: World) -> Tool:
    """The tool's declaration over the question's world."""

    def function(**arguments: Any) -> str:
        text = world.call(tool.name, arguments)
        if text.startswith("error: "):
            raise ToolError(text.removeprefix("error: "))
        return text

    return evolve(tool, function=function)


def shipped_tools(plugins: Plugins, closing: ExitStack) -> dict[str, Tool]:
    """The product's tools over an empty folder of documents, by name."""
    folder = Path(closing.enter_context(tempfile.TemporaryDirectory()))
    return {tool.name: tool for tool in session_tools(plugins, Choice(documents=folder), closing)}


def runner(plugins: Plugins) -> Callable[[Mapping[str, str], str], str]:
    """Runs tests that the generator does not know, with the product's ``run_tests`` in a workspace of their own."""

    def run(files: Mapping[str, str], path: str) -> str:
        with ExitStack() as closing:
            folder = Path(closing.enter_context(tempfile.TemporaryDirectory())) / "workspace"
            try:
                tools = {tool.name: tool for tool in session_tools(plugins, Choice(workspace=folder), closing)}
                for name, content in files.items():
                    tools["write_file"].function(path=name, content=content)
                said = tools["run_tests"].function(path=path)
            except KeyError:
                return "error: no sandbox for code here"
            except K2Error as error:
                return f"error: {error}"
            return str(getattr(said, "text", said))

    return run
