"""What happens in a run: one frozen record per kind of event that the journal stores.

In the order of a run, where swap is model.switched, swapped, or a warning of a swap that was refused::

    run.started message* swap* (swap* turn (swap* tool.intent tool.result)* note? swap* verdict?)*
    budget? warning* swap* answer run.ended swap*
"""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from attrs import field, frozen

from k2core.answers import Claim, Finding
from k2core.calls import Effect
from k2core.messages import FinishReason, Message, ToolCall, Usage

EVENT_FORMAT = 1
Part = Literal["tool", "verifier", "tokenizer"]
AnswerStatus = Literal["answered", "declined", "unverified", "partial", "failed"]


class Journalled:
    """Base of the events that the journal stores."""

    __slots__ = ()
    kind: ClassVar[str]

    def to_json(self) -> dict[str, Any]:
        """The event as JSON values: its ``kind``, the format version ``v`` and its fields by name."""
        import msgspec

        return {"v": EVENT_FORMAT, "kind": self.kind, **msgspec.to_builtins(self)}


@frozen(kw_only=True)
class RunStarted(Journalled):
    """A run began; everything that replay needs to begin it again.

    Attributes:
        question: the user's text.
        model: its identity as `ChatModel.identity` gives it: model, backend, numerics, weights hash, kernel path.
        seed: of the sampler.
        limits: budgets by name, e.g. ``{"calls": 50, "seconds": 300.0}``; None is no limit.
        tools: names of the declared tools, in order.
        declarations_hash: sha256 (hex) of the tools' declarations as canonical JSON.
        versions: of k2core, Python and whatever else matters, by name.
        options: how it was asked: sampling, skills, paths …; JSON values only.
    """

    kind: ClassVar[str] = "run.started"
    question: str
    model: Mapping[str, str] = field(factory=dict)
    seed: int = 0
    limits: Mapping[str, float | None] = field(factory=dict)
    tools: tuple[str, ...] = ()
    declarations_hash: str = ""
    versions: Mapping[str, str] = field(factory=dict)
    options: Mapping[str, Any] = field(factory=dict)


@frozen(kw_only=True)
class MessageAdded(Journalled):
    """A message that the framework or the user put into the conversation, exactly as the model sees it.

    Fields are `Message`'s. A model's own turns are `TurnEnded`, tool results are `ToolReturned`; an assistant message
    here is one the framework wrote, e.g. the final answer after an accepted `answer` call.
    """

    kind: ClassVar[str] = "message"
    role: str
    content: str = ""
    reasoning: str | None = None
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str | None = None
    name: str | None = None
    token_ids: tuple[int, ...] | None = None

    @classmethod
    def of(cls, message: Message) -> "MessageAdded":
        """The event of *message*."""
        return cls(
            role=message.role,
            content=message.content,
            reasoning=message.reasoning,
            tool_calls=message.tool_calls,
            tool_call_id=message.tool_call_id,
            name=message.name,
            token_ids=message.token_ids,
        )

    def message(self) -> Message:
        """The message of this event."""
        return Message(
            role=self.role,
            content=self.content,
            reasoning=self.reasoning,
            tool_calls=self.tool_calls,
            tool_call_id=self.tool_call_id,
            name=self.name,
            token_ids=self.token_ids,
        )


@frozen(kw_only=True)
class ModelSwitched(Journalled):
    """The run goes on with another model or backend; `model` is its identity, with the report of the switch if there is one."""

    kind: ClassVar[str] = "model.switched"
    model: Mapping[str, str]


@frozen(kw_only=True)
class Swapped(Journalled):
    """A part of the session is carried out by another implementation from here on.

    Attributes:
        what: ``tool``, ``verifier`` or ``tokenizer``.
        name: of the part.
        old, new: implementations; ``default`` is the one that is registered as the part itself.
        same_prompt: the model is told the same as before, so that every prompt begins as before. A swap that would change
            that has waited for this question.
        declaration: of a tool, sha256 (hex) of what the model is told of it now, as canonical JSON; empty for other parts.
    """

    kind: ClassVar[str] = "swapped"
    what: Part
    name: str
    old: str
    new: str
    same_prompt: bool = True
    declaration: str = ""


@frozen(kw_only=True)
class TurnEnded(Journalled):
    """The model finished a turn.

    Attributes:
        reasoning: its thinking, None when it had none.
        content: its visible text.
        calls: its tool calls, in order.
        token_ids: the ids it generated, end marker included; None for a model that does not tell.
        finish_reason: why it stopped.
        usage: what it cost.
    """

    kind: ClassVar[str] = "turn"
    reasoning: str | None = None
    content: str = ""
    calls: tuple[ToolCall, ...] = ()
    token_ids: tuple[int, ...] | None = None
    finish_reason: FinishReason = "stop"
    usage: Usage = field(factory=Usage)

    def message(self) -> Message:
        """The assistant message of this turn."""
        return Message(
            role="assistant",
            content=self.content,
            reasoning=self.reasoning,
            tool_calls=self.calls,
            token_ids=self.token_ids,
        )


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


@frozen(kw_only=True)
class VerdictGiven(Journalled):
    """What the verifiers said about an answer.

    Attributes:
        attempt: which attempt at an answer, from 1.
        accepted: no finding blocks it.
        findings: all of them, with the events they rest on.
    """

    kind: ClassVar[str] = "verdict"
    attempt: int
    accepted: bool
    findings: tuple[Finding, ...] = ()


@frozen(kw_only=True)
class BudgetReached(Journalled):
    """A budget ended the work: its name, its limit, what was used, both in the budget's own unit."""

    kind: ClassVar[str] = "budget"
    which: str
    limit: float
    used: float


@frozen(kw_only=True)
class Warned(Journalled):
    """Something a reader of the run should know; one line."""

    kind: ClassVar[str] = "warning"
    text: str


@frozen(kw_only=True)
class ClaimEvidence:
    """The events that support one claim.

    Attributes:
        claim: index into the answer's claims, None for the answer's text.
        events: sequence numbers of events of this run.
    """

    claim: int | None
    events: tuple[int, ...] = ()


@frozen(kw_only=True)
class AnswerGiven(Journalled):
    """The answer of the run.

    Attributes:
        text: as the user sees it.
        claims: its statements with the calls named for them.
        status: ``answered`` (verified), ``declined`` (accepted, but it answers nothing), ``unverified``, ``partial`` (a
            budget ended the work) or ``failed``; the first three are decided by `k2core.verify.outcome`.
        reason: why it is not ``answered``; empty otherwise.
        evidence: for each supported claim the events it rests on.
    """

    kind: ClassVar[str] = "answer"
    text: str
    claims: tuple[Claim, ...] = ()
    status: AnswerStatus = "answered"
    reason: str = ""
    evidence: tuple[ClaimEvidence, ...] = ()


@frozen(kw_only=True)
class RunEnded(Journalled):
    """The run is over.

    Attributes:
        status: the answer's status, or why there is none, e.g. ``cancelled``.
        seconds: wall time.
        tokens: tokens generated in the whole run.
        calls: tool calls made in the whole run.
    """

    kind: ClassVar[str] = "run.ended"
    status: str
    seconds: float = 0.0
    tokens: int = 0
    calls: int = 0
