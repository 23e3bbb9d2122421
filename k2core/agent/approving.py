"""What a person is to approve before it is done, and the decision: asked for at once where somebody is there, else waited for.

A call needs approval when its effect class is one of those that the operator named, when it has side effects and the
conversation holds content that nobody has vetted, or when a guard wants it. The question is durable, with the very arguments
that the call would be made with; so is the decision; and another mark, before the tool runs, uses the approval up.
"""

import json
import unicodedata
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, Literal, cast, get_args

from attrs import frozen

from k2core.agent.guarding import first_untrusted
from k2core.errors import UnknownName, UsageError
from k2core.events import (
    About,
    AnswerGiven,
    CallDecided,
    Decision,
    DecisionNeeded,
    MessageAdded,
    RunForked,
    Stored,
    TurnEnded,
)
from k2core.interfaces import Effect, Tool

if TYPE_CHECKING:
    from k2core.agent.work import Work

EFFECTS = cast(tuple[Effect, ...], get_args(Effect))
CLASSES = (*EFFECTS, "all", "none")  # what an operator may name
OPTIONS: tuple[Decision, ...] = ("approve", "deny")
HIDDEN = ("Cc", "Cf", "Co", "Cs", "Zl", "Zp")  # Unicode categories of what cannot be seen, or changes how the rest is seen


@frozen(kw_only=True)
class Approval:
    """What needs a person's approval, beside what guards ask for.

    Attributes:
        classes: calls of tools with these effects.
        trust: calls with side effects need none after content that nobody has vetted.
    """

    classes: frozenset[Effect] = frozenset()
    trust: bool = False

    @classmethod
    def of(cls, names: Iterable[str], *, trust: bool = False) -> "Approval":
        """The approval that an operator names by effect classes, ``all`` or ``none``.

        Raises:
            UsageError: no such class, or ``none`` beside others.
        """
        named = tuple(names)
        for name in named:
            if name not in CLASSES:
                raise UnknownName("class of effects", name, CLASSES)
        if "none" in named and len(set(named)) > 1:
            raise UsageError(f"cannot ask for approval of {', '.join(named)}: none stands alone")
        classes = EFFECTS if "all" in named else tuple(one for one in EFFECTS if one in named)
        return cls(classes=frozenset(classes), trust=trust)

    def why(self, tool: Tool, events: list[Stored]) -> tuple[str, str]:
        """Why a call of *tool* needs approval, and why it needs none although it would but for `trust`; empty where not.

        Args:
            tool: what would be called.
            events: of the run so far.
        """
        if tool.effect in self.classes:
            return f"calls with the effect {tool.effect} need approval", ""
        heard = first_untrusted(events) if is_tainted(tool) else None
        if heard is None:
            return "", ""
        call = f"call {heard.index} ({heard.name})"
        if self.trust:
            return "", f"the content of {call} is trusted: {tool.name}, which has side effects, needs no approval after it"
        return f"its effect is {tool.effect}, and nobody has vetted the content of {call}, which may have asked for it", ""


def is_tainted(tool: Tool) -> bool:
    """Whether calls of *tool* need approval once content that nobody has vetted is in the conversation.

    What only looks does not, and neither does what may be repeated and stays within the workspace or the sandbox.
    """
    return tool.effect in ("reversible", "external") or (tool.effect == "idempotent" and not tool.confined)


@frozen(kw_only=True)
class Question:
    """What a person is asked.

    Attributes:
        run: the run's id.
        needed: what is to be decided, and why.
        tool: that would be called; empty where it is about no call.
    """

    run: str
    needed: DecisionNeeded
    tool: str = ""


@frozen(kw_only=True)
class Spoken:
    """What a person decided, and the reason, where one was given."""

    decision: Literal["approve", "deny"]
    reason: str = ""


Asker = Callable[[Question], Awaitable[Spoken | None]]  # None: nobody decides now, the run waits


async def decided(work: "Work", needed: DecisionNeeded, tool: str = "") -> AsyncIterator[Stored]:
    """Ask whoever is there about *needed*, which is in the journal; where nobody decides the run waits, and has ended.

    Afterwards, unless `Work.ended`, the decision is the last event of `Work.events`.
    """
    spoken = None
    if work.asker is not None:
        with work.budget.paused():
            spoken = await work.asker(Question(run=work.run, needed=needed, tool=tool))
    if spoken is None:
        for stored in await work.wait():
            yield stored
        return
    decision = CallDecided(index=needed.index, decision=spoken.decision, by="user", text=spoken.reason)
    for stored in await work.append(decision):
        yield stored


async def approved(work: "Work", about: About, index: int, asks: Sequence[tuple[str, str]]) -> AsyncIterator[Stored]:
    """Have a person approve what guards ask for that is no call.

    Afterwards the run waits, and `Work.ended`, or `decision_on` has the decision.

    Args:
        work: where.
        about: what.
        index: the number that the next call will have, or that of the call that gives an answer.
        asks: (guard, reason) of the guards that ask.
    """
    needed, decision = decision_on(work.events, about, index)
    if decision is not None:
        return
    if needed is None:
        needed = DecisionNeeded(index=index, options=OPTIONS, why=told(asks), about=about)
        for stored in await work.append(needed):
            yield stored
    async for stored in decided(work, needed):
        yield stored


def decision_on(events: Sequence[Stored], about: About, index: int) -> tuple[DecisionNeeded | None, CallDecided | None]:
    """The newest question about something that is no call, and the decision, since the last turn, answer or user's message."""
    newest: DecisionNeeded | None = None
    needed: DecisionNeeded | None = None
    decision: CallDecided | None = None
    for stored in events:
        event = stored.event
        if isinstance(event, TurnEnded | AnswerGiven) or (isinstance(event, MessageAdded) and event.role == "user"):
            newest = needed = decision = None
        elif isinstance(event, RunForked):  # what was decided was decided for the other run
            decision = None
        elif isinstance(event, DecisionNeeded) and event.index == index:
            newest = event
            needed, decision = (event, None) if event.about == about else (needed, decision)
        elif isinstance(event, CallDecided) and event.index == index and newest is not None and newest is needed:
            decision = event
    return needed, decision


def told(asks: Iterable[tuple[str, str]]) -> str:
    """Why guards ask, in words."""
    return "; ".join(f"guard '{guard}' asks: {reason}" for guard, reason in asks)


def denied(reason: str) -> str:
    """That a person said no, in words."""
    return f"the user denied it: {reason}" if reason else "the user denied it"


def exact(arguments: str) -> str:
    """A call's arguments as ``key=value``, each of them whole, and whatever cannot be seen escaped."""
    try:
        parsed: Any = json.loads(arguments or "{}")
    except (ValueError, RecursionError):
        return visible(arguments)
    if not isinstance(parsed, dict):
        return visible(arguments)
    return " ".join(f"{visible(key)}={visible(json.dumps(value, ensure_ascii=False))}" for key, value in parsed.items())


def visible(text: str) -> str:
    r"""*text* with every character that cannot be seen, or changes how others are, as ``\uXXXX``."""
    return "".join(f"\\u{ord(one):04x}" if unicodedata.category(one) in HIDDEN and one not in "\t\n" else one for one in text)
