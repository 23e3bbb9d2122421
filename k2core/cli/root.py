"""``k2`` itself: commands found lazily, errors as one line each, exit codes.

Commands are imported when they are called, so that ``k2 --help`` costs an interpreter and click. Strangers' commands are
entry points of the group ``k2core.commands`` (a click command each), loaded one by one and only when they are called: one
that is broken fails alone, and ``k2 plugins`` lists it with the reason.

Exit codes: 0 answered or done, 1 other failures, 2 usage, 3 a budget ended the work with a partial answer, 4 verification
failed or two things that were compared differ, 5 no model or backend, 6 the model declined, 7 a call waits for a person's
decision, 130 Ctrl-C.
"""

import sys
from collections.abc import Sequence
from importlib import import_module
from typing import Any

import click

import k2core
from k2core.cli.output import general_options
from k2core.cli.text import fault_of

COMMAND_GROUP = "k2core.commands"
INTERRUPTED = 130

COMMANDS = {  # name: (where it is, what --help says)
    "run": ("k2core.cli.run:run", "Answer one question."),
    "chat": ("k2core.cli.chat:chat", "Ask several questions in one run."),
    "resume": ("k2core.cli.resume:resume", "Go on with a run where it stopped."),
    "replay": ("k2core.cli.replay:replay", "Generate a run again and compare every token."),
    "runs": ("k2core.cli.runs:runs", "List past runs and show what happened in them."),
    "tools": ("k2core.cli.tools:tools", "List, show, call and compare tools."),
    "verifiers": ("k2core.cli.verifiers:verifiers", "List what checks answers, compare two."),
    "models": ("k2core.cli.models:models", "List models, inspect checkpoints, write logits."),
    "backends": ("k2core.cli.backends:backends", "List and check what can run models here."),
    "quantize": ("k2core.cli.quantize:quantize", "Make the experts of a checkpoint INT4."),
    "plugins": ("k2core.cli.plugins:plugins", "List plugins and find out what is wrong with them."),
    "config": ("k2core.cli.config:config", "Show every setting and where it comes from."),
    "eval": ("k2core.cli.evaluate:evaluate", "Evaluate a model."),
    "warmup": ("k2core.cli.warmup:warmup", "Compile the backend's kernels ahead of the first question."),
    "tokens": ("k2core.cli.tokens:tokens", "Text to token ids and back; compare tokenizers."),
    "format": ("k2core.cli.chat_format:chat_format", "Messages to a prompt and a model's turn back, as JSON."),
    "version": ("k2core.cli.version:version", "Show versions."),
}


class Root(click.Group):
    """The group of all commands."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Ours in order of use, then strangers'."""
        return [*COMMANDS, *(name for name in sorted(strangers()) if name not in COMMANDS)]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import a command."""
        if cmd_name in COMMANDS:
            module, _, attribute = COMMANDS[cmd_name][0].partition(":")
            command: click.Command = getattr(import_module(module), attribute)
            return command
        point = strangers().get(cmd_name)
        return None if point is None else load_command(point)

    def resolve_command(self, ctx: click.Context, args: list[str]) -> tuple[str | None, click.Command | None, list[str]]:
        """As click does, but an unknown name is told the nearest."""
        if not args[0].startswith("-") and args[0] not in self.list_commands(ctx):
            from k2core.errors import UnknownName

            raise UnknownName("command", args[0], self.list_commands(ctx), "See k2 --help.")
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        """As click does; an error about a setting that nobody typed here says where it comes from."""
        from k2core.errors import K2Error

        try:
            return super().invoke(ctx)
        except K2Error as error:
            if ctx.obj is not None:
                error.args = (str(error) + ctx.obj.where_from(error), *error.args[1:])
            raise

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Names and lines without importing a command."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, line) for name, (_, line) in COMMANDS.items()])
        found = {name: point for name, point in strangers().items() if name not in COMMANDS}
        if found:
            with formatter.section("Commands of plugins"):
                formatter.write_dl([(name, f"from {point.value}") for name, point in sorted(found.items())])

    def main(  # type: ignore[override]  # click overloads it by standalone_mode, which is always off here
        self, args: Sequence[str] | None = None, prog_name: str | None = None, **extra: Any
    ) -> Any:
        """Run one command line and leave with its exit code."""
        arguments = list(sys.argv[1:] if args is None else args)
        for stream in (sys.stdout, sys.stderr):
            if hasattr(stream, "reconfigure"):
                stream.reconfigure(errors="backslashreplace")  # a terminal without UTF-8 must not end in a traceback
        try:
            code = super().main(args=arguments, prog_name=prog_name or "k2", standalone_mode=False)
            sys.stdout.flush()
        except SystemExit:
            if args is None:
                _work_is_over()
            raise
        except BaseException as error:
            if args is None:
                _work_is_over()
            from k2core.cli.failure import report

            code = report(error, as_json="--json" in arguments)
        if args is None:
            _work_is_over()
        sys.exit(code if isinstance(code, int) else 0)


def _work_is_over() -> None:
    """Only the interpreter's end is left of this process: a Ctrl-C now would be a traceback over a finished answer."""
    import signal
    import threading

    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, signal.SIG_IGN)


def strangers() -> dict[str, Any]:
    """Entry points of commands by name; the first of a name counts, in order of its origin."""
    from importlib.metadata import entry_points

    found: dict[str, Any] = {}
    for point in sorted(entry_points(group=COMMAND_GROUP), key=lambda point: (point.name, point.value)):
        found.setdefault(point.name, point)
    return found


def load_command(point: Any) -> click.Command:
    """The command of an entry point.

    Raises:
        PluginError: its import fails, or it is no click command.
    """
    from k2core.errors import PluginError

    try:
        command = point.load()
    except (Exception, SystemExit) as error:  # plugin loading is a border: a stranger's fault becomes one line
        raise PluginError(f"cannot load command '{point.name}' ({point.value}): {fault_of(error)}") from error
    if not isinstance(command, click.Command):
        raise PluginError(f"command '{point.name}' ({point.value}) is {type(command).__name__}, expected a click command")
    return command


@click.group(cls=Root, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(k2core.__version__, prog_name="k2core", message="%(prog)s %(version)s")
@general_options
@click.pass_context
def main(ctx: click.Context) -> None:
    """Ask a small thinking model that calls tools, checks what comes back and answers with evidence.

    \b
    k2 run "What is 23 times 47?"
    k2 tools                        a noun alone lists
    k2 run --json "…"               every command takes --json, -v, --log-level and --config
    """
    from k2core.cli.app import App

    ctx.obj = App(ctx.meta)
