"""Budgets of one question: calls, tokens, thinking, seconds, cost.

Every budget keeps a reserve. When only that is left, the model is told to conclude with what it has, and may do nothing else;
when that is used up too, the framework concludes. What a turn may use is capped by what is left before it begins, so a budget
is exceeded at most by the call that is in flight.
"""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from attrs import define, evolve, field, fields, frozen

from k2core.agent.resuming import Spent
from k2core.errors import UsageError
from k2core.interfaces import Prices
from k2core.messages import Usage

Clock = Callable[[], float]


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
        tokens: generated tokens, thinking included.
        reasoning_tokens: tokens of thinking.
        seconds: wall time.
        cost: in the currency of the model's prices; prompts count too.
    """

    calls: int | None = field(default=50, validator=_positive)
    tokens: int | None = field(default=None, validator=_positive)
    reasoning_tokens: int | None = field(default=32_000, validator=_positive)
    seconds: float | None = field(default=600.0, validator=_positive)
    cost: float | None = field(default=None, validator=_positive)

    def by_name(self) -> dict[str, float | None]:
        """As the journal has them."""
        return {name: getattr(self, name) for name in NAMES}

    def changed(self, wanted: Mapping[str, float | None]) -> "Limits":
        """These limits with some of them others.

        Raises:
            UsageError: there is no such budget, or it is not more than 0.
        """
        unknown = sorted(set(wanted) - set(NAMES))
        if unknown:
            raise UsageError(f"there is no budget of {', '.join(unknown)}. Known: {', '.join(NAMES)}.")
        whole = {name: value if value is None or name in ("seconds", "cost") else int(value) for name, value in wanted.items()}
        return evolve(self, **whole)  # type: ignore[arg-type]  # int for those that count


NAMES = tuple(one.name for one in fields(Limits))

# What is kept back of a limit: a share of it, and at most so much.
RESERVES: Mapping[str, tuple[float, float]] = {
    "tokens": (1 / 8, 1024), "reasoning_tokens": (1 / 8, 512), "seconds": (1 / 10, 60.0), "cost": (1 / 10, float("inf")),
}  # fmt: skip
LEAST_CALLS = 3  # a budget of fewer calls keeps none back


EFFORTS: Mapping[str, Limits] = {
    "low": Limits(calls=10, reasoning_tokens=4_000, seconds=120.0),
    "medium": Limits(),
    "high": Limits(calls=150, reasoning_tokens=128_000, seconds=3_600.0),
    "max": Limits(calls=300, reasoning_tokens=512_000, seconds=4 * 3_600.0),
}


@frozen(kw_only=True)
class Reached:
    """A limit that was reached, or, where it is *near*, all but its reserve."""

    which: str
    limit: float
    used: float
    near: bool = False

    @property
    def flag(self) -> str:
        """Twice as much of it, on the command line."""
        return f"{self.which.replace('reasoning', 'thinking').replace('_', '-')} {2 * self.limit:g}"

    def __str__(self) -> str:
        what = self.which.replace("_", " ")
        unit = what.removesuffix("s") if self.limit == 1 else what
        return f"the budget of {self.limit:g} {unit} is {'nearly ' if self.near else ''}used up"


@define(kw_only=True)
class Budget:
    """What one question has used of its limits.

    Attributes:
        limits: see `Limits`; may be changed while the question is worked on.
        prices: of the model.
        clock: seconds from any start.
        calls, tokens, reasoning_tokens, cost: used.
        seconds_before: wall time of work before this budget was made, where the question goes on after an interruption.
    """

    limits: Limits
    prices: Prices = field(factory=Prices)
    clock: Clock = time.monotonic
    calls: int = 0
    tokens: int = 0
    reasoning_tokens: int = 0
    cost: float = 0.0
    seconds_before: float = 0.0
    _started: Any = field(init=False)

    def __attrs_post_init__(self) -> None:
        self._started = self.clock()

    @property
    def seconds(self) -> float:
        """Wall time of work."""
        return self.seconds_before + float(self.clock() - self._started)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """No time is used meanwhile: a person is asked something."""
        begun = self.clock()
        try:
            yield
        finally:
            self._started += self.clock() - begun

    def go_on(self, spent: Spent) -> None:
        """Count what the question has used before an interruption."""
        self.calls = spent.calls
        self.seconds_before = spent.seconds
        for usage in spent.usages:
            self.spend(usage)

    def spend(self, usage: Usage) -> None:
        """Account for a model turn."""
        self.tokens += usage.completion_tokens
        self.reasoning_tokens += usage.reasoning_tokens
        self.cost += self.prices.of(usage)

    def reached(self) -> Reached | None:
        """The first limit that is used up, or None."""
        return self._first(lambda which, limit: 0.0, near=False)

    def near(self) -> Reached | None:
        """The first limit of which nothing but the reserve is left, or None."""
        return self._first(reserve_of, near=True)

    def _first(self, kept: Callable[[str, float], float], *, near: bool) -> Reached | None:
        for which in NAMES:
            limit = getattr(self.limits, which)
            if limit is not None and getattr(self, which) >= limit - kept(which, limit):
                return Reached(which=which, limit=limit, used=round(getattr(self, which), 6), near=near)
        return None

    def left(self, which: str, *, reserve: bool) -> float | None:
        """What is left of a budget, with its *reserve* or without; None is no limit."""
        limit = getattr(self.limits, which)
        if limit is None:
            return None
        return max(0.0, float(limit - getattr(self, which) - (0.0 if reserve else reserve_of(which, limit))))

    def tokens_left(self, *, reserve: bool) -> int | None:
        """Tokens that the next turn may generate, by the budgets of tokens and of cost; None is no limit."""
        found = [self.left("tokens", reserve=reserve)]
        cost = self.left("cost", reserve=reserve)
        if cost is not None and self.prices.generated:
            found.append(cost * 1e6 / self.prices.generated)
        known = [one for one in found if one is not None]
        return max(1, int(min(known))) if known else None

    def reasoning_left(self, *, reserve: bool) -> int | None:
        """Thinking tokens that the next turn may use; None is no limit."""
        left = self.left("reasoning_tokens", reserve=reserve)
        return None if left is None else max(1, int(left))


def reserve_of(which: str, limit: float) -> float:
    """What is kept back of a limit for the conclusion, in its unit."""
    if which == "calls":
        return 1.0 if limit >= LEAST_CALLS else 0.0
    share, most = RESERVES[which]
    kept = min(share * limit, most)
    return float(int(kept)) if which.endswith("tokens") else kept
