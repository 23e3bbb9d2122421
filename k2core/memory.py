"""What a run remembers of itself when the model's context is nearly full: memories, which say what makes room.

A memory is asked when 90 % of the context is used, and is to free it down to 60 % at once. It may hide results, leave out the
oldest steps, and give a text that stands in their place. What it says is carried out, and journalled, by the agent
(`k2core.agent.remembering`), which keeps to the following whatever a memory says: questions, final answers, notes and what
was pinned stay before the model's eyes, the newest turn and what answers it stay whole, and every call can be recalled by its
number. A memory that fails, or makes too little room, is told of in the run, and the framework's own rules are used.
"""

from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol, runtime_checkable

from attrs import field, frozen

from k2core.messages import Message, Usage

Ask = Callable[[Sequence[Message]], Awaitable[str]]  # one turn of the model without tools, its text; a `K2Error` where it fails


@frozen(kw_only=True)
class MadeCall:
    """A call of the run so far, whether the model still sees it or not.

    Attributes:
        index: its number in the run.
        name: the tool's.
        arguments: JSON text of what it was made with.
        text: what came back, whole.
        ok: whether it succeeded.
    """

    index: int
    name: str
    arguments: str
    text: str
    ok: bool


@frozen(kw_only=True)
class Shown:
    """A message that the next turn would see, with the numbers of its calls: of a turn all it makes, of a result that one."""

    message: Message
    calls: tuple[int, ...] = ()


@frozen(kw_only=True)
class Room:
    """What makes room.

    Attributes:
        hidden: numbers of calls whose results are hidden.
        left_out: up to which number, it not included, calls are left out with their steps; 0 leaves out no further ones.
        text: what stands for all that is hidden or left out by now; None leaves the text of the last time.
        pinned: lines that stay before the model's eyes for the rest of the run, beside earlier ones.
        warning: what went wrong on the way, for the run's log.
    """

    hidden: tuple[int, ...] = ()
    left_out: int = 0
    text: str | None = None
    pinned: tuple[str, ...] = ()
    warning: str = ""


@frozen(kw_only=True)
class MemoryView:
    """A run at the moment when its context is nearly full.

    Attributes:
        question: the newest one.
        shown: what the model's next turn would see.
        calls: all of the run that something came back from, in order.
        notes: of the model, in order, each with the number of the call that made it, None where that is not known.
        hidden: numbers of the calls whose results are hidden.
        left_out: numbers of the calls whose steps are not shown.
        newest: number of the first call that has to stay as it is.
        remembered: the text of the last time.
        usage: of the newest turn.
        context: tokens that the model may be given.
        used: tokens that the next prompt would take; this, as every size here, is an estimate.
        goal: tokens down to which room is to be made.
        per_character: tokens that a character takes.
        text_limit: characters that the text may have.
        can_recall: whether the model may call `recall`.
        measure: tokens that the next prompt would take once that room is made.
    """

    question: str
    shown: tuple[Shown, ...] = field(repr=False)
    calls: tuple[MadeCall, ...] = field(repr=False)
    notes: tuple[tuple[int | None, str], ...] = ()
    hidden: frozenset[int] = frozenset()
    left_out: frozenset[int] = frozenset()
    newest: int
    remembered: str = ""
    usage: Usage
    context: int
    used: float
    goal: float
    per_character: float
    text_limit: int
    can_recall: bool = False
    measure: Callable[[Room], float] = field(eq=False, repr=False)


@runtime_checkable
class Memory(Protocol):
    """Says what makes room; any object with these two attributes and the method."""

    @property
    def name(self) -> str:
        """As it is registered."""
        ...

    @property
    def recalls(self) -> bool:
        """Whether the model is offered the control tool `recall`, which gives back the result of a call by its number."""
        ...

    async def make_room(self, view: MemoryView, ask: Ask) -> Room:
        """What the next turn should no longer see, and what stands in its place.

        Args:
            view: the run so far.
            ask: puts messages to the run's own model, as a turn of its own that counts for the budget.
        """
        ...
