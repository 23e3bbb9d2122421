"""Reading specifications key by key: whatever is wrong with one is a single line that names file and key."""

import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.resources.abc import Traversable

from k2core.errors import CheckpointError, K2Error
from k2core.model.fields import Fields

SPECS = "k2core_specs"


class SpecError(K2Error):
    """A specification is wrong; the message names file and key."""


@contextmanager
def opened(file: Traversable) -> Iterator[Fields]:
    """The keys of a file; what its reader finds wrong with them within is a `SpecError`.

    Raises:
        SpecError: it cannot be read, or a key is wrong.
    """
    try:
        data = tomllib.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise SpecError(f"cannot read specification {file}: {error}") from error
    try:
        yield Fields(where=str(file), data=data)
    except CheckpointError as error:  # what `Fields` raises
        raise SpecError(str(error)) from error


def check_keys(fields: Fields, required: tuple[str, ...], optional: tuple[str, ...] = ()) -> None:
    """See to it that a table has what it must have, and nothing that nobody knows.

    Raises:
        CheckpointError: it has not.
    """
    known = ", ".join(required + optional)
    for name in required:
        if name not in fields.data:
            raise fields.wrong(name, f"all of {', '.join(required)}")
    for name in fields.data:
        if name not in required + optional:
            raise fields.wrong(name, f"no such key; known are {known}")


def text(fields: Fields, key: str) -> str:
    """Some words.

    Raises:
        CheckpointError: there are none.
    """
    value = fields.get(key)
    if not isinstance(value, str) or not value.strip():
        raise fields.wrong(key, "a text")
    return value.strip()


def tables(fields: Fields, key: str) -> dict[str, Fields]:
    """The tables of a table, by name.

    Raises:
        CheckpointError: it is none, or holds something else.
    """
    inside = fields.inside(key)
    return {name: inside.inside(name) for name in inside.data}
