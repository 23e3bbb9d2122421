"""Every attack at every level and for every kind of user, and without isolation, where it has to succeed."""

import os

import pytest
from sandbox.cases import Case
from sandbox.corpus import CASES, ELSEWHERE
from sandbox.remote import Remote

from k2core_sandbox.landlock import GAPS

IS_ROOT = os.geteuid() == 0
USERS = [(False, "as-root" if IS_ROOT else "as-a-user"), *([(True, "as-a-user")] if IS_ROOT else [])]


def set_up(name: str) -> pytest.MarkDecorator:
    """One bench of the set-up for each kind of user that we can be."""
    parameters = [pytest.param((name, ordinary), id=f"{name}-{who}") for ordinary, who in USERS]
    return pytest.mark.parametrize("bench", parameters, indirect=True, scope="module")


def alone(name: str) -> pytest.MarkDecorator:
    """One bench of the set-up."""
    return pytest.mark.parametrize("bench", [pytest.param((name, False), id=name)], indirect=True, scope="module")


def each(cases: list[Case]) -> pytest.MarkDecorator:
    """Each of the cases."""
    return pytest.mark.parametrize("case", [pytest.param(case, id=case.key) for case in cases])


@set_up("strong")
@each(list(CASES.values()))
def test_no_attack_gets_out_of_strong(bench: Remote, case: Case) -> None:
    """At strong no attack gets through, whoever starts the sandbox."""
    verdict = bench.attack(case)
    assert verdict.through == [], f"{case.tells} Its cell: {verdict.said}"


@pytest.mark.parametrize(
    "bench",
    [
        pytest.param(("wasm", False), id=f"wasm-{USERS[0][1]}"),
        *([pytest.param(("wasm", True), id="wasm-as-a-user", marks=pytest.mark.soak)] if IS_ROOT else []),
    ],
    indirect=True,
    scope="module",
)
@each(list(CASES.values()))
def test_no_attack_gets_out_of_wasm(bench: Remote, case: Case) -> None:
    """At wasm no attack gets through either."""
    verdict = bench.attack(case)
    assert verdict.through == [], f"{case.tells} Its cell: {verdict.said}"


@pytest.mark.parametrize(
    "bench",
    [
        pytest.param(("reduced", False), id=f"reduced-{USERS[0][1]}"),
        *([pytest.param(("reduced", True), id="reduced-as-a-user", marks=pytest.mark.soak)] if IS_ROOT else []),
    ],
    indirect=True,
    scope="module",
)
@each([case for case in CASES.values() if not case.strong_only])
def test_only_the_named_gaps_are_open_at_reduced(bench: Remote, case: Case) -> None:
    """At reduced the attacks on the two named gaps get through, in one of a few attempts, and no other does."""
    verdict = bench.attack(case)
    for _ in range(9 if case.gap else 0):  # the watchdog may be the faster one
        if not verdict.through:
            verdict = bench.attack(case)
    assert bool(verdict.through) == bool(case.gap), f"{case.tells} {verdict.through} Its cell: {verdict.said}"


@alone("plain")
@each([case for case in CASES.values() if not case.unproven and case.control == "plain"])
def test_an_attack_succeeds_without_isolation(bench: Remote, case: Case) -> None:
    """The same code gets through where nothing holds it, so that its failure elsewhere says something."""
    verdict = bench.attack(case)
    if isinstance(verdict, str):
        pytest.skip(f"unproven here: {verdict}")
    assert verdict.through, f"{case.tells} Its cell: {verdict.said}"


@pytest.mark.skipif(not IS_ROOT, reason="unproven here: only root can show it")
@alone("rooted")
@each([case for case in CASES.values() if not case.unproven and case.control == "rooted"])
def test_an_attack_of_root_succeeds_without_isolation(bench: Remote, case: Case) -> None:
    """What needs root gets through for a root that nothing else holds."""
    verdict = bench.attack(case)
    if isinstance(verdict, str):
        pytest.skip(f"unproven here: {verdict}")
    assert verdict.through, f"{case.tells} Its cell: {verdict.said}"


def test_every_family_is_there() -> None:
    """Each of the 110 families has a case, or a reason why it has none here; there are at least 110 cases."""
    assert {case.family for case in CASES.values()} | ELSEWHERE.keys() == set(range(1, 111))
    assert len(CASES) >= 110


def test_the_named_gaps_are_the_ones_attacked() -> None:
    """Both gaps of reduced are shown by a case, and no case uses a gap that is not named."""
    assert {case.gap for case in CASES.values() if case.gap} == set(GAPS)
