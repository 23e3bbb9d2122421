"""Prepared experts within a limit of bytes: those used least recently make room."""

from collections import OrderedDict
from collections.abc import Callable
from typing import Generic, TypeVar

from attrs import define, field

from k2core.errors import CapacityError

Value = TypeVar("Value")


@define(eq=False)
class Kept(Generic[Value]):
    """A cache of values of one size.

    Attributes:
        limit, size: bytes of all and of one.
        how: one is prepared, for the error's line.
        hits, misses: how often one lay ready, and how often it was made.
    """

    limit: int
    size: int
    how: str
    hits: int = 0
    misses: int = 0
    _values: OrderedDict[tuple[int, int], Value] = field(factory=OrderedDict, init=False, repr=False)

    def __attrs_post_init__(self) -> None:
        if self.limit < self.size:
            raise CapacityError(
                f"cannot keep experts within {self.limit:,} bytes: one takes {self.size:,} {self.how}. Allow more."
            )

    def __len__(self) -> int:
        return len(self._values)

    def get(self, layer: int, expert: int, make: Callable[[], Value]) -> Value:
        """The value of an expert; room is made before it is made."""
        key = (layer, expert)
        if key in self._values:
            self.hits += 1
            self._values.move_to_end(key)
            return self._values[key]
        self.misses += 1
        while self._values and (len(self._values) + 1) * self.size > self.limit:
            self._values.popitem(last=False)
        self._values[key] = value = make()
        return value

    def clear(self) -> None:
        """Let go of all."""
        self._values.clear()
