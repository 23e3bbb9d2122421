"""A byte-level tokenizer and a small chat format, for tests of engines that should not depend on a vocabulary file.

A turn reads ``<think>R</think>content`` then calls ``<call>ID<arguments>JSON`` each, then ``<end>``.
"""

import codecs
import json
from collections.abc import Mapping, Sequence
from typing import Any

from k2core.engine import lark
from k2core.engine.offer import call_rules, offered
from k2core.engine.schemas import BASE, rules
from k2core.errors import FormatError, TokenizerError
from k2core.language import GenerateOptions
from k2core.messages import ArgumentsDelta, CallStarted, ContentDelta, Delta, Message, ReasoningDelta, ToolCall

CONTROL = {name: 256 + place for place, name in enumerate(("<think>", "</think>", "<call>", "<arguments>", "<end>", "<turn>"))}
_TEXT = {number: name for name, number in CONTROL.items()}


class ByteTokenizer:
    """Bytes are ids 0 to 255; control tokens follow."""

    vocab_size = 256 + len(CONTROL)
    control: Mapping[str, int] = CONTROL

    def encode(self, text: str, *, control: bool = False) -> list[int]:
        """Bytes of UTF-8; with *control*, control tokens' texts become their ids."""
        if control:
            for name, number in CONTROL.items():
                before, found, after = text.partition(name)
                if found:
                    return [*self.encode(before, control=True), number, *self.encode(after, control=True)]
        return list(text.encode())

    def decode(self, token_ids: Sequence[int], *, control: bool = True) -> str:
        """Text of ids."""
        kept = [one for one in token_ids if control or one < 256]
        return self.decode_bytes(kept).decode("utf-8", "replace")

    def decode_bytes(self, token_ids: Sequence[int]) -> bytes:
        """Exact bytes of ids.

        Raises:
            TokenizerError: an id is outside the vocabulary.
        """
        if any(not 0 <= one < self.vocab_size for one in token_ids):
            raise TokenizerError(f"an id of {list(token_ids)} is outside the vocabulary of {self.vocab_size}")
        return b"".join(bytes([one]) if one < 256 else _TEXT[one].encode() for one in token_ids)


class ByteFormat:
    """A `ChatFormat` over `ByteTokenizer`: each message is ``<turn>role\\nbody<end>``; no history rule."""

    stop_ids = (CONTROL["<end>"],)

    def __init__(self, tokenizer: ByteTokenizer | None = None) -> None:
        self.tokenizer = tokenizer or ByteTokenizer()

    def normalise(self, messages: Sequence[Message]) -> list[Message]:
        """Nothing to change."""
        return list(messages)

    def render(
        self, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]] = (), *, generate: bool = True
    ) -> list[int]:
        """Ids of the conversation; turns with `Message.token_ids` verbatim."""
        ids: list[int] = []
        if tools:
            ids += self._frame("tools", list(json.dumps(list(tools), sort_keys=True, default=str).encode()))
        for message in messages:
            ids += self._frame(message.role, self._body(message))
        return [*ids, CONTROL["<turn>"], *b"assistant\n"] if generate else ids

    def parser(self, *, next_call_index: int = 0, tools: Sequence[str] = ()) -> "ByteParser":
        """A parser for one turn; ids of this format never lose their names."""
        return ByteParser(next_call_index)

    def grammar(self, tools: Sequence[Mapping[str, Any]], options: GenerateOptions, *, next_call_index: int = 0) -> str:
        """What one turn may be; content and calls as `k2core_kimi.grammar` has them, in this format's own frame.

        Raises:
            InputError: as `offered`.
        """
        offer = offered(tools, options)
        mark = {name: lark.token(number) for name, number in CONTROL.items()}
        bodies = [] if offer.needs_call else ["TEXT" if offer.response is None else "response"]
        if offer.tools:
            bodies.append("call-0" if offer.response is not None else "ANY? call-0")
        lines = [
            f"start: {mark['<think>']} ANY? {mark['</think>']} body {mark['<end>']}",
            f"body: {' | '.join(bodies)}",
            lark.TEXTS,
        ]
        lines += [] if offer.response is None else [rules(offer.response, "response").text]
        lines += call_rules(
            offer,
            lambda name, place: f"functions.{name}:{next_call_index + place}",
            begin=mark["<call>"],
            arguments=mark["<arguments>"],
        )
        lines += [
            rules(parameters, f"tool-{number}", is_object=True).text for number, parameters in enumerate(offer.tools.values())
        ]
        return "\n".join([*lines, BASE])

    def _frame(self, role: str, body: list[int]) -> list[int]:
        end = CONTROL["<end>"]
        return [CONTROL["<turn>"], *role.encode(), *b"\n", *body, *([] if body[-1:] == [end] else [end])]

    def _body(self, message: Message) -> list[int]:
        if message.token_ids is not None:
            return list(message.token_ids)
        if message.role != "assistant":
            return list(message.content.encode())
        ids = [CONTROL["<think>"], *(message.reasoning or "").encode(), CONTROL["</think>"], *message.content.encode()]
        for call in message.tool_calls:
            ids += [CONTROL["<call>"], *call.id.encode(), CONTROL["<arguments>"], *call.arguments.encode()]
        return [*ids, CONTROL["<end>"]]


class ByteParser:
    """Incremental parser of one turn."""

    def __init__(self, next_call_index: int = 0) -> None:
        self.done = False
        self._next = next_call_index
        self._ids: list[int] = []
        self._part = "content"  # reasoning, content, id, arguments
        self._texts = {"reasoning": "", "content": ""}
        self._thought = False
        self._calls: list[list[str]] = []  # [id, arguments]
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def feed(self, token_ids: Sequence[int]) -> list[Delta]:
        """Deltas that became certain.

        Raises:
            FormatError: ids after the end marker.
        """
        out: list[Delta] = []
        for token in token_ids:
            if self.done:
                raise FormatError("tokens after the end of the turn")
            self._ids.append(token)
            if token < 256:
                self._add(self._decoder.decode(bytes([token])), out)
                continue
            self._add(self._decoder.decode(b"", True), out)
            name = _TEXT[token]
            if self._part == "id" and name != "<call>":
                call = f"functions.{self._name()}:{self._next + len(self._calls) - 1}"
                self._calls[-1][0] = call
                out.append(CallStarted(index=len(self._calls) - 1, id=call, name=self._name()))
            if name == "<arguments>" and self._part != "id":
                continue  # arguments of no call: skipped, the part goes on
            self._part = {"<think>": "reasoning", "<call>": "id", "<arguments>": "arguments"}.get(name, "content")
            self._thought |= name == "<think>"
            self.done = name == "<end>"
            if name == "<call>":
                self._calls.append(["", ""])
        return out

    def finish(self) -> tuple[list[Delta], Message]:
        """The rest and the whole turn."""
        out: list[Delta] = []
        self._add(self._decoder.decode(b"", True), out)
        calls = tuple(
            ToolCall(id=call, name=call.removeprefix("functions.").rsplit(":", 1)[0], arguments=arguments)
            for call, arguments in self._calls
        )
        message = Message(
            role="assistant",
            content=self._texts["content"],
            reasoning=self._texts["reasoning"] if self._thought else None,
            tool_calls=calls,
            token_ids=tuple(self._ids),
        )
        return out, message

    def _name(self) -> str:
        return self._calls[-1][0].removeprefix("functions.").rsplit(":", 1)[0]

    def _add(self, text: str, out: list[Delta]) -> None:
        if not text:
            return
        if self._part == "reasoning":
            self._texts["reasoning"] += text
            out.append(ReasoningDelta(text=text))
        elif self._part == "content":
            self._texts["content"] += text
            out.append(ContentDelta(text=text))
        elif self._part == "arguments":
            self._calls[-1][1] += text
            out.append(ArgumentsDelta(index=len(self._calls) - 1, text=text))
        else:
            self._calls[-1][0] += text
