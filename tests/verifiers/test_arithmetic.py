"""Every equation of an answer is recomputed exactly, in whatever dress it comes."""

import time
from decimal import Decimal

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from verifiers.episodes import EPISODES

from k2core.interfaces import Answer, Claim, Trajectory, Verifier
from k2core_verifiers.arithmetic import ArithmeticVerifier
from k2core_verifiers.equations import find_equations

EMPTY = Trajectory(question="", question_event=1)
naturals = st.integers(0, 10**6)


DRESSES = ["{} = {}", "So {} = {}, as asked.", "The result of {} is {}."]


@given(a=naturals, b=naturals, operator=st.sampled_from("+-*"), off=st.integers(-50, 50), dress=st.sampled_from(DRESSES))
def test_true_equations_are_supported_and_false_ones_refuted(a: int, b: int, operator: str, off: int, dress: str) -> None:
    """a op b = c is supported exactly if c is the value, and the hint names expression, right and stated value."""
    right = {"+": a + b, "-": a - b, "*": a * b}[operator]
    expression = f"{a} {operator} {b}"
    finding = ArithmeticVerifier().verify(Answer(text=dress.format(expression, right + off)), EMPTY).findings[0]
    assert finding.status == ("supported" if off == 0 else "refuted")
    assert finding.hint == ("" if off == 0 else f"{expression} is {right}, not {right + off}")


@given(a=st.integers(1, 10**6), b=st.integers(1, 999), places=st.integers(1, 8))
def test_a_rounded_quotient_is_right_with_its_stated_digits(a: int, b: int, places: int) -> None:
    """a/b ≈ the quotient rounded to any number of decimals is supported; two units of the last decimal off is refuted."""
    shown = f"{a / b:.{places}f}"
    off = str(Decimal(shown) + 2 * Decimal(1).scaleb(-places))  # with all its decimals: 616 would be right where 616.0 is not
    assert [one.status for one in find_equations(f"{a}/{b} ≈ {shown}")] == ["supported"]
    assert [one.status for one in find_equations(f"{a}/{b} ≈ {off}")] == ["refuted"]


@given(text=st.text(alphabet="0123456789+-*/=≈().,%$ is about km x\n", max_size=200))
@example("=" * 3000)
@example("1+" * 1500 + "1=2")
@example("(" * 500 + "1+1" + ")" * 500 + "=2")
def test_any_text_is_judged_quickly(text: str) -> None:
    """No text breaks or hangs the verifier."""
    started = time.perf_counter()
    verdict = ArithmeticVerifier().verify(Answer(text=text), EMPTY)
    assert all(bool(one.hint) == (one.status == "refuted") for one in verdict.findings)
    assert time.perf_counter() - started < 2.0


@pytest.mark.parametrize(
    ("text", "statuses"),
    [
        ("23 × 47 = 1,081", ["supported"]),
        ("23 times 47 equals 1081 and 23 plus 47 is 71.", ["supported", "refuted"]),
        ("12 apples + 5 apples = 17 apples", ["supported"]),
        ("5 km + 3 km = 9 km", ["refuted"]),
        ("60 km/h * 2 h = 120 km", ["supported"]),
        ("60 km/h * 30 min = 30 km", ["unchecked"]),
        ("2 * 3 km = 6000 m", ["unchecked"]),
        ("$5 + $3 = $8", ["supported"]),
        ("15% of 80 is 12.", ["supported"]),
        ("12/80 = 15%", ["supported"]),
        ("1/8 = 0.13", ["refuted"]),
        ("1082/47 = 23.02", ["supported"]),
        ("1082/47 is about 23", ["supported"]),
        ("1082/47 is 24", ["refuted"]),
        ("1082/47 = 1082/47 (about 23.0212765957)", ["supported"]),
        ("23*47 = 1081 = 1000 + 81", ["supported", "supported"]),
        ("5 - 3 = 2, 7 - 3 = 5", ["supported", "refuted"]),
        ("Result - 23*47 = 1081", ["supported"]),
        ("max(1, 2) + 3 = 5 and (5+3)*2 = 17", ["supported", "refuted"]),
        ("-5 + 3 = -2", ["supported"]),
        ("x = 5, 5 km = 5000 m, 10/0 = 5, a = b, 2019-2020 is 1 year", []),
    ],
)
def test_dresses_of_equations(text: str, statuses: list[str]) -> None:
    """Units, words, currencies, chains, percentages and approximations are read; what is no equation is left alone."""
    assert [one.status for one in find_equations(text)] == statuses


def test_claims_are_checked_and_point_at_their_call() -> None:
    """A finding on a claim carries the claim's index and the event of the call that computed it."""
    answer = Answer(text="Done.", claims=(Claim(text="fine"), Claim(text="23*47 = 1082", evidence=(0,))))
    verifier = ArithmeticVerifier()
    assert isinstance(verifier, Verifier)
    finding = verifier.verify(answer, EPISODES["product"]).findings[0]
    assert (finding.claim, finding.events, finding.hint) == (1, (10,), "23*47 is 1081, not 1082")
    assert verifier.verify(answer, EPISODES["product"]).render() == "rejected: 23*47 is 1081, not 1082"
