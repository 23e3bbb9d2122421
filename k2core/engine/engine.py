"""A chat model over a loaded model: render, share prefixes, prefill, decode, sample, parse, stream; many turns at once.

The model and all that follows a forward run on one worker thread per engine. A second one prepares: it renders prompts and
compiles grammars, so that a long one keeps nobody waiting. Event loops only take parts out of a queue. From the outside in:

    request     a turn asked for, and the way of its parts to the event loop
    scheduler   who computes what next: one forward per step over all turns that run
    turn        one turn: rows of logits to tokens, tokens to parts
    prefix      which tokens need no computing
    memory      how much cache there may be
    grammar     which tokens are allowed
    drafts      guesses that let one forward compute several tokens
    sampler     logits to a token
    following   a turn once more, along the tokens that it had
"""

import asyncio
import atexit
import contextlib
import os
import queue
import threading
import weakref
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from attrs import field, frozen

from k2core.engine.drafts import Drafter, Followers
from k2core.engine.fingerprint import fingerprint
from k2core.engine.following import Followed, Following
from k2core.engine.grammar import Constraint, Masks
from k2core.engine.memory import MemoryPlan
from k2core.engine.options import MOST_DRAFTS, checked, sampler_of, whole
from k2core.engine.prefix import PrefixTree
from k2core.engine.request import Delivery, Request, refuse
from k2core.engine.scheduler import Scheduler
from k2core.engine.shadow import ShadowModel, ShadowReport
from k2core.engine.switch import SwitchReport, closed_aloud, judge
from k2core.engine.turn import Turn
from k2core.errors import CapacityError, InputError, K2Error
from k2core.interfaces import ChatFormat, GenerateOptions, LoadedModel, ModelProfile, Tokenizer
from k2core.messages import Delta, Message, TurnEnd

FIRST_QUESTION = "What is 23 times 47?"  # scored by two models where there is no conversation yet


@frozen(kw_only=True, eq=False)
class _Switch:
    """Another model to go on with; asked for by one thread, made by the engine's."""

    model: LoadedModel
    backend: str
    check: int
    limit: float | None
    done: "Future[SwitchReport]" = field(factory=Future)


@frozen(kw_only=True)
class Load:
    """What an engine is doing.

    Attributes:
        running, waiting: turns with and without a place.
        prompt_tokens, cached_tokens: of all prompts so far, and those that were in a cache already.
        computed_tokens: that went through the model so far.
        used_blocks, most_blocks: of the cache.
    """

    running: int
    waiting: int
    prompt_tokens: int
    cached_tokens: int
    computed_tokens: int
    used_blocks: int
    most_blocks: int

    @property
    def hit_rate(self) -> float:
        """Share of all prompt tokens that needed no computing."""
        return self.cached_tokens / self.prompt_tokens if self.prompt_tokens else 0.0


class EngineModel:
    """A `ChatModel` over a `LoadedModel`.

    Attributes:
        name: the model's name.
        profile: what the agent should know of it; ``profile.context`` bounds prompt and completion together.
    """

    def __init__(
        self,
        *,
        name: str,
        backend: str,
        model: LoadedModel,
        tokenizer: Tokenizer,
        chat_format: ChatFormat,
        profile: ModelProfile,
        checkpoint: Path | None = None,
        most_running: int = 32,
        prefill_chunk: int = 512,
        interleave: int = 64,
        cache_bytes: int | None = None,
        drafts: int = 8,
        masks: bool = True,
    ) -> None:
        """An engine; it owns *model* from here on.

        Args:
            name: the model's name.
            backend: the backend's name.
            model: a loaded checkpoint without live sequences.
            tokenizer: of the same checkpoint.
            chat_format: over the same tokenizer.
            profile: see above.
            checkpoint: the folder to take the weights' fingerprint of; None leaves it empty.
            most_running: turns that generate at once; more wait.
            prefill_chunk: most tokens of prompts per forward while nothing is generated.
            interleave: the same while something is: what a prompt may delay others' next token by.
            cache_bytes: limit of the cache, see `MemoryPlan.of`.
            drafts: tokens guessed per forward at most, up to 64; 0 never guesses. What is generated does not depend on it.
            masks: with False, turns are never held to the grammar of calls, whatever their options say.

        Raises:
            CapacityError: the cache of one sequence of ``profile.context`` tokens does not fit.
            InputError: a number is none, or out of its range.
        """
        self.name = name
        self.profile = profile
        if cache_bytes is not None and whole("cache_bytes", cache_bytes) < 1:
            raise InputError(f"cache_bytes is {cache_bytes}, but a cache takes at least 1 byte")
        plan = MemoryPlan.of(model.memory(), profile.context, cache_bytes)
        self._backend = backend
        self._cache_bytes = cache_bytes
        self._tokenizer = tokenizer
        self._format = chat_format
        self._last: tuple[Sequence[Message], Sequence[Mapping[str, Any]]] | None = None  # the prompt rendered last
        self._checkpoint = checkpoint
        self._drafts = min(max(0, whole("drafts", drafts)), MOST_DRAFTS)
        self._followers = Followers()
        self._masks = Masks(tokenizer, chat_format.stop_ids) if masks and hasattr(chat_format, "grammar") else None
        self._preparing = ThreadPoolExecutor(1, "k2core-prepare")
        if self._masks is not None:  # a vocabulary of 163,840 tokens takes a second: while everything else is made ready
            self._preparing.submit(self._masks.start, 'start: "."\n')
        self._delivery = Delivery()
        self._requests: queue.SimpleQueue[Turn | _Switch | None] = queue.SimpleQueue()
        self._scheduler = Scheduler(
            model=model,
            prefix=PrefixTree(model=model, most_blocks=plan.blocks),
            plan=plan,
            most_running=max(1, most_running),
            prefill_chunk=max(1, prefill_chunk),
            interleave=max(1, interleave),
            most_guessed=self._drafts,
        )
        self._lock = threading.Lock()
        self._process = os.getpid()
        self._worker: threading.Thread | None = None
        self._closed = False
        self._identity: dict[str, str] | None = None
        self._switched = ""  # report of the last switch

    @property
    def plan(self) -> MemoryPlan:
        """The cache memory that turns are held to."""
        return self._scheduler.plan

    @property
    def prefix(self) -> PrefixTree:
        """The live sequences with their counters; to be read while no turn is running."""
        return self._scheduler.prefix

    @property
    def _model(self) -> LoadedModel:
        return self._scheduler.model

    def generate(
        self, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]], options: GenerateOptions
    ) -> AsyncIterator[Delta | TurnEnd]:
        """Stream one turn; see `ChatModel.generate`. Text deltas that wait together come as one.

        Closing the iterator, or cancelling the task that waits for it, stops the turn between two tokens; what was
        computed stays for a prompt that shares it, as long as there is room.

        Raises:
            InputError: an option is of the wrong type or out of its range, or asks for masks that there are none for.
            FormatError: the messages cannot be rendered.
            CapacityError: the prompt does not fit into the context; says both sizes.
            K2Error: the model failed, or the engine is closed.
        """
        return self._parts(messages, tools, options)

    async def follow(
        self,
        messages: Sequence[Message],
        tools: Sequence[Mapping[str, Any]],
        options: GenerateOptions,
        token_ids: Sequence[int],
    ) -> Followed:
        """Generate a turn that was generated before, and see which of its tokens are chosen again.

        Everything is as in `generate`, but where another token is chosen, the turn goes on with the one that it had.

        Args:
            messages, tools, options: as it was asked for.
            token_ids: of the turn, at least one.

        Raises:
            InputError: there are no tokens to follow; or as of `generate`.
            FormatError, CapacityError, K2Error: as of `generate`.
        """
        if not token_ids:
            raise InputError(f"cannot follow a turn of model '{self.name}' that has no tokens")
        following = Following(token_ids)
        async with contextlib.aclosing(self._parts(messages, tools, options, following)) as parts:
            ends = [part async for part in parts if isinstance(part, TurnEnd)]
        return following.ended(ends[-1].usage)

    async def _parts(
        self,
        messages: Sequence[Message],
        tools: Sequence[Mapping[str, Any]],
        options: GenerateOptions,
        following: Following | None = None,
    ) -> AsyncGenerator[Delta | TurnEnd, None]:
        """Parts of one turn; closing them early cancels it."""
        request = Request(
            messages=tuple(messages),
            tools=tuple(tools),
            options=options,
            sampler=sampler_of(options),
            loop=asyncio.get_running_loop(),
            following=following,
        )
        self._submit(request)
        try:
            while True:
                await request.ready.wait()
                request.ready.clear()
                while request.parts:
                    part = request.parts.popleft()
                    if isinstance(part, BaseException):
                        raise part
                    yield part
                    if isinstance(part, TurnEnd):
                        return
        finally:
            request.cancelled = True

    def identity(self) -> Mapping[str, str]:
        """Model, backend, numerics, weights' fingerprint, whether it is batch-invariant, and the backend's own `info`.

        The fingerprint is taken once, by the first call.
        """
        identity, switched = self._identity, self._switched
        if identity is None:
            identity = {
                "kernel": "",
                **self._model.info(),
                "model": self.name,
                "backend": self._backend,
                "numerics": self._model.numerics,
                "weights": "" if self._checkpoint is None else fingerprint(self._checkpoint),
                "batch_invariant": "yes" if self._model.batch_invariant else "no",
                **({"switch": switched} if switched else {}),
            }
            if self._switched == switched:  # else it is another model meanwhile
                self._identity = identity
        return dict(identity)

    def info(self) -> Mapping[str, str]:
        """What the backend reports of the model, as it is now."""
        return self._model.info()

    @property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer in use."""
        return self._tokenizer

    def renders_alike(self, chat_format: ChatFormat) -> bool:
        """Whether the prompt rendered last is the same token ids in *chat_format*, as it is where there was none."""
        return self._last is None or chat_format.render(*self._last) == self._format.render(*self._last)

    def speak(self, tokenizer: Tokenizer, chat_format: ChatFormat) -> None:
        """Go on with another tokenizer of the same vocabulary and a chat format over it; turns that run end as they began."""
        if self._masks is not None:
            self._masks = Masks(tokenizer, chat_format.stop_ids)
        self._tokenizer, self._format = tokenizer, chat_format

    @property
    def shadow(self) -> ShadowReport | None:
        """How the model compares with the one in its shadow; None where there is none."""
        return self._model.report if isinstance(self._model, ShadowModel) else None

    def use(self, model: LoadedModel, *, backend: str, check: int = 64, limit: float | None = None) -> SwitchReport:
        """Go on with another model of the same checkpoint, in the middle of everything; returns how the two differ.

        Between two steps the last *check* tokens of the conversation used last are scored on both. Within the limit, running
        turns go on with the new model, their caches computed again from token ids, and the old model is closed.

        Args:
            model: without live sequences; the engine owns it from here on, and closes it where the switch is refused.
            backend: its backend's name.
            check: tokens to compare; fewer where the conversation is shorter. Without one, a first question is taken.
            limit: largest difference of two logits; None is what the contract says, see `k2core.engine.limits`.

        Raises:
            SwitchRefused: they differ by more; says by how much. Everything goes on with the old model.
            InputError: it has other numerics and no limit is given, a number is out of range, or it is another checkpoint.
            CapacityError: the new model has no room for the context.
            K2Error: the engine is closed.
        """
        wanted = _Switch(model=model, backend=backend, check=check, limit=limit)
        try:
            with self._lock:
                self._check_open("switch")
                self._requests.put(wanted)
        except K2Error:
            model.close()
            raise
        try:
            return wanted.done.result()
        except BaseException:  # an interrupt; a switch that has begun is the worker's to end
            if wanted.done.cancel():
                model.close()
            raise

    def load(self) -> Load:
        """What the engine is doing just now; numbers may be a step apart while it runs."""
        return Load(
            running=self._scheduler.running,
            waiting=self._scheduler.waiting,
            prompt_tokens=self.prefix.prompt_tokens,
            cached_tokens=self.prefix.cached_tokens,
            computed_tokens=self.prefix.computed_tokens,
            used_blocks=self._model.used_blocks(),
            most_blocks=self.plan.blocks,
        )

    def close(self) -> None:
        """Stop running turns, end the worker, give everything back. Closing twice is fine."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            worker = self._worker
        self._preparing.shutdown(cancel_futures=False)  # every request that was taken is in the queue then
        self._requests.put(None)
        if worker is not None:
            worker.join()
        _open.discard(self)
        self.prefix.clear()
        self._model.close()

    def _submit(self, request: Request) -> None:
        with self._lock:
            self._check_open("generate")
            self._preparing.submit(self._begin, request)

    def _check_open(self, what: str) -> None:
        """Start the worker, if it does not run yet.

        Raises:
            K2Error: the engine is closed, or it was made by another process.
        """
        if self._closed:
            raise K2Error(f"cannot {what} with model '{self.name}': it is closed. Open it again.")
        if os.getpid() != self._process:
            raise K2Error(
                f"cannot {what} with model '{self.name}' in a forked process: its threads stayed behind. "
                "Open the model in this process, or start the process by spawning it."
            )
        if self._worker is None:
            self._worker = threading.Thread(target=self._work, name="k2core-engine", daemon=True)
            self._worker.start()
            if not _open:
                atexit.register(_close_all)
            _open.add(self)

    def _work(self) -> None:
        scheduler, requests, delivery = self._scheduler, self._requests, self._delivery
        while True:
            while not (scheduler.busy and requests.empty()):
                asked = requests.get()
                if asked is None:
                    self._wind_down()
                    return
                if isinstance(asked, _Switch):
                    self._switch(asked)
                else:
                    scheduler.add(asked)
            try:
                scheduler.step()
            except BaseException as error:  # a mistake of the engine's own: nobody may wait for ever
                scheduler.fail_all(error)
            delivery.flush()

    def _wind_down(self) -> None:
        """The engine was closed: running turns end as cancelled, the others are told."""
        while not self._requests.empty():
            asked = self._requests.get()
            if isinstance(asked, Turn):
                self._scheduler.add(asked)
            elif asked is not None:
                self._switch(asked)
        self._scheduler.refuse_waiting(K2Error(f"model '{self.name}' was closed before this turn began"))
        self._scheduler.step()
        self._delivery.flush()

    def _switch(self, wanted: _Switch) -> None:
        if not wanted.done.set_running_or_notify_cancel():
            return  # given up, and the model closed, by who asked
        try:
            if self._closed:
                raise K2Error(f"cannot switch: model '{self.name}' was closed")
            old, new = self._model, wanted.model
            plan = MemoryPlan.of(new.memory(), self.profile.context, self._cache_bytes)
            ids, held = self._scheduler.conversation()
            ids = ids or self._format.render([Message(role="user", content=FIRST_QUESTION)])
            report = judge(old, new, ids, check=wanted.check, limit=wanted.limit, held=held)
            self._scheduler.move(new, plan)
        except BaseException as error:  # carried over to the waiting thread; the worker lives on with the old model
            wanted.done.set_exception(error)
            closed_aloud(wanted.model)
        else:
            self._backend, self._switched, self._identity = wanted.backend, str(report), None
            wanted.done.set_result(report)
            closed_aloud(old)

    def _begin(self, request: Request) -> None:
        """Make a turn of a request; on the thread that prepares."""
        if request.cancelled:
            return
        try:
            if self._closed:
                raise K2Error(f"model '{self.name}' was closed before this turn began")
            self._requests.put(self._turn(request))
        except BaseException as error:  # carried over to the waiting task
            refuse(request, error)

    def _turn(self, request: Request) -> Turn:
        prompt, context = self._format.render(request.messages, request.tools), self.profile.context
        self._last = request.messages, request.tools
        if len(prompt) >= context:
            raise CapacityError(
                f"the prompt takes {len(prompt)} tokens, but the model's context is {context} and the answer needs "
                "room too. Ask something shorter, offer fewer tools, or choose a model with a larger context."
            )
        calls = request.options.calls_left_out + sum(len(message.tool_calls) for message in request.messages)
        names = [str(tool["function"]["name"]) for tool in request.tools]
        delivery, options = self._delivery, request.options
        return Turn(
            prompt=prompt,
            sampler=request.sampler,
            parser=self._format.parser(next_call_index=calls, tools=names),
            options=options,
            stop_ids=frozenset(self._format.stop_ids),
            most=min(options.max_tokens, context - len(prompt)),
            grammar=self._grammar(request, calls),
            drafter=Drafter(most=self._drafts, followers=self._followers),
            put=lambda deltas: delivery.put(request, deltas),
            ended=lambda end: self._ended(request, calls, end),
            is_cancelled=lambda: request.cancelled or self._closed,
            asked=request.asked,
            following=request.following,
        )

    def _grammar(self, request: Request, calls: int) -> "Future[Constraint] | None":
        """What the turn is held to; compiled while its prompt is computed."""
        options, masks = request.options, self._masks
        if options.masks and masks is not None:
            grammar = self._format.grammar(request.tools, options, next_call_index=calls)
            schemas = {str(tool["function"]["name"]): tool["function"].get("parameters", {}) for tool in request.tools}
            return self._preparing.submit(masks.start, grammar, forbidden=options.forbidden_calls, schemas=schemas)
        asked = {
            "tool_choice": options.tool_choice != "auto",
            "response_schema": options.response_schema is not None,
            "forbidden_tools": bool(options.forbidden_tools),
            "forbidden_calls": bool(options.forbidden_calls),
        }
        if wanted := [name for name, is_asked in asked.items() if is_asked]:
            why = "they are off for this turn" if not options.masks else f"model '{self.name}' has none"
            raise InputError(f"{', '.join(wanted)} cannot be held to without masks, and {why}. Allow masks or leave it out.")
        return None

    def _ended(self, request: Request, calls: int, end: TurnEnd | BaseException) -> None:
        self._delivery.last(request, checked(end, request.options))
        if isinstance(end, TurnEnd) and end.message.tool_calls and request.options.masks and self._masks is not None:
            # the next turn of this chain is held to the same but for its calls' number: compile while the tools run
            with contextlib.suppress(RuntimeError):  # the engine is being closed
                self._preparing.submit(self._prepare, request, calls + len(end.message.tool_calls))

    def _prepare(self, request: Request, calls: int) -> None:
        """Compile what the turn after *calls* calls will be held to; what is wrong with it is that turn's to tell."""
        assert self._masks is not None  # asked before
        self._masks.start(self._format.grammar(request.tools, request.options, next_call_index=calls))


_open: "weakref.WeakSet[EngineModel]" = weakref.WeakSet()  # engines whose worker runs


def _close_all() -> None:
    """At the interpreter's exit: a thread inside compiled code must not outlive the memory that it works on."""
    for engine in list(_open):
        if engine._process == os.getpid():
            engine.close()
