"""What happens to a call: its intent, its result, and what becomes of it where the result is missing."""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from attrs import field, frozen

from k2core.calls import Effect
from k2core.events.base import Journalled

Decision = Literal["happened", "redo", "abandon", "approve", "deny"]
About = Literal["call", "step", "model", "answer"]


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
    untrusted: bool = False


@frozen(kw_only=True)
class ToolBegun(Journalled):
    """A call that waited for approval, and got it, is about to be made; durable before the tool runs.

    The approval is used up with it: where no result follows, it covers nothing any more.

    Attributes:
        index: of the call, as in its `ToolIntent`.
        attempt: 1 unless it was begun before.
    """

    kind: ClassVar[str] = "tool.begun"
    index: int
    attempt: int = 1


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
        index: of the call, as in its `ToolIntent`; where it is about no call, the number that the next call will have.
        options: decisions that make sense: ``approve`` and ``deny`` before something is done, the others where a call may have
            taken effect.
        why: what is known.
        about: what is to be decided about; anything but ``call`` only where a guard asks.
        arguments: of a call that is to be approved, JSON text: what it is made with, and nothing else.
        attempt: of a call that is to be approved, 1 unless it was begun before.
    """

    kind: ClassVar[str] = "decision.needed"
    index: int
    options: tuple[Decision, ...]
    why: str
    about: About = "call"
    arguments: str = ""
    attempt: int = 1


@frozen(kw_only=True)
class CallDecided(Journalled):
    """What becomes of a call was decided.

    Attributes:
        index: of the call, as in its `DecisionNeeded`.
        decision: ``happened`` (it took effect; it is not made again), ``redo`` (it did not; it is made again), ``abandon``
            (it is not made again, and the model is told so), ``approve`` (it is made, once) or ``deny`` (it is not made).
        by: ``user``, or ``tool``: its own look at what happened.
        text: for ``happened``, what the model is told came back; for ``approve`` and ``deny`` the reason, where one was given.
    """

    kind: ClassVar[str] = "call.decided"
    index: int
    decision: Decision
    by: Literal["user", "tool"]
    text: str = ""
