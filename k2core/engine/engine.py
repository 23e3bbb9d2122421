"""A chat model over a loaded model: render, reuse the prefix, prefill, decode, sample, parse, stream.

All of it runs on one worker thread per engine, turn after turn in the order asked; the event loop only takes deltas out of a
queue. `generation.Generation.run` is the turn itself.
"""

import asyncio
import collections
import contextlib
import queue
import threading
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from attrs import define, field

from k2core.engine.fingerprint import fingerprint
from k2core.engine.generation import Generation
from k2core.engine.prefix import PrefixCache
from k2core.engine.sampler import Sampler
from k2core.errors import InputError, K2Error
from k2core.interfaces import ChatFormat, GenerateOptions, LoadedModel, ModelProfile, Tokenizer
from k2core.messages import Delta, Message, TurnEnd, joined

# Waking the event loop after every token would make the two threads fight for the interpreter: at 1,000 tokens/s and more
# a wake-up can cost the worker up to the switch interval of 5 ms.
FLUSH_INTERVAL_S = 0.02


@define(kw_only=True, eq=False)
class _Job:
    """One turn asked for; parts travel from the worker to the event loop through it."""

    messages: tuple[Message, ...]
    tools: tuple[Mapping[str, Any], ...]
    options: GenerateOptions
    sampler: Sampler
    loop: asyncio.AbstractEventLoop
    ready: asyncio.Event = field(factory=asyncio.Event)
    parts: "collections.deque[Delta | TurnEnd | BaseException]" = field(factory=collections.deque)
    cancelled: bool = False
    _held: list[Delta] = field(factory=list, init=False)
    _flushed: float = field(default=0.0, init=False)

    def put(self, deltas: Sequence[Delta], now: float) -> None:
        """Hand deltas over, at most one wake-up per flush interval; the first goes at once."""
        self._held.extend(deltas)
        if self._held and now - self._flushed >= FLUSH_INTERVAL_S:
            self._flushed = now
            self.flush()

    def flush(self, *last: TurnEnd | BaseException) -> None:
        """Hand over what is held, then *last*."""
        self.parts.extend(joined(self._held))
        self.parts.extend(last)
        self._held = []
        with contextlib.suppress(RuntimeError):  # the event loop is closed: nobody listens any more
            self.loop.call_soon_threadsafe(self.ready.set)


class EngineModel:
    """A `ChatModel` over a `LoadedModel`.

    Attributes:
        name: the model's name.
        profile: what the agent should know of it; ``profile.context`` bounds prompt and completion together.
        prefix: the prefix cache with its counters; to be read while no turn is running.
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
        prefill_chunk: int = 512,
        max_sequences: int = 4,
        max_cache_bytes: int | None = None,
    ) -> None:
        """An engine; it owns *model* from here on.

        Args:
            name: the model's name.
            backend: the backend's name.
            model: a loaded checkpoint.
            tokenizer: of the same checkpoint.
            chat_format: over the same tokenizer.
            profile: see above.
            checkpoint: the folder to take the weights' fingerprint of; None leaves it empty.
            prefill_chunk: most tokens of a prompt per forward; a turn can be cancelled between chunks.
            max_sequences: see `PrefixCache`.
            max_cache_bytes: see `PrefixCache`.
        """
        self.name = name
        self.profile = profile
        self.prefix = PrefixCache(model=model, max_sequences=max_sequences, max_bytes=max_cache_bytes)
        self._backend = backend
        self._model = model
        self._tokenizer = tokenizer
        self._format = chat_format
        self._checkpoint = checkpoint
        self._chunk = max(1, prefill_chunk)
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._worker: threading.Thread | None = None
        self._running: _Job | None = None
        self._closed = False
        self._identity: dict[str, str] | None = None

    async def generate(
        self, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]], options: GenerateOptions
    ) -> AsyncIterator[Delta | TurnEnd]:
        """Stream one turn; see `ChatModel.generate`. Text deltas that wait together come as one.

        Closing the iterator, or cancelling the task that waits for it, stops the turn between two tokens; what was
        computed stays in the prefix cache.

        Raises:
            InputError: an option is out of its range.
            FormatError: the messages cannot be rendered.
            CapacityError: the prompt does not fit into the context; says both sizes.
            K2Error: the model failed, or the engine is closed.
        """
        sampler = Sampler.of(options)
        if options.max_tokens < 1:
            raise InputError(f"max_tokens is {options.max_tokens}, but a turn has at least 1 token")
        job = _Job(
            messages=tuple(messages),
            tools=tuple(tools),
            options=options,
            sampler=sampler,
            loop=asyncio.get_running_loop(),
        )
        self._submit(job)
        try:
            while True:
                await job.ready.wait()
                job.ready.clear()
                while job.parts:
                    part = job.parts.popleft()
                    if isinstance(part, BaseException):
                        raise part
                    yield part
                    if isinstance(part, TurnEnd):
                        return
        finally:
            job.cancelled = True

    def identity(self) -> Mapping[str, str]:
        """Model, backend, numerics, weights' fingerprint, whether it is batch-invariant, and the backend's own `info`.

        The fingerprint is taken once, by the first call.
        """
        if self._identity is None:
            self._identity = {
                "kernel": "",
                **self._model.info(),
                "model": self.name,
                "backend": self._backend,
                "numerics": self._model.numerics,
                "weights": "" if self._checkpoint is None else fingerprint(self._checkpoint),
                "batch_invariant": "yes" if self._model.batch_invariant else "no",
            }
        return dict(self._identity)

    def close(self) -> None:
        """Stop a running turn, end the worker, give everything back. Closing twice is fine."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            worker, running = self._worker, self._running
            if running is not None:
                running.cancelled = True
            self._jobs.put(None)
        if worker is not None:
            worker.join()
        self.prefix.clear()
        self._model.close()

    def _submit(self, job: _Job) -> None:
        with self._lock:
            if self._closed:
                raise K2Error(f"cannot generate with model '{self.name}': it is closed. Open it again.")
            if self._worker is None:
                self._worker = threading.Thread(target=self._work, name="k2core-engine", daemon=True)
                self._worker.start()
            self._jobs.put(job)

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            with self._lock:
                self._running = job
                closed = self._closed
            if closed:
                job.flush(K2Error(f"model '{self.name}' was closed before this turn began"))
                continue
            if job.cancelled:
                continue
            try:
                end = self._turn(job)
            except BaseException as error:  # carried over to the waiting task; the worker lives on
                job.flush(error)
            else:
                job.flush(end)
            self._running = None

    def _turn(self, job: _Job) -> TurnEnd:
        started = time.perf_counter()
        prompt = self._format.render(job.messages, job.tools)
        calls = sum(len(message.tool_calls) for message in job.messages)
        names = [str(tool["function"]["name"]) for tool in job.tools]
        generation = Generation(
            model=self._model,
            prefix=self.prefix,
            sampler=job.sampler,
            parser=self._format.parser(next_call_index=calls, tools=names),
            stop_ids=frozenset(self._format.stop_ids),
            options=job.options,
            context=self.profile.context,
            prefill_chunk=self._chunk,
            put=job.put,
            is_cancelled=lambda: job.cancelled,
        )
        return generation.run(prompt, started)
