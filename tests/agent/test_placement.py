"""Where a session's model lies: another backend in mid-conversation, experts elsewhere, a second one in the shadow."""

import pytest

from k2core import hookimpl
from k2core.agent.session import Choice, Session
from k2core.engine.switch import SwitchRefused
from k2core.errors import InputError, PluginError, Unavailable, UnknownName
from k2core.events import ModelSwitched, RunEnded, Warned
from k2core.interfaces import Available
from k2core.plugins import Plugins
from k2core.testing.reference import ReferenceBackend, ReferenceMoE
from k2core_nano import WEIGHTS

pytestmark = pytest.mark.skipif(
    not (WEIGHTS / "model.safetensors").exists(), reason="the embedded model's weights are not installed"
)
QUESTION, ANSWER = "What is 23 times 47?", "The answer is 1081."


class CountingMoE(ReferenceMoE):
    """Experts that count the tokens they are asked for."""

    tokens = closed = 0

    def experts(self, layer, x, routing):
        """As usual."""
        CountingMoE.tokens += len(x)
        return super().experts(layer, x, routing)

    def close(self):
        """Counted, too."""
        CountingMoE.closed += 1


class Counting(ReferenceBackend):
    """A backend that lends its experts."""

    name = "counting"

    def probe(self):
        """With a device that is not there."""
        return Available(device="cpu", devices=("cpu",), missing={"gpu": "none is plugged in"})

    def load_experts(self, checkpoint, **options):
        """Counting ones."""
        from k2core.model.checkpoint import Checkpoint

        return CountingMoE(Checkpoint.open(checkpoint), frozenset(), None)


class Raising(ReferenceBackend):
    """A backend with a mistake in it."""

    name = "raising"

    def load(self, checkpoint, **options):
        """A model whose forward raises."""
        loaded = super().load(checkpoint, **options)

        def forward(batch=(), want=None):
            raise ValueError("a stranger's\nmistake")

        loaded.forward = loaded.close = forward
        return loaded


class Strangers:
    """A plugin with backends: one right, one wrong, one that counts, one that raises."""

    @hookimpl
    def register_backends(self, register):
        """By instances."""
        register(ReferenceBackend(), name="reference")
        register(ReferenceBackend("no_yarn"), name="broken")
        register(Counting(), name="counting")
        register(Raising(), name="raising")


@pytest.fixture
def plugins():
    """The installed plugins and the strangers' one."""
    found = Plugins.discover()
    assert found.add(Strangers(), name="strangers").status == "loaded"
    return found


def opened(plugins, tmp_path, **choice):
    """A greedy session of the embedded model."""
    return Session.open(Choice(store=tmp_path / "runs.sqlite", temperature=0.0, **choice), plugins=plugins)


def test_a_strangers_backend_takes_over_and_answers_the_same(plugins, tmp_path):
    """The report is within the contract and an event of the run; the answers are those of the first backend."""
    with opened(plugins, tmp_path) as session:
        first = session.agent.run(QUESTION)
        report = session.use("reference", check=64)
        second = session.agent.run("What is 12 plus 30?", run=first.run)
        events = session.agent.journal.events(first.run)
    assert (first.answer.text, second.answer.text) == (ANSWER, "The answer is 42.")
    assert report.tokens == 64 and report.flips == 0 and report.max_delta < 1e-3
    (switched,) = (one.event for one in events if isinstance(one.event, ModelSwitched))
    assert switched.model["backend"] == "reference" and "64 tokens" in switched.model["switch"]


def test_a_backend_beyond_the_contract_is_refused(plugins, tmp_path):
    """The refusal says by how much, and the conversation goes on with the old backend."""
    with opened(plugins, tmp_path) as session:
        first = session.agent.run(QUESTION)
        with pytest.raises(SwitchRefused, match=r"max \|Δlogit\|"):
            session.use("broken")
        assert session.choice.backend == "numba"
        assert session.agent.run("What is 12 plus 30?", run=first.run).answer.text == "The answer is 42."


def test_every_switch_and_every_refusal_is_an_event_in_order(plugins, tmp_path):
    """Those before the first question go into its run, those between and behind questions too, with reasons and figures."""
    with opened(plugins, tmp_path) as session:
        session.use("reference", check=10)
        with pytest.raises(UnknownName):
            session.use("referense")
        run = session.agent.run(QUESTION).run
        with pytest.raises(SwitchRefused):
            session.use("broken")
        between = session.agent.journal.events(run)
        session.use("numba")
        session.use("reference")
        session.agent.run("What is 12 plus 30?", run=run)
        with pytest.raises(InputError):
            session.use("numba", limit=0.0)
        session.use("numba")
        events = [one.event for one in session.agent.journal.events(run)]
    told = [one for one in events if isinstance(one, ModelSwitched | Warned)]
    assert [one.model["backend"] if isinstance(one, ModelSwitched) else "" for one in told] == [
        "reference", "", "", "numba", "reference", "", "numba",
    ]  # fmt: skip
    reasons = [one.text for one in told if isinstance(one, Warned)]
    assert reasons[0].startswith("the swap of the backend for 'referense' was refused: no backend 'referense'.")
    assert "max |Δlogit|" in reasons[1] and "(limit 1e-03)" in reasons[1] and "limit is 0.0" in reasons[2]
    assert between[-1].event == told[2]
    kinds = [one.kind for one in events]
    assert kinds[:5] == ["run.started", "message", "message", "model.switched", "warning"]
    assert [one for one in events if isinstance(one, RunEnded)][-1] == events[-3]


def test_a_limit_lets_a_switch_cross_numerics_or_pass_a_contract(plugins, tmp_path):
    """One is accepted from Python and for a shadow; what is no positive number is refused before anything is loaded."""
    with opened(plugins, tmp_path) as session:
        session.agent.run(QUESTION)
        assert session.use("broken", limit=1e3).limit == 1e3
        for limit in ("x", float("inf"), -1.0, True):
            with pytest.raises(
                InputError, match="it must be a positive number: the largest difference of two logits to accept"
            ):
                session.use("raising", limit=limit)
    with opened(plugins, tmp_path, shadow="broken", shadow_limit=1e3) as session:
        assert session.agent.run(QUESTION).answer.text == ANSWER
        report = session.agent.model.shadow
        assert report.limit == 1e3 and report.first is None and report.max_delta > 1e-3
    for choice in ({"shadow": "broken", "shadow_limit": 0.0}, {"moe": "counting:"}, {"shadow": "broken:"}, {"shadow": ":cpu"}):
        with pytest.raises(InputError, match=r"must be a positive number|it names no (device|backend)"):
            opened(plugins, tmp_path, **choice)


def test_a_backend_that_raises_anything_is_refused_in_one_line(plugins, tmp_path):
    """A stranger's mistake ends the switch, not the conversation; beside another backend it is left alone."""
    with opened(plugins, tmp_path) as session:
        first = session.agent.run(QUESTION)
        with pytest.raises(PluginError, match="cannot switch to backend 'raising': it raised ValueError: a stranger's mistake"):
            session.use("raising")
        assert session.choice.backend == "numba"
        assert session.agent.run("What is 12 plus 30?", run=first.run).answer.text == "The answer is 42."
    with opened(plugins, tmp_path, shadow="raising") as session:
        assert session.agent.run(QUESTION).answer.text == ANSWER
        assert session.agent.model.shadow.failure == "raised ValueError: a stranger's mistake"


def test_every_switch_is_judged_on_the_conversation(plugins, tmp_path):
    """Also one behind another, whose cache holds nothing yet."""
    with opened(plugins, tmp_path) as session:
        session.agent.run(QUESTION)
        reports = [session.use(name, check=500) for name in ("reference", "numba", "reference")]
    assert reports[0].context > 100 and len({(one.tokens, one.context) for one in reports}) == 1


def test_a_switch_leaves_experts_where_they_are(plugins, tmp_path):
    """Unless it is to the backend that has them, or they are asked back."""
    with opened(plugins, tmp_path, backend="reference", moe="counting") as session:
        session.use("numba")
        assert (session.choice.backend, session.choice.moe) == ("numba", "counting")
        session.use("reference", moe="")
        assert session.choice.moe is None
        session.use("numba", moe="counting")
        session.use("counting")
        assert (session.choice.backend, session.choice.moe) == ("counting", None)
        session.use("numba", moe="counting:cpu")
        session.use("counting")
        assert (session.choice.backend, session.choice.moe) == ("counting", None)


def test_a_device_is_taken_again_where_there_is_one(plugins, tmp_path):
    """What was asked for holds for every backend that has it, also behind one that has it not."""
    with opened(plugins, tmp_path, backend="counting", device="cpu") as session:
        session._asked = "gpu"  # as if it had been chosen on a machine with one
        session.use("numba")
        assert (session.choice.device, session._asked) == (None, "gpu")
        session.use("counting", device="cpu")
        session.use("numba")
        assert (session.choice.device, session._asked) == ("cpu", "cpu")


def test_a_place_may_be_named_with_a_backend(plugins, tmp_path):
    """NAME:DEVICE for experts and shadows; a device that is not there is one line."""
    with opened(plugins, tmp_path, backend="numba", moe="counting:cpu", shadow="reference:cpu") as session:
        assert session.agent.run(QUESTION).answer.text == ANSWER
    with pytest.raises(Unavailable, match=r"no device 'gpu' here: none is plugged in\. Known: cpu\."):
        opened(plugins, tmp_path, moe="counting:gpu")


def test_experts_may_lie_on_another_backend(plugins, tmp_path):
    """Every token's experts are the other's, the answer is the same, and the other is closed with the model."""
    CountingMoE.tokens = CountingMoE.closed = 0
    with opened(plugins, tmp_path, backend="reference", moe="counting") as session:
        result = session.agent.run(QUESTION)
        assert result.answer.text == ANSWER
        layers = len(session.agent.model._model.geometry.moe_layers)
        assert CountingMoE.tokens == layers * session.agent.model.load().computed_tokens
    assert CountingMoE.closed == 1


@pytest.mark.parametrize(("shadow", "agrees"), [("reference", True), ("broken", False)])
def test_a_shadow_is_compared_and_changes_nothing(plugins, tmp_path, shadow, agrees):
    """The answer is the first's; the report says that they agree, or where they part first."""
    with opened(plugins, tmp_path, shadow=shadow) as session:
        assert session.agent.run(QUESTION).answer.text == ANSWER
        report = session.agent.model.shadow
        assert report.rows > 100 and (report.first is None) is agrees
        session.use("numba")
        assert session.agent.model.shadow is None


@pytest.mark.parametrize(
    ("choice", "complaint"),
    [
        ({"backend": "counting", "device": "gpu"}, "no device 'gpu' here: none is plugged in. Known: cpu."),
        ({"backend": "counting", "device": "tpu"}, "no device 'tpu' here. Known: cpu."),
        ({"backend": "reference", "numerics": "w4a8"}, "and exact, not 'w4a8'"),
        ({"backend": "reference", "shadow": "numba", "expert_bytes": 5}, "prepares no experts"),
    ],
)
def test_what_cannot_be_is_one_line(plugins, tmp_path, choice, complaint):
    """A device that is not there, numerics or a limit that a backend does not know."""
    with pytest.raises(Unavailable, match=complaint.replace(".", r"\.")):
        opened(plugins, tmp_path, **choice)
