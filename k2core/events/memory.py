"""What the model is to remember, and what it no longer sees."""

from typing import ClassVar

from attrs import frozen

from k2core.events.base import Journalled


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
    """

    kind: ClassVar[str] = "hidden"
    calls: tuple[int, ...]


@frozen(kw_only=True)
class StepsLeftOut(Journalled):
    """Whole old steps that the model no longer sees, because hiding results was not enough; the journal keeps them.

    Attributes:
        through: number of the last call that is left out, counted over the whole conversation; all earlier ones are too.
    """

    kind: ClassVar[str] = "left-out"
    through: int
