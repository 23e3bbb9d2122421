"""A chat model that says what a test tells it to say."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from typing import Any

from attrs import evolve, frozen

from k2core.errors import K2Error
from k2core.interfaces import GenerateOptions, ModelProfile
from k2core.messages import (
    ArgumentsDelta,
    CallStarted,
    ContentDelta,
    Delta,
    FinishReason,
    Message,
    ReasoningDelta,
    ToolCall,
    TurnEnd,
    Usage,
)

Turn = Message | str | Callable[[Sequence[Message]], Message | str]


@frozen(kw_only=True)
class Request:
    """What a `ScriptedModel` was asked: the arguments of one `generate`."""

    messages: tuple[Message, ...]
    tools: tuple[Mapping[str, Any], ...]
    options: GenerateOptions


class ScriptedModel:
    """A `ChatModel` whose turns are given beforehand; needs no weights and answers at once.

    Tokens are counted in words (runs of characters without white space) of reasoning, content and arguments. Words of
    leading messages that equal the request before count as cached. A turn longer than ``max_tokens`` or
    ``max_reasoning_tokens`` is cut there and ends with ``length``, as a real one would.

    Attributes:
        name: the model's name.
        profile: as given.
        requests: every request so far, in order.
    """

    def __init__(
        self,
        turns: Iterable[Turn],
        *,
        name: str = "scripted",
        profile: ModelProfile | None = None,
        piece: int = 7,
        delay_s: float = 0.0,
    ) -> None:
        """A model that plays *turns*.

        Args:
            turns: one per request: a message, a text (its content), or a function of the request's messages that gives
                either; an exception that it raises comes out of `generate`.
            name: the model's name.
            profile: what the agent should know; a context of 4096 words by default.
            piece: characters per streamed delta.
            delay_s: pause before each delta in seconds.
        """
        self.name = name
        self.profile = profile or ModelProfile(context=4096, temperature=0.0, description="plays a script")
        self.requests: list[Request] = []
        self._turns = list(turns)
        self._piece = max(1, piece)
        self._delay_s = delay_s
        self._closed = False

    async def generate(
        self, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]], options: GenerateOptions
    ) -> AsyncIterator[Delta | TurnEnd]:
        """Play the next turn.

        Raises:
            K2Error: the script has no turn left, or the model was closed.
        """
        started = time.perf_counter()
        if self._closed:
            raise K2Error(f"the scripted model '{self.name}' was asked after it was closed")
        before = self.requests[-1].messages if self.requests else ()
        number = len(self.requests)
        self.requests.append(Request(messages=tuple(messages), tools=tuple(tools), options=options))
        if number >= len(self._turns):
            raise K2Error(
                f"the scripted model '{self.name}' was asked for turn {number + 1}, but its script has {len(self._turns)}"
            )
        turn = self._turns[number]
        said = turn(messages) if callable(turn) else turn
        message, finish = _cut(Message(role="assistant", content=said) if isinstance(said, str) else said, options)
        for delta in self._deltas(message):
            await asyncio.sleep(self._delay_s)  # also where a cancelled caller leaves
            yield delta
        words = [_words(one) for one in messages]
        cached = 0
        for old, new, count in zip(before, messages, words, strict=False):
            if old != new:
                break
            cached += count
        prompt, completion = sum(words), _words(message)
        usage = Usage(
            prompt_tokens=prompt,
            cached_tokens=cached,
            completion_tokens=completion,
            reasoning_tokens=len((message.reasoning or "").split()),
            computed_tokens=prompt - cached + completion,
            seconds=time.perf_counter() - started,
        )
        yield TurnEnd(message=message, finish_reason=finish, usage=usage)

    def identity(self) -> dict[str, str]:
        """The script has no weights: its name only."""
        return {"model": self.name, "backend": "", "numerics": "", "weights": "", "kernel": ""}

    def close(self) -> None:
        """No further turn is played."""
        self._closed = True

    def assert_complete(self) -> None:
        """Every turn was asked for.

        Raises:
            AssertionError: turns are left; says how many.
        """
        left = len(self._turns) - len(self.requests)
        if left > 0:
            raise AssertionError(f"{left} of {len(self._turns)} scripted turns were never asked for")

    def _deltas(self, message: Message) -> Iterable[Delta]:
        for text in self._pieces(message.reasoning or ""):
            yield ReasoningDelta(text=text)
        for text in self._pieces(message.content):
            yield ContentDelta(text=text)
        for index, call in enumerate(message.tool_calls):
            yield CallStarted(index=index, id=call.id, name=call.name)
            for text in self._pieces(call.arguments):
                yield ArgumentsDelta(index=index, text=text)

    def _pieces(self, text: str) -> Iterable[str]:
        return (text[start : start + self._piece] for start in range(0, len(text), self._piece))


def call_turn(index: int, name: str, /, *, reasoning: str | None = None, **arguments: Any) -> Message:
    """An assistant's turn with one call, e.g. ``call_turn(0, "calculator", expression="23*47")``.

    Args:
        index: the call's IDX, counted over the whole conversation from 0.
        name: the tool's name.
        reasoning: what the model thinks before.
        arguments: written as compact JSON with sorted keys.
    """
    text = json.dumps(arguments, ensure_ascii=False, separators=(",", ":"), sort_keys=True)
    call = ToolCall(id=f"functions.{name}:{index}", name=name, arguments=text)
    return Message(role="assistant", reasoning=reasoning, tool_calls=(call,))


def _words(message: Message) -> int:
    texts = [message.reasoning or "", message.content, *(call.arguments for call in message.tool_calls)]
    return sum(len(text.split()) for text in texts)


def _cut(message: Message, options: GenerateOptions) -> tuple[Message, FinishReason]:
    thinking = (message.reasoning or "").split()
    most = options.max_reasoning_tokens
    room = options.max_tokens if most is None else min(most, options.max_tokens)
    if len(thinking) > room:
        return evolve(message, reasoning=" ".join(thinking[:room]), content="", tool_calls=()), "length"
    room = options.max_tokens - len(thinking)
    if _words(message) - len(thinking) > room:
        return evolve(message, content=" ".join(message.content.split()[:room]), tool_calls=()), "length"
    return message, "tool_calls" if message.tool_calls else "stop"
