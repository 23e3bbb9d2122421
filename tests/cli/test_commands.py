"""The other commands: listings with stable keys, chat, settings with their origin, tokens and formats."""

import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from cli.processes import K2
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from k2core.agent.journal import Journal
from k2core.agent.session import Choice
from k2core.cli import output
from k2core.cli.asking import Asked, cost_parts, final_result
from k2core.cli.display import Display
from k2core.cli.limits import limits_of
from k2core.cli.output import print_table
from k2core.cli.screen import RichScreen
from k2core.cli.settings import KEYS, Settings
from k2core.cli.text import arguments_text, clean, cut, joined, one_line, to_json
from k2core.errors import ConfigError
from k2core_nano import WEIGHTS
from k2core_nano.evaluation import GROUPS

texts = st.text(st.characters(codec=None)) | st.lists(
    st.sampled_from(["\x1b[31m", "\x1b]0;t\x07", "\x9b2J", "\x1b", "a", "\r", "\n", "\u202e", "\ud800", "[b]", "]8;;x\x1b\\"])
).map("".join)


@given(texts)
def test_clean_text_has_no_controls(text: str) -> None:
    """Cleaned text has line feeds and tabs as its only controls, can be encoded, and cleaning it again changes nothing."""
    cleaned = clean(text)

    assert all(character in "\n\t" or (character >= " " and not "\x7f" <= character <= "\x9f") for character in cleaned)
    assert not set(cleaned) & set("\u202a\u202b\u202c\u202d\u202e\u2028\u2066\u2067\u2068\u2069")
    cleaned.encode()
    assert clean(cleaned) == cleaned


@given(st.text(st.characters(min_codepoint=32, max_codepoint=126)))
def test_clean_leaves_plain_text_alone(text: str) -> None:
    """Printable ASCII, markup of rich included, passes unchanged."""
    assert clean(text) == text


@given(texts, st.integers(2, 50))
def test_cut_text_is_short_and_says_so(text: str, limit: int) -> None:
    """One line stays one line of the limit; a cut text tells its whole length."""
    assert len(one_line(text, limit)) <= limit and "\n" not in one_line(text, limit)
    shown = cut(text, 2, limit)
    assert shown == clean(text) or f"({len(clean(text)):,} characters)" in shown


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | texts, lambda inner: st.lists(inner) | st.dictionaries(texts, inner)
    )
)
def test_json_for_terminals_is_json(value: object) -> None:
    """Escaping what a terminal could act upon does not change the value."""
    text = to_json(value)

    assert json.loads(text) == value
    assert all(character >= " " and not "\x7f" <= character <= "\x9f" for character in text)


@given(texts)
def test_arguments_are_shown_whatever_they_are(text: str) -> None:
    """A call's arguments can be shown, well-formed or not."""
    assert clean(arguments_text(text)) == arguments_text(text)


@pytest.mark.parametrize(
    ("arguments", "key", "fields"),
    [
        (["tools"], "tools", {"name", "plugin", "summary", "needs", "control", "state"}),
        (["plugins"], "plugins", {"name", "origin", "status", "reason", "provides"}),
        (["models", "list"], "models", {"name", "plugin", "checkpoint", "present", "summary"}),
        (
            ["backends"],
            "backends",
            {"name", "available", "device", "devices", "missing", "numerics", "detail", "plugin"},
        ),
        (["eval"], "evaluations", {"name", "plugin", "summary"}),
        (["config"], "settings", {"name", "value", "origin", "help"}),
        (["plugins", "doctor"], "checks", {"ok", "kind", "name", "plugin", "reason", "note"}),
    ],
)
def test_listings_have_stable_keys(arguments: list[str], key: str, fields: set[str], k2: K2) -> None:
    """A noun alone lists; with --json every row has the same keys; without, every name is shown."""
    found = k2(*arguments, "--json").json()[key]
    plain = k2(*arguments).out

    assert found and all(set(row) == fields for row in found)
    assert all(row["name"] in plain for row in found)


def test_plugins_that_fail_are_listed_and_the_rest_works(k2: K2) -> None:
    """A plugin that fails on import is listed with its reason; doctor leaves with 1 and names it; the others work."""
    found = {one["name"]: one for one in k2("plugins", "--json").json()["plugins"]}
    doctor = k2("plugins", "doctor")

    assert found["shattered"]["status"] == "failed" and "libshattered.so not found" in found["shattered"]["reason"]
    assert found["scripted"]["status"] == "loaded" and found["nano"]["status"] == "disabled"
    assert doctor.code == 1 and "libshattered.so not found" in doctor.out
    assert "not available: libfast.so not found" in doctor.out
    assert k2("tools", "call", "multiply", '{"a": 6, "b": 7}').out == "42\n"


def test_a_backend_whose_probe_raises_is_shown_as_failed(k2: K2) -> None:
    """A probe that raises is one row with the reason; the other backends are listed as ever."""
    found = {one["name"]: one for one in k2("backends", "--json").json()["backends"]}
    plain = k2("backends")

    assert found["failing"]["detail"] == "failed: OSError: driver is gone" and not found["failing"]["available"]
    assert found["here"]["available"] and plain.code == 0 and "failed: OSError: driver is gone" in plain.out


@pytest.mark.parametrize(
    ("arguments", "code", "result"),
    [
        ('{"a": 6, "b": 7}', 0, "42"),
        ('{"a": 6}', 1, "error: invalid arguments: $: 'b' is a required property"),
        ('{"a": 6, "b": "x"}', 1, "error: invalid arguments: $.b: 'x' is not of type 'integer'"),
        ("{a", 1, "error: invalid arguments: not JSON: "),
    ],
)
def test_tools_are_called_as_a_model_would(arguments: str, code: int, result: str, k2: K2) -> None:
    """k2 tools call validates and bounds like the agent does; stdout is the result alone, what it prints is on stderr."""
    plain, as_json = k2("tools", "call", "multiply", arguments), k2("tools", "call", "multiply", arguments, "--json").json()

    assert plain.code == code and plain.out.startswith(result)
    assert plain.err == ("printed    a tool that prints\n" if code == 0 else "")
    assert as_json["ok"] is (code == 0) and as_json["result"].startswith(result)


def test_tools_show_gives_the_declaration(k2: K2) -> None:
    """The declaration is the one that goes into prompts; control tools are shown too."""
    found = k2("tools", "show", "multiply", "--json").json()

    assert found["effect"] == "pure" and found["declaration"]["function"]["parameters"]["required"] == ["a", "b"]
    assert k2("tools", "show", "answer", "--json").json()["control"] is True
    assert "Multiply two whole numbers." in k2("tools", "show", "multiply").out


FIRST_PARTY = {"K2CORE_DISABLE": "numba,kimi,verifiers"}


def test_a_tool_that_needs_a_folder_shows_its_declaration_without(k2: K2) -> None:
    """k2 tools show search works without --docs; k2 tools call search says what to type."""
    shown = k2("tools", "show", "search", env=FIRST_PARTY)

    assert shown.code == 0 and "Find passages in the documents." in shown.out
    assert "needs --docs FOLDER" in k2("tools", "call", "search", '{"query": "x"}', env=FIRST_PARTY).err


def test_documents_that_cannot_be_searched_are_one_line(k2: K2, tmp_path: Path) -> None:
    """A file that is not UTF-8 is one plain line on stderr and a line of the result, with its reason; with -v a log line."""
    folder = tmp_path / "docs"
    folder.mkdir()
    (folder / "latin.txt").write_bytes(b"caf\xe9")
    (folder / "good.txt").write_text("A bridge.\n")
    search = ["tools", "call", "search", "--docs", str(folder), '{"query": "bridge"}']
    done = k2(*search, env=FIRST_PARTY)

    assert done.out == "[1] good.txt:1 A bridge.\n(not searched: latin.txt (not UTF-8 at byte 4))\n"
    assert done.err == "k2: not searched: latin.txt (not UTF-8 at byte 4)\n"
    assert json.loads(k2(*search, "-v", env=FIRST_PARTY).err)["files"] == {"latin.txt": "not UTF-8 at byte 4"}


def test_families_of_the_evaluation_have_names_to_type(k2: K2) -> None:
    """No family's name has a blank; one that does not exist is told the known and the nearest."""
    done = k2("eval", "nano", "--family", "facts-combind", env=FIRST_PARTY)

    assert not any(" " in name for name in GROUPS)
    assert done.code == 2 and ", fact, facts-combined, hand-written, " in done.err
    assert "Did you mean 'facts-combined'?" in done.err


def test_chat_is_one_run(k2: K2) -> None:
    """Lines of standard input are questions of one run; commands are no questions; answers are on stdout."""
    done = k2("chat", "-m", "words", stdin="first?\n\n/tools\n/help\nsecond?\n/exit\nnever asked\n")
    runs = k2("runs", "--json").json()["runs"]
    shown = k2("runs", "show").out

    assert (done.code, done.out, len(runs)) == (0, "Plain words.\nPlain words.\n", 1)
    assert "multiply" in done.err and "/help" in done.err
    assert "first?" in shown and "second?" in shown and "never asked" not in shown


def test_chat_gives_one_object_per_question(k2: K2) -> None:
    """With --json each answer is one object on a line of its own; an error does not end the chat."""
    done = k2("chat", "-m", "broken", "--json", stdin="one\ntwo\n")
    first, second = map(json.loads, done.out.splitlines())

    assert done.code == 1 and first["kind"] == second["kind"] == "K2Error" and first["run"] == second["run"]


def test_chat_goes_on_with_another_backend_or_says_why_not(k2: K2) -> None:
    """``/backend`` names what it needs; a model without a backend of ours, or one that is not there, is one clear line."""
    wrong = ("", " numba x y", " numba 1 2", " limit=1", " numba limit=1 limit=2", " numba steps=1", " numba numerics=w5")
    lines = ["first?", *("/backend" + one for one in wrong), "/backend numba", "second?"]
    done = k2("chat", "-m", "words", stdin="\n".join(lines))

    assert done.err.count("give a backend, and if you like its device, how many tokens to compare, other numerics") == 5
    assert done.err.count("of two logits to accept: /backend torch cpu 64 numerics=w4a16 limit=0.5\n") == 5
    assert "no option of /backend named 'steps'. Known: limit, numerics." in done.err
    assert "no numerics 'w5'. Known: exact, w4a16, w4a8." in done.err
    assert "cannot switch the backend of model 'words': it brings its own" in done.err
    assert done.out.splitlines() == ["Plain words."] * 2


@pytest.mark.skipif(not (WEIGHTS / "model.safetensors").exists(), reason="the embedded model's weights are not installed")
def test_chat_switches_the_embedded_models_backend(tmp_path: Path) -> None:
    """The report of the switch is shown, with --json as an object of its own; the run's log has all, the last ones too."""
    lines = "What is 23 times 47?\n/backend nunba\n/backend numba 20\nWhat is 12 plus 30?\n"
    last = "/backend numba 30\n/backend numba limit=x\n/verifier grounding strict\n/tokenizer kimi\n"
    command = [sys.executable, "-m", "k2core.cli"]
    store = ["--store", str(tmp_path / "runs.sqlite")]
    plain, as_json = (
        subprocess.run([*command, "chat", *store, *options], input=lines + last, capture_output=True, text=True, timeout=120)
        for options in ([], ["--json"])
    )
    _, wrong, switch, second, third, *_ = (json.loads(line) for line in as_json.stdout.splitlines())
    shown = subprocess.run([*command, "runs", "show", second["run"], *store], capture_output=True, text=True, timeout=60)

    assert plain.stdout.splitlines() == ["The answer is 1081.", "The answer is 42."]
    assert "now on numba; 20 tokens: max |Δlogit| 0.00e+00 (limit 1e-03)" in plain.stderr
    assert wrong["error"] == "no backend 'nunba'. Known: numba, onnx, torch. Did you mean 'numba'?"
    assert (switch["backend"], switch["switch"]["tokens"], switch["switch"]["max_delta"]) == ("numba", 20, 0.0)
    assert third["switch"]["tokens"] == 30
    assert "tokenizer kimi is in use already\n" in plain.stderr
    told = [line[5:] for line in shown.stdout.splitlines() if line[5:].startswith(("question", "model", "warning", "end"))]
    begins = [
        "model      nano · numba · exact · batch",
        "question   What is 23 times 47?",
        "end        answered",
        "warning    the swap of the backend for 'nunba' was refused: no backend 'nunba'.",
        "model      nano · numba · exact · 20 tokens: max",
        "question   What is 12 plus 30?",
        "end        answered",
        "model      nano · numba · exact · 30 tokens: max",
        "warning    the swap of the backend for 'numba' was refused: limit is 'x', but",
        "warning    the swap of verifier 'grounding' for 'strict' was refused: no implementation",
    ]
    assert [begin for begin, line in zip(begins, told, strict=True) if not line.startswith(begin)] == []
    assert "unfinished" not in shown.stdout


@pytest.mark.skipif(not (WEIGHTS / "model.safetensors").exists(), reason="the embedded model's weights are not installed")
def test_a_shadow_says_where_it_diverges_in_one_readable_line(tmp_path: Path) -> None:
    """No log line stands beside the report but with -v; what is no place or limit is one line."""
    pytest.importorskip("onnxruntime")
    command = [sys.executable, "-m", "k2core.cli", "chat", "--store", str(tmp_path / "runs.sqlite")]
    shadow = ["--shadow", "onnx", "--shadow-limit", "1e-12"]

    def chat(*options: str) -> subprocess.CompletedProcess[str]:
        lines = "What is 23 times 47?\n"
        return subprocess.run([*command, *options], input=lines, capture_output=True, text=True, timeout=120)

    quiet, loud = chat(*shadow), chat(*shadow, "-v")
    assert quiet.stdout == loud.stdout == "The answer is 1081.\n"
    assert quiet.stderr.count("shadow     onnx diverges first at position") == 1
    assert "model.diverged" not in quiet.stderr and '{"' not in quiet.stderr
    assert loud.stderr.count('"event": "model.diverged"') == 1
    for options, complaint in (
        (["--moe", "onnx:"], "cannot place anything on 'onnx:': it names no device."),
        (["--shadow", "onnx:"], "cannot place anything on 'onnx:': it names no device."),
        (["--shadow", "onnx", "--shadow-limit", "0"], "limit is 0.0, but it must be a positive number"),
        (["--shadow", "onnx", "--shadow-limit", "nan"], "--shadow-limit is nan"),
    ):
        done = chat(*options)
        assert (done.returncode, done.stderr.count("\n")) == (2, 1) and complaint in done.stderr


@pytest.mark.skipif(not (WEIGHTS / "model.safetensors").exists(), reason="the embedded model's weights are not installed")
def test_chat_in_rounded_numerics_swaps_and_is_shadowed(tmp_path: Path) -> None:
    """Between two backends of one numerics its contract decides; to another numerics a limit does, and the message says how."""
    pytest.importorskip("torch")
    lines = "What is 23 times 47?\n/backend torch\n/backend numba numerics=exact\n/backend numba numerics=exact limit=9\n"
    lines += "What is 12 plus 30?\n"
    command = [sys.executable, "-m", "k2core.cli", "chat", "--store", str(tmp_path / "runs.sqlite"), "-b", "torch"]
    done = subprocess.run(
        [*command, "--numerics", "w4a16", "--shadow", "torch"], input=lines, capture_output=True, text=True, timeout=300
    )

    assert done.returncode == 0, done.stderr
    assert re.search(r"shadow     torch agrees on \d+ rows, median error \S+ \(limit \S+\), max", done.stderr)
    assert re.search(r"now on torch; 64 tokens: median error \S+ \(limit \S+\), max \|Δlogit\|", done.stderr)
    assert "from numerics 'w4a16' to 'exact': a contract holds within one numerics alone. Give the largest" in done.stderr
    assert re.search(r"now on numba; 64 tokens: max \|Δlogit\| \S+ \(limit 9e\+00\)", done.stderr)
    assert done.stderr.rstrip().count("nano · numba · exact") == 1


def test_a_line_that_is_not_utf8_does_not_end_the_chat(k2: K2) -> None:
    """A line with other bytes is one error line with the place (an object with --json); the next line is answered."""
    lines = b"first?\ncaf\xe9?\nsecond?\n"
    plain, as_json = k2("chat", "-m", "words", stdin=lines), k2("chat", "-m", "words", "--json", stdin=lines)

    assert (plain.code, plain.out) == (0, "Plain words.\nPlain words.\n")
    assert plain.err.count("byte 4 of the line is not UTF-8") == 1
    assert [one.get("kind", one.get("answer")) for one in map(json.loads, as_json.out.splitlines())] == [
        "Plain words.",
        "InputError",
        "Plain words.",
    ]
    assert k2("chat", "-m", "words", stdin=b"first?\ncaf\xe9?").code == 2


@pytest.mark.parametrize("columns", [60, 80, 120])
@pytest.mark.parametrize(("model", "options"), [("product", []), ("endless", ["--calls", "2"]), ("endless", ["--calls", "1"])])
def test_a_run_reads_well(model: str, options: list[str], columns: int, k2: K2, tmp_path: Path) -> None:
    """Numbers, labels and text of a shown run stand in columns, whatever its status; one is no plural; nothing is raw JSON."""
    done = k2("run", "-m", model, *options, "q")
    shown = k2("runs", "show")

    for line in shown.out.splitlines():
        assert re.match(r" {5}\S|[ \d]{3}  \S| {16}", line), line
    assert not re.search(r"(?<!budget of )\b1 (calls|tokens|claims)\b", done.err + shown.out)
    assert ("- multiply a=0 b=0: 0" in done.out) is ("- multiply a=0 b=0: 0" in shown.out) is (model == "endless")
    assert '{"' not in done.out
    with Journal.open(tmp_path / "runs.sqlite") as journal:
        events = journal.events("last")
    into = io.StringIO()
    screen = RichScreen(console=Console(file=into, width=columns, highlight=False), label_width=11)
    display = Display(screen=screen)
    for stored in events:
        display.show(stored)
    asked = Asked(run=events[0].run, events=events)
    identity = {"model": "embedded", "backend": "numba", "numerics": "exact"}
    cost = joined(cost_parts(asked, final_result(asked), identity), screen.width)
    assert cost.splitlines()[-1].endswith("embedded · numba · exact") and max(map(len, cost.splitlines())) <= columns - 11
    assert max(len(line.rstrip()) for line in into.getvalue().splitlines()) <= columns


def test_arguments_of_a_call_that_was_cut_off_are_named_so() -> None:
    """What is no JSON object is told to be none, with no more than a glimpse of it."""
    assert arguments_text('{"a": 1, "b') == '(arguments that are no JSON object, 11 characters: {"a": 1, "b)'
    assert len(arguments_text('["' + "x" * 9000)) < 120


@given(
    st.lists(st.text(st.characters(codec="ascii", categories=["L"]), min_size=1, max_size=30), min_size=1), st.integers(30, 90)
)
def test_joined_parts_stay_whole(parts: list[str], width: int) -> None:
    """Joined parts come in order, none divided over lines, no line longer than it may be; without a width on one line."""
    lines = joined(parts, width).split("\n")

    assert [part for line in lines for part in line.split(" · ")] == parts
    assert max(map(len, lines)) <= width and "\n" not in joined(parts, None)


def test_tables_fit_a_terminal(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """On a terminal the last column is wrapped beside the others, or below them where there is no room; nothing is lost."""
    words = "every single word of it " * 6
    for columns in (40, 80, 300):
        monkeypatch.setattr(output, "_width", lambda columns=columns: columns)
        print_table(("name", "what it is"), [["a name of twenty let", words], ["b", "short"]], "")
        lines = capsys.readouterr().out.splitlines()
        assert max(map(len, lines)) <= columns
        assert " ".join(" ".join(lines).split()).count("every single word of it") == 6
        assert lines[-1].strip() == "short" if columns == 40 else lines[-1] == "b" + " " * 21 + "short"


def test_runs_are_found_by_beginnings(k2: K2) -> None:
    """runs show takes a full id, an unambiguous beginning, or last; an unknown one is told the nearest."""
    run = k2("run", "-m", "product", "--json", "q").json()["run"]

    assert k2("runs", "show", run).out == k2("runs", "show", "last").out == k2("runs", "show", run[:-3]).out
    done = k2("runs", "show", run[:-1] + "!")
    assert done.code == 2 and run in done.err
    assert "There are no runs yet" in k2("runs", "--store", "empty.sqlite").out


def test_reading_makes_no_files(k2: K2, tmp_path: Path) -> None:
    """Listing, showing settings and asking for help leave the user's folders alone."""
    for arguments in (["config"], ["runs"], ["tools"], ["plugins"], ["runs", "--help"]):
        assert k2(*arguments).code == 0

    assert list(tmp_path.iterdir()) == []


def test_evaluations_and_warmup_show_progress(k2: K2) -> None:
    """Progress goes to stderr in plain lines, the report to stdout."""
    done, as_json, warm = k2("eval", "fake", "-n", "3"), k2("eval", "fake", "--seed", "5", "--json"), k2("warmup", "-b", "here")

    assert done.out == "sums 3 nano\n" and "asking: 3 of 3\n" in done.err
    assert as_json.json() == {"rows": [{"family": "sums", "right": 20}], "seed": 5}
    assert "compiling kernels (once): 14 of 14\n" in warm.err and warm.out.startswith("here is ready")


# ── settings ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_defaults_are_the_sessions_own() -> None:
    """Defaults of the settings are those of the Python API."""
    defaults, choice = {key.name: key.default for key in KEYS}, Choice()

    for name in ("model", "backend", "numerics", "store", "seed", "temperature", "top_p", "min_p", "max_tokens", "tools"):
        assert defaults[name] == getattr(choice, name)
    assert limits_of(Settings.load(environ={"K2CORE_CONFIG": os.devnull})) == choice.limits


def test_a_flag_beats_the_environment_beats_the_file(tmp_path: Path) -> None:
    """Each value comes from the strongest origin that has one, and says which."""
    file = tmp_path / "config.toml"
    file.write_text('seed = 1\ncalls = 2\nmodel = "other"\ndocs = "texts"\n')
    settings = Settings.load({"seed": 3}, environ={"K2CORE_SEED": "4", "K2CORE_CALLS": "5"}, file=file)

    found = {name: (settings[name], settings.values[name].origin) for name in ("seed", "calls", "model", "docs", "top_p")}
    assert found == {
        "seed": (3, "flag --seed"),
        "calls": (5, "environment K2CORE_CALLS"),
        "model": ("other", f"file {file}"),
        "docs": (tmp_path / "texts", f"file {file}"),
        "top_p": (1.0, "default"),
    }


def test_origins_are_flags_that_exist(k2: K2) -> None:
    """Every setting names a flag that some command has; what has none says so in the listing of settings."""
    helps = "".join(k2(*command, "--help").out for command in ([], ["run"], ["tools", "show"]))

    for key in KEYS:
        assert key.name == "disable" if not key.flag else re.search(rf"(?<![\w-]){key.flag}\b", helps)
    settings = Settings.load({"tools": ("a",), "reasoning": False}, environ={})
    assert (settings.values["tools"].origin, settings.values["reasoning"].origin) == ("flag --tool", "flag --no-reasoning")


@pytest.mark.parametrize(
    ("variable", "value", "arguments"),
    [
        ("K2CORE_MODEL", "prodcut", ["run", "q"]),
        ("K2CORE_MODEL", "no/such", ["run", "q"]),
        ("K2CORE_MODEL", "prodcut", ["tokens", "encode", "x"]),
        ("K2CORE_BACKEND", "elsewhere", ["warmup"]),
        ("K2CORE_BACKEND", "elsewere", ["warmup"]),
        ("K2CORE_TOOLS", "mulitply", ["run", "-m", "product", "q"]),
        ("K2CORE_DOCS", "nowhere", ["run", "-m", "product", "q"]),
    ],
)
def test_a_name_from_elsewhere_says_where_it_is_set(
    variable: str, value: str, arguments: list[str], k2: K2, tmp_path: Path
) -> None:
    """An unknown name that nobody typed here is named with its variable or file; one typed here is not."""
    done = k2(*arguments, env={variable: value})
    file = tmp_path / "config.toml"
    name = variable.removeprefix("K2CORE_").lower()
    file.write_text(f"{name} = {json.dumps([value] if name == 'tools' else value)}\n")
    from_file = k2(*arguments, "--config", str(file))

    assert done.err.endswith(f"{value}' is set by environment {variable}.\n") and done.err.count("\n") == 1
    assert from_file.err.endswith(f"{value}' is set by file {file}.\n")
    assert "is set by" not in k2("run", "-m", "prodcut", "q", env={"K2CORE_MODEL": "product"}).err


@pytest.mark.parametrize("place", ["front", "behind"])
def test_general_options_work_in_both_places(place: str, k2: K2, tmp_path: Path) -> None:
    """-v, --log-level and --config may stand before and behind the command, of a default verb too."""
    (tmp_path / "mine.toml").write_text("seed = 7\n")
    for options, name, value in (
        (["-vv"], "log_level", "debug"),
        (["--log-level", "error"], "log_level", "error"),
        (["--config", "mine.toml"], "seed", 7),
    ):
        done = k2(*options, "config", "--json") if place == "front" else k2("config", *options, "--json")
        assert {one["name"]: one["value"] for one in done.json()["settings"]}[name] == value
    assert "Known: debug, " in k2("run", "--log-level", "loud", "q").err


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("sede = 1", "no setting 'sede'. Known: approve, backend, "),
        ("sede = 1", "Did you mean 'seed'?"),
        ('seed = "x"', "seed is 'x', expected a whole number"),
        ("seed = true", "seed is True, expected a whole number"),
        ("seed = -1", "seed is -1, expected at least 0"),
        ("reasoning = 1", "reasoning is 1, expected yes or no"),
        ("tools = [1]", "tools is [1], expected a list of names"),
        ("seed = ", "cannot read the settings file"),
        ("top_p = 2", "top_p is 2, expected 0 to 1"),
        ('log_level = "eror"', "Did you mean 'error'?"),
    ],
)
def test_a_wrong_file_is_one_line(text: str, words: str, tmp_path: Path) -> None:
    """An unknown key or a wrong value in the file is one line with the file and the key."""
    file = tmp_path / "config.toml"
    file.write_text(text)

    with pytest.raises(ConfigError) as caught:
        Settings.load(environ={}, file=file)

    assert words in str(caught.value) and str(file) in str(caught.value) and "\n" not in str(caught.value)


@given(st.sampled_from([key.name for key in KEYS]), st.text(st.characters(exclude_characters="\0", codec="utf-8"), min_size=1))
def test_any_environment_loads_or_names_the_variable(name: str, text: str) -> None:
    """Whatever a variable holds, it is taken or refused by its name."""
    variable = "K2CORE_" + name.upper()
    try:
        settings = Settings.load(environ={variable: text, "HOME": "/nowhere"})
    except ConfigError as error:
        assert variable in str(error)
    else:
        assert settings.values[name].origin == f"environment {variable}"


# ── tokens and formats ──────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("text", ["Hello <|im_end|>", "grün 漢字 🙂\n\ttabs", ""])
def test_tokens_there_and_back(text: str, k2: K2, assets: Path) -> None:
    """Decoding what was encoded gives the text; control tokens are made only when asked for."""
    model = ["-m", str(assets / "kimi")]
    ids = k2("tokens", "encode", *model, stdin=text).json()["ids"]
    control = k2("tokens", "encode", "--control", *model, "--", text or "-").json()["ids"]
    back = k2("tokens", "decode", *model, stdin=" ".join(map(str, ids))).json()

    assert back == {"text": text, "utf8": True}
    assert (163586 in control) is ("<|im_end|>" in text) and 163586 not in ids


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["decode", "12", "x"], "'x' is not a token id"),
        (["decode", "999999999"], "999999999"),
    ],
)
def test_wrong_token_ids_are_one_line(arguments: list[str], words: str, k2: K2, assets: Path) -> None:
    """What is no id, or no id of this vocabulary, is named."""
    done = k2("tokens", *arguments, "-m", str(assets / "kimi"))

    assert done.code == 2 and words in done.err and done.err.count("\n") == 1


@pytest.mark.parametrize("arguments", [[], ["tokens"], ["format"]])
def test_without_a_command_the_help_is_shown_as_it_is_laid_out(arguments: list[str], k2: K2) -> None:
    """Whoever types a noun alone that lists nothing sees its commands, a line each."""
    done = k2(*arguments)

    assert done.code == 2 and done.out == "" and "\nCommands:\n" in done.err


@pytest.mark.parametrize(
    ("command", "text", "words"),
    [
        (
            "render",
            "{",
            "cannot read standard input as JSON: Expecting property name enclosed in double quotes at line 1, column 2",
        ),
        ("render", "5", "expected an object with 'messages'"),
        ("render", '{"messages": [{"content": "x"}]}', "messages[0] has no 'role'"),
        ("render", '{"mesages": []}', "Did you mean 'messages'?"),
        ("parse", '{"chunks": [[true]]}', "chunks[0][0] is True, expected a token id"),
    ],
)
def test_wrong_format_input_is_one_line(command: str, text: str, words: str, k2: K2, assets: Path) -> None:
    """Input of another form is refused with the place."""
    done = k2("format", command, "-m", str(assets / "kimi"), stdin=text)

    assert done.code == 2 and words in done.err and done.err.count("\n") == 1


def test_formats_there_and_back(k2: K2, assets: Path, tmp_path: Path) -> None:
    """A rendered prompt frames the messages; a turn in chunks of text or of ids comes back as its parts."""
    model = ["-m", str(assets / "kimi")]
    file = tmp_path / "conversation.json"
    file.write_text('{"messages": [{"role": "user", "content": "Hi <|im_end|>"}]}')
    prompt = k2("format", "render", str(file), *model).json()
    turn = "<think>Hm.</think>Good day.<|im_end|>"
    ids = k2("tokens", "encode", "--control", *model, turn).json()["ids"]
    parsed = [
        k2("format", "parse", *model, stdin=json.dumps({"chunks": chunks})).json()
        for chunks in ([turn[:3], turn[3:]], [ids[:2], ids[2:]])
    ]

    assert prompt["text"].endswith("<|im_assistant|>assistant<|im_middle|>") and prompt["count"] == len(prompt["ids"])
    assert prompt["ids"].count(163586) == prompt["text"].count("<|im_end|>") - 1  # what the user wrote is no marker
    for one in parsed:
        assert (one["content"], one["reasoning_content"], one["tool_calls"]) == ("Good day.", "Hm.", [])
        assert one["finish_reason"] == "stop" and len(one["deltas"]) == 2


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (None, "config.json: there is no such file"),
        ("{", "config.json: it is not valid JSON"),
        ('{"model_type": "gpt2"}', "only the Kimi K2 / DeepSeek-V3 architecture is supported"),
    ],
)
def test_a_folder_that_is_no_checkpoint_is_told_by_its_config(config: str | None, words: str, k2: K2, tmp_path: Path) -> None:
    """k2 run on an empty folder or one with a broken configuration names config.json, not the vocabulary; exit 5."""
    folder = tmp_path / "model"
    folder.mkdir()
    if config is not None:
        (folder / "config.json").write_text(config)
    done = k2("run", "-b", "here", "-m", str(folder), "--json", "q")

    assert done.code == 5 and done.json()["kind"] == "CheckpointError" and words in done.json()["error"]
    assert str(folder / "config.json") in done.err and done.err.count("\n") == 1


def test_a_folder_without_a_vocabulary_is_no_model(k2: K2, assets: Path, tmp_path: Path) -> None:
    """A checkpoint whose tokenizer files are missing leaves with 5 like any other model that cannot be had."""
    (tmp_path / "config.json").write_bytes((assets / "kimi" / "config.json").read_bytes())
    done = k2("run", "-b", "here", "-m", str(tmp_path), "--json", "q")

    assert done.code == 5 and done.json()["kind"] == "TokenizerError"


def test_checkpoints_are_inspected(k2: K2, assets: Path, tmp_path: Path) -> None:
    """The real configuration gives the published sizes; a folder without weights and a truncated one are one line, exit 5."""
    found = k2("models", "inspect", str(assets / "kimi" / "config.json"), "--json").json()
    (tmp_path / "config.json").write_bytes((assets / "kimi" / "config.json").read_bytes())
    missing = k2("models", "inspect", str(tmp_path))
    (tmp_path / "model.safetensors").write_bytes(b"\xff" * 9)
    broken = k2("run", "-b", "here", "-m", str(tmp_path), "q"), k2("models", "inspect", str(tmp_path))

    assert found["geometry"]["hidden_size"] == 7168 and found["cache_values_per_token"] == 61 * 576
    # about 1T parameters, 32B of them active: the model card of Kimi K2 Thinking
    assert round(found["parameters"]["all"] / 1e12, 1) == 1.0 and round(found["parameters"]["active"] / 1e9) == 32
    assert missing.code == 5 and "neither model.safetensors nor" in missing.err
    assert broken[1].code == 5 and broken[1].err.count("\n") == 1
    assert broken[0].code != 0 and broken[0].err.count("\n") == 1
