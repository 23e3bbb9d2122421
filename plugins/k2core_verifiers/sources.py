"""What an answer may rest on: the question, and every successful call with its arguments."""

import json
from collections.abc import Iterable
from fractions import Fraction
from functools import lru_cache

from attrs import evolve, frozen

from k2core.interfaces import Observation, Trajectory
from k2core.tools import CONTROL_NAMES
from k2core_verifiers.names import Name, is_named, normalise
from k2core_verifiers.quantities import CONVERSIONS, Number, is_among, values_in


@frozen(kw_only=True)
class Source:
    """One text that numbers and names may be found in.

    Attributes:
        event: the journal's event it comes from.
        index: the call's IDX, None for the question.
        raw: the text; a call's arguments and its result, one after the other.
        words: the same for comparing names.
        values: every value in it.
        results: the values that stand in the call's result; none for the question.
    """

    event: int
    index: int | None
    raw: str
    words: str
    values: frozenset[Fraction]
    results: frozenset[Fraction] = frozenset()


def sources_of(trajectory: Trajectory) -> list[Source]:
    """The question first, then the calls that succeeded, in order.

    Failed calls ground nothing, and control tools neither: what the model itself wrote is no evidence. Nor does a call that
    computes with a number which nothing but an error message gave (``not JSON: … column 214``).
    """
    sources = [_source(trajectory.question_event, None, trajectory.question)]
    in_errors: set[Fraction] = set()
    for one in trajectory.observations:
        if one.tool in CONTROL_NAMES:
            continue
        if not one.ok or one.text.startswith("error: "):
            in_errors |= _analysed(one.text)[1]
            continue
        arguments = _argument_texts(one)
        if any(value in in_errors - CONVERSIONS and not _is_known(value, sources) for value in _analysed(arguments)[1]):
            continue
        source = _source(one.event, one.index, f"{one.tool}\n{arguments}\n{one.text}")
        sources.append(evolve(source, results=_analysed(one.text)[1]))
    return sources


def _is_known(value: Fraction, sources: Iterable[Source]) -> bool:
    return any(value in source.values for source in sources)


def events_with_number(number: Number, sources: Iterable[Source]) -> tuple[int, ...]:
    """Events of the sources that *number* is found in."""
    return tuple(source.event for source in sources if is_among(number, source.values))


def is_in_a_result(number: Number, sources: Iterable[Source]) -> bool:
    """Whether *number* stands in the result of a call, not only in the question or in arguments."""
    return any(is_among(number, source.results) for source in sources)


def events_with_name(name: Name, sources: Iterable[Source]) -> tuple[int, ...]:
    """Events of the sources that *name* is found in."""
    return tuple(source.event for source in sources if is_named(name, source.raw, source.words))


def _source(event: int, index: int | None, text: str) -> Source:
    words, values = _analysed(text)
    return Source(event=event, index=index, raw=text, words=words, values=values)


@lru_cache(maxsize=512)
def _analysed(text: str) -> tuple[str, frozenset[Fraction]]:
    return normalise(text), values_in(text)


def _argument_texts(one: Observation) -> str:
    try:
        arguments = json.loads(one.arguments)
    except (ValueError, RecursionError):
        return one.arguments
    if isinstance(arguments, dict):
        return "\n".join(
            value if isinstance(value, str) else json.dumps(value, ensure_ascii=False) for value in arguments.values()
        )
    return one.arguments
