"""What one turn of the family may be, as a grammar: the strict form of what `turn` reads.

::

    turn     = <think> R </think> body <|im_end|>
    body     = section | text section | text            text alone has a character that is no blank
    section  = <|tool_calls_section_begin|> call … <|tool_calls_section_end|>
    call     = <|tool_call_begin|> functions.NAME:IDX <|tool_call_argument_begin|> ARGUMENTS <|tool_call_end|>

NAME is a tool that may be called, IDX counts on from the conversation's calls, ARGUMENTS are JSON of the tool's schema in one
spelling (`k2core.engine.schemas`). Control tokens stand in the grammar by their ids, so no text can be taken for one.
"""

from collections.abc import Mapping

from k2core.engine.lark import TEXTS, token
from k2core.engine.offer import Offer, call_rules
from k2core.engine.schemas import BASE, rules
from k2core.errors import InputError
from k2core_kimi import markers as mark


def turn_grammar(offer: Offer, control: Mapping[str, int], *, next_call_index: int = 0) -> str:
    """The grammar of one turn.

    Args:
        offer: what the turn may hold.
        control: text of a control token to its id; has all of `markers.TURN`.
        next_call_index: number of the turn's first call in the conversation.

    Raises:
        InputError: a tool's name does not survive in a call's id.
    """
    tokens = {text: token(control[text]) for text in mark.TURN}
    bodies = []
    if not offer.needs_call:
        bodies.append("TEXT" if offer.response is None else "response")
    if offer.tools:
        bodies.append("section" if offer.response is not None else "ANY? section")
    lines = [
        f"start: {tokens[mark.THINK]} ANY? {tokens[mark.THINK_END]} body {tokens[mark.END]}\n",
        f"body: {' | '.join(bodies)}\n",
        TEXTS,
    ]
    if offer.response is not None:
        lines.append(rules(offer.response, "response").text)
    if offer.tools:
        lines += _section(offer, tokens, next_call_index)
    lines.append(BASE)
    return "".join(lines)


def _section(offer: Offer, tokens: Mapping[str, str], first: int) -> list[str]:
    lines = [f"section: {tokens[mark.SECTION]} call-0 {tokens[mark.SECTION_END]}\n"]
    calls = call_rules(
        offer,
        lambda name, place: mark.native_id(name, first + place),
        begin=tokens[mark.CALL],
        arguments=tokens[mark.ARGUMENTS],
        end=tokens[mark.CALL_END],
    )
    lines += [f"{line}\n" for line in calls]
    for number, (name, parameters) in enumerate(offer.tools.items()):
        if mark.resolve_call(mark.native_id(name, first), first) != (mark.native_id(name, first), name):
            raise InputError(f"cannot offer the tool {name!r}: whitespace in a name is lost in a call's id. Rename it.")
        lines.append(rules(parameters, f"tool-{number}", is_object=True).text)
    return lines
