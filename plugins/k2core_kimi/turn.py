"""The state machine of one assistant turn; what feeds it, token ids or text, is in `parser`.

Grammar of a turn: ``<think>`` R ``</think>`` CONTENT [section] ``<|im_end|>``. What models write beside it, and what is made
of it (peers: vLLM, SGLang, llama.cpp, as far as they differ):

=====================================  ==============================================================================
case                                   decision
=====================================  ==============================================================================
no think tag at all                    all text is content (SGLang; vLLM takes it for reasoning). A caller whose prompt
                                       ends in ``<think>`` says ``thinking=True``
whitespace before the first <think>    dropped
section or call before ``</think>``    ends the reasoning (all peers)
second think block                     more reasoning, appended; a ``<think>`` inside one is dropped
``</think>`` without ``<think>``       dropped
call without a section around it       taken (a section is implied); so is a further section
``<|tool_call_section_begin|>``        the singular, written as plain text: dropped right before a call, else kept as text
text between calls, after the section  dropped from the message (vLLM; SGLang streams it); it stays in `token_ids`
several calls                          numbered in order
bare number, lost prefix, newline …    `markers.resolve_call`; a call is never dropped for its id
id without arguments                   a call with ``{}``; cut off before its end, or blank, no call
empty or blank arguments               ``{}``; cut off before their end, as they are
arguments not closed                   closed by the next call, the section's end or the turn's end (all peers but old vLLM)
markers of thinking inside arguments   their text: a program may well contain ``<think>``
control tokens of the frame            dropped, no text stands for them
trailing blanks of reasoning           kept (vLLM strips them): a turn must render to what was generated
end of turn missing                    what is open is closed; `finish_reason` says ``length``
=====================================  ==============================================================================
"""

from typing import Literal

from attrs import define, field

from k2core.messages import (
    ArgumentsDelta,
    CallStarted,
    ContentDelta,
    Delta,
    FinishReason,
    Message,
    ReasoningDelta,
    ToolCall,
)
from k2core_kimi import markers as mark

State = Literal["start", "reasoning", "content", "section", "id", "arguments", "after"]


@define(eq=False)
class _Call:
    id: str
    name: str
    arguments: list[str] = field(factory=list)


@define(eq=False, kw_only=True)
class Turn:
    """One turn as it grows. Feed it `text` and `marker`; take what became certain with `take`.

    Attributes:
        next_call_index: number of the turn's first call in the conversation.
        tools: declared names, for ids that lost theirs.
        plain_end: a turn of text may stop without its end marker (servers remove it) and still be whole.
        done: the end marker was seen.
    """

    next_call_index: int = 0
    tools: tuple[str, ...] = ()
    plain_end: bool = False
    done: bool = False
    _state: State = "start"
    _reasoning: list[str] | None = None
    _content: list[str] = field(factory=list)
    _calls: list[_Call] = field(factory=list)
    _held: str = ""  # leading blanks, or a text that may still turn out to be the singular section marker
    _id: str = ""
    _out: list[Delta] = field(factory=list)

    def think(self) -> None:
        """Begin inside the reasoning, for a prompt that has opened it already."""
        self._state, self._reasoning = "reasoning", []

    def take(self) -> list[Delta]:
        """Deltas since the last call."""
        out, self._out = self._out, []
        return out

    def text(self, text: str) -> None:
        """Plain text, in pieces of any size."""
        if not text or self.done:
            return
        match self._state:
            case "start":
                self._held += text
                if not self._held.isspace():
                    held, self._held = self._held, ""
                    self._state = "content"
                    self._say(held)
            case "reasoning" | "content":
                self._say(text)
            case "section" | "id":
                self._id += text
            case "arguments":
                self._argue(text)
            case "after":
                pass

    def marker(self, name: str) -> None:
        """A marker of `markers.TURN`, or any other control token's text."""
        if self.done:
            return
        if self._state == "arguments" and name in (mark.THINK, mark.THINK_END):
            self._argue(name)
            return
        match name:
            case mark.THINK:
                if self._state == "start":
                    self._held = ""
                if self._state in ("start", "content"):
                    self._flush()
                    self._state = "reasoning"
                    self._reasoning = self._reasoning or []
            case mark.THINK_END:
                if self._state == "reasoning":
                    self._flush()
                    self._state = "content"
            case mark.SECTION:
                self._close()
                self._state, self._id = "section", ""
            case mark.CALL:
                self._drop_singular()
                self._close()
                self._state, self._id = "id", ""
            case mark.ARGUMENTS:
                if self._state in ("section", "id"):
                    self._start_call()
            case mark.CALL_END:
                if self._state in ("id", "arguments"):
                    self._close()
                    self._state, self._id = "section", ""
            case mark.SECTION_END:
                if self._state in ("section", "id", "arguments"):
                    self._close()
                    self._state = "after"
            case mark.END | mark.EOS:
                self._close()
                self.done = True

    def finish(self) -> None:
        """No more will come: let go of what is held back and leave open what is open."""
        if not self.done:
            self._flush()

    @property
    def finish_reason(self) -> FinishReason:
        """``tool_calls`` where there is a call, else ``stop``; ``length`` where the turn was cut off."""
        is_whole = self.done or self._state == "after" or (self.plain_end and self._state in ("start", "content"))
        if not is_whole:
            return "length"
        return "tool_calls" if self._calls else "stop"

    def message(self, token_ids: tuple[int, ...] | None = None) -> Message:
        """The turn so far."""
        return Message(
            role="assistant",
            content="".join(self._content),
            reasoning=None if self._reasoning is None else "".join(self._reasoning),
            tool_calls=tuple(ToolCall(id=call.id, name=call.name, arguments="".join(call.arguments)) for call in self._calls),
            token_ids=token_ids,
        )

    def _say(self, text: str) -> None:
        """Emit reasoning or content, up to what may be the beginning of the singular section marker."""
        text = self._held + text
        keep = _held_back(text)
        self._held = text[len(text) - keep :]
        self._emit(text[: len(text) - keep])

    def _emit(self, text: str) -> None:
        if not text:
            return
        if self._state == "reasoning":
            assert self._reasoning is not None
            self._reasoning.append(text)
            self._out.append(ReasoningDelta(text=text))
        else:
            self._content.append(text)
            self._out.append(ContentDelta(text=text))

    def _flush(self) -> None:
        """Whatever is held back in reasoning, content or before both was text after all."""
        if self._state in ("start", "reasoning", "content"):
            held, self._held = self._held, ""
            self._emit(held)

    def _drop_singular(self) -> None:
        if self._state in ("reasoning", "content") and self._held.rstrip() == mark.SINGULAR_SECTION:
            self._held = ""

    def _start_call(self) -> None:
        written, self._id = self._id.removeprefix(mark.SINGULAR_SECTION), ""
        number = len(self._calls)
        call_id, name = mark.resolve_call(written, self.next_call_index + number, self.tools)
        self._calls.append(_Call(call_id, name))
        self._out.append(CallStarted(index=number, id=call_id, name=name))
        self._state, self._held = "arguments", ""

    def _argue(self, text: str) -> None:
        text, self._held = self._held + text, ""
        call = self._calls[-1]
        if not call.arguments and text.isspace():
            self._held = text  # blank so far: may become {}
            return
        call.arguments.append(text)
        self._out.append(ArgumentsDelta(index=len(self._calls) - 1, text=text))

    def _close(self) -> None:
        """End what is open: reasoning, content, an id without arguments, or arguments."""
        self._flush()
        if self._state == "id" and self._id.strip():
            self._start_call()
        if self._state == "arguments":
            self._held = ""
            if not self._calls[-1].arguments:
                self._argue("{}")


def _held_back(text: str) -> int:
    """Length of the end of *text* that may be, or begin, the singular section marker with blanks behind it."""
    marker = mark.SINGULAR_SECTION
    bare = text.rstrip()
    if bare.endswith(marker):
        return len(marker) + len(text) - len(bare)
    if "<" not in text[-len(marker) :]:
        return 0
    return next((size for size in range(min(len(marker) - 1, len(text)), 0, -1) if marker.startswith(text[-size:])), 0)
