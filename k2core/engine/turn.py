"""One turn as it runs: from a prompt's ids to a parsed message. The scheduler feeds it rows of logits."""

import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future

import numpy as np
from attrs import define, field

from k2core.engine.drafts import Drafter
from k2core.engine.following import Following
from k2core.engine.grammar import Constraint
from k2core.engine.prefix import LiveSequence
from k2core.engine.sampler import Sampler
from k2core.interfaces import Array, GenerateOptions, TurnParser
from k2core.messages import Delta, FinishReason, ReasoningDelta, TurnEnd, Usage

SURE = 0.8  # chance of a guess that makes it needless to ask the grammar, which takes longer


@define(kw_only=True, eq=False)
class Turn:
    """A turn between its prompt and its end.

    Attributes:
        prompt: ids of the rendered conversation, assistant header included.
        sampler: chooses tokens.
        parser: of this turn.
        options: limits of the turn.
        stop_ids: ids that end a turn.
        most: tokens that may be generated at most.
        grammar: what the turn is held to, once it is compiled; None allows every token.
        drafter: guesses ahead.
        put: takes deltas as they become certain.
        ended: told of its end, or of what went wrong.
        is_cancelled: asked before each step.
        asked: when the turn was asked for (`time.perf_counter`).
        following: tokens that it goes along whatever the model would choose; None for a turn that is the model's own.
        sequence: in the model's cache, once the turn has its place.
        finish: why it ended, None while it runs.
        computed: tokens that went through the model for it.
        model_seconds: its share of the time of these forwards.
    """

    prompt: list[int]
    sampler: Sampler
    parser: TurnParser
    options: GenerateOptions
    stop_ids: frozenset[int]
    most: int
    grammar: "Future[Constraint] | None"
    drafter: Drafter
    put: Callable[[Sequence[Delta]], None]
    ended: Callable[[TurnEnd | BaseException], None]
    is_cancelled: Callable[[], bool]
    asked: float
    following: Following | None = None
    sequence: LiveSequence | None = None
    finish: FinishReason | None = None
    computed: int = 0
    model_seconds: float = 0.0
    _constraint: Constraint | None = field(default=None, init=False)
    _cached: int = field(default=0, init=False)
    _generated: list[int] = field(factory=list, init=False)
    _begun: float | None = field(default=None, init=False)
    _first: float | None = field(default=None, init=False)
    _thinking: int = field(default=0, init=False)
    _pending: int = field(default=0, init=False)
    _is_over: bool = field(default=False, init=False)  # there is nothing left to follow
    _is_open: bool = field(default=False, init=False)  # some text was seen: before it, no delta means an opening marker

    def begin(self, sequence: LiveSequence) -> None:
        """The turn has its place: *sequence* holds a beginning of its prompt."""
        self.sequence, self._cached, self._begun = sequence, len(sequence.ids), time.perf_counter()
        if self.drafter.most:
            self.drafter.begin(self.prompt)

    @property
    def is_ready(self) -> bool:
        """A token can be chosen without waiting for anything but the model."""
        return self.grammar is None or self.grammar.done()

    @property
    def longest(self) -> int:
        """Tokens that its sequence may have at most."""
        return len(self.prompt) + self.most

    @property
    def held(self) -> int:
        """Tokens that its sequence has."""
        return 0 if self.sequence is None else len(self.sequence.ids)

    @property
    def left(self) -> int:
        """Tokens of the prompt that are not computed yet."""
        return max(0, len(self.prompt) - self.held)

    def propose(self, limit: int, least: float) -> tuple[list[int], list[float]]:
        """Tokens to try behind the last one, see `Drafter.propose`."""
        limit = min(limit, self.most - len(self._generated) - 1)
        if limit < 1 or not self.drafter.most:
            return [], []
        guess, chances = self.drafter.propose(limit, least)
        if self._constraint is not None and (not chances or chances[0] < SURE) and (forced := self._constraint.forced()):
            return self.drafter.propose(limit, least, forced)
        return guess, chances

    @property
    def is_writing(self) -> bool:
        """A token was chosen: the prompt is computed."""
        return bool(self._generated)

    @property
    def last(self) -> int:
        """The token chosen last."""
        return self._generated[-1]

    def take(self, rows: Array, guess: Sequence[int] = ()) -> int:
        """Choose tokens from *rows*, one after the other, as long as they are what was guessed.

        Args:
            rows: (1 + guessed, vocab) float32: logits behind the last token and behind each guessed one.
            guess: what was guessed.

        Returns:
            how many of the guessed tokens were right and are computed.
        """
        if self._constraint is None and self.grammar is not None:
            self._constraint = self.grammar.result()
        right = 0
        for row in rows:
            token = self._led(self._choose(row), row)
            self._add(token)
            if right == len(guess) or token != guess[right]:
                break
            right += 1
            if self.finish is not None:
                break
        if guess:
            self.drafter.tried(len(guess), right)
        return right

    def end(self) -> TurnEnd:
        """The whole turn; what the parser held back is put first.

        The last generated token is not computed, unless it was guessed: no logits are wanted after it. When the next prompt
        repeats the turn's `Message.token_ids`, that token is the first one to compute.
        """
        if self.drafter.most:
            self.drafter.learn()
        deltas, message = self.parser.finish()
        self.put(deltas)
        now = time.perf_counter()
        begun = now if self._begun is None else self._begun
        first = now if self._first is None else self._first
        finish = self.finish or "cancelled"
        usage = Usage(
            prompt_tokens=len(self.prompt),
            cached_tokens=self._cached,
            completion_tokens=len(self._generated),
            reasoning_tokens=self._thinking,
            computed_tokens=self.computed,
            seconds=now - self.asked,
            model_seconds=self.model_seconds,
            queued_seconds=begun - self.asked,
            prefill_seconds=first - begun,
            decode_seconds=now - first,
            mask_seconds=0.0 if self._constraint is None else self._constraint.seconds,
            drafted_tokens=self.drafter.drafted,
            accepted_tokens=self.drafter.accepted,
        )
        has_called = finish == "stop" and bool(message.tool_calls)
        return TurnEnd(message=message, finish_reason="tool_calls" if has_called else finish, usage=usage)

    def _choose(self, logits: Array) -> int:
        position = len(self.prompt) + len(self._generated)
        constraint = self._constraint
        if constraint is None:
            return self.sampler.sample(logits, position)
        if self.sampler.temperature == 0.0 and constraint.allows(token := self.sampler.sample(logits, position)):
            return token  # the largest of all is the largest of those allowed
        return self.sampler.sample(np.where(constraint.mask(len(logits)), logits, -np.inf), position)

    def _led(self, chosen: int, logits: Array) -> int:
        """The token to go on with: the one that the turn follows, where it follows any."""
        if self.following is None:
            return chosen
        token = self.following.see(chosen, logits)
        if token is None:
            self._is_over = True
            return chosen
        if token != chosen and self._constraint is not None and not self._constraint.allows(token):
            self._constraint = self.grammar = None  # it has left the grammar, which cannot be gone along any more
        return token

    def _add(self, token: int) -> None:
        """Append a token and see whether it ends the turn.

        A token counts as thinking once a later or the same token's delta is of thinking, so that markers around it do not:
        tokens without a delta wait in *pending* for the next one to tell.
        """
        if self._first is None:
            self._first = time.perf_counter()
        self._generated.append(token)
        deltas = self.parser.feed((token,))
        if self._constraint is not None:
            self._constraint.accept(token, deltas)
        if self.drafter.most:
            self.drafter.add(token)
        if deltas:
            self._is_open = True
            self._thinking += self._pending + 1 if isinstance(deltas[-1], ReasoningDelta) else 0
            self._pending = 0
            self.put(deltas)
        elif self._is_open:
            self._pending += 1
        limit = self.options.max_reasoning_tokens
        if token in self.stop_ids or self.parser.done:
            self.finish = "stop"
        elif self._is_over or len(self._generated) >= self.most or (limit is not None and self._thinking > limit):
            self.finish = "length"
