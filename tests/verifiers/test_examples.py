"""Example answers of varied wording are judged as a careful reader would; what is missed is listed as missed."""

from typing import Any

import pytest
from verifiers.episodes import EPISODES, answer_of, example_answers

from k2core_verifiers.arithmetic import ArithmeticVerifier
from k2core_verifiers.grounding import GroundingVerifier

EXAMPLES = example_answers()


def verdict(example: dict[str, Any]) -> str:
    """Accept or reject, by both verifiers together."""
    answer, trajectory = answer_of(example), EPISODES[example["episode"]]
    both = (ArithmeticVerifier().verify(answer, trajectory), GroundingVerifier().verify(answer, trajectory))
    return "accept" if all(one.accepted for one in both) else "reject"


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: f"{example['episode']}-{example['text'][:40]}")
def test_each_example_is_judged_as_expected(example: dict[str, Any]) -> None:
    """A true answer is accepted, a false one rejected, a known miss still missed (else the table is out of date)."""
    assert verdict(example) == ("accept" if example.get("missed") else example["verdict"])


def test_precision_and_recall_over_the_table() -> None:
    """No true answer is rejected, and at most three in a hundred false ones pass."""
    false = [example for example in EXAMPLES if example["verdict"] == "reject"]
    true = [example for example in EXAMPLES if example["verdict"] == "accept"]
    rejected = [example for example in EXAMPLES if verdict(example) == "reject"]
    assert len(true) >= 40
    assert len(false) >= 40
    precision = sum(example["verdict"] == "reject" for example in rejected) / len(rejected)
    recall = sum(example["verdict"] == "reject" for example in rejected) / len(false)
    print(f"answers {len(EXAMPLES)}, precision {precision:.3f}, recall {recall:.3f}")
    assert precision == 1.0
    assert recall >= 0.97
