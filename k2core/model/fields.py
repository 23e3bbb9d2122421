"""Reading one JSON object key by key, with errors that name the file and the key."""

import math
from collections.abc import Mapping
from typing import Any

from attrs import field, frozen

from k2core.errors import CheckpointError

LARGEST = 2**31 - 1


@frozen(kw_only=True)
class Fields:
    """A JSON object of a file.

    Attributes:
        where: the file's name.
        data: the object.
        prefix: path of the object inside the file, e.g. ``text_config.``.
    """

    where: str
    data: Mapping[str, Any] = field(eq=False)
    prefix: str = ""

    def get(self, key: str) -> Any:
        """The raw value, None where it is missing or null."""
        return self.data.get(key)

    def wrong(self, key: str, expected: str) -> CheckpointError:
        """The error of a key that is missing or has another value than *expected*."""
        if self.data.get(key) is None:
            found = "is missing" if key not in self.data else "is null"
        else:
            text = repr(self.data[key])
            found = f"is {text if len(text) <= 60 else text[:57] + '...'}"
        return CheckpointError(f"{self.where}: key '{self.prefix}{key}' {found}, expected {expected}")

    def inside(self, key: str) -> "Fields":
        """The object under *key*."""
        value = self.data.get(key)
        if not isinstance(value, Mapping):
            raise self.wrong(key, "an object")
        return Fields(where=self.where, data=value, prefix=f"{self.prefix}{key}.")

    def integer(self, key: str, *, least: int = 1, most: int = LARGEST) -> int:
        """A whole number within bounds."""
        value = self.data.get(key)
        if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
            raise self.wrong(key, f"a whole number from {least} to {most}")
        return value

    def number(self, key: str, *, above: float | None = None, least: float | None = None) -> float:
        """A finite number, greater than *above*, at least *least*."""
        value = self.data.get(key)
        limits = [] if above is None else [f"above {above:g}"]
        limits += [] if least is None else [f"of at least {least:g}"]
        expected = " ".join(("a number", " and ".join(limits))).rstrip()
        if not isinstance(value, int | float) or isinstance(value, bool):
            raise self.wrong(key, expected)
        try:
            number = float(value)
        except OverflowError:
            raise self.wrong(key, expected) from None
        if not math.isfinite(number) or (above is not None and number <= above) or (least is not None and number < least):
            raise self.wrong(key, expected)
        return number

    def boolean(self, key: str) -> bool:
        """True or false."""
        value = self.data.get(key)
        if not isinstance(value, bool):
            raise self.wrong(key, "true or false")
        return value

    def fixed(self, key: str, only: Any, why: str) -> None:
        """A key that may be absent, and else must be *only*."""
        value = self.data.get(key)
        if value is not None and (value != only or isinstance(value, bool) != isinstance(only, bool)):
            raise self.wrong(key, f"{only!r}: {why}")

    def one_of(self, key: str, allowed: tuple[Any, ...], why: str) -> Any:
        """A key that must have one of the *allowed* values."""
        value = self.data.get(key)
        if not any(value == one for one in allowed):
            raise self.wrong(key, f"{' or '.join(repr(one) for one in allowed)}: {why}")
        return value

    def optional_id(self, key: str) -> int | None:
        """A token id, or None where the key is absent."""
        return None if self.data.get(key) is None else self.integer(key, least=0)

    def ids(self, key: str) -> tuple[int, ...]:
        """A token id or a list of them; empty where the key is absent."""
        value = self.data.get(key)
        if not isinstance(value, list):
            only = self.optional_id(key)
            return () if only is None else (only,)
        if not all(isinstance(one, int) and not isinstance(one, bool) and 0 <= one <= LARGEST for one in value):
            raise self.wrong(key, "a token id or a list of token ids")
        return tuple(value)
