"""The tools over a workspace: python, write_file, read_file, list_files and run_tests.

A model has no way to choose the isolation: the level comes from the operator's settings and this machine's self-test, and
where it is not reached the tools are not made.
"""

import os
from pathlib import Path
from typing import get_args

import msgspec
from platformdirs import user_cache_dir, user_data_dir

from k2core import tool
from k2core.errors import InputError, ToolError, Unavailable
from k2core.interfaces import Tool, ToolContext, ToolOutput, current_call
from k2core_sandbox.beneath import Workspace
from k2core_sandbox.interpreters import CELL_S, Interpreters, Settings
from k2core_sandbox.launcher import USER
from k2core_sandbox.levels import level
from k2core_sandbox.process import GRACE_S, START_S, Kind
from k2core_sandbox.testing import run_pytest

DEADLINE_S = CELL_S + GRACE_S + START_S + 30.0  # of the call: the cell's own deadline comes first
READ_LINES = 200  # of one read


def make_python(context: ToolContext) -> Tool:
    """The tool ``python``."""
    workspace = _workspace(context)
    interpreters = Interpreters(_settings(context, workspace), workspace)
    context.closing.callback(interpreters.close)

    @tool(effect="external", timeout_s=DEADLINE_S, name="python")
    def python(code: str) -> ToolOutput:
        """Run Python code in a sandbox and see what it prints and its last value; variables stay."""
        call = current_call()
        return interpreters.of(call).run(code, call.past, call.left_s)

    return python


def make_run_tests(context: ToolContext) -> Tool:
    """The tool ``run_tests``."""
    settings = _settings(context, _workspace(context))

    @tool(effect="external", timeout_s=DEADLINE_S, name="run_tests")
    def run_tests(path: str = ".") -> ToolOutput:
        """Run the workspace's tests with pytest."""
        if path.startswith(("-", "/")) or ".." in path.split("/"):
            raise ToolError(f"cannot run tests in '{path}': give a path within the workspace")
        return run_pytest(settings, [path], min(CELL_S, current_call().left_s))

    return run_tests


def make_write_file(context: ToolContext) -> Tool:
    """The tool ``write_file``."""
    workspace = _workspace(context)
    owner = None if os.geteuid() else USER

    @tool(effect="idempotent", name="write_file", confined=True)
    def write_file(path: str, content: str) -> str:
        """Write a file of the workspace, replacing it."""
        data = content.encode("utf-8", "replace")
        workspace.write(path, data, owner=owner)
        return f"wrote {path} ({len(data)} bytes)"

    return write_file


def make_read_file(context: ToolContext) -> Tool:
    """The tool ``read_file``."""
    workspace = _workspace(context)

    @tool(effect="read", name="read_file")
    def read_file(path: str, line: int = 1) -> str:
        """Read a text file of the workspace from a line on."""
        data = workspace.read(path)
        try:
            lines = data.decode("utf-8").splitlines()
        except UnicodeDecodeError as error:
            raise ToolError(f"cannot read '{path}': byte {error.start + 1} is not UTF-8 text") from error
        if not 1 <= line <= max(1, len(lines)):
            raise ToolError(f"cannot read '{path}' from line {line}: it has {len(lines)} lines")
        shown = lines[line - 1 : line - 1 + READ_LINES]
        rest = len(lines) - (line - 1) - len(shown)
        more = [f"[{rest} more lines; go on with line {line + len(shown)}]"] if rest else []
        return "\n".join([*shown, *more]) if lines else "[empty]"

    return read_file


def make_list_files(context: ToolContext) -> Tool:
    """The tool ``list_files``."""
    workspace = _workspace(context)

    @tool(effect="read", name="list_files")
    def list_files() -> str:
        """List the workspace's files with their sizes."""
        entries, whole = workspace.entries()
        lines = [f"{entry.path} {entry.size} bytes" for entry in entries]
        return "\n".join([*lines, *([] if whole else ["[more files are not shown]"])]) or "[no files]"

    return list_files


def _settings(context: ToolContext, workspace: Workspace) -> Settings:
    """The isolation in force.

    Raises:
        Unavailable: the machine does not give the level that the operator wants.
        InputError: there is no such level.
    """
    try:
        found = level(msgspec.convert(context.sandbox, Kind))
    except msgspec.ValidationError:
        raise InputError(f"no sandbox level '{context.sandbox}': known are {', '.join(get_args(Kind))}") from None
    if found.name == "unavailable":
        raise Unavailable(f"no sandbox for code: {found.why}")
    return Settings(kind=found.name, workspace=workspace.folder)


def _workspace(context: ToolContext) -> Workspace:
    """The workspace, held open for as long as the session lasts.

    Raises:
        InputError: it cannot be one.
    """
    assert context.workspace is not None  # registered as a need
    workspace = Workspace.open(_prepared(context.workspace))
    context.closing.callback(workspace.close)
    return workspace


def _prepared(folder: Path) -> Path:
    """The workspace, made if it does not exist; as root it belongs to the sandbox's user."""
    folder = folder.absolute()
    try:
        if not folder.exists():
            folder.mkdir(parents=True, mode=0o700)
            if not os.geteuid():
                os.chown(folder, USER, USER)
        about = folder.stat()
    except OSError as error:
        raise InputError(f"cannot use '{folder}' as the workspace: {error.strerror}") from error
    if not folder.is_dir():
        raise InputError(f"cannot use '{folder}' as the workspace: it is not a folder")
    for place in (user_cache_dir("k2core", appauthor=False), user_data_dir("k2core", appauthor=False)):
        if Path(place).resolve().is_relative_to(folder.resolve()):
            raise InputError(
                f"cannot use '{folder}' as the workspace: k2core's own folder {place} lies in it, where code could change it. "
                "Name another folder."
            )
    if not os.geteuid() and about.st_uid != USER:
        raise InputError(
            f"cannot use '{folder}' as the workspace: as root, code runs as user {USER}, who does not own it. "
            f"Name a folder that does not exist yet, or run: chown -R {USER}:{USER} {folder}"
        )
    return folder
