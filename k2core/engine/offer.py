"""What one turn may hold, by its options: text, calls, and of which tools. Chat formats build their grammars from it."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from attrs import field, frozen

from k2core.engine.forbidden import exhausted
from k2core.engine.lark import literal
from k2core.engine.schemas.reader import Unmanageable, build
from k2core.errors import FormatError, InputError, nearest
from k2core.language import GenerateOptions

MOST_CALLS = 16  # calls that one turn may hold; behind the last one only the end of the turn is left
NO_PARAMETERS: Mapping[str, Any] = {"type": "object", "properties": {}}  # what a declaration without parameters takes


@frozen(kw_only=True)
class Offer:
    """What one turn may hold.

    Attributes:
        tools: name to parameters' schema of the tools that may be called, in the order of their declaration.
        most_calls: the most calls; 0 where there is no tool.
        needs_call: the turn cannot do without a call.
        response: JSON Schema of the content of a turn that calls nothing; None is free text.
    """

    tools: Mapping[str, Mapping[str, Any]] = field(factory=dict)
    most_calls: int = MOST_CALLS
    needs_call: bool = False
    response: Mapping[str, Any] | None = None


def offered(tools: Sequence[Mapping[str, Any]], options: GenerateOptions) -> Offer:
    """What a turn held to *options* may be.

    A tool whose only possible arguments are all forbidden is left out like a forbidden one.

    Args:
        tools: declarations in OpenAI's form.
        options: `tool_choice`, `forbidden_tools`, `forbidden_calls` and `response_schema` count.

    Raises:
        FormatError: a declaration has no function with a name.
        InputError: `tool_choice` names a tool that is not declared, or asks for a call where none is possible; or
            `response_schema` is no JSON Schema, or none that any value satisfies.
    """
    declared: dict[str, Mapping[str, Any]] = {}
    for number, tool in enumerate(tools):
        function = tool.get("function")
        if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
            raise FormatError(f"tool {number} is no declaration; expected {{'type': 'function', 'function': {{'name': …}}}}")
        parameters = function.get("parameters")
        declared.setdefault(function["name"], NO_PARAMETERS if parameters is None else parameters)
    choice = options.tool_choice
    if options.response_schema is not None:
        see_schema(options.response_schema)
    forbidden = set(options.forbidden_tools)
    for name in {name for name, _ in options.forbidden_calls} & declared.keys() - forbidden:
        if exhausted(declared[name], [text for other, text in options.forbidden_calls if other == name]):
            forbidden.add(name)
    callable_ = {name: parameters for name, parameters in declared.items() if name not in forbidden}
    if choice == "none" or (choice == "auto" and not callable_):
        return Offer(most_calls=0, response=options.response_schema)
    if choice == "auto":
        return Offer(tools=callable_, response=options.response_schema)
    if choice == "required":
        if not callable_:
            all_forbidden = f"all declared tools ({', '.join(declared)}) are forbidden in this turn"
            found = all_forbidden if declared else "no tool is declared"
            raise InputError(f"cannot require a call: {found}. Offer a tool, or use tool_choice auto.")
        return Offer(tools=callable_, needs_call=True)
    if choice not in declared:
        close = nearest(choice, declared)
        hint = f" Did you mean '{close}'?" if close else " Use auto, none, required or a declared name."
        raise InputError(
            f"cannot force a call of '{choice}': it is not declared. Declared: {', '.join(declared) or 'nothing'}.{hint}"
        )
    if choice not in callable_:
        raise InputError(f"cannot force a call of '{choice}': it is forbidden in this turn. Use tool_choice auto.")
    return Offer(tools={choice: callable_[choice]}, most_calls=1, needs_call=True)


def see_schema(schema: Any) -> None:
    """See that a schema of contents is one, and that something satisfies it.

    Raises:
        InputError: it is not; says where.
    """
    import jsonschema

    if not isinstance(schema, Mapping):
        raise InputError(f"response_schema is {type(schema).__name__}, expected a JSON Schema as an object")
    try:
        jsonschema.Draft202012Validator.check_schema(schema)
        build(schema)
    except jsonschema.SchemaError as error:
        raise InputError(
            f"response_schema is no JSON Schema: at {error.json_path} {' '.join(error.message.split())}"
        ) from error
    except Unmanageable as error:
        raise InputError(f"response_schema cannot be held to: {error}") from error


def call_rules(offer: Offer, call_id: Callable[[str, int], str], *, begin: str, arguments: str, end: str = "") -> list[str]:
    """Rules ``call-0``, ``call-1`` … for the calls of a turn, each with all that may follow; they refer to ``tool-N``.

    Args:
        offer: what the turn may hold; tool N is its N-th.
        call_id: what a model writes to call the tool of a name as the turn's call of a number, from 0.
        begin, arguments, end: what stands before the id, behind it, and behind the arguments.
    """
    lines = []
    for place in range(offer.most_calls):
        ids = [f"{literal(call_id(name, place))} {arguments} tool-{number}" for number, name in enumerate(offer.tools)]
        following = f" call-{place + 1}?" if place + 1 < offer.most_calls else ""
        lines.append(f"call-{place}: {begin} ({' | '.join(ids)}) {end}{following}")
    return lines
