"""What stands between a call and its tool: the guards, and a person's approval where one is needed.

Nothing of this runs for a call that the registry would refuse anyway, since its tool is not called.
"""

from attrs import evolve, frozen

from k2core.agent import guarding
from k2core.agent.approving import OPTIONS, told
from k2core.agent.progress import canonical
from k2core.agent.work import Work
from k2core.errors import ToolError
from k2core.events import DecisionNeeded, Event, GuardActed, Warned
from k2core.interfaces import Tool
from k2core.messages import ToolCall
from k2core.tools import Registry


@frozen(kw_only=True)
class Gate:
    """What was found about a call that is to be made.

    Attributes:
        events: for the journal, before anything follows from them; `needed` is the last of them.
        refused: why it is not made; None where it may be.
        needed: a person is to approve it first.
        arguments: that it is made with, JSON text.
        attempt: 1 unless it was begun before.
    """

    events: tuple[Event, ...] = ()
    refused: GuardActed | None = None
    needed: DecisionNeeded | None = None
    arguments: str = ""
    attempt: int = 1


async def gate(work: Work, call: ToolCall, index: int, tool: Tool, *, attempt: int = 1, granted: bool = False) -> Gate:
    """Ask the guards about a call, and see whether a person is to approve it.

    Args:
        work: where.
        call: with the arguments that it would be made with.
        index: its number.
        tool: what would be called.
        attempt: 1 unless it was begun before.
        granted: a person has decided that it is made, as long as its arguments are these.
    """
    why, trusted = work.approval.why(tool, work.events)
    if not (work.guards or why or trusted):
        return Gate(arguments=call.arguments, attempt=attempt)
    try:
        Registry.of([tool]).arguments_of(call)
    except ToolError:  # the model is told what is wrong with it
        return Gate(arguments=call.arguments, attempt=attempt)
    said = await guarding.before_call(work, call, index, tool)
    found = Gate(events=said.events, arguments=said.arguments, attempt=attempt)
    if said.refusals:
        return evolve(found, refused=_newest_refusal(said.events))
    if trusted:
        found = evolve(found, events=(*found.events, Warned(text=trusted)))
    whys = "; ".join(filter(None, (why, told(said.asks))))
    if not whys or (granted and canonical(said.arguments) == canonical(call.arguments)):
        return found
    if not work.waits:
        why = f"it needs approval, and one of several paths cannot wait for that ({whys})"
        refused = GuardActed(guard="", hook="before_call", action="refused", why=why, index=index)
        return evolve(found, events=(*found.events, refused), refused=refused)
    if attempt > 1:
        whys += "; it was begun before, and no result came back"
    needed = DecisionNeeded(index=index, options=OPTIONS, why=whys, arguments=said.arguments, attempt=attempt)
    return evolve(found, events=(*found.events, needed), needed=needed)


def _newest_refusal(events: tuple[Event, ...]) -> GuardActed:
    return next(one for one in reversed(events) if isinstance(one, GuardActed) and one.action == "refused")


def refusal(acted: GuardActed) -> str:
    """A refusal in words."""
    return f"guard '{acted.guard}' refused it: {acted.why}" if acted.guard else acted.why
