"""Run somebody's function, sync or async, under a deadline.

A sync function runs in a daemon thread of its own: a thread cannot be killed, so one that never returns is left behind and
cannot keep the process from ending.
"""

import asyncio
import contextlib
import contextvars
import inspect
import threading
from collections.abc import Callable
from typing import Any

THREAD_NAME = "k2core-call"  # the command line mutes what threads of this name print


class DeadlineExceeded(Exception):
    """The function did not return in time.

    Attributes:
        timeout_s: the deadline in seconds.
    """

    def __init__(self, timeout_s: float) -> None:
        self.timeout_s = timeout_s
        super().__init__(f"timed out after {timeout_s:g} s")


async def run_with_deadline(function: Callable[..., Any], timeout_s: float, /, *arguments: Any, **keywords: Any) -> Any:
    """Call *function* and return its result; what it raises is raised here.

    Raises:
        DeadlineExceeded: it did not return within *timeout_s* seconds.
    """
    if inspect.iscoroutinefunction(function):
        work: asyncio.Future[Any] = asyncio.ensure_future(function(*arguments, **keywords))
    else:
        work = _in_thread(function, arguments, keywords)
    try:
        # not wait_for: a TimeoutError raised by the function itself must stay its own
        done, _ = await asyncio.wait([work], timeout=timeout_s)
    except asyncio.CancelledError:
        work.cancel()
        raise
    if not done:
        work.cancel()
        raise DeadlineExceeded(timeout_s)
    return work.result()


def _in_thread(function: Callable[..., Any], arguments: tuple[Any, ...], keywords: dict[str, Any]) -> "asyncio.Future[Any]":
    loop = asyncio.get_running_loop()
    future: asyncio.Future[Any] = loop.create_future()

    def settle(value: Any, error: BaseException | None) -> None:
        if future.done():
            return
        if error is None:
            future.set_result(value)
        else:
            future.set_exception(error)

    def body() -> None:
        value: Any = None
        error: BaseException | None = None
        try:
            value = function(*arguments, **keywords)
        except Exception as caught:  # carried over to the awaiting task
            # a future refuses StopIteration, which would be lost
            error = caught if not isinstance(caught, StopIteration) else RuntimeError("StopIteration")
        except BaseException as caught:  # SystemExit and the like must not end the host
            error = RuntimeError(f"{type(caught).__name__}: {caught}")
        with contextlib.suppress(RuntimeError):  # the loop is gone: nobody waits for the result
            loop.call_soon_threadsafe(settle, value, error)

    threading.Thread(target=contextvars.copy_context().run, args=(body,), name=THREAD_NAME, daemon=True).start()
    return future
