"""The control tools: `answer` concludes, `note` keeps, `recall` looks back, `plan` and `hypothesis` say where a run stands.

They are declared like any tool, so that a verdict can be the result of a call: a rejected answer does not end the tool chain,
and the family's history rule keeps the reasoning just when it is needed. The agent loop carries them out; their functions
only state that.
"""

from collections.abc import Sequence

import msgspec

from k2core.errors import ToolError
from k2core.events import HypothesisStatus, StepStatus
from k2core.interfaces import Answer, Claim, Tool
from k2core.toolmaking import tool
from k2core.tools import CONTROL_NAMES

ANSWER, NOTE, PLAN, HYPOTHESIS, RECALL = CONTROL_NAMES


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


class StepArgument(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):  # noqa: D101
    text: str
    status: StepStatus = "todo"
    after: list[int] = []
    evidence: list[int] = []


class PlanArguments(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):  # noqa: D101
    steps: list[StepArgument]
    reason: str = ""


class HypothesisArguments(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):  # noqa: D101
    status: HypothesisStatus
    text: str = ""
    number: int | None = None
    evidence: list[int] = []
    reason: str = ""


@tool(effect="pure", control=True)
def plan(steps: list[StepArgument], reason: str = "") -> str:
    """State the plan, all its steps in order, or how far it is by now.

    Args:
        steps: `after` are numbers of steps, from 1, `evidence` numbers of calls.
        reason: why the plan is another one than before.
    """
    raise ToolError("plan is carried out by the agent loop only")


@tool(effect="pure", control=True)
def hypothesis(
    status: HypothesisStatus, text: str = "", number: int | None = None, evidence: list[int] | None = None, reason: str = ""
) -> str:
    """Propose a hypothesis, or say what became of one.

    Args:
        status: supported and refuted need evidence.
        text: what is supposed.
        number: of a hypothesis that was proposed before.
        evidence: numbers of the calls that speak for or against it.
        reason: why.
    """
    raise ToolError("hypothesis is carried out by the agent loop only")


@tool(effect="pure", control=True)
def recall(call: int) -> str:
    """Give back the result of an earlier call that is hidden or no longer shown.

    Args:
        call: its number; name that one as evidence.
    """
    raise ToolError("recall is carried out by the agent loop only")


def control_tools(names: Sequence[str] = (ANSWER, NOTE)) -> list[Tool]:
    """The control tools of these names; without names, those that every model is told of."""
    return [one for one in (answer, note, plan, hypothesis, recall) if one.name in names]


def answer_from_arguments(arguments: dict[str, object]) -> Answer:
    """The `Answer` of validated arguments of the `answer` tool."""
    claims = msgspec.convert(arguments["claims"], list[ClaimArgument])
    return Answer(
        text=str(arguments["text"]).strip(),
        claims=tuple(Claim(text=claim.text, evidence=tuple(claim.evidence)) for claim in claims),
    )
