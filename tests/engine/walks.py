"""Turns drawn at random from what a mask allows, and the corpus of tools to draw them for."""

import json
import math
import re
from functools import cache
from importlib.resources import files

import jsonschema
import numpy as np
from attrs import frozen
from referencing.exceptions import Unresolvable

from k2core.engine.grammar import Masks
from k2core.engine.schemas import rules
from k2core.language import GenerateOptions
from k2core.messages import Message


@cache
def corpus():
    """Every tool of the corpus as a declaration."""
    text = files("k2core_specs").joinpath("cases/tool_schemas.jsonl").read_text(encoding="utf-8")
    return [{"type": "function", "function": json.loads(line)} for line in text.strip("\n").split("\n")]


def corpus_of(*names):
    """Declarations of some tools of the corpus."""
    return [tool for tool in corpus() if tool["function"]["name"] in names]


@frozen
class Walk:
    """One turn that was drawn.

    Attributes:
        message: as the format's parser reads it.
        is_whole: it came to its end within the tokens allowed.
        tokens: how many it took.
    """

    message: Message
    is_whole: bool
    tokens: int


class Walker:
    """Draws turns of one chat format."""

    def __init__(self, chat_format, most=400):
        self.format, self.most = chat_format, most
        tokenizer = chat_format.tokenizer
        self.masks = Masks(tokenizer, chat_format.stop_ids)
        pieces = [tokenizer.decode_bytes((token,)) for token in range(tokenizer.vocab_size)]
        weights = dict.fromkeys(b"@0123456789", 0.6) | dict.fromkeys(b"}]", 0.8) | {ord('"'): 1.0}
        self.closing = np.array([max(weights.get(byte, 0.0) for byte in piece) for piece in pieces])
        self.closing[list(tokenizer.control.values())] = 1.5
        self.closing *= math.log(len(pieces)) / 6  # against more tokens they need more weight
        self.plain = np.array([2.0 * piece.isascii() for piece in pieces])

    def walk(self, tools, options, rng, next_call_index=0):
        """A turn of random logits; those of tokens that lead to its end grow for a while."""
        constraint = self.masks.start(
            self.format.grammar(tools, options, next_call_index=next_call_index),
            forbidden=options.forbidden_calls,
            schemas={tool["function"]["name"]: tool["function"]["parameters"] for tool in tools},
        )
        names = [tool["function"]["name"] for tool in tools]
        parser = self.format.parser(next_call_index=next_call_index, tools=names)
        for position in range(self.most):
            mask = constraint.mask()
            assert mask.any(), "nothing may follow"
            logits = rng.gumbel(size=len(mask)) + self.plain + self.closing * min(position / 25, 5)
            token = int(np.where(mask, logits, -np.inf).argmax())
            assert constraint.allows(token)
            constraint.accept(token, parser.feed((token,)))
            if constraint.done:
                return Walk(parser.finish()[1], parser.done, position + 1)
        return Walk(parser.finish()[1], False, self.most)


def faults(walk, tools, next_call_index=0):
    """What is wrong with a whole turn: its calls against the declarations, as lines."""
    declared = {tool["function"]["name"]: tool["function"]["parameters"] for tool in tools}
    message, found = walk.message, []
    if not message.tool_calls and not message.content.strip():
        found.append("it says nothing")
    for place, call in enumerate(message.tool_calls):
        if call.name not in declared:
            found.append(f"{call.name!r} is not declared")
        elif call.id != f"functions.{call.name}:{next_call_index + place}":
            found.append(f"the id is {call.id!r}")
        else:
            found += argument_faults(declared[call.name], call.arguments)
    return found


def argument_faults(schema, text):
    """Why a text is no arguments of a tool, but for what the schema's rules list as not enforced."""
    value = json.loads(text)
    excused = {keyword for _, keyword in rules(schema, "tool", is_object=True).unenforced}
    if not isinstance(value, dict):
        return [f"{text} is no object"]
    try:
        errors = list(jsonschema.Draft202012Validator(schema).iter_errors(value))
    except (re.error, Unresolvable):  # a pattern that Python does not read, a reference to nowhere
        return [] if "pattern" in excused or "$ref" in json.dumps(schema) else [f"{text} cannot be checked"]
    if "$ref" in excused:  # jsonschema's errors do not say that they come from one
        return []
    return [f"{text}: {error.json_path} {error.message}" for error in errors if not is_excused(error, excused)]


def is_excused(error, keywords):
    """Whether an error of jsonschema comes from one of *keywords*."""
    if "*" in keywords or keywords & {error.validator, *map(str, error.absolute_schema_path)}:
        return True
    if error.validator == "unevaluatedProperties" and keywords:  # jsonschema does not say what it missed
        return True
    return any(is_excused(one, keywords) for one in error.context)  # one of the options was meant, none holds


def options_of(rng, tools, **more):
    """Options that ask for a call in most cases, by name or not."""
    names = [tool["function"]["name"] for tool in tools]
    choice = rng.choice(["auto", "required", *names])
    return GenerateOptions(tool_choice=str(choice), **more)


def count_of(walker, rng, count):
    """Draw *count* turns over random tools of the corpus: (whole ones, calls in them, faults)."""
    whole = calls = 0
    found = []
    for _ in range(count):
        tools = [corpus()[number] for number in rng.choice(len(corpus()), 3, replace=False)]
        first = int(rng.integers(0, 200))
        walk = walker.walk(tools, options_of(rng, tools), rng, first)
        if walk.is_whole:
            whole += 1
            calls += len(walk.message.tool_calls)
            found += faults(walk, tools, first)
    return whole, calls, found
