"""The generated conversations: right, on the frozen format, and apart from what evaluation draws."""

import itertools
import json
import random
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from k2core_nano.train import arithmetic, chains, documents, facts, mix, names, phrasing, preview, wire
from k2core_nano.train.oracle import Step
from k2core_nano.train.questions import Turn, solved
from k2core_nano.train.tokenizer import CONTROL, load
from k2core_specs import load as load_spec

SPEC = load_spec("formats/nano_episode.toml")
FAMILIES = [family for group in SPEC["families"].values() for family in group]
SEEDS = st.integers(0, 2**32)


@given(st.text())
def test_every_text_comes_back(text: str) -> None:
    """Any Unicode text survives encoding and decoding."""
    assert load().decode(load().encode_ordinary(text)) == text


@given(SEEDS, st.sampled_from(FAMILIES), st.sampled_from([None, 0, 1, 2]))
def test_the_oracle_answers_rightly(seed: int, family: str, level: int | None) -> None:
    """The oracle's last answer is right, or says that tools or checks keep failing where they do."""
    rng = random.Random(seed)
    question = mix.question(rng, family, level)
    assert not re.search(r"[{}<>|]", question.text)
    answer = str(solved(question, rng)[-1].step.arguments["text"])
    gave_up = answer in (SPEC["answers"]["tool_fails"], SPEC["answers"]["check_fails"]) and len(question.faults) >= 4
    assert question.right(answer) or gave_up


@given(SEEDS, st.sampled_from(["main", "copy"]))
def test_documents_follow_the_specification(seed: int, phase: str) -> None:
    """Prefix, declarations, calls and results are spelled as specified, and only the model's tokens weigh."""
    group = next(documents.stream(seed, tokens=600, phase=phase))
    text = load().decode(group.prefix)
    declared = re.fullmatch(r"<\|im_system\|>tool_declare<\|im_middle\|>(\[.*\])<\|im_end\|>(.*)", text)
    assert declared is not None
    assert declared[2] == SPEC["wire"]["system"].format(text=SPEC["system"])
    tools = json.loads(declared[1])
    assert json.dumps(tools, sort_keys=True, separators=(",", ":"), ensure_ascii=False) == declared[1]
    assert [tool["function"]["name"] for tool in tools] == sorted(tool["function"]["name"] for tool in tools)
    for document in group.documents:
        assert len(document.ids) == len(document.weights) <= documents.LONGEST
        if document.family != "copy":
            check_conversation(document, {tool["function"]["name"] for tool in tools})


def check_conversation(document: wire.Document, tools: set[str]) -> None:
    """Every weighted run of tokens is an assistant's step; calls are compact sorted JSON of declared tools, numbered from 0."""
    text = load().decode(document.ids)
    assert document.ids[0] == CONTROL["<|im_user|>"] and document.ids[-1] == CONTROL["<|im_end|>"]
    speaking = False
    for before, token, weight in zip([-1, *document.ids], document.ids, document.weights, strict=False):
        speaking = speaking or (token == CONTROL["<think>"] and before == CONTROL["<|im_middle|>"])
        assert speaking or weight == 0
        speaking = speaking and token != CONTROL["<|im_end|>"]
    calls = re.findall(
        r"<\|tool_call_begin\|>functions\.(\w+):(\d+)<\|tool_call_argument_begin\|>(.*?)<\|tool_call_end\|>", text
    )
    first = int(calls[0][1]) if calls else 0  # of a long chain only a part is shown
    assert first == 0 or document.family in chains.FAMILIES
    assert [int(index) for _, index, _ in calls] == list(range(first, first + len(calls)))
    for tool, _, arguments in calls:
        assert tool in tools
        assert json.dumps(json.loads(arguments), sort_keys=True, separators=(",", ":"), ensure_ascii=False) == arguments
    for tool, index in re.findall(r"## Return of functions\.(\w+):(\d+)\n", text):
        assert calls[int(index) - first][0] == tool


@given(SEEDS, st.sampled_from(arithmetic.FAMILIES), st.sampled_from([0, 1, 2]))
def test_training_and_evaluation_share_no_operands(seed: int, family: str, level: int) -> None:
    """The operands of a training question hash to one side of the split, those of an evaluation question to the other."""
    for asked, held_out in ((None, False), (level, True)):
        plan = next(arithmetic.question(random.Random(seed), family, asked).policy())
        expression = str(plan.arguments["expression"])
        used = operands_in_order(family, expression)
        assert names.is_held_out(" ".join(used)) == held_out


def operands_in_order(family: str, expression: str) -> list[str]:
    """The operands n, p, q of an expression of this family."""
    numbers = re.findall(r"\d+(?:\.\d+)?", expression)
    order = {"percent": numbers[:2], "perimeter": numbers[1:], "average": numbers[:-1], "change": [*numbers[1:], numbers[0]]}
    return order.get(family, numbers)


@given(SEEDS, st.sampled_from(facts.FAMILIES), st.sampled_from([0, 1, 2]))
def test_training_and_evaluation_share_no_entities(seed: int, family: str, level: int) -> None:
    """Entities of training facts are never held out; those of evaluation always are."""
    for asked in (None, level):
        rng = random.Random(seed)
        for kind in ("country", "element", "town"):
            assert names.is_held_out(facts.entity(rng, kind, asked is not None)) == (asked is not None)


def test_held_out_frames_stay_out_of_training() -> None:
    """Training and level 0 never draw the last frames; level 2 draws nothing else."""
    frames = [f"{place}" for place in range(10)]
    rng = random.Random(1)
    drawn = {level: {digits(phrasing.phrase(rng, "times", frames, level)[0]) for _ in range(300)} for level in (None, 0, 1, 2)}
    assert drawn[None] == drawn[0] == {"0", "1", "2", "3", "4"}
    assert drawn[1] <= drawn[0]
    assert drawn[2] == {"5", "6", "7", "8", "9"}


def digits(text: str) -> str:
    """The digits of a text."""
    return re.sub(r"\D", "", text)


def test_declarations_are_short() -> None:
    """The declarations and the system message of the default set take at most 160 tokens, of all seven tools at most 200."""
    sets = SPEC["tool_sets"]
    lengths = [len(wire.prefix(tuple(SPEC["tools"][tool] for tool in sets[name]))) for name in ("default", "with_documents")]
    assert lengths[0] <= 160 and lengths[1] <= 200


def test_a_seed_gives_one_stream() -> None:
    """The same seed gives the same groups; another seed gives others."""
    first, again, other = (list(itertools.islice(documents.stream(seed, tokens=300, phase="main"), 3)) for seed in (1, 1, 2))
    assert first == again != other


@given(SEEDS)
def test_a_preview_marks_what_is_learnt(seed: int) -> None:
    """A previewed conversation is the document's text, and between the marks stand exactly the weighted tokens."""
    document = documents.conversation(random.Random(seed), ("answer", "calculator", "facts"))
    if document.family == "copy":  # may hold pieces of characters
        return
    text = preview.shown(document)
    weighted = [token for token, weight in zip(document.ids, document.weights, strict=True) if weight]
    assert re.sub("[⟦⟧]", "", text) == load().decode(document.ids)
    assert "".join(re.findall("⟦(.*?)⟧", text, re.DOTALL)) == load().decode(weighted)


@pytest.mark.parametrize("value", ["2023-11-04", "1.2.3", "007", "12-7", "-"])
def test_what_is_no_number_is_not_miscopied_as_one(value: str) -> None:
    """A date, a version or a code in a claim leaves the turns as they are."""
    claim = {"evidence": [0], "text": f"release date: {value}"}
    turns = [Turn(Step("Answer.", "answer", {"claims": [claim], "text": f"It is {value}."}, 2), 1, "accepted")]

    for seed in range(50):
        assert documents.with_rejection(random.Random(seed), turns) == turns
