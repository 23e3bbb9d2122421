"""The chat format of Kimi K2 Thinking: messages and tools to token ids.

Each message is a tag, its role as text, ``<|im_middle|>``, its body and ``<|im_end|>``; there is no newline between messages
and no begin-of-text token. Bodies, roles, ids and arguments are encoded with control tokens off: only the frame written here
makes control tokens. The declaration of tools comes first, then the system message.

Source: chat_template.jinja of moonshotai/Kimi-K2-Thinking, revision 6126819, and the key sorting of its tokenizer's
apply_chat_template (MoonshotAI/Kimi-Vendor-Verifier beam/tokenizer @3dad65a).
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any

from attrs import frozen

from k2core.engine.offer import offered
from k2core.errors import FormatError
from k2core.language import GenerateOptions
from k2core.messages import Message
from k2core_kimi import markers as mark
from k2core_kimi.grammar import turn_grammar
from k2core_kimi.normalise import normalise
from k2core_kimi.parser import KimiTextParser, KimiTurnParser
from k2core_kimi.tokenizer import KimiTokenizer
from k2core_kimi.turn import Turn

CACHED_TEXTS = 4096  # encoded bodies kept: a chain of calls renders the same messages again at every step


@frozen
class Mark:
    """A control token of the frame."""

    text: str


@frozen
class Ids:
    """Token ids that are rendered as they are."""

    ids: tuple[int, ...]


Segment = Mark | Ids | str


class KimiChatFormat:
    """`k2core.interfaces.ChatFormat` of the family.

    Attributes:
        tokenizer: the vocabulary.
        stop_ids: ids that end a turn.
    """

    def __init__(self, tokenizer: KimiTokenizer) -> None:
        missing = [text for text in (*mark.TURN, *mark.FRAME) if text not in tokenizer.control]
        if missing:
            raise FormatError(f"the vocabulary has no control token {', '.join(missing)}: it is not one of Kimi K2 Thinking")
        self.tokenizer = tokenizer
        self._names = {token: text for text, token in tokenizer.control.items()}
        self._end = tokenizer.control[mark.END]
        stops = (self._end, tokenizer.control.get(mark.EOS))
        self.stop_ids: tuple[int, ...] = tuple(token for token in stops if token is not None)
        self._encode = lru_cache(CACHED_TEXTS)(lambda text: tuple(tokenizer.encode(text)))

    def normalise(self, messages: Sequence[Message]) -> list[Message]:
        """The conversation as `render` sees it; see `k2core_kimi.normalise.normalise`.

        Raises:
            FormatError: names the message's index.
        """
        return normalise(messages)

    def render(
        self, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]] = (), *, generate: bool = True
    ) -> list[int]:
        """Token ids of the conversation.

        Args:
            messages: the conversation; `Message.token_ids` of the current chain are used verbatim.
            tools: declarations in OpenAI's form; their keys are sorted, their order is kept.
            generate: whether the header of the next assistant turn follows.

        Raises:
            FormatError: a message out of place (names its index), or a declaration that is no JSON.
        """
        return self._ids(self._segments(messages, tools, generate))

    def render_text(
        self, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]] = (), *, generate: bool = True
    ) -> str:
        """The same as text, for display: in it, a marker of the frame and one quoted in a body look alike."""
        parts = []
        for segment in self._segments(messages, tools, generate):
            match segment:
                case Mark(text):
                    parts.append(text)
                case Ids(ids):
                    parts.append(self.tokenizer.decode(ids))
                case _:
                    parts.append(segment)
        return "".join(parts)

    def render_turn(self, message: Message) -> list[int]:
        """Ids of one assistant turn as the model would generate it: behind its header, up to and including the end marker."""
        return self._ids(_turn(message, self._end, self.stop_ids))

    def parser(self, *, next_call_index: int = 0, tools: Sequence[str] = (), thinking: bool = False) -> KimiTurnParser:
        """A parser for one turn.

        Args:
            next_call_index: number of the turn's first call in the conversation.
            tools: declared names; calls whose id lost its name are resolved by them.
            thinking: the prompt ends in ``<think>``.
        """
        turn = Turn(next_call_index=next_call_index, tools=tuple(tools))
        if thinking:
            turn.think()
        return KimiTurnParser(tokenizer=self.tokenizer, names=self._names, turn=turn)

    def text_parser(self, *, next_call_index: int = 0, tools: Sequence[str] = (), thinking: bool = False) -> KimiTextParser:
        """A parser for one turn that comes as text; arguments as of `parser`."""
        turn = Turn(next_call_index=next_call_index, tools=tuple(tools), plain_end=True)
        if thinking:
            turn.think()
        return KimiTextParser(turn=turn)

    def grammar(self, tools: Sequence[Mapping[str, Any]], options: GenerateOptions, *, next_call_index: int = 0) -> str:
        """What one turn may be, as a Lark grammar; see `k2core_kimi.grammar`.

        Raises:
            InputError: the options name a tool that is not declared, or leave nothing that the turn could be.
        """
        return turn_grammar(offered(tools, options), self.tokenizer.control, next_call_index=next_call_index)

    def _ids(self, segments: Iterator[Segment]) -> list[int]:
        out: list[int] = []
        control = self.tokenizer.control
        for segment in segments:
            match segment:
                case Mark(text):
                    out.append(control[text])
                case Ids(ids):
                    out += ids
                case _:
                    out += self._encode(segment)
        return out

    def _segments(self, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]], generate: bool) -> Iterator[Segment]:
        if tools:
            yield from _header(mark.SYSTEM, "tool_declare")
            yield declaration_text(tools)
            yield Mark(mark.END)
        for message in self.normalise(messages):
            yield from _header(_TAGS.get(message.role, mark.SYSTEM), message.name or message.role)
            if message.role == "assistant":
                yield from _turn(message, self._end, self.stop_ids)
                continue
            if message.role == "tool":
                yield f"## Return of {message.tool_call_id}\n{message.content}"
            else:
                yield message.content
            yield Mark(mark.END)
        if generate:
            yield from _header(mark.ASSISTANT, "assistant")


_TAGS = {"user": mark.USER, "assistant": mark.ASSISTANT}


def _header(tag: str, role: str) -> tuple[Segment, ...]:
    return (Mark(tag), role, Mark(mark.MIDDLE))


def _turn(message: Message, end: int, stops: tuple[int, ...]) -> Iterator[Segment]:
    if message.token_ids is not None:
        ids = message.token_ids
        yield Ids(ids[:-1] if ids[-1:] and ids[-1] in stops else ids)
        yield Mark(mark.END)  # a turn that was cut off, or stopped at [EOS], is closed like any other
        return
    yield Mark(mark.THINK)
    yield message.reasoning or ""
    yield Mark(mark.THINK_END)
    yield message.content
    if message.tool_calls:
        yield Mark(mark.SECTION)
        for call in message.tool_calls:
            yield from (Mark(mark.CALL), call.id, Mark(mark.ARGUMENTS), call.arguments, Mark(mark.CALL_END))
        yield Mark(mark.SECTION_END)
    yield Mark(mark.END)


def declaration_text(tools: Sequence[Mapping[str, Any]]) -> str:
    """Declarations as the prompt has them: compact JSON, keys sorted at every depth, non-ASCII raw.

    Raises:
        FormatError: a declaration is no object with a function's name, or holds something that JSON has no form for.
    """
    for number, tool in enumerate(tools):
        function = tool.get("function") if isinstance(tool, Mapping) else None
        if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
            raise FormatError(f"tool {number} is no declaration; expected {{'type': 'function', 'function': {{'name': …}}}}")
    try:
        return json.dumps(
            list(tools), ensure_ascii=False, sort_keys=True, separators=(",", ":"), allow_nan=False, default=_plain
        )
    except (TypeError, ValueError, RecursionError) as error:
        raise FormatError(f"the tools cannot be declared as JSON: {error}") from error


def _plain(value: object) -> object:
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, Sequence):
        return list(value)
    raise TypeError(f"{type(value).__name__} has no form in JSON")
