"""What speaks: tokenizers, chat formats, and the model as the agent knows it.

Tokenizer and chat format are sync, on the engine's one thread; `ChatModel.generate` is async.
"""

from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any, Protocol

from attrs import field, frozen

from k2core.messages import Delta, Message, TurnEnd, Usage


class Tokenizer(Protocol):
    """Text to token ids and back."""

    vocab_size: int
    control: Mapping[str, int]  # control token text -> id

    def encode(self, text: str, *, control: bool = False) -> list[int]:
        """Token ids of *text*. With *control* off (the default) a literal ``<|im_end|>`` is plain text."""
        ...

    def decode(self, token_ids: Sequence[int], *, control: bool = True) -> str:
        """Text of ids; bytes that are not UTF-8 become U+FFFD. With *control* off, control tokens are left out."""
        ...

    def decode_bytes(self, token_ids: Sequence[int]) -> bytes:
        """The exact bytes of ids, control tokens as their text."""
        ...


class TurnParser(Protocol):
    """Incremental parser of one model turn, from the first id after the assistant header."""

    done: bool  # the end marker was seen

    def feed(self, token_ids: Sequence[int]) -> list[Delta]:
        """Deltas that became certain with these ids."""
        ...

    def finish(self) -> tuple[list[Delta], Message]:
        """Flush what is held back and return the whole turn; its `token_ids` are all ids fed."""
        ...


class ChatFormat(Protocol):
    """Messages to token ids and one model turn back to parts."""

    stop_ids: tuple[int, ...]

    def normalise(self, messages: Sequence[Message]) -> list[Message]:
        """The same conversation in the form that `render` sees: default system message, call ids renamed, history rule
        applied. Idempotent.

        Raises:
            FormatError: a tool message without a call, or a role out of place; names the message's index.
        """
        ...

    def render(
        self, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]] = (), *, generate: bool = True
    ) -> list[int]:
        """Token ids of the conversation; with *generate*, the header of the next assistant turn follows.

        Args:
            messages: the conversation; `Message.token_ids` of turns of the current chain are used verbatim.
            tools: declarations in OpenAI's form, ``{"type": "function", "function": {...}}``.
            generate: whether to open an assistant turn.
        """
        ...

    def parser(self, *, next_call_index: int = 0, tools: Sequence[str] = ()) -> TurnParser:
        """A parser for one turn.

        Args:
            next_call_index: number that the turn's first call should carry.
            tools: declared names; a call whose id lost its name is resolved by them.
        """
        ...

    def grammar(self, tools: Sequence[Mapping[str, Any]], options: "GenerateOptions", *, next_call_index: int = 0) -> str:
        """What one turn may be, as a Lark grammar in llguidance's dialect; control tokens stand in it as ``<[ID]>``.

        Args:
            tools: declarations as for `render`.
            options: what the turn is held to.
            next_call_index: as for `parser`.

        Raises:
            InputError: the options name a tool that is not declared, or leave nothing that the turn could be.
        """
        ...


@frozen(kw_only=True)
class GenerateOptions:
    """How to generate one turn.

    Attributes:
        max_tokens: the most tokens to generate, thinking included.
        temperature: 0 is greedy.
        top_p: nucleus; 1 is off.
        min_p: least probability relative to the best; 0 is off.
        seed: of the counter-based random numbers.
        path: which of several parallel trajectories this is; part of the counter.
        max_reasoning_tokens: thinking beyond this many tokens stops the turn with ``length``; None is no limit.
        masks: a turn is valid by construction, as far as model and chat format can: no other token can be drawn.
        tool_choice: ``auto``, ``none``, ``required`` (at least one call), or the name of the one tool to call.
        response_schema: JSON Schema of the content of a turn that calls nothing; None is free text.
        forbidden_tools: declared names that must not be called in this turn.
        forbidden_calls: (name, arguments' JSON text) of calls that must not be made in this turn.
        calls_left_out: how many calls of the conversation the messages no longer show; numbers go on after them too.
    """

    max_tokens: int = 1024
    temperature: float = 0.0
    top_p: float = 1.0
    min_p: float = 0.0
    seed: int = 0
    path: int = 0
    max_reasoning_tokens: int | None = None
    masks: bool = True
    tool_choice: str = "auto"
    response_schema: Mapping[str, Any] | None = None
    forbidden_tools: tuple[str, ...] = ()
    forbidden_calls: tuple[tuple[str, str], ...] = ()
    calls_left_out: int = 0


@frozen(kw_only=True)
class Prices:
    """What a million tokens cost, in any currency.

    Attributes:
        prompt: prompt tokens that were not cached.
        cached: prompt tokens that were.
        generated: tokens of the model's turns.
    """

    prompt: float = 0.0
    cached: float = 0.0
    generated: float = 0.0

    def of(self, usage: Usage) -> float:
        """What a turn cost."""
        fresh = usage.prompt_tokens - usage.cached_tokens
        return (fresh * self.prompt + usage.cached_tokens * self.cached + usage.completion_tokens * self.generated) / 1e6


@frozen(kw_only=True)
class ModelProfile:
    """What the agent should know of a model.

    Attributes:
        system: the system text that the model expects; None leaves the agent's own.
        context: tokens of context the agent may fill.
        temperature: recommended temperature.
        description: one line for listings.
        controls: control tools that the model is told of, beside `answer` and `note`; None is all of them.
        memory: what makes room in its context unless another memory is chosen, by name; None is ``rules``.
        prices: nothing for a model of one's own.
    """

    context: int
    system: str | None = None
    temperature: float = 1.0
    description: str = ""
    controls: tuple[str, ...] | None = None
    memory: str | None = None
    prices: Prices = field(factory=Prices)


class ChatModel(Protocol):
    """All that the agent knows of a model: the engine over a loaded model, a remote endpoint, or a script."""

    name: str
    profile: ModelProfile

    def generate(
        self, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]], options: GenerateOptions
    ) -> AsyncIterator[Delta | TurnEnd]:
        """Stream one turn; the last part is a `TurnEnd`. Closing the iterator early cancels."""
        ...

    def identity(self) -> Mapping[str, str]:
        """What the journal records: model, backend, numerics, weights hash, kernel path."""
        ...

    def close(self) -> None:
        """Give everything back."""
        ...
