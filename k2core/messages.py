"""The messages of a conversation and the typed parts that a model streams.

`Message` is what goes into a prompt; the delta classes are what comes out, piece by piece; `TurnEnd` closes a model turn
and carries the whole `Message` with its usage. JSON in and out follows the OpenAI form with ``reasoning_content`` beside
``content`` (Moonshot's API documents both as siblings).
"""

from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any, Literal

from attrs import evolve, field, frozen

from k2core.errors import FormatError

Role = Literal["system", "user", "assistant", "tool"]
FinishReason = Literal["stop", "tool_calls", "length", "cancelled"]


@frozen(kw_only=True)
class ToolCall:
    """One call of a tool by a model.

    Attributes:
        id: ``functions.NAME:IDX`` in the family's own form; IDX counts over the whole conversation.
        name: the tool's name.
        arguments: JSON text, verbatim as the model wrote it (it may be malformed: that is for the registry to judge).
    """

    id: str
    name: str
    arguments: str

    def to_json(self) -> dict[str, Any]:
        """The call in OpenAI's form."""
        return {"id": self.id, "type": "function", "function": {"name": self.name, "arguments": self.arguments}}


@frozen(kw_only=True)
class Message:
    """One message of a conversation.

    Attributes:
        role: who speaks; roles beyond the four usual ones are rendered as system-like messages.
        content: the text; parts of another form are flattened by `message_from_json`.
        reasoning: an assistant's thinking, None when it had none.
        tool_calls: an assistant's calls, in order.
        tool_call_id: on a tool message, the id of the call it answers.
        name: overrides the role's text in the rendered header (a tool's name on its result).
        token_ids: on an assistant's own turn, the ids it generated, from the first after the header up to and including the
            end marker; a chat format renders these verbatim so that a turn is never tokenised a second time.
    """

    role: str
    content: str = ""
    reasoning: str | None = None
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str | None = None
    name: str | None = None
    token_ids: tuple[int, ...] | None = field(default=None, eq=False, repr=False)

    def to_json(self) -> dict[str, Any]:
        """The message in OpenAI's form; absent fields are left out."""
        out: dict[str, Any] = {"role": self.role, "content": self.content}
        if self.reasoning is not None:
            out["reasoning_content"] = self.reasoning
        if self.tool_calls:
            out["tool_calls"] = [call.to_json() for call in self.tool_calls]
        if self.tool_call_id is not None:
            out["tool_call_id"] = self.tool_call_id
        if self.name is not None:
            out["name"] = self.name
        return out


@frozen(kw_only=True)
class ReasoningDelta:
    """A piece of the model's thinking."""

    text: str


@frozen(kw_only=True)
class ContentDelta:
    """A piece of the model's visible text."""

    text: str


@frozen(kw_only=True)
class CallStarted:
    """A call began; `index` numbers the calls of this turn from 0."""

    index: int
    id: str
    name: str


@frozen(kw_only=True)
class ArgumentsDelta:
    """A piece of the JSON text of call `index`'s arguments."""

    index: int
    text: str


Delta = ReasoningDelta | ContentDelta | CallStarted | ArgumentsDelta


def joined(deltas: Sequence[Delta]) -> list[Delta]:
    """The same stream with neighbouring texts of one kind (and one call) joined."""
    if len(deltas) < 2:
        return list(deltas)
    out: list[Delta] = []
    for _, group in groupby(deltas, lambda one: (type(one), getattr(one, "index", None))):
        first, *rest = group
        if isinstance(first, CallStarted):
            out += [first, *rest]
        else:
            texts = [one.text for one in rest if not isinstance(one, CallStarted)]
            out.append(evolve(first, text="".join([first.text, *texts])) if texts else first)
    return out


@frozen(kw_only=True)
class Usage:
    """What a turn cost.

    Attributes:
        prompt_tokens: length of the prompt.
        cached_tokens: how many of them were not computed again.
        completion_tokens: generated tokens, thinking included.
        reasoning_tokens: those spent on thinking.
        computed_tokens: tokens that went through the model in this turn (prompt and completion).
        seconds: wall time of the turn.
        model_seconds: the turn's share, by tokens, of the time spent inside the backend's forward.
        queued_seconds: until its first token was computed: waiting for a place, for memory, or for a prompt to share.
        prefill_seconds: from there to the first generated token.
        decode_seconds: from there to the last one.
        mask_seconds: spent on finding out which tokens are allowed.
        drafted_tokens: guessed ahead and tried.
        accepted_tokens: of these, the ones that the model chose too.
    """

    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    reasoning_tokens: int = 0
    computed_tokens: int = 0
    seconds: float = 0.0
    model_seconds: float = 0.0
    queued_seconds: float = 0.0
    prefill_seconds: float = 0.0
    decode_seconds: float = 0.0
    mask_seconds: float = 0.0
    drafted_tokens: int = 0
    accepted_tokens: int = 0

    @property
    def hit_rate(self) -> float:
        """Share of the prompt that needed no computing."""
        return self.cached_tokens / self.prompt_tokens if self.prompt_tokens else 0.0


@frozen(kw_only=True)
class TurnEnd:
    """The end of a model turn: the whole message, why it stopped, what it cost."""

    message: Message
    finish_reason: FinishReason
    usage: Usage


def message_from_json(data: Mapping[str, Any], where: str = "message") -> Message:
    """Build a `Message` from OpenAI's form.

    A list of content parts is flattened by joining its texts; a part of another type (an image) is refused. Arguments given
    as an object are written as compact JSON.

    Raises:
        FormatError: *data* is not an object, has no role, or a field has the wrong type; the line starts with *where*.
    """
    import json

    if not isinstance(data, Mapping):
        raise FormatError(f"{where} is {type(data).__name__}, expected an object with 'role' and 'content'")
    role = data.get("role")
    if not isinstance(role, str) or not role:
        raise FormatError(f"{where} has no 'role'; give one of system, user, assistant, tool")
    calls = []
    for number, raw in enumerate(data.get("tool_calls") or ()):
        function = raw.get("function") if isinstance(raw, Mapping) else None
        if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
            raise FormatError(f"{where}.tool_calls[{number}] has no function.name")
        arguments = function.get("arguments", "{}")
        if not isinstance(arguments, str):
            arguments = json.dumps(arguments, ensure_ascii=False, separators=(",", ":"))
        calls.append(ToolCall(id=str(raw.get("id") or ""), name=function["name"], arguments=arguments))
    reasoning = data.get("reasoning_content", data.get("reasoning"))
    for key, value in (
        ("reasoning_content", reasoning),
        ("tool_call_id", data.get("tool_call_id")),
        ("name", data.get("name")),
    ):
        if value is not None and not isinstance(value, str):
            raise FormatError(f"{where}.{key} is {type(value).__name__}, expected text")
    return Message(
        role=role,
        content=_flatten(data.get("content"), f"{where}.content"),
        reasoning=reasoning,
        tool_calls=tuple(calls),
        tool_call_id=data.get("tool_call_id"),
        name=data.get("name"),
    )


def _flatten(content: object, where: str) -> str:
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if not isinstance(content, Sequence):
        raise FormatError(f"{where} is {type(content).__name__}, expected text or a list of parts")
    texts = []
    for number, part in enumerate(content):
        if not isinstance(part, Mapping) or part.get("type") != "text" or not isinstance(part.get("text"), str):
            raise FormatError(f"{where}[{number}] is not a text part; only text is supported")
        texts.append(part["text"])
    return "".join(texts)
