"""Room in the model's context: what a memory is shown, what its answer becomes in the log, and whether that answer will do."""

from collections.abc import Iterable, Sequence

from k2core.agent import projection
from k2core.agent.kept import notes_of, pinned_of, remembered_of
from k2core.agent.projection import HIDDEN
from k2core.agent.window import HIDE_AT, HIDE_UNTIL, characters_of, estimate
from k2core.events import MessageAdded, ResultsHidden, StepsLeftOut, Stored, ToolReturned, TurnEnded
from k2core.interfaces import MadeCall, MemoryView, Room, Shown
from k2core.messages import Message, Usage

TEXT_SHARE = 0.25  # of the context, for the text that stands for what is not shown
PINNED_SHARE = 0.125  # of the context, for all pinned lines

RoomMade = ResultsHidden | StepsLeftOut


def view_of(
    events: Sequence[Stored], messages: Sequence[Message], context: int, *, can_recall: bool = False
) -> MemoryView | None:
    """What a memory is shown; None while there is room, and where it was made for the next turn already.

    Args:
        events: of the run.
        messages: the conversation that they come to.
        context: tokens that the model may be given.
        can_recall: whether the model may call `recall`.
    """
    places = [place for place, one in enumerate(events) if isinstance(one.event, TurnEnded)]
    if not places or any(isinstance(one.event, RoomMade) for one in events[places[-1] :]):
        return None
    turn = events[places[-1]].event
    assert isinstance(turn, TurnEnded)
    sized = estimate(messages, turn.usage)
    if sized is None or sized[0] <= HIDE_AT * context:
        return None
    used, per_character = sized
    before = characters_of(projection.messages(events))

    def measure(room: Room) -> float:
        made = event_of(room)
        if made is None:
            return used
        next_one = Stored(run=events[-1].run, sequence=events[-1].sequence + 1, time="", event=made)
        return used - (before - characters_of(projection.messages([*events, next_one]))) * per_character

    asked = [one.event.content for one in events if isinstance(one.event, MessageAdded) and one.event.role == "user"]
    gone = projection.gone(events)
    return MemoryView(
        question=asked[-1] if asked else "",
        shown=tuple(_shown(messages, gone)),
        calls=tuple(_made_calls(events)),
        notes=tuple(notes_of(events)),
        hidden=projection.hidden_results(events),
        left_out=gone,
        newest=projection.calls_made(events) - len(turn.calls),
        remembered=remembered_of(events),
        usage=turn.usage,
        context=context,
        used=used,
        goal=HIDE_UNTIL * context,
        per_character=per_character,
        text_limit=_characters(TEXT_SHARE, context, per_character),
        can_recall=can_recall,
        measure=measure,
    )


def event_of(room: Room, by: str = "", usage: Usage | None = None) -> RoomMade | None:
    """The one event that a room becomes, so that it is in the log as a whole or not at all; None where it makes none."""
    usage = usage or Usage()
    if room.left_out:
        through, hidden = room.left_out - 1, tuple(number for number in room.hidden if number >= room.left_out)
        return StepsLeftOut(through=through, hidden=hidden, by=by, text=room.text, pinned=room.pinned, usage=usage)
    if room.hidden:
        return ResultsHidden(calls=room.hidden, by=by, text=room.text, pinned=room.pinned, usage=usage)
    return None


def fault_of(room: object, view: MemoryView, events: Sequence[Stored], rules: Room) -> str:
    """Why a memory's answer will not do; empty where it will.

    Args:
        room: the answer.
        view: what it was given for.
        events: of the run.
        rules: what the framework's own rules say.
    """
    if not isinstance(room, Room):
        return f"it gave {type(room).__name__}, expected Room"
    return _fault_of_numbers(room, view) or _fault_of_texts(room, view, events) or _fault_of_size(room, view, rules)


def _fault_of_numbers(room: Room, view: MemoryView) -> str:
    if not _are(room.hidden, int) or not isinstance(room.left_out, int):
        return "it names calls by something else than their numbers"
    results = {one.calls[0] for one in view.shown if one.message.role == "tool" and one.message.content != HIDDEN}
    for number in room.hidden:
        if number not in results:
            return f"it hides the result of call {number}, which is not shown"
    turns = [one.calls for one in view.shown if one.message.role == "assistant" and one.calls]
    if room.left_out < 0 or any(calls[0] < room.left_out <= calls[-1] for calls in turns):
        return f"it leaves out calls up to {room.left_out}, where no step begins"
    latest = max([room.left_out - 1, *room.hidden], default=-1)
    if latest >= view.newest:
        return f"it takes call {latest} away, which belongs to the newest turn"
    return ""


def _fault_of_texts(room: Room, view: MemoryView, events: Sequence[Stored]) -> str:
    if room.text is not None and not isinstance(room.text, str):
        return f"its text is {type(room.text).__name__}"
    if len(room.text or "") > view.text_limit:
        return f"its text has {len(room.text or ''):,} characters, at most {view.text_limit:,} fit"
    if not _are(room.pinned, str):
        return "it pins something else than lines of text"
    most = _characters(PINNED_SHARE, view.context, view.per_character)
    pinned = sum(len(line) for line in dict.fromkeys([*pinned_of(events), *room.pinned]))
    if room.pinned and pinned > most:
        return f"pinned lines would have {pinned:,} characters in all, at most {most:,} fit"
    return ""


def _fault_of_size(room: Room, view: MemoryView, rules: Room) -> str:
    least = view.measure(rules)
    left = view.measure(room)
    if left <= max(view.goal, least):
        return ""
    return f"{left:,.0f} of {view.context:,} tokens would be used, at most {max(view.goal, least):,.0f} should be"


def _are(values: object, kind: type) -> bool:
    return isinstance(values, tuple) and all(isinstance(one, kind) for one in values)


def _characters(share: float, context: int, per_character: float) -> int:
    """How many characters take that share of the context."""
    return int(share * context / max(per_character, 1e-9))


def _shown(messages: Sequence[Message], gone: frozenset[int]) -> Iterable[Shown]:
    """Each message with the numbers of its calls; what is shown is in order, and each call has one result behind its turn."""
    number = -1
    waiting: list[int] = []
    for message in messages:
        calls: tuple[int, ...] = ()
        if message.role == "tool" and waiting:
            calls = (waiting.pop(0),)
        for _ in message.tool_calls:
            number += 1
            while number in gone:
                number += 1
            waiting.append(number)
            calls = (*calls, number)
        yield Shown(message=message, calls=calls)


def _made_calls(events: Iterable[Stored]) -> Iterable[MadeCall]:
    arguments: dict[int, str] = {}
    for stored in events:
        event = stored.event
        arguments.update(projection.made_with(event) or {})
        if isinstance(event, ToolReturned):
            made = arguments.get(event.index, "{}")
            yield MadeCall(index=event.index, name=event.name, arguments=made, text=event.text, ok=event.ok)
