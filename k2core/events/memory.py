"""What the model is to remember, what it no longer sees, and what is done where it goes round in circles."""

from typing import ClassVar, Literal

from attrs import field, frozen

from k2core.events.base import Journalled
from k2core.messages import Usage


@frozen(kw_only=True)
class NoteKept(Journalled):
    """A note for later steps."""

    kind: ClassVar[str] = "note"
    text: str


@frozen(kw_only=True)
class ResultsHidden(Journalled):
    """Tool results that the model no longer sees, because its context was nearly full; the journal keeps them.

    Attributes:
        calls: numbers of the calls, counted over the whole conversation (a model may repeat an id).
        by: the memory that said so; empty in runs from before there were any.
        text: what stands for all that is hidden or left out by now; None leaves what stood for it before.
        pinned: lines that stay before the model's eyes from here on.
        usage: of what the memory asked the model.
    """

    kind: ClassVar[str] = "hidden"
    calls: tuple[int, ...]
    by: str = ""
    text: str | None = None
    pinned: tuple[str, ...] = ()
    usage: Usage = field(factory=Usage)


@frozen(kw_only=True)
class StepsLeftOut(Journalled):
    """Whole old steps that the model no longer sees, because hiding results was not enough; the journal keeps them.

    Attributes:
        through: number of the last call that is left out, counted over the whole conversation; all earlier ones are too.
        hidden: numbers of later calls whose results are hidden from here on.
        by, text, pinned, usage: as of `ResultsHidden`.
    """

    kind: ClassVar[str] = "left-out"
    through: int
    hidden: tuple[int, ...] = ()
    by: str = ""
    text: str | None = None
    pinned: tuple[str, ...] = ()
    usage: Usage = field(factory=Usage)


@frozen(kw_only=True)
class Recalled(Journalled):
    """The model asked for the result of an earlier call.

    Attributes:
        call: number of that call.
        index: number of the call that asks.
        event: number of the event with the result.
        characters: of what it is given.
    """

    kind: ClassVar[str] = "recalled"
    call: int
    index: int
    event: int
    characters: int


@frozen(kw_only=True)
class Stalled(Journalled):
    """Steps brought nothing new, and something is done about it.

    Attributes:
        action: ``steer`` (the next turn may not go on so), ``roll-back`` (those steps are no longer shown) or ``stop`` (the
            model is to conclude).
        idle: how much brought nothing new, in calls; see `k2core.agent.progress`.
        calls: numbers of the calls since the last progress.
        tool: the tool that may not be called in the next turn; empty where calls are forbidden instead, or nothing is.
    """

    kind: ClassVar[str] = "stalled"
    action: Literal["steer", "roll-back", "stop"]
    idle: float
    calls: tuple[int, ...] = ()
    tool: str = ""
