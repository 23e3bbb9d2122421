"""Two tools compared on drawn arguments, and the commands that compare."""

import json
import os
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from k2core import tool
from k2core.agent.swapping import tool_of
from k2core.conformance.drawing import values_of, words_of
from k2core.conformance.tools_check import check_tools
from k2core.errors import InputError, PluginError
from k2core.interfaces import Tool, ToolContext
from k2core.plugins import Plugins

ROOT = Path(__file__).parents[2]


@tool(effect="pure")
def double(number: int) -> str:
    """Twice a number."""
    return str(2 * number)


def test_disagreements_are_shrunk():
    """Two tools that differ from 100 on are told by the simplest number where they do; equal ones agree."""

    @tool(effect="pure", name="double")
    def wrong(number: int) -> str:
        """Twice a number."""
        return str(2 * number + (number >= 100))

    alike = check_tools(double, double, count=50)
    assert (alike.calls, alike.failures, alike.disagreement) == (50, 0, None)
    found = check_tools(double, wrong, count=300)
    assert found.disagreement.given == {"number": 100} and found.steady
    assert (found.disagreement.first, found.disagreement.second) == ("200", "201")
    again = check_tools(double, wrong, count=300)
    assert again == found


def test_effects_happen_only_when_asked_for():
    """A tool with an effect is not called at all, unless its owner says so."""
    sent = []

    @tool(name="double")
    def sending(number: int) -> str:
        """Twice a number."""
        sent.append(number)
        return str(2 * number)

    with pytest.raises(InputError, match=r"its effect is external, and it would be called 100 times. With --yes it is"):
        check_tools(double, sending)
    assert not sent
    assert check_tools(double, sending, count=5, effects=True).disagreement is None and len(sent) == 5


def test_results_are_compared_as_the_tool_says():
    """By lines, order and numbers in front do not count; by text they do."""

    @tool(effect="read", name="find")
    def first(query: str) -> str:
        """Find."""
        return "[1] a.md:1 one\n[2] b.md:1 two"

    @tool(effect="read", name="find")
    def second(query: str) -> str:
        """Find."""
        return "[1] b.md:1 two\n[2] a.md:1 one"

    assert check_tools(first, second, count=5, by="lines").disagreement is None
    assert check_tools(first, second, count=5).disagreement.given == {"query": ""}
    with pytest.raises(InputError, match="Known: text, lines, exact"):
        check_tools(first, second, by="meaning")


def test_errors_agree_however_they_are_worded():
    """Unless their words are asked for; where one fails and the other does not, they differ."""

    def failing(words):
        @tool(effect="pure", name="double")
        def fails(number: int) -> str:
            """Twice a number."""
            raise ValueError(words)

        return fails

    found = check_tools(failing("no"), failing("never"), count=5)
    assert (found.calls, found.failures, found.disagreement) == (5, 5, None)
    assert check_tools(failing("no"), failing("never"), count=5, by="exact").disagreement.second == "error: ValueError: never"
    assert check_tools(double, failing("no"), count=5).disagreement is not None


def test_tools_that_hang_or_fail_end_at_their_deadlines():
    """A failure is a result like others; where both fail alike, that is counted."""

    @tool(effect="pure", name="double", timeout_s=0.05)
    def hangs(number: int) -> str:
        """Twice a number."""
        time.sleep(0.2)
        return ""

    @tool(effect="pure", name="double")
    def fails(number: int) -> str:
        """Twice a number."""
        raise ZeroDivisionError("no")

    both = check_tools(hangs, hangs, count=2)
    assert (both.calls, both.failures, both.disagreement) == (2, 2, None)
    found = check_tools(double, fails, count=5).disagreement
    assert (found.given, found.first, found.second) == ({"number": 0}, "0", "error: ZeroDivisionError: no")
    assert check_tools(double, hangs, count=2).disagreement.second == "error: timed out after 0.05 s"


def test_a_tool_that_is_not_always_the_same_is_told_so():
    """What did not differ when it was tried again is shown with that remark."""
    calls = []

    @tool(effect="read", name="double")
    def now_and_then(number: int) -> str:
        """Twice a number."""
        calls.append(number)
        return str(2 * number + (len(calls) == 7))

    found = check_tools(double, now_and_then, count=50)
    assert not found.steady and found.calls == 7


def test_without_hypothesis_it_says_what_to_install(monkeypatch):
    """What draws is no part of the base installation."""
    monkeypatch.setitem(sys.modules, "hypothesis", None)
    with pytest.raises(InputError, match="Install it with: pip install hypothesis"):
        check_tools(double, double)


def test_making_it_simpler_has_an_end(monkeypatch):
    """A tool that takes its time is called no longer than a while; what is shown is a disagreement all the same."""
    monkeypatch.setattr("k2core.conformance.drawing.SHRINKING_S", 0.0)

    @tool(effect="pure", name="double")
    def wrong(number: int) -> str:
        """Twice a number."""
        return str(2 * number + (number >= 100))

    found = check_tools(double, wrong, count=300)
    number = found.disagreement.given["number"]
    assert number >= 100 and found.disagreement.second == str(2 * number + 1) and found.steady


def test_the_only_arguments_are_tried_once():
    """What is told is how many calls there were, not how many were asked for."""

    @tool(effect="pure")
    def flip(on: bool) -> bool:
        """The other."""
        return not on

    assert check_tools(flip, flip, count=100).calls == 2


SCHEMAS = [
    {"type": "string", "minLength": 2, "maxLength": 4},
    {"type": "string", "pattern": "^[a-z]{2,3}-[0-9]+$"},
    {"type": "integer", "exclusiveMinimum": 3, "maximum": 9},
    {"type": "integer", "multipleOf": 7, "minimum": -20, "maximum": 20},
    {"type": "number", "minimum": 0.25, "exclusiveMaximum": 0.5},
    {"type": ["string", "null"]},
    {"enum": ["a", 1, None]},
    {"const": {"x": [1]}},
    {"anyOf": [{"type": "integer"}, {"type": "array", "items": {"type": "boolean"}, "minItems": 1}]},
    {"type": "array", "items": {"type": "integer", "minimum": 0}, "maxItems": 3, "uniqueItems": True},
    {"type": "array", "prefixItems": [{"type": "string"}, {"type": "integer"}], "items": False},
    {"type": "object", "additionalProperties": {"type": "number"}},
    {
        "type": "object",
        "properties": {"unit": {"type": "string", "examples": ["km", "mile"]}, "value": {"type": "number", "default": 1}},
        "required": ["unit"],
        "additionalProperties": False,
    },
    {},
]


@pytest.mark.parametrize("schema", SCHEMAS, ids=json.dumps)
def test_what_is_drawn_is_valid(schema):
    """Of every kind of schema that tools have."""
    seen = []

    @settings(max_examples=60, database=None)
    @given(value=values_of(schema, ["word"]))
    def drawn(value):
        jsonschema.validate(value, schema, cls=jsonschema.Draft202012Validator)
        seen.append(value)

    drawn()
    assert seen


def test_examples_and_words_are_drawn():
    """A tool that only knows some words is asked for them."""
    schema = {"type": "object", "properties": {"unit": {"type": "string", "examples": ["km"]}}, "required": ["unit"]}
    seen = []

    @settings(max_examples=60, database=None)
    @given(value=values_of(schema, words_of("The Tal Bridge")))
    def drawn(value):
        seen.append(value["unit"])

    drawn()
    assert "km" in seen and any({"The", "Tal", "Bridge"} & set(one.split()) for one in seen)


@pytest.mark.parametrize("schema", [{"$ref": "#/x"}, {"not": {}}, {"description": "anything"}])
def test_what_cannot_be_drawn_is_one_line(schema):
    """The schema is named."""
    one = Tool(
        name="odd",
        description="",
        parameters={"type": "object", "properties": {"x": schema}, "required": ["x"]},
        function=lambda x: "",
        effect="pure",
    )
    with pytest.raises(InputError, match="cannot draw values from the schema"):
        check_tools(one, one)


@pytest.fixture
def closing():
    """What tools open, closed behind a test."""
    with ExitStack() as opened:
        yield opened


def test_every_shipped_tool_agrees_with_itself(tmp_path, closing):
    """Arguments can be drawn for each of them, and pure ones do not depend on anything else."""
    plugins = Plugins.discover()
    context = ToolContext(documents=tmp_path, closing=closing)
    for name in ("calculator", "facts", "units", "search", "read"):
        pair = [tool_of(plugins, name, context) for _ in range(2)]
        assert check_tools(*pair, count=15).disagreement is None, name


@pytest.fixture
def documents(tmp_path):
    """A folder of two documents and one that cannot be read."""
    folder = tmp_path / "docs"
    folder.mkdir()
    (folder / "bridge.md").write_text("# Bridges\n\nThe Tal Bridge opened in 1873.\n\nA second bridge was built later.\n")
    (folder / "café.md").write_text("Le café ouvre à huit heures.\n")
    return folder


def test_tantivy_finds_what_the_shipped_search_finds(documents, closing):
    """The same declaration; over small folders the same passages for any words, whatever is added, changed or removed."""
    pytest.importorskip("tantivy", reason="tantivy is not installed: pip install 'k2core[search]'")
    plugins = Plugins.discover()
    context = ToolContext(documents=documents, closing=closing)
    pair = [tool_of(plugins, name, context) for name in ("search", "search/tantivy")]
    assert pair[0].declaration() == pair[1].declaration() and pair[0].effect == pair[1].effect

    def agree(words):
        return check_tools(*pair, count=60, by="lines", words=words_of(words)).disagreement

    assert agree("The Tal Bridge opened in 1873 second bridge built later café ouvre huit heures bridges") is None
    (documents / "flight.md").write_text("A zeppelin landed.\n")
    assert "[1] flight.md:1 A zeppelin landed." in pair[1].function(query="zeppelins")
    (documents / "flight.md").write_text("A balloon landed, not long ago.\n")
    (documents / "café.md").unlink()
    assert "zeppelin" not in pair[1].function(query="zeppelins balloon") and "balloon" in pair[1].function(query="balloon")
    assert agree("balloon zeppelin landed café huit bridge") is None
    (documents / "bad.txt").write_bytes(b"\xff\xfe balloon")
    assert "(not searched: bad.txt (not UTF-8 at byte 1))" in pair[1].function(query="balloon")
    assert agree("balloon zeppelin landed") is None
    assert pair[1].function(query='* ( " AND') == pair[0].function(query='* ( " AND')


def test_tantivy_ranks_as_the_shipped_search_does_where_it_matters(documents, closing):
    """A passage with more of the words comes first, and equals come in the order of files."""
    pytest.importorskip("tantivy", reason="tantivy is not installed: pip install 'k2core[search]'")
    for name in ("b.md", "a.md", "c.md"):
        (documents / name).write_text("A copper kettle.\n")
    (documents / "z.md").write_text("A copper kettle, a copper pan and a kettle.\n")
    plugins = Plugins.discover()
    pair = [tool_of(plugins, name, ToolContext(documents=documents, closing=closing)) for name in ("search", "search/tantivy")]
    found = [one.function(query="copper kettle pan") for one in pair]
    assert found[0] == found[1] and found[1].startswith("[1] z.md:1") and found[1].index("a.md") < found[1].index("b.md")


def test_without_tantivy_the_swap_says_what_to_install(documents, monkeypatch):
    """A missing library is one line, in listings too; the shipped search stays."""
    from k2core_tantivy.search import state

    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(PluginError, match=r"tantivy is not installed. Install it with: pip install 'k2core\[search\]'"):
        tool_of(Plugins.discover(), "search/tantivy", ToolContext(documents=documents))
    assert state(ToolContext()).startswith("tantivy is not installed")


@pytest.fixture(scope="module")
def k2(tmp_path_factory):
    """Run ``k2`` as a process that has this folder's plugins installed."""
    site = tmp_path_factory.mktemp("site")
    info = site / "k2_parts-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: k2-parts\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[k2core]\nlanguages = swap.parts:LANGUAGES\nparts = swap.parts:PARTS\n")
    rooms = [site, ROOT / "tests", ROOT, *(ROOT / room for room in ("backends", "plugins", "kernels", "specs"))]
    ours = {"PYTHONPATH": os.pathsep.join(map(str, rooms)), "K2CORE_STORE": str(site / "runs.sqlite")}
    # the home stays: compiled kernels are kept there
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("K2CORE_", "XDG_", "COVERAGE"))}

    def run(*arguments, stdin=""):
        done = subprocess.run(
            [sys.executable, "-m", "k2core.cli", *arguments],
            input=stdin, capture_output=True, text=True, timeout=600, env={**kept, **ours}, cwd=site, check=False,
        )  # fmt: skip
        assert "Traceback" not in done.stderr, done.stderr
        return done.returncode, done.stdout, done.stderr

    return run


def test_listings_have_other_implementations(k2):
    """With their plugin, what they need, and how they stand."""
    _, out, _ = k2("tools", "list", "--json")
    found = {one["name"]: one for one in json.loads(out)["tools"]}
    assert found["double/shifting"]["summary"] == "by shifting" and found["double/shifting"]["plugin"] == "parts"
    assert found["double/needy"]["needs"] == ["documents"] and "search/tantivy" in found
    _, out, _ = k2("tools", "show", "double/words", "--json")
    assert json.loads(out)["declaration"]["function"]["description"] == "A number, doubled."
    assert k2("tools", "call", "double/adding", '{"number": 4}')[:2] == (0, "8 by adding\n")
    _, out, _ = k2("verifiers", "--json")
    assert [one["name"] for one in json.loads(out)["verifiers"]] == ["arithmetic", "grounding", "polite", "polite/lenient"]
    code, out, _ = k2("plugins", "doctor")
    assert code == 0 and "double/shifting" in out and "polite/lenient" in out


def test_checking_tools_as_a_command(k2, documents):
    """Agreement is exit code 0, disagreement 4 with the arguments, and what cannot be compared is one line."""
    assert k2("tools", "check", "double", "double/shifting", "--count", "20")[:2] == (0, "20 calls agree\n")
    code, out, _ = k2("tools", "check", "double", "double/adding", "--seed", "3")
    assert code == 4
    assert out == ('double and double/adding differ on {"number": 0}\n\ndouble:\n0\n\ndouble/adding:\n0 by adding\n')
    code, out, _ = k2("tools", "check", "double", "double/adding", "--json")
    told = json.loads(out)
    assert code == 4 and told["disagreement"] == {"given": {"number": 0}, "first": "0", "second": "0 by adding"}
    code, out, _ = k2("tools", "check", "calculator", "calculator", "--words", "1 7 + *", "--count", "60")
    errors = int(out.partition("agree, ")[2].partition(" of them")[0])
    assert code == 0 and 0 < errors < 60
    code, _, err = k2("tools", "check", "double", "double/sending")
    assert code == 2 and "With --yes it is." in err and err.count("\n") == 1
    assert k2("tools", "check", "double", "double/sending", "--yes", "--count", "3")[0] == 4
    code, _, err = k2("tools", "check", "search", "calculator", "--docs", str(documents))
    assert code == 2 and "their parameters differ, (query: string) and (expression: string)" in err
    code, _, err = k2("tools", "check", "double", "double/shiftng")
    assert code == 2 and "Did you mean 'shifting'" in err
    code, _, err = k2("tools", "check", "search", "search/tantivy")
    assert code == 2 and "needs --docs FOLDER" in err


def test_checking_search_as_a_command(k2, documents):
    """Passages are compared whatever their rank, as the tool says, with words of the documents."""
    pytest.importorskip("tantivy", reason="tantivy is not installed: pip install 'k2core[search]'")
    code, out, _ = k2("tools", "check", "search", "search/tantivy", "--docs", str(documents), "-n", "40")
    assert (code, out) == (0, "40 calls agree\n")


def test_checking_tokenizers_and_verifiers_as_commands(k2):
    """The same in the same words: exit code 4, what both were given, and both results."""
    assert k2("tokens", "check", "kimi", "wrapped", "-n", "50")[:2] == (0, "50 samples agree\n")
    code, out, _ = k2("tokens", "check", "kimi", "renamed")
    assert code == 4 and "differ on their vocabularies" in out and "id 65 is b'?'" in out
    code, out, _ = k2("tokens", "check", "kimi", "narrow", "--json")
    assert code == 4 and json.loads(out)["disagreement"]["first"].startswith("encode: [")
    assert k2("tokens", "check", "kimi", "nano", "-n", "5")[0] == 0
    code, _, err = k2("tokens", "check", "kimi", "wraped")
    assert code == 2 and "Did you mean 'wrapped'" in err
    assert k2("verifiers", "check", "polite", "polite", "-n", "20")[:2] == (0, "20 answers agree\n")
    code, out, _ = k2("verifiers", "check", "polite", "polite/lenient")
    assert code == 4 and out.startswith("polite and polite/lenient differ on this answer:\n  question  ")
    code, out, _ = k2("verifiers", "check", "polite", "polite/lenient", "--json")
    assert code == 4 and set(json.loads(out)["disagreement"]["given"]) == {"answer", "trajectory"}


def test_chat_swaps(k2, documents):
    """/tool and /verifier list and swap in k2 chat, mistakes are one line, and questions go to who was swapped in."""
    lines = [
        "/tool", "/tool search tantvy", "/tool search", "/tool answer x", "/verifier", "/verifier polite lenient", "/tol",
        "/tokenizer", "/tokenizer kimi", "/tool double words", "/tool double adding", "Double four.", "/tool double words",
        "And again.", "/tool",
    ]  # fmt: skip
    stdin = "\n".join(lines) + "\n"
    code, out, err = k2("chat", "-m", "script", "--docs", str(documents), stdin=stdin)
    assert "search       [default], tantivy" in err and "Did you mean 'tantivy'?" in err and "calculator   [default]" in err
    assert "give a tool and an implementation of it, e.g. /tool search tantivy" in err
    assert "cannot swap tool 'answer': it is the agent's own" in err and "Did you mean '/tool'" in err
    assert "polite       [default], lenient" in err and "polite is carried out by lenient from the next answer on" in err
    assert "this session has no tokenizer that can be swapped" in err and "it brings its own" in err
    assert "double is declared in other words by words: the prompt would begin anew" in err
    assert "double is carried out by adding from the next call on (before: default)" in err
    assert "tool double is carried out by adding from here on (before: default)\n" in err and "8 by adding" in err
    assert "from here on (before: adding); it waited for this question, whose prompt begins anew" in err
    assert "8 in other words" in err and "double       default, adding, needy, sending, shifting, [words]" in err
    assert out.count("It is 8, please.") == 2 and code in (0, 4, 6)

    _, out, _ = k2("chat", "-m", "script", "--docs", str(documents), "--json", stdin=stdin)
    told = [json.loads(line) for line in out.splitlines()]
    assert {"name": "search", "used": "default", "known": ["default", "tantivy"]} in told[0]["tools"]
    assert told[1]["kind"] == "UnknownName"
    swap = next(one["swap"] for one in told if one.get("swap", {}).get("what") == "tool")
    assert (swap["name"], swap["old"], swap["new"], swap["at_once"]) == ("double", "default", "words", False)


def test_chat_swaps_tokenizers(k2):
    """/tokenizer takes one name: the model has one."""
    stdin = "/tokenizer\n/tokenizer wrapped\n/tokenizer renamed\n/tokenizer\n"
    _, out, err = k2("chat", "--json", stdin=stdin)
    told = [json.loads(line) for line in out.splitlines()]
    (known,) = told[0]["tokenizers"]
    assert (known["name"], known["used"]) == ("kimi", "default") and "wrapped" in known["known"]
    assert told[1]["swap"]["what"] == "tokenizer" and "id 65 is b'?'" in told[2]["error"] and "id 65" in err
    assert told[3]["tokenizers"][0]["used"] == "wrapped"


@settings(max_examples=20, deadline=None)
@given(text=st.text(max_size=30))
def test_words_are_what_a_search_would_look_for(text):
    """Each once, in order, none with white space."""
    found = words_of(text)
    assert found == sorted(set(found)) and all(one and one in text and not any(c.isspace() for c in one) for one in found)
