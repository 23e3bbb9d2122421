"""``k2 tools``: what a model may call; call it yourself."""

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click
from attrs import evolve

from k2core.cli.app import App, Nouns
from k2core.cli.output import emit, json_option, print_table, print_text
from k2core.cli.streams import strangers_code
from k2core.cli.text import fault_of, one_line, to_json

if TYPE_CHECKING:
    from k2core.registration import Entry

F = TypeVar("F", bound=Callable[..., Any])


def folder_options(command: F) -> F:
    """What tools may need, as for ``k2 run``."""
    for option in (
        click.option("--sandbox", metavar="LEVEL", help="Isolation of code: strong (the default), wasm, reduced."),
        click.option("--workspace", metavar="FOLDER", help="Folder for the tools that run code and write files."),
        click.option("--docs", metavar="FOLDER", help="Folder for the tools that search and read."),
    ):
        command = option(command)
    return command


@click.group(cls=Nouns)
def tools() -> None:
    """List, show and call tools."""


@tools.command("list")
@json_option
@click.pass_obj
def list_tools(app: App, as_json: bool) -> None:
    """Every tool, without loading it; TOOL/IMPLEMENTATION is another implementation of a tool."""
    from k2core.agent.control import control_tools
    from k2core.interfaces import Tool
    from k2core.registration import IMPLEMENTATION
    from k2core.tools import CONTROL_NAMES

    found: list[dict[str, Any]] = [
        {
            "name": one.name,
            "plugin": "k2core",
            "summary": _as_others(one.description),
            "needs": [],
            "control": True,
            "state": "",
        }
        for one in control_tools(CONTROL_NAMES)
    ]
    for entry in app.plugins().entries("tool"):
        control = isinstance(entry.target, Tool) and entry.target.control
        found.append(
            {
                "name": entry.name,
                "plugin": entry.plugin,
                "summary": entry.summary,
                "needs": list(entry.needs),
                "control": control,
                "state": _state(entry, app),
            }
        )
    found += [
        {
            "name": entry.name,
            "plugin": entry.plugin,
            "summary": entry.summary,
            "needs": list(entry.needs),
            "control": False,
            "state": _state(entry, app) or _lacks(entry, app),
        }
        for entry in app.plugins().entries("tool" + IMPLEMENTATION)
    ]
    found.sort(key=lambda one: str(one["name"]))
    if as_json:
        emit({"tools": found})
        return
    rows = [[one["name"], one["plugin"], _line(one)] for one in found]
    print_table(("name", "plugin", "what it does"), rows, "No tools are registered. See k2 plugins.")


@tools.command()
@click.argument("name")
@folder_options
@json_option
@click.pass_obj
def show(app: App, name: str, docs: str | None, workspace: str | None, sandbox: str | None, as_json: bool) -> None:
    """A tool's declaration as the model sees it, its effect and its deadline."""
    import tempfile

    with ExitStack() as closing:
        empty = closing.enter_context(tempfile.TemporaryDirectory())  # a declaration does not depend on the folder
        one, plugin = _tool(app, name, {"docs": docs, "workspace": workspace, "sandbox": sandbox}, closing, Path(empty))
    shown = {
        "name": one.name,
        "plugin": plugin,
        "effect": one.effect,
        "timeout_s": one.timeout_s,
        "control": one.control,
        "untrusted": one.untrusted,
        "confined": one.confined,
        "declaration": one.declaration(),
    }
    if as_json:
        emit(shown)
        return
    more = "".join(f"; {name}" for name, holds in (("untrusted", one.untrusted), ("confined", one.confined)) if holds)
    print_text(f"{one.name} (plugin {plugin}; effect {one.effect}{more}; at most {one.timeout_s:g} s)\n{one.description}")
    print_text(to_json(one.parameters, indent=2))


@tools.command()
@click.argument("name")
@click.argument("arguments", metavar="JSON", default="{}")
@folder_options
@json_option
@click.pass_obj
@click.pass_context
def call(
    ctx: click.Context,
    app: App,
    name: str,
    arguments: str,
    docs: str | None,
    workspace: str | None,
    sandbox: str | None,
    as_json: bool,
) -> None:
    """Call a tool as a model would, e.g. k2 tools call calculator '{"expression": "23*47"}'."""
    import asyncio

    from k2core.messages import ToolCall
    from k2core.tools import Registry

    with ExitStack() as closing:
        one, _ = _tool(app, name, {"docs": docs, "workspace": workspace, "sandbox": sandbox}, closing)
        registry = Registry.of([one])
        result = asyncio.run(registry.call(ToolCall(id=f"functions.{one.name}:0", name=one.name, arguments=arguments)))
    if as_json:
        app.caught.log()
        emit(
            {
                "name": name,
                "ok": result.ok,
                "result": result.text,
                "duration_ms": round(result.duration_ms, 3),
                "full_bytes": result.full_bytes,
                "truncated": result.truncated,
            }
        )
    else:
        if lines := app.caught.take():
            from k2core.cli.screen import stderr_screen

            stderr_screen().block("printed", [("\n".join(one_line(line, 200) for line in lines), "dim")], "dim")
        print_text(result.text)
    ctx.exit(0 if result.ok else 1)


@tools.command()
@click.argument("first", metavar="A")
@click.argument("second", metavar="B")
@folder_options
@click.option("-n", "--count", type=click.IntRange(min=1), default=100, show_default=True, metavar="N", help="Calls of each.")
@click.option("--seed", type=int, default=0, metavar="N", help="Seed of the arguments.")
@click.option(
    "--by", metavar="HOW", help="Compare results as text, as lines in any order (tools say which), or exact: errors too."
)
@click.option("--words", metavar="TEXT", default="", help="Words to make texts of, apart by spaces, e.g. '1 7 + * ( )'.")
@click.option("--yes", is_flag=True, help="Also tools that have effects, which then happen again and again.")
@json_option
@click.pass_obj
@click.pass_context
def check(
    ctx: click.Context,
    app: App,
    first: str,
    second: str,
    docs: str | None,
    workspace: str | None,
    sandbox: str | None,
    count: int,
    seed: int,
    by: str | None,
    words: str,
    yes: bool,
    as_json: bool,
) -> None:
    """Whether two tools do the same, e.g. k2 tools check search search/tantivy --docs FOLDER.

    Arguments are drawn from the schema that both have, texts also from --words or the words of the documents. The first
    disagreement is shown, made as simple as possible, and the exit code is 4. TOOL/IMPLEMENTATION is another implementation
    of a tool.
    """
    from k2core.agent.choice import Choice
    from k2core.agent.session import tool_context
    from k2core.agent.swapping import entry_of, tool_of
    from k2core.cli.comparing import tell
    from k2core.conformance.drawing import words_of
    from k2core.conformance.tools_check import check_tools

    settings = app.settings(docs=docs, workspace=workspace, sandbox=sandbox)
    plugins = app.plugins()
    choice = Choice(
        documents=settings["docs"], workspace=settings["workspace"], sandbox=settings["sandbox"], store=settings["store"]
    )
    with ExitStack() as closing, strangers_code():
        context = tool_context(choice, closing)
        pair = [tool_of(plugins, name, context) for name in (first, second)]
        ways = {entry_of(plugins, "tool", name).compare for name in (first, second)}
        told = words.split() or (words_of(_texts(context.documents)) if context.documents is not None else [])
        by = by or ("lines" if "lines" in ways else "text")
        found = check_tools(*pair, count=count, seed=seed, by=by, words=told, effects=yes)
    app.caught.log()
    given = None if found.disagreement is None else dict(found.disagreement.given)
    ctx.exit(tell((first, second), "call", found, given, to_json(given), as_json=as_json))


def _texts(folder: Path, most: int = 50) -> str:
    """The beginnings of some documents, for words to ask with."""
    files = sorted(one for one in folder.rglob("*") if one.is_file() and not one.name.startswith("."))[:most]
    parts = []
    for one in files:
        with one.open("rb") as file:
            parts.append(file.read(4000).decode("utf-8", "ignore"))
    return " ".join(parts)


@strangers_code()
def _tool(
    app: App, name: str, given: Mapping[str, str | None], closing: ExitStack, stand_in: Path | None = None
) -> tuple[Any, str]:
    """A tool and the plugin that it came from; *stand_in* is used for folders where none is set."""
    from k2core.agent.control import control_tools
    from k2core.agent.session import Choice, tool_context
    from k2core.agent.swapping import entry_of, tool_of
    from k2core.errors import UnknownName
    from k2core.tools import CONTROL_NAMES

    settings = app.settings(**given)
    plugins, control = app.plugins(), {one.name: one for one in control_tools(CONTROL_NAMES)}
    if name in control:
        return control[name], "k2core"
    known = plugins.names("tool")
    if name.partition("/")[0] not in known:
        raise UnknownName("tool", name, [*known, *control])
    choice = Choice(
        documents=settings["docs"] or stand_in,
        workspace=settings["workspace"] or (stand_in and stand_in / "workspace"),
        sandbox=settings["sandbox"],
        store=settings["store"],
    )
    return tool_of(plugins, name, tool_context(choice, closing)), entry_of(plugins, "tool", name).plugin


def _as_others(sentence: str) -> str:
    """A sentence in the form of the other summaries."""
    return sentence[:1].lower() + sentence[1:].rstrip(".")


def _state(entry: "Entry", app: App) -> str:
    """How the tool says it stands on this machine; a fault of the plugin is its state."""
    from k2core.calls import ToolContext

    if not entry.state:
        return ""
    try:
        return str(evolve(entry, target=entry.state).load()(ToolContext(sandbox=app.settings()["sandbox"])))
    except Exception as error:  # a stranger's fault belongs into the listing
        return fault_of(error)


def _lacks(entry: "Entry", app: App) -> str:
    """Whether another implementation has nothing that it is one of."""
    of = entry.name.partition("/")[0]
    return "" if of in app.plugins().names("tool") else f"there is no tool '{of}'"


def _line(one: Mapping[str, Any]) -> str:
    from k2core.registration import FLAGS

    remarks = [one["state"], *(f"needs --{FLAGS[need]}" for need in one["needs"])]
    told = "; ".join(remark for remark in remarks if remark)
    return f"{one['summary']} ({told})" if told else str(one["summary"])
