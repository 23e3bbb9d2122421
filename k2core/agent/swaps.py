"""What carries out the parts of a session by now, what waits for the next question, and what of it is to be written."""

import hashlib
import json
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from attrs import define, field, frozen

from k2core.errors import K2Error, said
from k2core.events import Event, Part, Swapped, Warned
from k2core.interfaces import Tool

DEFAULT = "default"  # the implementation that is registered as the part itself
_NEXT = {"tool": "call", "verifier": "answer", "tokenizer": "turn"}
_WHY = {"tool": "is declared in other words by", "tokenizer": "becomes other token ids by"}


@frozen(kw_only=True)
class Swap:
    """What was asked for, and when it holds.

    Attributes:
        what: ``tool``, ``verifier`` or ``tokenizer``.
        name: of the part.
        old, new: implementations, before and asked for.
        at_once: it holds from the next call, answer or turn on; else from the next question on, since the model would be
            told something else and its prompt would begin anew.
    """

    what: Part
    name: str
    old: str
    new: str
    at_once: bool

    def __str__(self) -> str:
        if self.old == self.new and self.what == "tokenizer":
            return f"tokenizer {self.name if self.new == DEFAULT else self.new} is in use already"
        if self.old == self.new:
            return f"{self.name} is carried out by {self.new} already"
        if self.at_once:
            return f"{self.name} is carried out by {self.new} from the next {_NEXT[self.what]} on (before: {self.old})"
        what = "the conversation" if self.what == "tokenizer" else self.name
        return (
            f"{what} {_WHY[self.what]} {self.new}: the prompt would begin anew, so it waits for the next question "
            f"(until then: {self.old})"
        )


@define
class Swaps:
    """What carries out the parts of a session.

    Every swap and every refusal is an event. It waits here, in order, for the run that it belongs to: see `Agent.write_swaps`.

    Attributes:
        now: of every part that may be swapped, the implementation in use.
        declared: of every tool that may be swapped, the hash of what its default declares.
        alike: of parts that were swapped, whether the model is told the same as before.
        told: called behind each `tell`.
    """

    now: dict[tuple[Part, str], str] = field(factory=dict)
    declared: dict[str, str] = field(factory=dict)
    alike: dict[tuple[Part, str], bool] = field(factory=dict)
    told: Callable[[], None] | None = None
    _later: dict[tuple[Part, str], tuple[str, str, Callable[[], None]]] = field(factory=dict)
    _unwritten: list[Event] = field(factory=list)
    _lock: threading.Lock = field(factory=threading.Lock)

    def ask(self, what: Part, name: str, new: str, put: Callable[[], None], *, at_once: bool, declaration: str = "") -> Swap:
        """Have *new* carry out a part: by *put* now, or when `settle` is called next. What waited for the part is forgotten.

        *declaration* is the hash of what a tool declares then.
        """
        key = what, name
        old = self.now[key]
        self._later.pop(key, None)
        if old != new and at_once:
            self._put(key, new, declaration, put, alike=True)
        elif old != new:
            self._later[key] = new, declaration, put
        return Swap(what=what, name=name, old=old, new=new, at_once=at_once or old == new)

    def settle(self) -> None:
        """Let what waits hold, in the order in which it was asked for; between two questions only."""
        while self._later:
            key = next(iter(self._later))
            new, declaration, put = self._later.pop(key)
            self._put(key, new, declaration, put, alike=False)

    @contextmanager
    def asked(self, what: str) -> Iterator[None]:
        """A swap of *what* is asked for within; where it is refused, that is an event, with the reason and its figures."""
        try:
            yield
        except K2Error as error:
            self.tell(Warned(text=f"the swap of {what} was refused: {said(error)}"))
            raise

    def tell(self, event: Event) -> None:
        """Have an event written into the run that it belongs to."""
        with self._lock:
            self._unwritten.append(event)
        if self.told is not None:
            self.told()

    def take(self) -> list[Event]:
        """What is to be written, for who writes it."""
        with self._lock:
            taken, self._unwritten = self._unwritten, []
        return taken

    def give_back(self, events: Sequence[Event]) -> None:
        """Have what was taken, and could not be written, wait on."""
        with self._lock:
            self._unwritten[:0] = events

    def _put(self, key: tuple[Part, str], new: str, declaration: str, put: Callable[[], None], *, alike: bool) -> None:
        put()
        old, self.now[key], self.alike[key] = self.now[key], new, alike
        self.tell(Swapped(what=key[0], name=key[1], old=old, new=new, same_prompt=alike, declaration=declaration))


def declaration_hash(one: Tool) -> str:
    """Sha256 (hex) of what the model is told of a tool, as canonical JSON."""
    return declarations_hash(one.declaration())


def declarations_hash(declared: Mapping[str, Any] | Sequence[Mapping[str, Any]]) -> str:
    """The same of one declaration, or of a list of them."""
    canonical = json.dumps(declared, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(canonical.encode("utf-8", "surrogatepass")).hexdigest()
