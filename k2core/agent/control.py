"""The control tools: `answer` concludes a run, `note` keeps something for later steps.

They are declared like any tool, so that a verdict can be the result of a call: a rejected answer does not end the tool chain,
and the family's history rule keeps the reasoning just when it is needed. The agent loop carries them out; their functions
only state that.
"""

import msgspec

from k2core.errors import ToolError
from k2core.interfaces import Answer, Claim, Tool
from k2core.toolmaking import tool
from k2core.tools import CONTROL_NAMES

ANSWER, NOTE = CONTROL_NAMES


# no docstring: it would become a description in the frozen declaration
class ClaimArgument(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):  # noqa: D101
    evidence: list[int]
    text: str


@tool(effect="pure", control=True)
def answer(claims: list[ClaimArgument], text: str) -> str:
    """Give the final answer; each claim names the call numbers that support it."""
    raise ToolError("answer is carried out by the agent loop only")


@tool(effect="pure", control=True)
def note(text: str) -> str:
    """Keep a note for later steps."""
    raise ToolError("note is carried out by the agent loop only")


def control_tools() -> list[Tool]:
    """Both control tools."""
    return [answer, note]


def answer_from_arguments(arguments: dict[str, object]) -> Answer:
    """The `Answer` of validated arguments of the `answer` tool."""
    claims = msgspec.convert(arguments["claims"], list[ClaimArgument])
    return Answer(
        text=str(arguments["text"]).strip(),
        claims=tuple(Claim(text=claim.text, evidence=tuple(claim.evidence)) for claim in claims),
    )
