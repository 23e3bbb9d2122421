"""One turn: from a prompt's ids to a parsed message, on the engine's thread."""

import time
from collections.abc import Callable, Sequence

from attrs import define, field

from k2core.engine.prefix import LiveSequence, PrefixCache
from k2core.engine.sampler import Sampler
from k2core.errors import CapacityError, K2Error
from k2core.interfaces import Array, GenerateOptions, LoadedModel, SequenceInput, TurnParser, Want
from k2core.messages import Delta, FinishReason, ReasoningDelta, TurnEnd, Usage

LAST, NONE = Want(logits="last"), Want(logits="none")


@define(kw_only=True, eq=False)
class Generation:
    """Everything that one turn needs; `run` it once.

    Attributes:
        model: the loaded model.
        prefix: its live sequences.
        sampler: chooses tokens.
        parser: of this turn.
        stop_ids: ids that end a turn.
        options: limits of the turn.
        context: most tokens of prompt and completion together.
        prefill_chunk: most tokens of the prompt per forward.
        put: takes deltas and the time (`time.perf_counter`) after each token.
        is_cancelled: asked between tokens and between chunks of the prompt.
    """

    model: LoadedModel
    prefix: PrefixCache
    sampler: Sampler
    parser: TurnParser
    stop_ids: frozenset[int]
    options: GenerateOptions
    context: int
    prefill_chunk: int
    put: Callable[[Sequence[Delta], float], None]
    is_cancelled: Callable[[], bool]
    _model_seconds: float = field(default=0.0, init=False)

    def run(self, prompt: list[int], started: float) -> TurnEnd:
        """Generate until the model ends its turn, a limit is reached or the turn is cancelled.

        The last generated token is not computed: no logits are wanted after it. When the next prompt repeats the turn's
        `Message.token_ids`, that token is the first one to compute.

        Args:
            prompt: ids of the rendered conversation, assistant header included.
            started: `time.perf_counter` when the turn began.

        Raises:
            CapacityError: the prompt leaves no room for a token.
            K2Error: the model failed; the prefix cache still tells the truth.
        """
        if len(prompt) >= self.context:
            raise CapacityError(
                f"the prompt takes {len(prompt)} tokens, but the model's context is {self.context} and the answer needs "
                "room too. Ask something shorter, offer fewer tools, or choose a model with a larger context."
            )
        computed_before = self.prefix.computed_tokens
        sequence = self.prefix.begin(prompt)
        cached = len(sequence.ids)
        logits = self._prefill(sequence, prompt[cached:])
        generated: list[int] = []
        reasoning = 0
        finish: FinishReason = "cancelled"
        if logits is not None:
            finish, reasoning = self._decode(sequence, logits, generated)
        deltas, message = self.parser.finish()
        now = time.perf_counter()
        self.put(deltas, now)
        if finish == "stop" and message.tool_calls:
            finish = "tool_calls"
        usage = Usage(
            prompt_tokens=len(prompt),
            cached_tokens=cached,
            completion_tokens=len(generated),
            reasoning_tokens=reasoning,
            computed_tokens=self.prefix.computed_tokens - computed_before,
            seconds=now - started,
            model_seconds=self._model_seconds,
        )
        return TurnEnd(message=message, finish_reason=finish, usage=usage)

    def _prefill(self, sequence: LiveSequence, rest: list[int]) -> Array | None:
        """Logits after the prompt, or None when the turn was cancelled before."""
        logits = None
        for start in range(0, len(rest), self.prefill_chunk):
            if self.is_cancelled():
                return None
            chunk = rest[start : start + self.prefill_chunk]
            is_last = start + len(chunk) == len(rest)
            logits = self._forward(sequence, chunk, LAST if is_last else NONE)
        return logits

    def _decode(self, sequence: LiveSequence, logits: Array, generated: list[int]) -> tuple[FinishReason, int]:
        """Append tokens to *generated*; returns why it stopped and how many of them were thinking.

        A token counts as thinking once a later or the same token's delta is of thinking, so that markers around it do
        not: tokens without a delta wait in *pending* for the next one to tell.
        """
        sample, feed, put, stop_ids = self.sampler.sample, self.parser.feed, self.put, self.stop_ids
        clock, is_cancelled = time.perf_counter, self.is_cancelled
        position = len(sequence.ids)
        most = min(self.options.max_tokens, self.context - position)
        thinking_limit = self.options.max_reasoning_tokens
        thinking = pending = 0
        is_open = False  # some text was seen: before it, a token without a delta is an opening marker
        while True:
            token = sample(logits[0], position)
            position += 1
            generated.append(token)
            deltas = feed((token,))
            if deltas:
                is_open = True
                thinking += pending + 1 if isinstance(deltas[-1], ReasoningDelta) else 0
                pending = 0
                put(deltas, clock())
            elif is_open:
                pending += 1
            if token in stop_ids or self.parser.done:
                return "stop", thinking
            if len(generated) >= most or (thinking_limit is not None and thinking > thinking_limit):
                return "length", thinking
            if is_cancelled():
                return "cancelled", thinking
            logits = self._forward(sequence, [token], LAST)

    def _forward(self, sequence: LiveSequence, token_ids: list[int], want: Want) -> Array:
        begun = time.perf_counter()
        try:
            step = self.model.forward([SequenceInput(handle=sequence.handle, token_ids=token_ids)], want)
        except K2Error:
            raise  # nothing has changed then, by contract
        except BaseException:
            self.prefix.drop(sequence)  # nobody knows what its cache holds
            raise
        self._model_seconds += time.perf_counter() - begun
        self.prefix.extend(sequence, token_ids)
        return step.logits
