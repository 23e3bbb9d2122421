"""A person's decision about a call that waits for one."""

from k2core.agent.journal import Journal
from k2core.agent.ledger import call_states, waiting
from k2core.errors import InputError
from k2core.events import CallDecided, Decision, Stored


async def decide(journal: Journal, run: str, index: int, decision: Decision, *, text: str = "") -> Stored:
    """Write down what becomes of a call; `Agent.resume` acts upon it.

    Args:
        journal: that keeps the run.
        run: its id, the beginning of one, or ``last``.
        index: number of the call.
        decision: see `CallDecided`.
        text: for ``happened``, what the model is told came back; for ``approve`` and ``deny`` the reason.

    Raises:
        InputError: no decision about that call is wanted, or not that one.
        RunBusy: a process works on the run.
        JournalError: it cannot be read or written.
    """
    run = journal.find_run(run)
    lease = await journal.take(run)
    try:
        events = journal.events(run)
        _see_wanted(run, events, index, decision)
        if text and decision in ("redo", "abandon"):
            raise InputError(f"cannot decide '{decision}' with a result: only a call that happened has one")
        text = text or ("(it happened)" if decision == "happened" else "")
        decided = CallDecided(index=index, decision=decision, by="user", text=text)
        (stored,) = await journal.append(run, decided, lease=lease)
    finally:
        await journal.release(lease)
    return stored


def _see_wanted(run: str, events: list[Stored], index: int, decision: Decision) -> None:
    wanted = waiting(events)
    if index not in wanted:
        which = f"call {', '.join(map(str, wanted))} waits for one" if wanted else "no call of it waits for one"
        state = call_states(events).get(index)
        if state is not None and state.decision is not None:
            which = f"it was decided already ({state.decision.decision}). Go on with k2 resume {run}"
        raise InputError(f"cannot decide about call {index} of run {run}: {which}")
    needed = wanted[index].needed
    assert needed is not None
    if decision not in needed.options:
        raise InputError(f"cannot decide '{decision}' about call {index}: it is one of {', '.join(needed.options)}")
