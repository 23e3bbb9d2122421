"""Hypothesis strategies for the events of a run."""

from hypothesis import strategies as st

from k2core import events
from k2core.interfaces import Claim, Finding
from k2core.messages import ToolCall, Usage

words = st.text(max_size=30)
counts = st.integers(0, 10**9)
ids = st.none() | st.lists(st.integers(0, 170_000), max_size=8).map(tuple)
numbers = st.floats(0, 1e9, allow_nan=False)
calls = st.lists(st.builds(ToolCall, id=words, name=words, arguments=words), max_size=3).map(tuple)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | numbers | words,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(words, inner, max_size=3),
    max_leaves=6,
)
usages = st.builds(
    Usage,
    prompt_tokens=counts,
    cached_tokens=counts,
    computed_tokens=counts,
    seconds=numbers,
    queued_seconds=numbers,
    mask_seconds=numbers,
    drafted_tokens=counts,
)
findings = st.builds(
    Finding,
    verifier=words,
    subject=words,
    status=st.sampled_from(["supported", "unsupported", "refuted", "unchecked"]),
    hint=words,
    events=st.lists(counts, max_size=3).map(tuple),
    claim=st.none() | counts,
)
claims = st.builds(Claim, text=words, evidence=st.lists(counts, max_size=3).map(tuple))
evidence = st.builds(events.ClaimEvidence, claim=st.none() | counts, events=st.lists(counts, max_size=3).map(tuple))
effects = st.sampled_from(["pure", "read", "idempotent", "reversible", "external"])


def _tuples(strategy: st.SearchStrategy) -> st.SearchStrategy:
    return st.lists(strategy, max_size=3).map(tuple)


rooms = {"by": words, "text": st.none() | words, "pinned": _tuples(words), "usage": usages}  # what made room in a context
by_kind = {
    "run.started": st.builds(
        events.RunStarted,
        question=words,
        model=st.dictionaries(words, words, max_size=3),
        seed=st.integers(-(2**63), 2**63),
        limits=st.dictionaries(words, st.none() | numbers, max_size=3),
        tools=_tuples(words),
        declarations_hash=words,
        versions=st.dictionaries(words, words, max_size=3),
        options=st.dictionaries(words, json_values, max_size=3),
    ),
    "message": st.builds(
        events.MessageAdded,
        role=words,
        content=words,
        reasoning=st.none() | words,
        tool_calls=calls,
        tool_call_id=st.none() | words,
        name=st.none() | words,
        token_ids=ids,
    ),
    "model.switched": st.builds(events.ModelSwitched, model=st.dictionaries(words, words, max_size=3)),
    "swapped": st.builds(
        events.Swapped,
        what=st.sampled_from(["tool", "verifier", "tokenizer"]),
        name=words,
        old=words,
        new=words,
        same_prompt=st.booleans(),
        declaration=words,
    ),
    "turn": st.builds(
        events.TurnEnded,
        reasoning=st.none() | words,
        content=words,
        calls=calls,
        token_ids=ids,
        finish_reason=st.sampled_from(["stop", "tool_calls", "length", "cancelled"]),
        usage=usages,
        options=st.dictionaries(words, json_values, max_size=3),
    ),
    "tool.intent": st.builds(events.ToolIntent, call_id=words, index=counts, name=words, arguments=words, effect=effects),
    "tool.result": st.builds(
        events.ToolReturned,
        call_id=words,
        index=counts,
        name=words,
        text=words,
        ok=st.booleans(),
        duration_ms=numbers,
        full_bytes=counts,
        truncated=st.booleans(),
        untrusted=st.booleans(),
    ),
    "tool.begun": st.builds(events.ToolBegun, index=counts, attempt=counts),
    "guard": st.builds(
        events.GuardActed,
        guard=words,
        hook=words,
        action=st.sampled_from(["refused", "asked", "changed", "failed"]),
        why=words,
        index=st.none() | counts,
        before=words,
        after=words,
    ),
    "tool.again": st.builds(events.ToolAgain, index=counts, attempt=counts, why=words),
    "decision.needed": st.builds(
        events.DecisionNeeded,
        index=counts,
        options=_tuples(st.sampled_from(["happened", "redo", "abandon", "approve", "deny"])),
        why=words,
        about=st.sampled_from(["call", "step", "model", "answer"]),
        arguments=words,
        attempt=counts,
    ),
    "call.decided": st.builds(
        events.CallDecided,
        index=counts,
        decision=st.sampled_from(["happened", "redo", "abandon", "approve", "deny"]),
        by=st.sampled_from(["user", "tool"]),
        text=words,
    ),
    "plan.made": st.builds(
        events.PlanMade,
        steps=_tuples(
            st.builds(
                events.PlanStep,
                text=words,
                status=st.sampled_from(["todo", "doing", "done", "failed", "dropped"]),
                after=_tuples(counts),
                evidence=_tuples(counts),
            )
        ),
        reason=words,
    ),
    "hypothesis": st.builds(
        events.HypothesisStated,
        number=counts,
        text=words,
        status=st.sampled_from(["proposed", "testing", "supported", "refuted", "dropped"]),
        evidence=_tuples(counts),
        reason=words,
    ),
    "path.started": st.builds(
        events.PathStarted,
        path=counts,
        run=words,
        limits=st.dictionaries(words, st.none() | numbers, max_size=3),
        temperature=numbers,
    ),
    "path.ended": st.builds(
        events.PathEnded,
        path=counts,
        run=words,
        status=words,
        text=words,
        claims=_tuples(claims),
        evidence=_tuples(evidence),
        key=words,
        calls=counts,
        tokens=counts,
    ),
    "path.chosen": st.builds(events.PathChosen, path=counts, agreeing=_tuples(counts), why=words),
    "stalled": st.builds(
        events.Stalled,
        action=st.sampled_from(["steer", "roll-back", "stop"]),
        idle=numbers,
        calls=_tuples(counts),
        tool=words,
    ),
    "limits": st.builds(events.LimitsChanged, limits=st.dictionaries(words, st.none() | numbers, max_size=3), request=counts),
    "run.resumed": st.builds(
        events.RunResumed,
        without=counts,
        limits=st.dictionaries(words, st.none() | numbers, max_size=3),
        versions=st.dictionaries(words, words, max_size=3),
    ),
    "run.forked": st.builds(
        events.RunForked,
        run=words,
        sequence=counts,
        hash=words,
        replaced=st.none() | counts,
        seed=st.none() | st.integers(0, 2**63),
    ),
    "note": st.builds(events.NoteKept, text=words),
    "verdict": st.builds(events.VerdictGiven, attempt=counts, accepted=st.booleans(), findings=_tuples(findings)),
    "budget": st.builds(events.BudgetReached, which=words, limit=numbers, used=numbers),
    "warning": st.builds(events.Warned, text=words),
    "answer": st.builds(
        events.AnswerGiven,
        text=words,
        claims=_tuples(claims),
        status=st.sampled_from(["answered", "declined", "unverified", "partial", "failed"]),
        reason=words,
        evidence=_tuples(evidence),
    ),
    "run.ended": st.builds(events.RunEnded, status=words, seconds=numbers, tokens=counts, calls=counts),
    "hidden": st.builds(events.ResultsHidden, calls=_tuples(st.integers(0, 300)), **rooms),
    "left-out": st.builds(events.StepsLeftOut, through=st.integers(0, 300), hidden=_tuples(st.integers(0, 300)), **rooms),
    "recalled": st.builds(events.Recalled, call=counts, index=counts, event=counts, characters=counts),
}
unknown = st.builds(
    lambda kind, body: events.UnknownEvent(kind=f"x.{kind}", body={**body, "kind": f"x.{kind}", "v": 1}),
    words,
    st.dictionaries(words, json_values, max_size=3),
)
any_event = st.one_of(unknown, *by_kind.values())
