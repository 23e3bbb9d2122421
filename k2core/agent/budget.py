"""Budgets of one question: calls, thinking tokens, seconds. Reaching one ends the run with what is known."""

import time
from collections.abc import Callable
from typing import Any

from attrs import define, field, fields, frozen

from k2core.agent.resuming import Spent
from k2core.errors import UsageError
from k2core.messages import Usage


def _positive(limits: Any, attribute: Any, value: float | None) -> None:
    if value is not None and not value > 0:
        raise UsageError(
            f"the budget of {attribute.name.replace('_', ' ')} is {value}, expected more than 0 (or none for no limit)"
        )


@frozen(kw_only=True)
class Limits:
    """The most that one question may use; None is no limit.

    Attributes:
        calls: tool calls, control tools included.
        reasoning_tokens: tokens of thinking.
        seconds: wall time.
    """

    calls: int | None = field(default=50, validator=_positive)
    reasoning_tokens: int | None = field(default=32_000, validator=_positive)
    seconds: float | None = field(default=600.0, validator=_positive)

    def by_name(self) -> dict[str, float | None]:
        """As the journal has them."""
        return {one.name: getattr(self, one.name) for one in fields(type(self))}


@frozen(kw_only=True)
class Reached:
    """A limit that was reached."""

    which: str
    limit: float
    used: float

    def __str__(self) -> str:
        what = self.which.replace("_", " ")
        return f"the budget of {self.limit:g} {what.removesuffix('s') if self.limit == 1 else what} is used up"


@define(kw_only=True)
class Budget:
    """What one question has used of its limits.

    Attributes:
        limits: see `Limits`.
        clock: seconds from any start.
        calls: made.
        reasoning_tokens: generated.
        seconds_before: wall time of work before this budget was made, where the question goes on after an interruption.
    """

    limits: Limits
    clock: Callable[[], float] = time.monotonic
    calls: int = 0
    reasoning_tokens: int = 0
    seconds_before: float = 0.0
    _started: Any = field(init=False)

    def __attrs_post_init__(self) -> None:
        self._started = self.clock()

    @property
    def seconds(self) -> float:
        """Wall time of work."""
        return self.seconds_before + float(self.clock() - self._started)

    @classmethod
    def behind(cls, limits: Limits, spent: Spent) -> "Budget":
        """The budget of a question that has used something already."""
        return cls(limits=limits, calls=spent.calls, reasoning_tokens=spent.reasoning_tokens, seconds_before=spent.seconds)

    def spend(self, usage: Usage) -> None:
        """Account for a model turn."""
        self.reasoning_tokens += usage.reasoning_tokens

    def reached(self) -> Reached | None:
        """The first limit that is used up, or None."""
        for which in ("calls", "reasoning_tokens", "seconds"):
            limit = getattr(self.limits, which)
            if limit is not None and getattr(self, which) >= limit:
                return Reached(which=which, limit=limit, used=round(getattr(self, which), 3))
        return None

    def reasoning_left(self) -> int | None:
        """Thinking tokens that the next turn may use; None is no limit."""
        limit = self.limits.reasoning_tokens
        return None if limit is None else max(1, limit - self.reasoning_tokens)

    def seconds_left(self) -> float | None:
        """Seconds left; None is no limit."""
        return None if self.limits.seconds is None else max(0.0, self.limits.seconds - self.seconds)
