"""``k2`` itself: quick to start, one-line errors with exit codes, strangers' commands that cannot take it down."""

import json
import subprocess
import sys
from collections.abc import Mapping

import pytest
from cli.processes import K2

HEAVY = {
    "anyio",
    "asyncio",
    "attr",
    "jsonschema",
    "llvmlite",
    "msgspec",
    "numba",
    "numpy",
    "onnxruntime",
    "platformdirs",
    "pluggy",
    "rich",
    "sqlite3",
    "structlog",
    "tiktoken",
    "torch",
}
LISTING = """
import sys
from k2core.cli import main
try:
    main({arguments!r})
except SystemExit as end:
    assert end.code == 0
print("MODULES", *sorted({{name.partition(".")[0] for name in sys.modules}}))
"""


@pytest.mark.parametrize("arguments", [["--help"], ["run", "--help"], ["--version"], ["version"]])
def test_help_imports_nothing_heavy(arguments: list[str], environment: Mapping[str, str]) -> None:
    """Showing help loads neither numpy, asyncio and rich nor anything heavier."""
    done = subprocess.run(
        [sys.executable, "-c", LISTING.format(arguments=arguments)],
        env=dict(environment),
        capture_output=True,
        text=True,
        check=True,
    )
    loaded = set(done.stdout.rpartition("MODULES")[2].split())

    assert not loaded & HEAVY


def test_help_loads_little_more_than_it_is_made_of(environment: Mapping[str, str]) -> None:
    """``k2 --help`` loads at most a dozen modules of its own beyond click, pluggy and what finds entry points."""

    def loaded(code: str) -> set[str]:
        told = f"{code}\nimport sys; print('MODULES', *sys.modules)"
        done = subprocess.run([sys.executable, "-c", told], env=dict(environment), capture_output=True, check=True, text=True)
        return set(done.stdout.rpartition("MODULES")[2].split())

    bare = loaded("import click, pluggy, attrs, importlib.metadata, importlib.resources")
    ours = loaded("from click.testing import CliRunner\nfrom k2core.cli import main\nCliRunner().invoke(main, ['--help'])")
    added = {name for name in ours - bare if not name.startswith(("click", "_", "encodings"))}

    assert sum(name.startswith("k2core") for name in added) <= 12, sorted(added)
    assert len(added) <= 60, sorted(added)


def test_help_lists_every_command_and_strangers(k2: K2) -> None:
    """Help names all commands, those of plugins included, without importing the broken one."""
    done = k2("--help")

    assert done.code == 0 and done.err == ""
    for name in (
        "run",
        "chat",
        "runs",
        "tools",
        "models",
        "backends",
        "plugins",
        "config",
        "eval",
        "warmup",
        "tokens",
        "format",
    ):
        assert f"\n  {name} " in done.out
    assert "hello" in done.out and "oops" in done.out


def test_a_strangers_command_runs(k2: K2) -> None:
    """An entry point of the group k2core.commands is a command of its own."""
    assert k2("hello").out == "hello\n"


def test_a_broken_command_fails_alone_and_is_listed(k2: K2) -> None:
    """A command whose import fails is one line and exit 1; k2 plugins gives the reason; ours is never replaced."""
    done, listed = k2("oops"), {one["name"]: one for one in k2("plugins", "--json").json()["commands"]}

    assert (done.code, done.out) == (1, "")
    assert done.err == "k2: cannot load command 'oops' (k2_shattered:command): OSError: libshattered.so not found\n"
    assert listed["hello"]["status"] == "loaded"
    assert "libshattered.so not found" in listed["oops"]["reason"]
    assert listed["run"]["status"] == "failed" and "already" in listed["run"]["reason"]


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["rnu", "q"], 2, "no command 'rnu'. Known: backends, "),
        (["rnu"], 2, "Did you mean 'run'?"),
        (["tools", "lits"], 2, "Did you mean 'tools list'?"),
        (["run"], 2, "the question is empty"),
        (["run", "", "--json"], 2, "the question is empty"),
        (["run", " \n "], 2, "the question is empty"),
        (["run", "--seed", "x", "q"], 2, "'x' is not a valid integer"),
        (["run", "-m", "prodcut", "q"], 2, "Did you mean 'product'?"),
        (["run", "-m", "no/such/folder", "q"], 2, "does not exist"),
        (["run", "-m", "product", "-T", "mulitply", "q"], 2, "Did you mean 'multiply'?"),
        (["run", "-m", "product", "--docs", "nowhere", "q"], 2, "cannot use 'nowhere' as the documents folder"),
        (["run", "-m", "product", "--numerics", "w4a61", "q"], 2, "Did you mean 'w4a16'?"),
        (["run", "-m", "product", "--top-p", "1.5", "q"], 2, "flag --top-p is 1.5, expected 0 to 1"),
        (["run", "-m", "product", "--temperature", "nan", "q"], 2, "flag --temperature is nan"),
        (["run", "-m", "product", "-c", "last", "q"], 2, "no run 'last'"),
        (["tools", "show", "mulitply"], 2, "Did you mean 'multiply'?"),
        (["warmup", "-b", "elsewere"], 2, "Did you mean 'elsewhere'?"),
        (["warmup", "-b", "elsewhere"], 5, "libfast.so not found. Install fast."),
        (["eval", "fak"], 2, "Did you mean 'fake'?"),
        (["models", "inspect", "prodct"], 2, "Did you mean 'product'?"),
        (["run", "-m", ".", "-b", "elsewhere", "q"], 5, "libfast.so not found"),
        (["run", "-m", ".", "-b", "hree", "q"], 2, "Did you mean 'here'?"),
        (["--log-level", "loud", "tools"], 2, "flag --log-level: no log level 'loud'. Known: debug, error, info, warning."),
        (["--config", "none.toml", "tools"], 2, "none.toml: it does not exist"),
    ],
)
def test_bad_requests_are_one_line(arguments: list[str], code: int, words: str, k2: K2) -> None:
    """A request that cannot be met is one line on stderr with the remedy, and says so in its exit code."""
    done = k2(*arguments)

    assert done.code == code, done.err
    assert done.err.startswith("k2: ") and done.err.count("\n") == 1
    assert words in done.err
    assert done.out == "" or set(json.loads(done.out)) == {"error", "kind"}


def test_errors_are_objects_with_json(k2: K2) -> None:
    """With --json an error is one object with error and kind on stdout, and still one line on stderr."""
    done = k2("run", "-m", "prodcut", "q", "--json")

    assert (done.code, done.json()["kind"]) == (2, "UnknownName")
    assert done.err == f"k2: {done.json()['error']}\n"


def test_no_model_and_no_backend_at_all_is_exit_five(k2: K2) -> None:
    """Where nothing is registered to choose from, the exit code tells scripts that it is not their question."""
    done = k2("run", "q", env={"K2CORE_DISABLE": "kimi,nano,numba,scripted,tools,verifiers"})

    assert done.code == 5 and "no model 'nano'. Known: none." in done.err


def test_a_reader_that_leaves_early_is_no_traceback(environment: Mapping[str, str]) -> None:
    """``k2 config show | head -1`` ends quietly."""
    command = f"{sys.executable} -m k2core.cli config show | head -1"
    done = subprocess.run(["bash", "-c", command], env=dict(environment), capture_output=True, text=True, check=True)

    assert done.stdout.startswith("setting") and done.stderr == ""


def test_stdout_without_utf8_gets_escapes(process: K2) -> None:
    """A terminal that cannot show a character gets its escape, and JSON stays JSON."""
    plain = process("tools", "call", "loud", '{"text": "漢"}', env={"PYTHONIOENCODING": "latin-1"})
    as_json = process("tools", "call", "loud", '{"text": "漢"}', "--json", env={"PYTHONIOENCODING": "latin-1"})

    assert plain.out == "\\u6f22\n" and as_json.json()["result"] == "漢"
