"""What frames a run: its start, messages and turns, swaps, its end, and that it goes on."""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from attrs import field, frozen

from k2core.events.base import Journalled
from k2core.messages import FinishReason, Message, ToolCall, Usage

Part = Literal["tool", "verifier", "tokenizer"]


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
        options: how it was asked for, which `k2core.agent.asked` writes and reads; empty where it was interrupted.
    """

    kind: ClassVar[str] = "turn"
    reasoning: str | None = None
    content: str = ""
    calls: tuple[ToolCall, ...] = ()
    token_ids: tuple[int, ...] | None = None
    finish_reason: FinishReason = "stop"
    usage: Usage = field(factory=Usage)
    options: Mapping[str, Any] = field(factory=dict)

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
class Warned(Journalled):
    """Something a reader of the run should know; one line."""

    kind: ClassVar[str] = "warning"
    text: str


@frozen(kw_only=True)
class LimitsChanged(Journalled):
    """Budgets of the question are others from here on.

    Attributes:
        limits: all of them by name; None is no limit.
        request: number of the wish that was met, as the journal counts them.
    """

    kind: ClassVar[str] = "limits"
    limits: Mapping[str, float | None]
    request: int = 0


@frozen(kw_only=True)
class RunResumed(Journalled):
    """The work on the run's last question goes on after it was cut off, interrupted or had to wait.

    Attributes:
        limits: budgets by name from here on, what was used before included; None is no limit.
        versions: of k2core, Python and whatever else matters, by name.
        without: number of the first event that the model is not shown any more; none up to this one is. 0 where all are: what
            was said when a budget ended the work is left out where it goes on with a larger one.
    """

    kind: ClassVar[str] = "run.resumed"
    limits: Mapping[str, float | None] = field(factory=dict)
    without: int = 0
    versions: Mapping[str, str] = field(factory=dict)


@frozen(kw_only=True)
class RunForked(Journalled):
    """All before this are the first events of another run; the work goes on from there on its own.

    Attributes:
        run: id of the other run, which stays as it is.
        sequence: how many of its events these are.
        hash: of the last of them, as it stands in the other run.
        replaced: number of the call whose result was given by hand: the event between the copies and this one; None where
            all are copies.
        seed: of the sampler from here on; None where it stays the same.
    """

    kind: ClassVar[str] = "run.forked"
    run: str
    sequence: int
    hash: str = ""
    replaced: int | None = None
    seed: int | None = None


@frozen(kw_only=True)
class RunEnded(Journalled):
    """The work on a question is over, for good where it has an answer.

    Attributes:
        status: the answer's status, or why there is none: ``cancelled``, ``failed``, or ``waiting`` for a person's decision.
        seconds: wall time.
        tokens: tokens generated in the whole run.
        calls: tool calls made in the whole run.
    """

    kind: ClassVar[str] = "run.ended"
    status: str
    seconds: float = 0.0
    tokens: int = 0
    calls: int = 0
