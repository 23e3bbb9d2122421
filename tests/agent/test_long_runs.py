"""Three hundred calls with faults in ten per cent of them: every run comes to its end, whatever the context holds."""

from pathlib import Path

import pytest
from agent.long_runs import Chain

from k2core.agent.budget import EFFORTS
from k2core.agent.control import control_tools
from k2core.agent.journal import Journal
from k2core.agent.loop import Agent
from k2core.events import ResultsHidden, StepsLeftOut, ToolIntent
from k2core.tools import Registry

LENGTH = 250  # places; with the counts and what is repeated, about 300 calls


@pytest.mark.parametrize("runs", [10, pytest.param(100, marks=pytest.mark.soak)])
def test_long_runs_end_correctly(tmp_path: Path, runs: int) -> None:
    """All of them, in a journal of less than 5 MB each; a context of a few hundred words is enough, as half of them have."""
    calls = 0
    for seed in range(runs):
        chain, context = Chain(LENGTH, seed), (10**6, 600)[seed % 2]
        path = tmp_path / f"{seed}.sqlite"
        with Journal.open(path) as journal:
            tools = Registry.of([*control_tools(), *chain.tools()])
            limits = EFFORTS["max"].changed({"calls": 400})
            agent = Agent(model=chain.model(context=context), tools=tools, journal=journal, limits=limits)
            result = agent.run(chain.question)
            events = [one.event for one in journal.events(result.run)]

        assert (result.status, result.answer.text) == ("answered", chain.answer), seed
        assert set(chain.counted.values()) == {1} and chain.failed > 10
        assert sum(one.stat().st_size for one in tmp_path.glob(f"{seed}.sqlite*")) < 5e6
        assert any(isinstance(one, ResultsHidden | StepsLeftOut) for one in events) == (context < 10**6)
        calls += sum(isinstance(one, ToolIntent) for one in events)
    assert calls / runs > 280
