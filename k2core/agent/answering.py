"""Answer, verify, revise: what the model wants to conclude with is checked, and goes back to it when it does not hold.

An answer comes as a call of `answer`, whose result is the verdict, or as plain text, whose verdict is a message.
"""

from collections.abc import AsyncIterator

from k2core.agent import guarding, projection
from k2core.agent.approving import approved, decision_on, denied
from k2core.agent.concluding import conclude, wind_down
from k2core.agent.control import ANSWER
from k2core.agent.ledger import CallState
from k2core.agent.verify import answer_from_text, check
from k2core.agent.work import Work
from k2core.events import Stored, TurnEnded, VerdictGiven, Warned
from k2core.interfaces import Answer, Finding, ToolResult, Verdict
from k2core.messages import ToolCall

GUARD = "guard "  # before the name of a guard that refuses an answer, where others have the name of a verifier
REVISIONS = 2  # a failed check goes back to the model at most this often
NUDGES = 2  # an empty or cut turn is answered with a hint at most this often in a row


async def answer_by_call(work: Work, call: ToolCall, index: int, answer: Answer, state: CallState) -> AsyncIterator[Stored]:
    """The verdict is the call's result; a final answer also becomes the assistant's last message.

    Args:
        work: where.
        call: the call.
        index: its number.
        answer: what it says.
        state: what the log says of the call already, after an interruption.
    """
    if state.verdict is not None:
        verdict = Verdict(findings=state.verdict.findings)
    else:
        async for stored in _verify(work, answer, index):
            yield stored
        if work.ended:
            return  # a person is to approve it
        verdict = _newest_verdict(work)
    if not state.returned:
        yield await work.observe(call, index, ToolResult(text=verdict.render(), ok=verdict.accepted))
    if _is_final(work, verdict):
        async for stored in _give(work, answer, verdict, write_message=True):
            yield stored


async def answer_in_words(work: Work, turn: TurnEnded) -> AsyncIterator[Stored]:
    """A turn without calls: its text is an answer; a turn that is empty or was cut is answered with a hint."""
    if turn.finish_reason == "length" or not turn.content.strip():
        async for stored in _nudge(work, turn):
            yield stored
        return
    given = _verdict_behind(work, turn)
    if given is None and ANSWER in work.tools.names() and (turn.reasoning or "").strip():
        (stored,) = await work.append(
            Warned(text="answered in plain content: the family's history rule drops its reasoning from now on")
        )
        yield stored
    answer = answer_from_text(turn.content)
    if given is not None:
        verdict = Verdict(findings=given.findings)
    else:
        async for stored in _verify(work, answer, projection.calls_made(work.events)):
            yield stored
        if work.ended:
            return  # a person is to approve it
        verdict = _newest_verdict(work)
    if _is_final(work, verdict):
        async for stored in _give(work, answer, verdict, write_message=False):
            yield stored
    else:
        yield await work.say(f"Your answer was {verdict.render()}. Correct it.")


def _verdict_behind(work: Work, turn: TurnEnded) -> VerdictGiven | None:
    """The verdict on the newest turn, where it was given before an interruption."""
    for stored in reversed(work.events):
        if isinstance(stored.event, VerdictGiven):
            return stored.event
        if stored.event is turn:
            return None
    return None


def _newest_verdict(work: Work) -> Verdict:
    given = next(one.event for one in reversed(work.events) if isinstance(one.event, VerdictGiven))
    return Verdict(findings=given.findings)


async def _verify(work: Work, answer: Answer, index: int) -> AsyncIterator[Stored]:
    """Ask the verifiers and the guards; the verdict, any trouble they had, and who else they are now, go into the journal.

    Where a guard wants a person to approve the answer, that is asked last, and there is no verdict while the run waits.
    """
    work.attempts += 1
    verifiers = tuple(work.verifiers)
    for stored in await work.record():
        yield stored
    seen = projection.trajectory(work.events)
    said = await guarding.before(work, "before_answer", answer, seen)
    for stored in await work.append(*said.events):
        yield stored
    verdict, warnings = await check(answer, seen, verifiers)
    refused = tuple(_refused_by(guard, f"guard '{guard}' refused the answer: {reason}") for guard, reason in said.refusals)
    if said.asks and not refused and _is_final(work, verdict):
        if work.waits:
            async for stored in approved(work, "answer", index, said.asks):
                yield stored
        _, decision = decision_on(work.events, "answer", index)
        if work.ended:
            return
        if decision is None or decision.decision == "deny":
            why = "nobody is there to approve it" if decision is None else denied(decision.text)
            refused = tuple(_refused_by(guard, f"guard '{guard}' asks about the answer, and {why}") for guard, _ in said.asks)
    verdict = Verdict(findings=(*refused, *verdict.findings))
    given = VerdictGiven(attempt=work.attempts, accepted=verdict.accepted, findings=verdict.findings)
    for stored in await work.append(*(Warned(text=line) for line in warnings), given):
        yield stored


def _refused_by(guard: str, hint: str) -> Finding:
    return Finding(verifier=f"{GUARD}{guard}", subject="", status="refuted", hint=hint)


async def _give(work: Work, answer: Answer, verdict: Verdict, *, write_message: bool) -> AsyncIterator[Stored]:
    """The answer is final; one that a guard refuses is never given, however often it was revised."""
    refused = next((one.hint for one in verdict.blocking if one.verifier.startswith(GUARD)), "")
    if refused:
        async for stored in wind_down(work, refused):
            yield stored
    else:
        for stored in await conclude(work, answer, verdict, write_message=write_message):
            yield stored


def _is_final(work: Work, verdict: Verdict) -> bool:
    """It holds, or it was revised as often as it may be."""
    return verdict.accepted or work.attempts > REVISIONS


async def _nudge(work: Work, turn: TurnEnded) -> AsyncIterator[Stored]:
    """Tell the model that its turn said nothing; when it goes on like that, wind down."""
    if work.budget.near() is not None:
        return  # that is why it was cut; the next step says so
    work.silences += 1
    limit = work.options.max_tokens
    what = f"was cut at its limit of {limit} tokens" if turn.finish_reason == "length" else "was empty"
    reached = work.budget.reached()
    if reached is None and work.silences <= NUDGES:
        yield await work.say(f"Your turn {what}. Call a tool, or answer.")
        return
    async for stored in wind_down(work, reached or f"the model's turn {what}, {work.silences} times in a row"):
        yield stored
