"""Another tokenizer of the same vocabulary in a running session, and two tokenizers compared."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from swap.parts import LANGUAGES, Cut, Renamed, swaps

from k2core.agent.budget import Limits
from k2core.agent.session import Choice, Session
from k2core.conformance.tokenizers_check import check_tokenizers
from k2core.engine.vocabulary import vocabulary_difference
from k2core.errors import InputError, PluginError, UnknownName
from k2core.events import TurnEnded
from k2core.plugins import Plugins
from k2core.testing.formats import ByteTokenizer
from k2core.testing.models import ScriptedModel
from k2core_kimi.tokenizer import KimiTokenizer
from k2core_nano import WEIGHTS

needs_nano = pytest.mark.skipif(
    not (WEIGHTS / "model.safetensors").exists(), reason="the embedded model's weights are not installed"
)
QUESTIONS = ("What is 23 times 47?", "What is 12 plus 30?")


@pytest.fixture
def plugins():
    """The installed plugins, and more tokenizers."""
    found = Plugins.discover()
    report = found.add(LANGUAGES, name="languages")
    assert report.status == "loaded", report.reason
    return found


def turns_of(session, run):
    """Tokens, cached tokens and length of the prompt of each turn."""
    events = [one.event for one in session.agent.journal.events(run)]
    return [(one.token_ids, one.usage.cached_tokens, one.usage.prompt_tokens) for one in events if isinstance(one, TurnEnded)]


@needs_nano
def test_a_tokenizer_that_encodes_alike_takes_over_at_once(tmp_path, plugins):
    """Turn by turn the same tokens, as many of them cached as without the swap; the log says who encodes."""
    turns = {}
    for swap in (None, "wrapped"):
        choice = Choice(store=tmp_path / f"{swap}.sqlite", drafts=0)
        with Session.open(choice, plugins=plugins) as session:
            run = session.agent.run(QUESTIONS[0]).run
            if swap is not None:
                told = session.tokenizers.use(swap)
                assert told.at_once and "kimi is carried out by wrapped from the next turn on" in str(told)
            second = session.agent.run(QUESTIONS[1], run=run)
            assert second.answer.text == "The answer is 42."
            turns[swap] = turns_of(session, run)
            logged = [(one.what, one.name, one.old, one.new, one.same_prompt) for one in swaps(session.agent, run)]
            assert logged == ([] if swap is None else [("tokenizer", "kimi", "default", "wrapped", True)])
    assert turns[None] == turns["wrapped"]


@needs_nano
def test_a_tokenizer_that_encodes_otherwise_waits_for_the_next_question(tmp_path, plugins):
    """Prompts then begin anew, in the new cuts: longer here, with nothing cached of the first."""
    choice = Choice(store=tmp_path / "r.sqlite", drafts=0, limits=Limits(calls=2, reasoning_tokens=64), max_tokens=96)
    with Session.open(choice, plugins=plugins) as session:
        run = session.agent.run(QUESTIONS[0]).run
        before = turns_of(session, run)
        told = session.tokenizers.use("narrow")
        assert not told.at_once and "becomes other token ids by narrow" in str(told)
        assert session.tokenizers.implementations()["kimi"][0] == "default"
        session.agent.run(QUESTIONS[0], run=run)
        after = turns_of(session, run)[len(before) :]
        assert session.tokenizers.implementations()["kimi"][0] == "narrow"
        assert [(one.new, one.same_prompt) for one in swaps(session.agent, run)] == [("narrow", False)]
    assert after[0][2] > 1.2 * before[0][2] and after[0][1] < before[-1][1] / 4
    assert all(second[1] >= first[1] for first, second in pairwise(after))


@needs_nano
@pytest.mark.parametrize(
    ("name", "kind", "complaint"),
    [
        ("renamed", InputError, "id 65 is b'\\?', not b'.*'. Every id must be the same token"),
        ("blind", InputError, "the chat format does not work over it: RuntimeError: no text, please"),
        (
            "unreadable",
            PluginError,
            "cannot make tokenizer 'unreadable' of plugin 'languages': OSError: no vocabulary in weights",
        ),
        ("wraped", UnknownName, "Did you mean 'wrapped'"),
    ],
)
def test_what_cannot_take_over_is_one_line(tmp_path, plugins, name, kind, complaint):
    """Another token under an id, a language that does not work, a factory that fails; everything stays as it was."""
    with Session.open(Choice(store=tmp_path / "r.sqlite"), plugins=plugins) as session:
        with pytest.raises(kind, match=complaint) as error:
            session.tokenizers.use(name)
        assert "\n" not in str(error.value)
        assert session.tokenizers.implementations()["kimi"][0] == "default"
        assert str(session.tokenizers.use("default")) == "tokenizer kimi is in use already"
        assert str(session.tokenizers.use("kimi")) == "tokenizer kimi is in use already"
        session.tokenizers.use("wrapped")
        assert str(session.tokenizers.use("wrapped")) == "tokenizer wrapped is in use already"


def test_a_model_that_brings_its_own_language_keeps_it(tmp_path, plugins):
    """A scripted or remote model says so in one line."""
    model = ScriptedModel(["Hello."])
    with (
        Session.open(Choice(store=tmp_path / "r.sqlite"), plugins=plugins, model=model) as session,
        pytest.raises(InputError, match="it brings its own"),
    ):
        assert session.tokenizers.implementations() == {}
        session.tokenizers.use("wrapped")


@pytest.fixture(scope="module")
def kimi():
    """The shipped vocabulary."""
    return KimiTokenizer.open(WEIGHTS)


@pytest.mark.parametrize("seed", range(3))
def test_a_tokenizer_agrees_with_one_that_wraps_it(kimi, seed):
    """Every text and every row of ids that is drawn."""
    found = check_tokenizers(kimi, Cut(kimi), count=300, seed=seed)
    assert found.disagreement is None and found.calls == 300


def test_where_tokenizers_differ_is_shrunk(kimi):
    """Other cuts are told by a text as short as one can be; forged control tokens by their text alone."""
    found = check_tokenizers(kimi, Cut(kimi, width=3), count=300).disagreement
    assert 3 < len(found.given) <= 8 and found.first.startswith("encode: [")
    found = check_tokenizers(kimi, Cut(kimi, forges=True), count=600).disagreement
    assert found.given in kimi.control and f"[{kimi.control[found.given]}]" in found.second


def test_vocabularies_are_compared_first(kimi):
    """Sizes, control tokens and the bytes of every id, each in words."""
    assert vocabulary_difference(kimi, Cut(kimi)) == ""
    found = check_tokenizers(kimi, Renamed(kimi)).disagreement
    assert found.given is None and found.second.startswith("id 65 is b'?'")
    assert "ids, not" in vocabulary_difference(kimi, ByteTokenizer())
    fewer = Cut(kimi)
    fewer.control = {text: number for text, number in kimi.control.items() if text != "<|im_end|>"}
    assert vocabulary_difference(kimi, fewer).startswith("control token <|im_end|> has no id, not id ")


@given(text=st.text(max_size=20), width=st.integers(1, 4))
def test_the_bytes_stay_however_texts_are_cut(kimi, text, width):
    """Whatever a swap does to the ids, the text is the same."""
    raw = text.encode("utf-8", "replace").decode()
    assert kimi.decode(Cut(kimi, width=width).encode(raw)) == raw
