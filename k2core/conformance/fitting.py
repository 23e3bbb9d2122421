"""Whether a contract is what the probe of its op reads: the probe is asked, on cases as the contract describes them.

It makes the checkpoint of a case and judges arrays of the shapes and dtypes that the contract gives its outputs, while every
name that it reads is noted. What it cannot use, does not find or never reads is a mistake of the contract, not of a backend.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from attrs import evolve
from numpy.typing import NDArray

from k2core.conformance.cases import Case, axes_of, make_case
from k2core.conformance.probes.base import Layer, Probe
from k2core.conformance.records import Contract, Output, evaluate
from k2core.conformance.spec_files import SpecError
from k2core.errors import CheckpointError, ShapeError, said
from k2core.model.fields import Fields
from k2core.oracle.rounding import EXACT

MISFITS = (  # what a probe may raise on arrays and sizes that it is not made for
    CheckpointError, ShapeError, ArithmeticError, AttributeError, LookupError, TypeError, ValueError,
)  # fmt: skip


def check_fit(contract: Contract, probe: Probe, top: Fields) -> None:
    """Ask the probe, on the greatest sizes with as few alike as can be, the least and the next, and each value of a parameter.

    Args:
        contract: as far as it can be judged alone, it is right.
        probe: of its op.
        top: the contract's file.

    Raises:
        CheckpointError: the probe cannot use a key, does not find one, or never reads one.
        SpecError: an input cannot be filled.
    """
    read: list[str] = []
    picks = (_greatest_apart(), min, lambda sizes: sizes[:2][-1])
    for turn in range(max([len(picks), *map(len, contract.parameters.values())])):
        axes = axes_of(contract, picks[turn % len(picks)])
        parameters = {name: values[turn % len(values)] for name, values in contract.parameters.items()}
        case = make_case(contract, axes, parameters, seed=turn)
        outputs = {one.name: _array(one, case) for one in contract.outputs}
        _ask(probe, case, outputs, top, read)
    for table in ("axes", "parameters", "inputs", "outputs"):
        for name in top.data.get(table, ()):
            if f"{table}.{name}" not in read:
                raise top.inside(table).wrong(name, f"no such key: the probe of {contract.name} does not read it")


def layer_of(probe: Probe, case: Case) -> Layer:
    """The checkpoint of a case.

    Raises:
        SpecError: the contract allows sizes or parameters that no checkpoint can have.
    """
    try:
        return probe.layer(case)
    except MISFITS as error:
        line = f"{case.contract.file}: key 'axes' allows {case}, expected sizes that a checkpoint can have: {said(error)}"
        raise SpecError(line) from error


class _Noted(dict[str, Any]):
    """A table of a case; what is read of it is noted as ``table.name``."""

    def __init__(self, table: str, values: Any, read: list[str]) -> None:
        super().__init__(values)
        self._table, self._read = table, read

    def __getitem__(self, name: str) -> Any:
        self._read.append(f"{self._table}.{name}")
        return super().__getitem__(name)


def _ask(probe: Probe, case: Case, outputs: dict[str, Any], top: Fields, read: list[str]) -> None:
    now: list[str] = []
    case = evolve(
        case,
        axes=_Noted("axes", case.axes, now),
        parameters=_Noted("parameters", case.parameters, now),
        inputs=_Noted("inputs", case.inputs, now),
    )
    given = _Noted("outputs", outputs, now)
    wanted = f"the probe of {probe.op}"
    try:
        for _ in probe.judge(case, probe.layer(case).geometry, given, EXACT):
            pass
    except KeyError as error:
        name = str(error.args[0])
        if now[-1:] == [f"outputs.{name}"]:
            raise top.inside("outputs").wrong(name, f"an array that {wanted} reads") from error
        raise top.wrong(name, f"an input, an axis or a parameter that {wanted} reads") from error
    except MISFITS as error:
        last = [key for table in ("inputs.", "outputs.") for key in now if key.startswith(table)]
        if not last:
            raise top.wrong("axes", f"sizes, and parameters, that {wanted} can use: {said(error)}") from error
        table, _, name = last[-1].partition(".")  # what is read is used at once
        raise top.inside(table).wrong(name, f"what {wanted} can use: {said(error)}") from error
    read += now


def _greatest_apart() -> Callable[[range], int]:
    """The greatest size that no axis before has, so that sizes in a wrong order are seen."""
    taken: set[int] = set()

    def pick(sizes: range) -> int:
        size = next((size for size in reversed(sizes) if size not in taken), sizes[-1])
        taken.add(size)
        return size

    return pick


def _array(output: Output, case: Case) -> NDArray[Any]:
    """Zeros; whole numbers count along the last axis, so that they are a choice of experts."""
    shape = tuple(evaluate(expression, case.axes) for expression in output.shape)
    return np.zeros(shape, output.dtype) + (np.arange(shape[-1], dtype=output.dtype) if output.dtype == "int32" else 0)
