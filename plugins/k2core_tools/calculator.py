"""The calculator: exact rationals and decimals from a small grammar of its own (`k2core_tools.expression`)."""

from k2core import tool
from k2core_tools.expression import ExpressionError, evaluate
from k2core_tools.numbers import render

__all__ = ["ExpressionError", "calculator", "evaluate", "render"]


@tool(effect="pure", timeout_s=10.0, name="calculator")
def calculator(expression: str) -> str:
    """Evaluate an arithmetic expression exactly.

    Returns ``1081``, ``23.5`` or ``1082/47 (about 23.0212765957)``.

    Raises:
        ExpressionError: see `evaluate`.
    """
    return render(evaluate(expression))
