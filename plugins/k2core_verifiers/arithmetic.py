"""Arithmetic recomputed: every equation of an answer is evaluated again with the calculator's own exact grammar."""

import json

from attrs import frozen

from k2core.interfaces import Answer, Finding, Trajectory, Verdict
from k2core_verifiers.equations import Equation, find_equations


@frozen(kw_only=True)
class ArithmeticVerifier:
    """Recomputes ``expression = value`` wherever it stands in the answer's text or its claims."""

    name: str = "arithmetic"

    def verify(self, answer: Answer, trajectory: Trajectory) -> Verdict:
        """One finding per equation: supported, refuted with ``23*47 is 1081, not 1082``, or unchecked (mixed units)."""
        texts = [(None, answer.text), *((place, claim.text) for place, claim in enumerate(answer.claims))]
        return Verdict(
            findings=tuple(
                self._finding(equation, place, trajectory) for place, text in texts for equation in find_equations(text)
            )
        )

    def _finding(self, equation: Equation, claim: int | None, trajectory: Trajectory) -> Finding:
        hint = f"{equation.expression} is {equation.right}, not {equation.stated}"
        return Finding(
            verifier=self.name,
            subject=f"{equation.expression} = {equation.stated}",
            status=equation.status,
            hint=hint if equation.status == "refuted" else "",
            events=_computed_in(equation.expression, trajectory),
            claim=claim,
        )


def _computed_in(expression: str, trajectory: Trajectory) -> tuple[int, ...]:
    wanted = json.dumps({"expression": expression}, ensure_ascii=False).replace(" ", "")
    return tuple(one.event for one in trajectory.observations if one.ok and one.arguments.replace(" ", "") == wanted)
