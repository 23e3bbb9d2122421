"""What the framework costs per step of a long run: ``pytest bench/test_long_runs.py -s``.

A scripted model follows a chain of places for some 300 calls, ten per cent of which fail. Overhead is everything between the
end of a turn and the begin of the next: the call with its intent and result on disk, and the projection of the conversation.
The run's answer is checked before anything is told. Beside it the least that such a step can cost here: three synced commits.
"""

import sqlite3
import statistics
import time
from pathlib import Path

import pytest
from agent.long_runs import Chain

from k2core.agent.budget import EFFORTS
from k2core.agent.control import control_tools
from k2core.agent.journal import Journal
from k2core.agent.loop import Agent
from k2core.tools import Registry

WINDOW = 20  # steps of which the median is told


def least(folder: Path, steps: int = 100) -> float:
    """Median milliseconds of three commits of one row each: a turn, an intent and a result, durable one after another."""
    connection = sqlite3.connect(folder / "least.sqlite", isolation_level=None)
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute("CREATE TABLE rows (body TEXT)")
    took = []
    for _ in range(steps):
        begun = time.perf_counter()
        for _ in range(3):
            connection.execute("INSERT INTO rows VALUES (?)", ("x" * 300,))
        took.append(time.perf_counter() - begun)
    connection.close()
    return 1e3 * statistics.median(took)


@pytest.mark.parametrize("context", [10**6, 600])
def test_overhead_per_step(tmp_path: Path, context: int) -> None:
    """Medians around step 10, 100 and 300, and the journal's size."""
    chain = Chain(260, seed=1)
    path = tmp_path / "r.sqlite"
    with Journal.open(path) as journal:
        model = chain.model(context=context)
        tools = Registry.of([*control_tools(), *chain.tools()])
        agent = Agent(model=model, tools=tools, journal=journal, limits=EFFORTS["max"].changed({"calls": 400}))
        result = agent.run(chain.question)
    assert (result.status, result.answer.text) == ("answered", chain.answer)

    gaps = [1e3 * (after[0] - before[1]) for before, after in zip(model.times, model.times[1:], strict=False)]
    told = {at: statistics.median(gaps[at - WINDOW // 2 : at + WINDOW // 2]) for at in (10, 100, len(gaps) - WINDOW // 2)}
    size = sum(one.stat().st_size for one in tmp_path.glob("r.sqlite*"))
    steps = ", ".join(f"step {at}: {value:.1f} ms" for at, value in told.items())
    print(f"\ncontext {context:,}: {steps}; least for three commits {least(tmp_path):.1f} ms; journal {size / 1e6:.2f} MB")
