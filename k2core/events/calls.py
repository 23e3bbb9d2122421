"""What happens to a call: its intent, its result, and what becomes of it where the result is missing."""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from attrs import field, frozen

from k2core.calls import Effect
from k2core.events.base import Journalled

Decision = Literal["happened", "redo", "abandon"]


@frozen(kw_only=True)
class ToolIntent(Journalled):
    """A call is about to be made; durable before the tool runs.

    Attributes:
        call_id: ``functions.NAME:IDX``.
        index: IDX, counted over the whole conversation.
        name: the tool's name, as the model wrote it.
        arguments: JSON text, verbatim; it may be malformed.
        effect: the tool's effect class; ``pure`` for a tool that does not exist.
    """

    kind: ClassVar[str] = "tool.intent"
    call_id: str
    index: int
    name: str
    arguments: str
    effect: Effect = "external"


@frozen(kw_only=True)
class Artefact:
    """A file that a call brought out; its content lies beside the journal under its hash."""

    name: str
    size: int
    sha256: str


@frozen(kw_only=True)
class ToolReturned(Journalled):
    """What came back from a call; fields as in `ToolIntent` and `ToolResult`."""

    kind: ClassVar[str] = "tool.result"
    call_id: str
    index: int
    name: str
    text: str
    ok: bool
    duration_ms: float = 0.0
    full_bytes: int = 0
    truncated: bool = False
    files: tuple[Artefact, ...] = ()
    details: Mapping[str, Any] = field(factory=dict)


@frozen(kw_only=True)
class ToolAgain(Journalled):
    """A call whose result is missing is about to be made again; durable before the tool runs.

    Attributes:
        index: of the call, as in its `ToolIntent`.
        attempt: 2 for the first repetition.
        why: what allows it.
    """

    kind: ClassVar[str] = "tool.again"
    index: int
    attempt: int
    why: str


@frozen(kw_only=True)
class DecisionNeeded(Journalled):
    """A call cannot go on unless a person decides; the run waits, however long.

    Attributes:
        index: of the call, as in its `ToolIntent`.
        options: decisions that make sense.
        why: what is known.
    """

    kind: ClassVar[str] = "decision.needed"
    index: int
    options: tuple[Decision, ...]
    why: str


@frozen(kw_only=True)
class CallDecided(Journalled):
    """What becomes of a call was decided.

    Attributes:
        index: of the call, as in its `ToolIntent`.
        decision: ``happened`` (it took effect; it is not made again), ``redo`` (it did not; it is made again) or ``abandon``
            (it is not made again, and the model is told so).
        by: ``user``, or ``tool``: its own look at what happened.
        text: for ``happened``, what the model is told came back.
    """

    kind: ClassVar[str] = "call.decided"
    index: int
    decision: Decision
    by: Literal["user", "tool"]
    text: str = ""
