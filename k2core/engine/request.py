"""A turn that was asked for, and the way its parts take from the engine's thread to the event loop that waits for them."""

import asyncio
import collections
import contextlib
import time
from collections.abc import Mapping, Sequence
from typing import Any

from attrs import define, field

from k2core.engine.following import Following
from k2core.engine.sampler import Sampler
from k2core.interfaces import GenerateOptions
from k2core.messages import Delta, Message, TurnEnd, joined

# Waking an event loop after every token would make the two threads fight for the interpreter: at 1,000 tokens/s and more a
# wake-up can cost the engine up to the switch interval of 5 ms.
FLUSH_INTERVAL_S = 0.02


@define(kw_only=True, eq=False)
class Request:
    """One turn asked for.

    Attributes:
        messages, tools, options: as of `ChatModel.generate`.
        sampler: made of the options.
        loop: where the parts are waited for.
        ready: set, on the loop, when parts have come.
        parts: the last is a `TurnEnd` or what went wrong.
        following: see `Turn`.
        cancelled: nobody waits any more.
        asked: `time.perf_counter` when it was asked for.
    """

    messages: tuple[Message, ...]
    tools: tuple[Mapping[str, Any], ...]
    options: GenerateOptions
    sampler: Sampler
    loop: asyncio.AbstractEventLoop
    following: Following | None = None
    ready: asyncio.Event = field(factory=asyncio.Event)
    parts: "collections.deque[Delta | TurnEnd | BaseException]" = field(factory=collections.deque)
    cancelled: bool = False
    asked: float = field(factory=time.perf_counter)
    held: list[Delta] = field(factory=list, init=False)
    _silent: bool = field(default=True, init=False)  # nothing was handed over yet


def refuse(request: Request, error: BaseException) -> None:
    """End a request that never became a turn; from any thread."""
    request.parts.append(error)
    with contextlib.suppress(RuntimeError):  # the event loop is closed: nobody listens any more
        request.loop.call_soon_threadsafe(request.ready.set)


@define(eq=False)
class Delivery:
    """Hands over what requests hold, many with one wake-up."""

    _waiting: set[Request] = field(factory=set, init=False)
    _urgent: bool = field(default=False, init=False)
    _flushed: float = field(default=0.0, init=False)

    def put(self, request: Request, deltas: Sequence[Delta]) -> None:
        """Deltas for the next hand-over; the first ones of a request do not wait."""
        if deltas:
            request.held.extend(deltas)
            self._waiting.add(request)
            self._urgent |= request._silent

    def last(self, request: Request, last: TurnEnd | BaseException) -> None:
        """What a request holds, then its last part; does not wait."""
        request.parts.extend(joined(request.held))
        request.parts.append(last)
        request.held = []
        self._waiting.add(request)
        self._urgent = True

    def flush(self) -> None:
        """Hand over what is due: everything, at most once per interval unless something must not wait."""
        if not self._waiting:
            return
        now = time.perf_counter()
        if not self._urgent and now - self._flushed < FLUSH_INTERVAL_S:
            return
        self._flushed, self._urgent = now, False
        loops: dict[asyncio.AbstractEventLoop, list[asyncio.Event]] = {}
        for request in self._waiting:
            request.parts.extend(joined(request.held))
            request.held, request._silent = [], False
            loops.setdefault(request.loop, []).append(request.ready)
        self._waiting.clear()
        for loop, events in loops.items():
            with contextlib.suppress(RuntimeError):  # the event loop is closed: nobody listens any more
                loop.call_soon_threadsafe(_set, events)


def _set(events: list[asyncio.Event]) -> None:
    for event in events:
        event.set()
