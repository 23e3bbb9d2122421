"""The kit as tests: every op, property and rule over every registered backend.

Run it on an installed backend with ``pytest --pyargs k2core.conformance.suite``; nothing has to be written for it. A backend
or a device that cannot work here is skipped with its reason, so that a summary says what was not checked.
"""

from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from k2core.conformance.cases import cases, drawn_case
from k2core.conformance.contracts import contracts
from k2core.conformance.kit import Subject, check_ops
from k2core.conformance.promises import PROMISES, keep
from k2core.conformance.records import Contract
from k2core.conformance.subjects import Missing, discovered
from k2core.conformance.whole_model import check_models

EXAMPLES, SOAK_EXAMPLES = 6, 200


def _name(subject: Subject | Missing) -> str:
    return subject.name if isinstance(subject, Missing) else f"{subject.name}-{subject.device}-{subject.numerics}"


SUBJECTS = [pytest.param(subject, id=_name(subject)) for subject in discovered()]
PAIRS = [pytest.param(contract, prop, id=f"{contract.name}-{prop}") for contract in contracts().values()
         for prop in contract.properties]  # fmt: skip


@pytest.fixture(params=SUBJECTS)
def subject(request: pytest.FixtureRequest) -> Iterator[Subject]:
    """A backend with a device and a numerics."""
    found: Subject | Missing = request.param
    if isinstance(found, Missing):
        pytest.skip(f"{found.name}: {found.reason}")
    yield found


@pytest.mark.parametrize(("contract", "prop"), PAIRS)
def test_an_op_keeps_to_its_contract(subject: Subject, contract: Contract, prop: str) -> None:
    """The property holds of every case that Hypothesis draws from the contract."""
    _check(subject, contract, prop, EXAMPLES)


@pytest.mark.soak
@pytest.mark.parametrize(("contract", "prop"), PAIRS)
def test_an_op_keeps_to_its_contract_at_length(subject: Subject, contract: Contract, prop: str) -> None:
    """The property holds of many cases."""
    _check(subject, contract, prop, SOAK_EXAMPLES)


def test_whole_models_keep_to_their_rules(subject: Subject) -> None:
    """Logits, greedy tokens, caches and batches are as the numerics' entry says, on every geometry."""
    wrong = [str(one) for one in check_models(subject) if not one.holds]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("promise", PROMISES)
def test_promises_are_kept(subject: Subject, promise: str) -> None:
    """What is refused, given back and told is as `k2core.interfaces` says."""
    keep(subject, promise)


@pytest.mark.soak
@pytest.mark.parametrize("contract", [pytest.param(one, id=one.name) for one in contracts().values()])
def test_an_op_at_the_familys_own_sizes(subject: Subject, contract: Contract) -> None:
    """One layer of Kimi K2's real shapes keeps to the same bounds."""
    found = list(check_ops(subject, count=1, profile="k2", only=[contract.name]))
    wrong = [str(one) for one in found if not one.holds]
    assert found and not wrong, "\n".join(wrong)


def _check(subject: Subject, contract: Contract, prop: str, examples: int) -> None:
    @settings(max_examples=examples, deadline=None, suppress_health_check=list(HealthCheck), print_blob=False)
    @given(case=_drawn(contract))
    def check(case: Any) -> None:
        subject.check(case, prop)

    check()


def _drawn(contract: Contract) -> Any:
    """The extremes of every axis first, then whatever Hypothesis finds."""
    return st.sampled_from([drawn_case(contract, seed) for seed in (0, 1)]) | cases(contract)
