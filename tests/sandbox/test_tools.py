"""The python tool and the tools of the workspace, as an agent uses them."""

import json
import os
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from k2core.agent.session import Choice, Session
from k2core.errors import InputError, ToolError
from k2core.events import ToolReturned
from k2core.interfaces import CallContext, PastCall, Tool, ToolContext, ToolOutput
from k2core.messages import Message, ToolCall
from k2core.testing.models import ScriptedModel
from k2core_sandbox import tools
from k2core_sandbox.beneath import Workspace
from k2core_sandbox.interpreters import Interpreters, Settings
from k2core_sandbox.levels import level
from k2core_sandbox.watchdog import Bounds

pytestmark = pytest.mark.skipif(level().name != "strong", reason=f"no strong sandbox: {level().why}")


@pytest.fixture
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A place for a workspace that does not exist yet, reachable for the sandbox's user."""
    return tmp_path_factory.mktemp("sandbox") / "workspace"


@pytest.fixture
def context(folder: Path) -> Iterator[ToolContext]:
    """What the factories are given; closed afterwards."""
    with ExitStack() as closing:
        yield ToolContext(workspace=folder, closing=closing)


class Cells:
    """One run's python tool, which remembers its calls as the journal does."""

    def __init__(self, context: ToolContext, bounds: Bounds | None = None) -> None:
        self.workspace = tools._workspace(context)
        settings = tools._settings(context, self.workspace)
        if bounds is not None:
            settings = Settings(kind=settings.kind, workspace=settings.workspace, bounds=bounds)
        self.interpreters = Interpreters(settings, self.workspace)
        context.closing.callback(self.interpreters.close)
        self.past: list[PastCall] = []

    def run(self, code: str, left_s: float = 30.0) -> ToolOutput:
        """Run one cell."""
        call = CallContext(run="r", past=tuple(self.past), left_s=left_s)
        output = self.interpreters.of(call).run(code, call.past, left_s)
        past = PastCall(arguments={"code": code}, text=output.text, ok=output.ok, details=output.details)
        self.past.append(past)
        return output

    def end(self) -> None:
        """End the interpreter, as a restart of the host would."""
        self.interpreters.close()


@pytest.fixture
def cells(context: ToolContext) -> Cells:
    """A run's cells."""
    return Cells(context)


def test_variables_stay_and_the_last_value_is_shown(cells):
    """State is kept from cell to cell; output, then the value."""
    assert cells.run("x = 6\nprint('six')").text == "six"
    assert cells.run("print('now')\nx * 7").text == "now\n42"
    assert cells.run("def f(): return x\nf()").text == "6"
    assert cells.run("pass").text == "[no output]"


def test_what_cells_define_is_their_main_module(cells):
    """Classes of a cell can be pickled, and hints that name them resolved."""
    cells.run("import pickle, typing\nclass Box:\n    next: 'Box'\n    side = 3")
    assert cells.run("pickle.loads(pickle.dumps(Box())).side").text == "3"
    assert cells.run("typing.get_type_hints(Box)['next'] is Box").text == "True"


def test_an_error_shows_the_cells_own_frames(cells):
    """A failing cell is not ok, begins with an error line, and names its line; the state stays."""
    cells.run("def half(n):\n    return 1 / n\nkept = 1")
    output = cells.run("half(0)")
    assert not output.ok
    assert output.text.startswith("error: ZeroDivisionError: division by zero\nTraceback")
    assert "return 1 / n" in output.text and "worker.py" not in output.text
    assert cells.run("1 +").text.startswith("error: SyntaxError")
    assert cells.run("kept").text == "1"


def test_a_loop_is_interrupted_and_the_state_stays(cells):
    """At the deadline the cell is stopped and says so; variables survive."""
    cells.run("x = 1")
    output = cells.run("while True: x += 1", left_s=0.5)
    assert not output.ok and "interrupted" in output.text
    assert int(cells.run("x").text) > 1


def test_a_cell_that_ignores_the_interrupt_is_killed_and_restored(cells):
    """SIGKILL is the second stage; the next cell finds the variables of the repeated earlier ones."""
    cells.run("x = 41")
    output = cells.run("import signal\nsignal.signal(signal.SIGINT, signal.SIG_IGN)\nwhile True: pass", left_s=0.3)
    assert not output.ok and "did not stop" in output.text
    restored = cells.run("x + 1")
    assert "repeating 1 earlier cells restored" in restored.text and restored.text.endswith("\n42")
    assert cells.run("x + 2").text == "43"


def test_a_restart_of_the_host_repeats_the_journalled_cells(cells, context):
    """A new interpreter repeats the run's cells, errors included, and goes on."""
    cells.run("total = 0")
    cells.run("for n in range(5): total += n\ntotal")
    cells.run("total / 0")
    cells.end()
    assert cells.run("total").text == "[the interpreter was restarted; repeating 3 earlier cells restored its variables]\n10"


@pytest.mark.parametrize(
    ("code", "why"),
    [
        ("import os\nnonce = os.urandom(8)\nprint(nonce)", "gave something else"),
        ("open('log.txt', 'a').write('once')", "changed files"),
    ],
)
def test_what_cannot_be_repeated_is_said(cells, folder, code, why):
    """Cells that differ, or that changed files, are not silently repeated: the model is told that its variables are lost."""
    cells.run("x = 1")
    cells.run(code)
    cells.end()
    output = cells.run("x")
    assert output.text.startswith("error: NameError") and "variables are lost" in output.text and why in output.text
    assert (folder / "log.txt").exists() == ("log" in code)
    if "log" in code:
        assert (folder / "log.txt").read_text() == "once"


def test_output_is_capped_marked_and_without_terminal_sequences(cells):
    """More than a megabyte is dropped with a mark; escapes and control characters do not reach the model."""
    output = cells.run("print('\\x1b[31mred\\x1b[0m\\x07')\nimport os\nfor _ in range(40): os.write(1, b'a' * 65536)")
    assert output.text.startswith("red\na") and "more bytes were printed" in output.text
    assert "\x1b" not in output.text and "\x07" not in output.text
    assert len(output.text) < (1 << 20) + 1000


def test_a_plot_comes_out_as_a_file(cells):
    """An open figure is saved, named, and brought out with its content."""
    output = cells.run("import matplotlib.pyplot as plt\nplt.plot([1, 2, 3]);", left_s=120)
    assert "[files: figure-1-1.png (" in output.text
    assert output.files["figure-1-1.png"].startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("bounds", "code", "why"),
    [
        (Bounds(memory=200 << 20), "x = bytearray(400 << 20)\nimport time\ntime.sleep(20)", "MiB of memory"),
        (
            Bounds(memory=300 << 20),
            "import os, time\nfor _ in range(8):\n    if not os.fork(): x = bytearray(80 << 20); break\ntime.sleep(20)",
            "MiB of memory",
        ),
        (Bounds(disk=5 << 20), "open('big', 'wb').write(b'a' * (20 << 20))\nimport time\ntime.sleep(20)", "its workspace held"),
        (Bounds(files=50), "for n in range(200): open(str(n), 'w')\nimport time\ntime.sleep(20)", "more than 50 files"),
        (
            Bounds(processes=5),
            "import os, time\nfor _ in range(10):\n    if not os.fork(): time.sleep(20)\ntime.sleep(20)",
            "processes, more than 5",
        ),
    ],
)
def test_the_watchdog_bounds_what_limits_do_not(context, bounds, code, why):
    """Memory over all processes, their number, bytes and files end the sandbox, with the reason, and the next cell works."""
    cells = Cells(context, bounds)
    output = cells.run(code)
    assert not output.ok and why in output.text
    if bounds.disk == Bounds().disk and bounds.files == Bounds().files:
        assert cells.run("1 + 1").text.endswith("2")


def test_forged_frames_end_the_interpreter(cells):
    """A reply that is none, for another cell or too long is never believed."""
    for body in (b'{"cell": 99, "status": "ok", "value": "7", "error": null}', b"not json", b'{"cell": 1}'):
        frame = len(body).to_bytes(4, "big") + body
        code = f"import os\nfor n in range(3, 512):\n    try: os.write(n, {frame!r})\n    except OSError: pass"
        output = cells.run(code)
        assert not output.ok and "forged" in output.text


def test_a_worker_that_dies_is_said(cells):
    """An interpreter that ends by itself is an error of the cell and a fresh start for the next."""
    assert "the interpreter ended" in cells.run("import os\nos._exit(3)").text
    assert cells.run("1 + 1").text.endswith("2")
    assert "ended" in cells.run("import os, signal\nos.kill(os.getpid(), signal.SIGKILL)").text
    assert "SystemExit" in cells.run("exit_code = 3\nraise SystemExit(exit_code)").text


def calls_of(context: ToolContext, make: str) -> Tool:
    """A tool of the workspace."""
    made: Tool = getattr(tools, f"make_{make}")(context)
    return made


def test_files_are_written_read_and_listed(context, cells):
    """Host and inside see the same files; folders are made on the way."""
    write, read, listing = (calls_of(context, name).function for name in ("write_file", "read_file", "list_files"))
    assert write(path="notes/plan.txt", content="one\ntwo\n") == "wrote notes/plan.txt (8 bytes)"
    assert cells.run("open('notes/plan.txt').read()").text == "'one\\ntwo\\n'"
    cells.run("open('notes/plan.txt', 'a').write('three')")
    assert read(path="notes/plan.txt", line=2) == "two\nthree"
    assert listing() == "notes/plan.txt 13 bytes"
    with pytest.raises(ToolError, match="it has 3 lines"):
        read(path="notes/plan.txt", line=4)


@pytest.mark.parametrize("path", ["../out.txt", "/etc/passwd", "a/../../out.txt", "", ".", "link/x", "link", "a\0b", "fifo"])
def test_no_path_leads_outside(context, cells, folder, path):
    """Absolute paths, dots, links and pipes are refused for reading, and none of them is followed for writing."""
    cells.run("import os\nos.symlink('/etc', 'link')\nos.mkfifo('fifo')")
    before = Path("/etc").stat().st_mtime_ns
    with pytest.raises(ToolError):
        calls_of(context, "read_file").function(path=path + ("/hostname" if path == "link" else ""))
    if path not in ("link", "fifo"):  # these two are replaced by a file, as a rename does
        with pytest.raises(ToolError):
            calls_of(context, "write_file").function(path=path, content="x")
    assert Path("/etc").stat().st_mtime_ns == before
    assert not (folder.parent / "out.txt").exists()


def test_tests_are_run_inside_and_told_as_data(context):
    """run_tests counts outcomes and quotes failures; nothing of a former run of tests stays."""
    write, run = calls_of(context, "write_file").function, calls_of(context, "run_tests").function
    assert run().text.startswith("no tests were found")
    write(path="test_sums.py", content="def test_good():\n    assert 1 + 1 == 2\n\ndef test_bad():\n    assert 1 + 1 == 3\n")
    write(path="test_broken.py", content="import nothing_of_that_name\n")
    output = run(path="test_sums.py")
    assert output.text.splitlines()[0] == "1 passed, 1 failed"
    assert "failed test_sums.py::test_bad: assert (1 + 1) == 3" in output.text
    assert output.details["counts"] == {"passed": 1, "failed": 1, "error": 0, "skipped": 0}
    assert "1 error" in run().text and "nothing_of_that_name" in run().text
    many = "import pytest\n\n@pytest.mark.parametrize('n', range(500))\ndef test_n(n):\n    assert n != 499, '\\x1b[2J'\n"
    write(path="test_many.py", content=many)
    output = run(path="test_many.py")
    assert output.text.splitlines()[0] == "499 passed, 1 failed" and "test_n[499]" in output.text and "\x1b" not in output.text
    assert "file or directory not found" in run(path="test_sum.py").text
    for path in ("-p", "/", "../x"):
        with pytest.raises(ToolError, match="within the workspace"):
            run(path=path)


def test_no_part_of_a_failed_cell_holds_terminal_sequences(cells):
    """Neither the first line, which quotes the error, nor the traceback."""
    for code in ("raise Exception('last\\x1b[2J')", "raise SystemExit('\\x1b[2J')"):
        output = cells.run(code)
        assert not output.ok and "\x1b" not in output.text


@pytest.mark.parametrize("wait_s", [0.0, 0.005, 0.05])
def test_ending_the_session_while_an_interpreter_starts_does_not_wait_for_its_cell(cells, wait_s):
    """Whenever the end comes, also between the start and the cell, it does not wait for a cell of 15 seconds."""
    failures = []

    def work():
        try:
            cells.run("import time; time.sleep(15)")
        except Exception as error:
            failures.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    time.sleep(wait_s)
    started = time.monotonic()
    cells.interpreters.close()
    assert time.monotonic() - started < 5
    thread.join(timeout=10)
    assert not thread.is_alive()


def turn(name: str, index: int, /, **arguments: object) -> Message:
    """A turn with one call."""
    call = ToolCall(id=f"functions.{name}:{index}", name=name, arguments=json.dumps(arguments))
    return Message(role="assistant", content="", tool_calls=(call,))


def test_a_run_keeps_its_variables_and_its_files_in_the_journal(folder, tmp_path):
    """Through the agent: cells of one run share variables, another run has its own, and files lie beside the journal."""
    choice = Choice(workspace=folder, store=tmp_path / "runs.sqlite")
    script = [turn("python", 0, code="x = 20"), turn("python", 1, code="open('n.txt', 'w').write('n')\nx * 2"), "It is 40."]
    with Session.open(choice, model=ScriptedModel([*script, turn("python", 0, code="x"), "Unknown."])) as session:
        run = session.agent.run("Twice twenty?").run
        events = [one.event for one in session.agent.journal.events(run) if isinstance(one.event, ToolReturned)]
        assert [event.text for event in events] == ["[no output]", "40\n[files: n.txt (1 bytes)]"]
        assert [one.name for one in events[1].files] == ["n.txt"]
        assert events[1].details["sandbox"] == "strong"
        assert (tmp_path / "files" / events[1].files[0].sha256[:2] / events[1].files[0].sha256).read_bytes() == b"n"
        other = session.agent.run("And x?").run
        (event,) = [one.event for one in session.agent.journal.events(other) if isinstance(one.event, ToolReturned)]
        assert "NameError" in event.text


def test_a_workspace_that_cannot_be_one_is_refused(tmp_path):
    """A file, or as root a folder of another user, is one clear line."""
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="not a folder"):
        tools._prepared(tmp_path / "file")
    if not os.geteuid():
        (tmp_path / "roots").mkdir()
        with pytest.raises(InputError, match="chown"):
            tools._prepared(tmp_path / "roots")


def test_ending_the_session_ends_the_sandbox(folder, tmp_path):
    """Nothing of a session's interpreters runs on behind it."""
    model = ScriptedModel([turn("python", 0, code="import os\nos.getpid()"), "done"])
    with Session.open(Choice(workspace=folder, store=tmp_path / "runs.sqlite"), model=model) as session:
        session.agent.run("Go.")
        running = processes_below(os.getpid())
        assert running
    for number in running:
        assert not Path(f"/proc/{number}").exists()


def test_ending_the_session_does_not_wait_for_a_cell(cells):
    """A cell that still runs when the session ends is ended with it."""
    ended: list[ToolOutput] = []
    thread = threading.Thread(target=lambda: ended.append(cells.run("import time\ntime.sleep(25)")))
    thread.start()
    time.sleep(1)
    started = time.monotonic()
    cells.end()
    thread.join()
    assert time.monotonic() - started < 10
    assert "the session ended" in ended[0].text


def processes_below(root: int) -> list[int]:
    """Every process that descends from *root*."""
    from k2core_sandbox.watchdog import tree

    return tree(root)[1:]


def test_a_held_workspace_is_not_followed_when_it_is_replaced(folder):
    """The workspace is a descriptor: what takes the place of its path later is not it."""
    folder.mkdir()
    workspace = Workspace.open(folder)
    try:
        workspace.write("a.txt", b"first")
        folder.rename(folder.with_name("moved"))
        folder.symlink_to("/etc")
        assert workspace.read("a.txt") == b"first"
        with pytest.raises(ToolError):
            workspace.read("hostname")
    finally:
        workspace.close()
