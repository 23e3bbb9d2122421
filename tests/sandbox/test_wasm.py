"""The python tool and the tests' tool at level ``wasm``, and when that level is taken."""

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from k2core.interfaces import CallContext, PastCall, ToolContext, ToolOutput
from k2core_sandbox import bubblewrap, levels, wasm
from k2core_sandbox.beneath import Workspace
from k2core_sandbox.interpreters import Interpreters, Settings
from k2core_sandbox.testing import run_pytest
from k2core_sandbox.tools import _prepared

pytestmark = pytest.mark.skipif(not wasm.versions(), reason="the extra 'wasm' is not installed")


class Cells:
    """One run's cells, remembered as the journal does."""

    def __init__(self, folder: Path, closing: ExitStack) -> None:
        self.workspace = Workspace.open(_prepared(folder))
        closing.callback(self.workspace.close)
        self.settings = Settings(kind="wasm", workspace=self.workspace.folder)
        self.interpreters = Interpreters(self.settings, self.workspace)
        closing.callback(self.interpreters.close)
        self.past: list[PastCall] = []

    def run(self, code: str, left_s: float = 60.0) -> ToolOutput:
        """Run one cell."""
        call = CallContext(run="r", past=tuple(self.past), left_s=left_s)
        output = self.interpreters.of(call).run(code, call.past, left_s)
        self.past.append(PastCall(arguments={"code": code}, text=output.text, ok=output.ok, details=output.details))
        return output


@pytest.fixture
def cells(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cells]:
    """A run's cells in WebAssembly."""
    found = levels.level("wasm")
    if found.name != "wasm":
        pytest.skip(f"no 'wasm' here: {found.why}")
    with ExitStack() as closing:
        yield Cells(tmp_path_factory.mktemp("wasm") / "workspace", closing)


def test_variables_stay_and_errors_name_their_line(cells: Cells) -> None:
    """State is kept; output comes before the value; a failing cell shows its own frames."""
    assert cells.run("x = 6\nprint('six')").text == "six"
    assert cells.run("print('é😀')\nx * 7").text == "é😀\n42"
    failed = cells.run("def half(n):\n    return 1 / n\nhalf(0)")
    assert not failed.ok and "return 1 / n" in failed.text and "worker.py" not in failed.text
    assert cells.run("x").text == "6"


def test_a_loop_ends_the_interpreter_and_its_variables_are_restored(cells: Cells) -> None:
    """At the deadline the cell is stopped and says so; the next one repeats the cells before."""
    cells.run("x = 41")
    stopped = cells.run("while True: pass", left_s=1.0)
    assert not stopped.ok and stopped.text.startswith("error: interrupted") and stopped.details["status"] == "exit"
    assert cells.run("x + 1").text.endswith("repeating 1 earlier cells restored its variables]\n42")


def test_numpy_sympy_and_plots_work_inside(cells: Cells) -> None:
    """What the tool promises to have is there, and a figure comes out as a file."""
    assert cells.run("import numpy as np, sympy\nint(np.arange(5).sum()) + sympy.factorial(3)").text == "16"
    output = cells.run("import matplotlib.pyplot as plt\nplt.plot([1, 4, 9])\nNone")
    assert output.files["figure-2-1.png"].startswith(b"\x89PNG")


def test_tests_are_run_inside(cells: Cells) -> None:
    """pytest runs in WebAssembly too."""
    cells.workspace.write(
        "test_sums.py", b"def test_good():\n    assert 1 + 1 == 2\n\ndef test_bad():\n    assert 1 + 1 == 3\n"
    )
    output = run_pytest(cells.settings, ["."], 60.0)
    assert output.details["counts"] == {"passed": 1, "failed": 1, "error": 0, "skipped": 0}, output.text


def test_it_is_taken_where_there_is_no_bubblewrap(cells: Cells, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Without bubblewrap the default accepts it, and says why; asked for by name it is taken in any case."""
    monkeypatch.setattr(bubblewrap, "SYSTEM", str(tmp_path))
    found = levels.level(keep=False)
    assert found.name == "wasm" and "bubblewrap is not installed" in found.why
    assert levels.level("wasm", keep=False).name == "wasm"


def test_tools_take_the_level_by_name(tmp_path: Path, cells: Cells) -> None:
    """The operator's setting may name it."""
    from k2core_sandbox.tools import _settings

    with ExitStack() as closing:
        context = ToolContext(workspace=tmp_path, closing=closing, sandbox="wasm")
        assert _settings(context, cells.workspace).kind == "wasm"
