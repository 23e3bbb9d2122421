"""Who computes what next: continuous batching over the turns that run, one forward per step.

- Turns get their place in the order asked, as long as there is one and their longest possible cache fits beside what the
  running ones may still take; the first that does not fit waits, and so do all behind it.
- Every running turn that generates takes part in every step: with its last token and, where few generate, guesses behind it.
- Prompts are computed in chunks. While others generate, all prompts together take at most `interleave` tokens of a step, so a
  long prompt slows others' tokens by a bounded amount; the shortest rest is served first, none gets more than its share.
- A prompt that begins like one that is being computed right now waits for the part they share, and then forks it.
"""

import time
from collections import deque
from collections.abc import Sequence

from attrs import define, field

from k2core.engine.memory import MemoryPlan
from k2core.engine.prefix import LiveSequence, PrefixTree, common_prefix
from k2core.engine.step_cost import StepCost, worthwhile
from k2core.engine.turn import Turn
from k2core.errors import K2Error
from k2core.interfaces import Array, LoadedModel, SequenceInput, Want
from k2core.messages import TurnEnd

_LAST = Want(logits="last")


@define(eq=False)
class _Piece:
    """What one turn gives to a step: new tokens, the last of which are a guess, and how many rows it gets back."""

    turn: Turn
    token_ids: list[int]
    rows: int
    guess: Sequence[int] = ()


@define(kw_only=True, eq=False)
class Scheduler:
    """The turns of one model. Single-threaded, as the model is.

    Attributes:
        model: computes.
        prefix: its live sequences.
        plan: its memory.
        most_running: turns in a batch.
        prefill_chunk: tokens of prompts per step while nothing is generated.
        interleave: the same while something is.
        most_guessed: tokens guessed per step, by all turns together.
        cost: what steps without prompts take.
    """

    model: LoadedModel
    prefix: PrefixTree
    plan: MemoryPlan
    most_running: int = 32
    prefill_chunk: int = 512
    interleave: int = 64
    most_guessed: int = 8
    cost: StepCost = field(factory=StepCost)
    _waiting: deque[Turn] = field(factory=deque, init=False)
    _running: list[Turn] = field(factory=list, init=False)
    _moved: list[int] = field(factory=list, init=False)  # the conversation that a move has forgotten
    _crowded: bool = field(default=False, init=False)  # the first in the queue did not fit; asked again when a turn has ended

    def add(self, turn: Turn) -> None:
        """Put a turn into the queue."""
        self._waiting.append(turn)

    @property
    def busy(self) -> bool:
        """Whether there is anything to do."""
        return bool(self._running or self._waiting)

    @property
    def waiting(self) -> int:
        """Turns without a place."""
        return len(self._waiting)

    @property
    def running(self) -> int:
        """Turns with a place."""
        return len(self._running)

    def refuse_waiting(self, reason: BaseException) -> None:
        """End every turn that has no place yet."""
        while self._waiting:
            self._waiting.popleft().ended(reason)

    def fail_all(self, error: BaseException) -> None:
        """End every turn with *error*, and forget what the cache holds."""
        self.refuse_waiting(error)
        for turn in list(self._running):
            self._running.remove(turn)
            turn.ended(error)
        self._crowded = False
        try:
            self.prefix.clear()
        except Exception:  # the backend cannot even free: what it holds is lost, and turns to come begin with nothing
            self.prefix = PrefixTree(model=self.model, most_blocks=self.plan.blocks)

    def recent(self) -> LiveSequence | None:
        """The sequence used last, one that runs before others; None where none has a token."""
        live = [one for one in self.prefix.live if one.ids]
        return max(live, key=lambda one: (one.in_use, one.used), default=None)

    def conversation(self) -> tuple[list[int], int | None]:
        """The tokens used last, and the live sequence that holds them; none where a move has forgotten its cache."""
        last = self.recent()
        return (self._moved, None) if last is None else (list(last.ids), last.handle)

    def move(self, model: LoadedModel, plan: MemoryPlan) -> None:
        """Go on with another model: what running turns have in the cache is computed again there, the rest is forgotten.

        Raises:
            K2Error: the new model failed; everything is as before, and it holds nothing.
        """
        tree, last = PrefixTree(model=model, most_blocks=plan.blocks), self.conversation()[0]
        moved: list[LiveSequence] = []
        try:
            for turn in self._running:
                assert turn.sequence is not None  # a turn with its place
                sequence = tree.begin([*turn.sequence.ids, 0])  # the token that comes next does not matter
                moved.append(sequence)
                while rest := turn.sequence.ids[len(sequence.ids) :][: self.prefill_chunk]:
                    model.forward([SequenceInput(handle=sequence.handle, token_ids=rest, rows=0)])
                    tree.extend(sequence, rest)
        except BaseException:
            tree.clear()
            raise
        for turn, sequence in zip(self._running, moved, strict=True):
            turn.sequence = sequence
        tree.prompt_tokens, tree.cached_tokens = self.prefix.prompt_tokens, self.prefix.cached_tokens
        tree.computed_tokens += self.prefix.computed_tokens
        self.prefix.clear()
        self.model, self.prefix, self.plan, self._crowded, self._moved = model, tree, plan, False, last

    def step(self) -> None:
        """Let turns in, run one forward, and hand its rows out."""
        for turn in [one for one in self._running if one.is_cancelled()]:
            turn.finish = "cancelled"
            self._end(turn)
        if self._waiting:
            for turn in [one for one in self._waiting if one.is_cancelled()]:
                self._waiting.remove(turn)
                self._crowded = False
                turn.ended(K2Error("the turn was cancelled, or its model was closed before this turn began"))
            self._admit()
        if pieces := self._pieces():
            self._run(pieces)

    def _admit(self) -> None:
        if self._crowded:
            return
        later: list[Turn] = []
        try:
            while self._waiting and len(self._running) < self.most_running:
                turn = self._waiting.popleft()
                if self._is_being_computed(turn.prompt):
                    later.append(turn)
                    continue
                try:
                    self._crowded = not self._let_in(turn)
                except Exception as error:  # its own: no memory for it, or the model refused
                    turn.ended(error)
                    continue
                if self._crowded:
                    self._waiting.appendleft(turn)
                    break
        finally:
            self._waiting.extendleft(reversed(later))

    def _let_in(self, turn: Turn) -> bool:
        """Give *turn* its place, if its longest possible cache fits; a turn that is alone always gets it."""
        sequence = self.prefix.begin(turn.prompt)
        self._moved = []
        need = self.plan.need(turn.longest, held=len(sequence.ids))
        try:
            fits = self.prefix.make_room(self._promised() + need) or not self._running
        except BaseException:
            self.prefix.drop(sequence)
            raise
        if not fits:
            self.prefix.give_up(sequence, turn.prompt)
            self.prefix.make_room(self._promised())
            return False
        turn.begin(sequence)
        self._running.append(turn)
        return True

    def _is_being_computed(self, prompt: list[int]) -> bool:
        """Whether a running turn is about to compute a part of *prompt* that nobody has computed yet."""
        known: int | None = None
        for one in self._running:
            if one.left:
                shared = common_prefix(one.prompt, prompt, len(prompt) - 1)
                known = self.prefix.shared(prompt) if known is None else known
                if shared > known:
                    return True
        return False

    def _promised(self) -> int:
        """Blocks that the running turns may still take."""
        return sum(self.plan.need(one.longest, held=one.held) for one in self._running)

    def _pieces(self) -> list[_Piece]:
        pieces: list[_Piece] = []
        prompts: list[Turn] = []
        writing: list[Turn] = []
        for turn in self._running:
            (writing if turn.is_writing else prompts).append(turn)
        for turn, guess in zip(writing, self._guesses(writing), strict=True):
            pieces.append(_Piece(turn, [turn.last, *guess], 1 + len(guess), guess))
        budget = self.interleave if writing else self.prefill_chunk
        prompts.sort(key=lambda one: one.left)
        for place, turn in enumerate(prompts):
            count = min(turn.left, max(1, budget // (len(prompts) - place)))
            if budget < 1:
                break
            if count == turn.left and not turn.is_ready and (pieces or place + 1 < len(prompts)):
                count -= 1  # its grammar is still being compiled: nobody shall wait for that, so its last token comes later
                if not count:
                    continue
            budget -= count
            assert turn.sequence is not None  # a turn with its place
            start = len(turn.sequence.ids)
            pieces.append(_Piece(turn, turn.prompt[start : start + count], int(count == turn.left)))
        return pieces

    def _guesses(self, writing: list[Turn]) -> list[Sequence[int]]:
        """What each turn shall try behind its last token: nothing where all of them together may guess less than one each."""
        if not 0 < len(writing) <= self.most_guessed:
            return [()] * len(writing)
        least = self.cost.least_chance(len(writing), self.most_guessed)
        proposed = [turn.propose(self.most_guessed, least) for turn in writing]
        lengths = worthwhile([chances for _, chances in proposed], self.cost, self.most_guessed)
        return [guess[:length] for (guess, _), length in zip(proposed, lengths, strict=True)]

    def _run(self, pieces: list[_Piece]) -> None:
        """One forward, and what follows from it for each turn."""
        batch = [
            SequenceInput(handle=piece.turn.sequence.handle, token_ids=piece.token_ids, rows=piece.rows)  # type: ignore[union-attr]
            for piece in pieces
        ]
        begun = time.perf_counter()
        try:
            logits = self.model.forward(batch, _LAST).logits
        except K2Error as error:  # nothing has changed then, by contract
            if len(pieces) == 1:
                self._leave(pieces[0].turn, error)
            else:
                for piece in pieces:  # only the one that cannot go on shall end
                    self._run([piece])
            return
        except BaseException as error:  # nobody knows what the caches of these sequences hold
            for piece in pieces:
                self._leave(piece.turn, error, drop=True)
            return
        seconds, tokens = time.perf_counter() - begun, sum(len(piece.token_ids) for piece in pieces)
        if tokens == sum(piece.rows for piece in pieces):  # no prompts
            self.cost.observe(tokens, seconds)
        per_token = seconds / tokens
        at = 0
        for piece in pieces:
            rows = logits[at : at + piece.rows]
            at += piece.rows
            self._hand_out(piece, rows, per_token)

    def _hand_out(self, piece: _Piece, rows: Array, per_token: float) -> None:
        turn, sequence = piece.turn, piece.turn.sequence
        assert sequence is not None  # a turn with its place
        kept = len(piece.token_ids) - len(piece.guess)
        turn.computed += len(piece.token_ids)
        if not turn.is_writing:
            turn.drafter.read(turn.prompt, len(sequence.ids), len(sequence.ids) + kept)
        turn.model_seconds += per_token * len(piece.token_ids)
        failure: BaseException | None = None
        try:
            kept += turn.take(rows, piece.guess) if piece.rows else 0
        except Exception as error:  # of this turn alone: its sampler, parser or mask
            failure = error
        refused = len(piece.token_ids) - kept
        if refused:
            self.model.truncate(sequence.handle, len(sequence.ids) + kept)
        self.prefix.extend(sequence, piece.token_ids[:kept], refused=refused)
        if failure is not None:
            self._leave(turn, failure)
        elif turn.finish is not None:
            self._end(turn)

    def _end(self, turn: Turn) -> None:
        try:
            end: TurnEnd | BaseException = turn.end()
        except Exception as error:  # the parser's
            end = error
        self._leave(turn, end)

    def _leave(self, turn: Turn, end: TurnEnd | BaseException, *, drop: bool = False) -> None:
        self._running.remove(turn)
        self._crowded = False
        assert turn.sequence is not None  # a turn with its place
        try:
            if drop:
                self.prefix.drop(turn.sequence)
            else:
                self.prefix.release(turn.sequence)
                self.prefix.make_room(self._promised())
        finally:
            turn.ended(end)
