"""op × backend × property: run cases on a backend and say what holds."""

import json
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from attrs import frozen

from k2core.conformance.cases import Case, drawn_case
from k2core.conformance.contracts import contracts, numerics_contract
from k2core.conformance.fitting import layer_of
from k2core.conformance.judged import Judged
from k2core.conformance.probes.all import PROBES
from k2core.conformance.probes.base import Layer
from k2core.conformance.properties import PROPERTIES
from k2core.conformance.records import Contract
from k2core.conformance.report import Outcome, Refused, difference_of
from k2core.conformance.spec_files import SpecError
from k2core.errors import said
from k2core.interfaces import Backend, LoadedModel, Numerics
from k2core.testing.checkpoints import write_safetensors

SHORT = 3  # cases per op: all sizes least, all sizes most, and one between


@frozen(kw_only=True)
class Subject:
    """What is checked.

    Attributes:
        name: the backend's, as users write it.
        backend: itself.
        device, numerics: to load with.
    """

    name: str
    backend: Backend
    device: str
    numerics: Numerics

    @contextmanager
    def loaded(self, layer: Layer) -> Iterator[LoadedModel]:
        """The backend's model of a checkpoint that lies in a folder of its own as long as it is used."""
        with tempfile.TemporaryDirectory(prefix="k2core-") as place:
            folder = Path(place)
            (folder / "config.json").write_text(json.dumps(layer.config), encoding="utf-8")
            write_safetensors(folder / "model.safetensors", layer.tensors)
            model = self.backend.load(folder, device=self.device, numerics=self.numerics)
            try:
                yield model
            finally:
                model.close()

    def judge(self, case: Case, prop: str, model: LoadedModel | None = None) -> Iterator[Judged]:
        """Every output of one property of one case.

        Raises:
            SpecError: the contract allows a case that no checkpoint can have.
        """
        probe, rounding = PROBES[case.contract.name], numerics_contract(self.numerics).rounding
        if model is not None:
            yield from PROPERTIES[prop](probe, case, model, rounding)
            return
        with self.loaded(layer_of(probe, case)) as own:
            yield from PROPERTIES[prop](probe, case, own, rounding)

    def check(self, case: Case, prop: str, model: LoadedModel | None = None) -> float:
        """The greatest difference over what is allowed.

        Raises:
            Refused: it is more than 1; says where.
        """
        worst = 0.0
        for judged in self.judge(case, prop, model):
            if judged.worst > 1:
                raise Refused(difference_of(judged, case, backend=self.name, numerics=self.numerics, prop=prop))
            worst = max(worst, judged.worst)
        return worst


def check_ops(
    subject: Subject, *, count: int = SHORT, profile: str | None = None, only: Iterable[str] | None = None
) -> Iterator[Outcome]:
    """Every property of every op on some cases that a seed decides.

    Args:
        subject: what is checked.
        count: cases per op.
        profile: sizes by name, e.g. ``k2``; None draws them.
        only: ops; None is all.

    Raises:
        SpecError: a contract is wrong; it is no backend's fault.
    """
    for contract in contracts().values():
        if only is None or contract.name in only:
            yield from _check_op(subject, contract, [drawn_case(contract, seed, profile) for seed in range(count)])


def _check_op(subject: Subject, contract: Contract, cases: list[Case]) -> Iterator[Outcome]:
    found = {prop: _Tally() for prop in contract.properties}
    for case in cases:
        try:
            with subject.loaded(layer_of(PROBES[contract.name], case)) as model:
                for prop, tally in found.items():
                    tally.run(subject, case, prop, model)
        except SpecError:  # ours, and not the backend's
            raise
        except Exception as error:  # a stranger's code may raise anything: it becomes a line of the report
            for tally in found.values():
                tally.error = tally.error or f"{said(error)} Case: {case}"
    for prop, tally in found.items():
        yield Outcome(
            op=contract.name,
            backend=subject.name,
            numerics=subject.numerics,
            property=prop,
            cases=tally.cases,
            worst=tally.worst,
            difference=None if tally.refused is None else tally.refused.difference,
            error=tally.error,
            seconds=tally.seconds,
        )


class _Tally:
    """What was found of one property so far."""

    def __init__(self) -> None:
        self.cases, self.worst, self.seconds = 0, 0.0, 0.0
        self.refused: Refused | None = None
        self.error = ""

    def run(self, subject: Subject, case: Case, prop: str, model: LoadedModel) -> None:
        """One case more; after a failure the others are not run."""
        if self.refused is not None or self.error:
            return
        self.cases += 1
        start = time.perf_counter()
        try:
            self.worst = max(self.worst, subject.check(case, prop, model))
        except Refused as refused:
            self.refused, self.worst = refused, refused.difference.factor
        except SpecError:
            raise
        except Exception as error:
            self.error = f"{said(error)} Case: {case}"
        self.seconds += time.perf_counter() - start
