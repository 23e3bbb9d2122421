"""Numbers and names of an answer are found in what was observed, with the event, or named as missing."""

import json
import statistics
import time

import pytest
from attrs import evolve
from hypothesis import example, given
from hypothesis import strategies as st
from verifiers.episodes import EPISODES, answer_of, example_answers

from k2core.interfaces import Answer, Claim, Observation, Trajectory, Verdict, Verifier
from k2core_verifiers.grounding import GroundingVerifier
from k2core_verifiers.quantities import find_numbers, values_in

integers = st.integers(-(10**12), 10**12)


def seen(text: str, *, tool: str = "search", ok: bool = True, arguments: str = "{}") -> Trajectory:
    """A trajectory with one result."""
    one = Observation(event=7, index=0, tool=tool, arguments=arguments, text=text, ok=ok)
    return Trajectory(question="", question_event=1, observations=(one,))


def judge(text: str, trajectory: Trajectory, *claims: Claim) -> Verdict:
    """The verifier's verdict on an answer."""
    return GroundingVerifier().verify(Answer(text=text, claims=claims), trajectory)


@given(value=integers, other=integers, style=st.sampled_from(["{}", "{:,}", "{}.0", "{}.00"]))
def test_an_integer_is_found_by_value_or_named(value: int, other: int, style: str) -> None:
    """However it is written, an observed number is found with its event; another is named exactly as written."""
    verdict = judge(f"It is {style.format(value)} now.", seen(f"it was {other} then"))
    written = (
        style.format(abs(value)) if value < 0 and not verdict.accepted and "-" not in verdict.render() else style.format(value)
    )
    if value == other or (value > 0 and value == -other):
        assert verdict.accepted
        assert verdict.findings[0].events == (7,)
    elif "." not in style:
        assert verdict.render() == f"rejected: number {written} is in no result"


@given(value=st.decimals(min_value=1, max_value=10**9, places=6), places=st.integers(1, 5))
def test_a_rounding_is_found_and_a_near_miss_is_not(value: object, places: int) -> None:
    """A decimal rounded from an observed one is found; two units of its last place away is not."""
    number = float(str(value))
    trajectory = seen(f"about {value}")
    assert judge(f"It is {number:.{places}f}", trajectory).accepted
    off = f"{number + 2 * 10**-places:.{places}f}"
    assert not judge(f"It is {off}", trajectory).accepted


@given(text=st.text(max_size=300), seen_text=st.text(max_size=100))
@example("a" * 5000, "")
@example("A" * 5000 + " " + "Ab " * 1000, "")
@example("1,000" * 1000, "1")
@example("_" * 5000 + "`" * 500, "")
def test_any_text_is_judged_and_what_was_seen_is_accepted(text: str, seen_text: str) -> None:
    """No text breaks the verifier; the same text is accepted when it was observed as it stands."""
    verdict = judge(text, seen(seen_text))
    assert all(bool(one.hint) == (one.status == "unsupported") for one in verdict.findings)
    numbers = [one for one in judge(text, seen(text)).blocking if one.subject.startswith("number")]
    assert not numbers


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("The answer is 1082.", "number 1082 is in no result"),
        ("The answer is 1,082.", "number 1,082 is in no result"),
        ("Kenia has 1081 apples.", "name Kenia is in no result"),
        ("The answer is twelve.", "number twelve is in no result"),
        ("See `apples.py`.", "name apples.py is in no result"),
    ],
)
def test_hints_are_exact(text: str, hint: str) -> None:
    """The embedded model reads these hints: their wording is fixed."""
    assert judge(text, EPISODES["product"]).render() == f"rejected: {hint}"


def test_a_claim_needs_its_numbers_in_its_own_evidence() -> None:
    """A number from another call is named with the calls it is not in; a call that does not exist is named."""
    areas = EPISODES["areas"]
    hints = {
        (1,): "rejected: number 580367 is not in call 1; name Kenya is not in call 1",
        (0, 9): "rejected: call 9 does not exist",
        (0,): "accepted",
        (): "accepted",
    }
    for evidence, hint in hints.items():
        verdict = judge("Done.", areas, Claim(text="The area of Kenya: 580367 km2", evidence=evidence))
        assert verdict.render() == hint
        assert all(one.claim == 0 for one in verdict.findings)


def test_a_claim_with_several_calls_names_them_all() -> None:
    """A number in none of a claim's calls is reported with all of them."""
    verdict = judge("Done.", EPISODES["areas"], Claim(text="It is 339329 km2", evidence=(0, 1)))
    assert verdict.render() == "rejected: number 339329 is not in calls 0, 1"


def test_failures_and_the_models_own_words_ground_nothing() -> None:
    """Neither an error, nor a note, nor an earlier answer with its rejection is evidence."""
    for trajectory in (
        seen("error: 1082 Guinea", ok=False, arguments='{"expression":"1082"}'),
        seen("rejected: number 1082 is in no result", tool="answer", arguments='{"text":"1082 Guinea"}'),
        seen("noted", tool="note", arguments='{"text":"1082 Guinea"}'),
    ):
        assert judge("It is 1082.", trajectory).render() == "rejected: number 1082 is in no result"
        assert judge("It lies in Guinea.", trajectory).render() == "rejected: name Guinea is in no result"


ASKED = Trajectory(question="What is 23 times 47?", question_event=1)


def calculated(expression: str, text: str) -> Trajectory:
    """The question 23 times 47 after one calculation."""
    arguments = json.dumps({"expression": expression})
    one = Observation(event=7, index=0, tool="calculator", arguments=arguments, text=text, ok=not text.startswith("error"))
    return evolve(ASKED, observations=(one,))


@pytest.mark.parametrize(
    ("trajectory", "text", "rendered"),
    [
        (ASKED, "The answer is 47.", "rejected: number 47 is in no result"),
        (
            ASKED,
            "23 times 47 is 1081.",
            "rejected: number 23 is in no result; number 47 is in no result; number 1081 is in no result",
        ),
        (calculated("23*48", "1104"), "The answer is 47.", "rejected: number 47 is in no result"),
        (calculated("23*48", "1104"), "The answer is 48.", "rejected: number 48 is in no result"),
        (calculated("23*47", "error: busy"), "The answer is 47.", "rejected: number 47 is in no result"),
        (calculated("23*47", "1081"), "23 times 47 is 1081.", "accepted"),
        (calculated("23*47", "1081"), "1081 - 23 = 1058, so 1058.", "accepted"),
        (calculated("23*47", "1081"), "The answer is 1081 dollars.", "accepted"),
        (ASKED, "I could not compute 23 times 47.", "accepted"),
        (calculated("23*47", "error: busy"), "Sorry, I am unable to multiply 23 by 47.", "accepted"),
        (ASKED, "I couldn't compute it. The answer is 47.", "rejected: number 47 is in no result"),
        (ASKED, "I could not find the elevation of Mount Zeb.", "rejected: name Mount Zeb is in no result"),
        (ASKED, "I cannot answer this with my tools.", "accepted"),
    ],
)
def test_an_answer_needs_a_number_from_a_result(trajectory: Trajectory, text: str, rendered: str) -> None:
    """Numbers of the question or of arguments alone answer nothing, beside a result's number or in a decline they may stand."""
    assert judge(text, trajectory).render() == rendered


@given(asked=st.integers(10, 10**6), result=st.integers(10, 10**6))
def test_a_repeated_operand_is_no_answer(asked: int, result: int) -> None:
    """An operand is accepted as the answer exactly if the result has it too, and always beside the result."""
    trajectory = calculated(f"{asked}+5", str(result))
    assert judge(f"The answer is {asked}.", trajectory).accepted == (asked == result)
    assert judge(f"The answer is {result}, for {asked} and 5.", trajectory).accepted


def test_what_follows_from_a_result_in_a_claim_answers() -> None:
    """A text whose number only a claim's true equation over results has is accepted; over the question's numbers it is not."""
    areas = EPISODES["areas"]
    assert judge("Together 821405 km2.", areas, Claim(text="580367+241038 = 821405", evidence=(0, 1))).accepted
    verdict = judge("It is 1081.", ASKED, Claim(text="23*47 = 1081"))
    assert verdict.render() == "rejected: number 1081 is in no result"


def test_a_claim_needs_its_names_in_its_own_evidence() -> None:
    """A name that only another call has is named with the claim's calls, whether the question has it or not."""
    areas = EPISODES["areas"]
    for trajectory in (areas, evolve(areas, question="Which is larger?")):
        claims = {
            ("Kenya has 241038 km2", (1,)): "rejected: name Kenya is not in call 1",
            ("Kenya has 339329 km2", (1, 2)): "rejected: name Kenya is not in calls 1, 2",
            ("Kenya has 580367 km2", (0,)): "accepted",
            ("area of Kenya: 580367 km2", (0, 1)): "accepted",
            ("Kenya has 580367 km2", ()): "accepted",
            ("Tanzania has 580367 km2", (0,)): "rejected: name Tanzania is in no result",
        }
        for (text, evidence), rendered in claims.items():
            assert judge("Done.", trajectory, Claim(text=text, evidence=evidence)).render() == rendered


def test_a_name_of_the_question_supports_a_claim_that_no_other_call_has() -> None:
    """A calculation names nobody: the question's name is accepted with it, and lower case in a call is the same name."""
    trajectory = evolve(calculated("23*47", "1081"), question="Ann packs 23 boxes of 47 apples. How many?")
    assert judge("Ann has 1081 apples.", trajectory, Claim(text="Ann has 23*47 = 1081 apples", evidence=(0,))).accepted
    lower = Observation(
        event=7, index=0, tool="facts", arguments='{"attribute":"area","entity":"kenya"}', text="580367 km2", ok=True
    )
    kenya = Trajectory(question="How large is Kenya?", question_event=1, observations=(lower,))
    assert judge("580367 km2.", kenya, Claim(text="area of Kenya: 580367 km2", evidence=(0,))).accepted


def test_what_follows_from_a_true_equation_is_grounded_in_its_operands() -> None:
    """The value of a true equation over observed numbers is found, with their events; of a false one it is not."""
    areas = EPISODES["areas"]
    verdict = judge("580367 + 241038 = 821405, so 821405 km2 in all.", areas)
    assert verdict.accepted
    assert next(one for one in verdict.findings if one.subject == "number 821405").events == (10, 11, 12)
    assert not judge("580367 + 241038 = 821406, so 821406 km2 in all.", areas).accepted
    assert not judge("580367 + 5 = 580372", areas).accepted


def test_a_text_that_is_not_english_keeps_its_numbers_checked() -> None:
    """Where capitals mean something else, names are left unchecked and numbers are not."""
    text = "Die Fläche von Kenya ist laut dieser Tabelle {} km2, also deutlich größer als jene des Nachbarn."
    good = judge(text.format(580367), EPISODES["areas"])
    assert good.accepted
    assert any(one.status == "unchecked" for one in good.findings)
    assert judge(text.format(580368), EPISODES["areas"]).render() == "rejected: number 580368 is in no result"


@given(text=st.text(alphabet="0123456789., -+eE%×10^million about~", max_size=60))
def test_every_number_is_among_the_values_of_its_own_text(text: str) -> None:
    """Whatever is read as a number from a text is a value that the same text grounds."""
    values = values_in(text)
    assert all(value in values for number in find_numbers(text) for reading in number.readings for value in reading)


def test_an_ordinary_answer_takes_a_few_milliseconds() -> None:
    """The median over the example answers is below 5 ms, on trajectories not seen before."""
    verifier = GroundingVerifier()
    assert isinstance(verifier, Verifier)
    seconds = []
    for place, one in enumerate(example_answers()):
        trajectory = evolve(EPISODES[one["episode"]], question=f"{EPISODES[one['episode']].question} ({place})")
        started = time.perf_counter()
        verifier.verify(answer_of(one), trajectory)
        seconds.append(time.perf_counter() - started)
    assert statistics.median(seconds) < 0.005


@pytest.mark.parametrize(("question", "error", "is_grounded"), [
    ("What is 2 plus 2?", "error: not JSON: expected a value at column 214", False),
    ("What is 214 plus 0?", "error: not JSON: expected a value at column 214", True),
    ("What is 2 plus 2?", "error: timed out after 10 s", True),
])  # fmt: skip
def test_a_number_that_only_an_error_gave_grounds_nothing(question: str, error: str, is_grounded: bool) -> None:
    """A call that computes with such a number is no evidence; conversions such as 10 and what the question has stay."""
    operand = error.split()[-1] if "column" in error else "10"
    arguments = json.dumps({"expression": f"1*{operand}"})
    calls = (
        Observation(event=7, index=0, tool="calculator", arguments="{", text=error, ok=False),
        Observation(event=9, index=1, tool="calculator", arguments=arguments, text=operand, ok=True),
    )
    trajectory = Trajectory(question=question, question_event=1, observations=calls)
    claim = Claim(text=f"1*{operand} = {operand}", evidence=(1,))
    assert judge(f"The answer is {operand}.", trajectory, claim).accepted == is_grounded
