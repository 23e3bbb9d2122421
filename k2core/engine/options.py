"""Options of a turn, checked before anything is made of them."""

import json
from numbers import Integral, Real

from k2core.engine.sampler import Sampler
from k2core.errors import InputError, K2Error
from k2core.interfaces import GenerateOptions
from k2core.messages import TurnEnd
from k2core.tools import schema_errors

_KINDS = {
    "max_tokens": (Integral, "a whole number"),
    "max_reasoning_tokens": (Integral | None, "a whole number or None"),
    "seed": (Integral, "a whole number"),
    "path": (Integral, "a whole number"),
    "temperature": (Real, "a number"),
    "top_p": (Real, "a number"),
    "min_p": (Real, "a number"),
    "tool_choice": (str, "a text"),
}


MOST_DRAFTS = 64  # guesses of a step: a forward of more rows never pays


def whole(name: str, value: object) -> int:
    """A whole number that was given for *name*.

    Raises:
        InputError: it is something else.
    """
    if not isinstance(value, Integral) or isinstance(value, bool):
        raise InputError(f"{name} is {value!r}, a {type(value).__name__}, but it must be a whole number")
    return int(value)


def checked(end: TurnEnd | BaseException, options: GenerateOptions) -> TurnEnd | BaseException:
    """The end of a turn, or an error where its content is whole but not what `response_schema` says: masks do not hold to
    every keyword, see `k2core.engine.schemas`."""
    if options.response_schema is None or not isinstance(end, TurnEnd) or end.message.tool_calls or end.finish_reason != "stop":
        return end
    try:
        problems = schema_errors(options.response_schema, json.loads(end.message.content))
    except (ValueError, RecursionError) as error:
        problems = [f"it is no JSON: {error}"]
    if not problems:
        return end
    return K2Error(f"the content does not keep to response_schema: {'; '.join(problems)[:500]}. Ask again, or for less.")


def sampler_of(options: GenerateOptions) -> Sampler:
    """The sampler that *options* ask for.

    Raises:
        InputError: an option is of the wrong type or out of its range.
    """
    for name, (kind, what) in _KINDS.items():
        value = getattr(options, name)
        if not isinstance(value, kind):
            raise InputError(f"{name} is {value!r}, a {type(value).__name__}, but it must be {what}")
    for name in ("forbidden_tools", "forbidden_calls"):
        if isinstance(getattr(options, name), str):
            raise InputError(f"{name} is a text, but it must be a list")
    for one in options.forbidden_calls:
        if isinstance(one, str) or len(one) != 2:
            raise InputError(f"forbidden_calls has {one!r}, but it must have pairs of a tool's name and its arguments as JSON")
    if not isinstance(options.masks, bool):
        raise InputError(f"masks is {options.masks!r}, a {type(options.masks).__name__}, but it must be True or False")
    if options.max_tokens < 1:
        raise InputError(f"max_tokens is {options.max_tokens}, but a turn has at least 1 token")
    return Sampler(
        temperature=options.temperature,
        top_p=options.top_p,
        min_p=options.min_p,
        seed=options.seed,
        path=options.path,
    )
