"""Options of a turn, checked before anything is made of them."""

from numbers import Integral, Real

from k2core.engine.sampler import Sampler
from k2core.errors import InputError
from k2core.interfaces import GenerateOptions

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


def sampler_of(options: GenerateOptions) -> Sampler:
    """The sampler that *options* ask for.

    Raises:
        InputError: an option is of the wrong type or out of its range.
    """
    for name, (kind, what) in _KINDS.items():
        value = getattr(options, name)
        if not isinstance(value, kind):
            raise InputError(f"{name} is {value!r}, a {type(value).__name__}, but it must be {what}")
    if options.max_tokens < 1:
        raise InputError(f"max_tokens is {options.max_tokens}, but a turn has at least 1 token")
    return Sampler(
        temperature=options.temperature,
        top_p=options.top_p,
        min_p=options.min_p,
        seed=options.seed,
        path=options.path,
    )
