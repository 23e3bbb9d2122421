"""What to show of a check: where two numbers differ by more than they may, and a table of everything that was checked."""

import builtins
from collections.abc import Mapping
from typing import Any

from attrs import asdict, field, frozen

from k2core.conformance.cases import Case
from k2core.conformance.judged import Judged
from k2core.errors import K2Error


@frozen(kw_only=True)
class Difference:
    """A number that is further from the oracle's than its bound allows.

    Attributes:
        op, backend, numerics, property: what was checked.
        case: sizes, parameters and seed.
        output, index: which number.
        got, expected, allowed: the number, the oracle's, and by how much they may differ.
    """

    op: str
    backend: str
    numerics: str
    property: str
    case: str
    output: str
    index: tuple[int, ...]
    got: float
    expected: float
    allowed: float

    @builtins.property
    def factor(self) -> float:
        """The difference over what is allowed."""
        difference = abs(self.got - self.expected)
        return difference / self.allowed if self.allowed and difference == difference else float("inf")

    def __str__(self) -> str:
        place = f"{self.output}[{', '.join(map(str, self.index))}]"
        times = f"{self.factor:.3g} times" if self.allowed else "no difference is allowed"
        return (
            f"{self.op} on {self.backend} ({self.numerics}), {self.property}: "
            f"{place} is {self.got:.9g}, expected {self.expected:.9g} ± {self.allowed:.3g} ({times}). Case: {self.case}"
        )


class Refused(K2Error):
    """A backend does not do what its contract says; `difference` has the numbers."""

    def __init__(self, difference: Difference) -> None:
        super().__init__(str(difference))
        self.difference = difference


@frozen(kw_only=True)
class Outcome:
    """One property of one op on one backend.

    Attributes:
        cases: that were run.
        worst: the greatest difference over what was allowed; at most 1 where the property holds.
        difference: the first that was too large.
        error: what the backend raised instead of an answer.
    """

    op: str
    backend: str
    numerics: str
    property: str
    cases: int
    worst: float
    difference: Difference | None = None
    error: str = ""
    seconds: float = field(default=0.0, eq=False)

    @builtins.property
    def holds(self) -> bool:
        """Whether every case did."""
        return self.difference is None and not self.error

    def __str__(self) -> str:
        if self.difference is not None:
            return str(self.difference)
        said = self.error or f"holds, {self.worst:.3g} of what is allowed"
        return f"{self.op} on {self.backend} ({self.numerics}), {self.property}: {said}"

    def as_json(self) -> Mapping[str, Any]:
        """Plain values."""
        return {**asdict(self), "holds": self.holds}


def difference_of(judged: Judged, case: Case, *, backend: str, numerics: str, prop: str) -> Difference:
    """The worst place of an output."""
    place = judged.place
    return Difference(
        op=case.contract.name,
        backend=backend,
        numerics=numerics,
        property=prop,
        case=str(case),
        output=judged.output,
        index=place,
        got=float(judged.got[place]),
        expected=float(judged.expected[place]),
        allowed=float(judged.allowed[place]),
    )
