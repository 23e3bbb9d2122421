"""Verifiers of a running session by other implementations, from the next answer on."""

from types import SimpleNamespace

import pytest
from swap.parts import Lenient, call, opened, plugins_with_parts, swaps

from k2core import hookimpl
from k2core.agent.session import Choice, Session
from k2core.agent.swapping import verifier_of
from k2core.conformance.verifiers_check import check_verifiers
from k2core.errors import PluginError, UnknownName
from k2core.events import VerdictGiven
from k2core.interfaces import Verdict
from k2core.plugins import Plugins
from k2core.testing.models import ScriptedModel
from k2core_verifiers.arithmetic import ArithmeticVerifier
from k2core_verifiers.grounding import GroundingVerifier

ANSWER = call("answer", text="Done.", claims=[])


@pytest.mark.parametrize("says", [ANSWER, "Done."])
def test_the_next_answer_is_judged_by_the_other(tmp_path, says):
    """A rejected answer is accepted when it is given again, called or in words; the log has the swap before the verdict."""

    def swapping(_messages):
        swap = verifiers.use("polite", "lenient")
        assert swap.at_once and "from the next answer on" in str(swap)
        return says

    agent, _, verifiers = opened(tmp_path, [says, swapping], verified=True)
    result = agent.run("hi")
    events = [one.event for one in agent.journal.events(result.run)]
    assert [one.accepted for one in events if isinstance(one, VerdictGiven)] == [False, True]
    (swap,) = swaps(agent, result.run)
    assert (swap.what, swap.name, swap.old, swap.new, swap.same_prompt) == ("verifier", "polite", "default", "lenient", True)
    kinds = [one.kind for one in events]
    assert kinds.index("verdict") < kinds.index("swapped") < len(kinds) - kinds[::-1].index("verdict")
    assert isinstance(agent.verifiers[0], Lenient)


def test_the_first_one_is_kept(tmp_path):
    """Going back gives the very verifier that the session began with."""
    agent, _, verifiers = opened(tmp_path, [], verified=True)
    first = agent.verifiers[0]
    verifiers.use("polite", "lenient")
    verifiers.use("polite", "default")
    assert agent.verifiers == [first] and verifiers.implementations() == {"polite": ("default", ("default", "lenient"))}


def test_what_cannot_be_swapped_is_one_line(tmp_path):
    """No such verifier, no such implementation, and what is no verifier."""
    _, _, verifiers = opened(tmp_path, [], verified=True)
    with pytest.raises(UnknownName, match="Did you mean 'polite'"):
        verifiers.use("polit", "lenient")
    with pytest.raises(UnknownName, match=r"no implementation of verifier 'polite' named 'lenint'. Known: default, lenient"):
        verifiers.use("polite", "lenint")
    plugins = plugins_with_parts()
    wrong = SimpleNamespace(register_verifiers=hookimpl(_register_nothing))
    assert plugins.add(wrong, name="wrong").status == "loaded"
    with pytest.raises(PluginError, match="has no name or verify"):
        verifier_of(plugins, "polite/nothing")


def _register_nothing(register):
    register("builtins:dict", name="nothing", implements="polite")


_register_nothing.__name__ = "register_verifiers"


def test_a_session_swaps_its_verifiers(tmp_path):
    """Through the front door: the session's own list is what the agent asks."""
    plugins = Plugins.discover()
    assert plugins.add(plugins_with(), name="more").status == "loaded"
    answer = call("answer", text="The number is 4711.", claims=[])
    with Session.open(Choice(store=tmp_path / "r.sqlite"), plugins=plugins, model=ScriptedModel([answer] * 4)) as session:
        assert session.agent.run("hi").status == "unverified"
        session.verifiers.use("grounding", "lenient")
        assert session.agent.run("hi").status != "unverified"
        assert set(session.verifiers.implementations()) == {"arithmetic", "grounding"}


def plugins_with():
    """A plugin whose verifier takes the place of the shipped one."""

    def lenient(register):
        register(Lenient, name="lenient", implements="grounding")

    lenient.__name__ = "register_verifiers"
    return SimpleNamespace(register_verifiers=hookimpl(lenient))


@pytest.mark.parametrize("verifier", [ArithmeticVerifier(), GroundingVerifier()])
def test_a_verifier_judges_like_itself(verifier):
    """Every answer that is drawn, to the last finding."""
    found = check_verifiers(verifier, type(verifier)(), count=150, findings=True)
    assert found.disagreement is None and found.calls == 150


def test_verifiers_that_judge_otherwise_are_told_by_a_simple_answer():
    """One that lets a wrong number pass is found out by an answer with next to nothing in it."""
    found = check_verifiers(GroundingVerifier(), Lenient(), count=300).disagreement
    assert found.first.startswith("rejected: ") and found.second.startswith("accepted")
    assert len(found.given.answer.text) + sum(len(one.text) for one in found.given.answer.claims) < 40
    assert not found.given.trajectory.observations


def test_a_wrong_equation_is_among_what_is_drawn():
    """Verifiers that differ on equations alone are told apart, too."""

    class Careless(ArithmeticVerifier):
        def verify(self, answer, trajectory):
            """Nothing is wrong."""
            return Verdict()

    found = check_verifiers(ArithmeticVerifier(), Careless(), count=300).disagreement
    assert "rejected" in found.first and found.second == "accepted"


def test_findings_are_compared_where_they_are_asked_for():
    """Two that accept the same may still find other things; one that fails differs from one that does not."""

    class Silent(Lenient):
        def verify(self, answer, trajectory):
            """Nothing."""
            return Verdict()

    class Failing(Lenient):
        def verify(self, answer, trajectory):
            """Fail."""
            raise RuntimeError("broken")

    assert check_verifiers(Lenient(), Silent(), count=20).disagreement is None
    assert check_verifiers(Lenient(), Silent(), count=20, findings=True).disagreement.second == "accepted"
    assert check_verifiers(Lenient(), Failing(), count=20).disagreement.second == "broken"
    both = check_verifiers(Failing(), Failing(), count=20)
    assert both.disagreement is None and both.failures == both.calls > 0
