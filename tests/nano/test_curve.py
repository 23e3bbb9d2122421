"""The beginning of a training run can be repeated by anybody."""

import json
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from nano.small import SMALL, copies, options  # noqa: E402

from k2core_nano import WEIGHTS  # noqa: E402
from k2core_nano.train.curve import FIRST, repeated  # noqa: E402
from k2core_nano.train.export import export  # noqa: E402
from k2core_nano.train.geometry import Geometry  # noqa: E402
from k2core_nano.train.running import run  # noqa: E402
from k2core_nano.train.training import Trainer  # noqa: E402

APART = 0.03  # relative: sums in another order move a loss of the hundredth step by about a hundredth


def test_the_first_losses_are_those_of_the_recorded_run(tmp_path: Path) -> None:
    """What an export names as the losses of the first steps comes out again, from its options alone, to the last digits."""
    trainer = Trainer(options("--tokens", "9000", "--copy-tokens", "3000", "--shares", "2"), SMALL, copies)
    run(trainer, tmp_path)
    export(tmp_path / "latest.pt", tmp_path / "hf", bos_token_id=0, eos_token_id=1, pad_token_id=2)
    told = json.loads((tmp_path / "hf" / "training.json").read_text())
    losses = told["first_losses"]
    assert len(losses) == min(FIRST, told["steps"]) and losses[-1] < losses[0]
    assert repeated(told["options"], SMALL, copies, steps=10) == pytest.approx(losses[:10], rel=1e-5)


def test_the_shipped_weights_begin_as_they_say() -> None:
    """The first hundred steps of the run that made the shipped weights give the losses that their training.json records."""
    from k2core_nano.train.documents import stream

    told = json.loads((WEIGHTS / "training.json").read_text())
    if not told.get("first_losses"):
        pytest.skip("the shipped weights were trained before first losses were recorded")
    geometry = Geometry.from_config(json.loads((WEIGHTS / "config.json").read_text()))
    again = repeated(told["options"], geometry, stream, steps=len(told["first_losses"]))
    assert again == pytest.approx(told["first_losses"], rel=APART)
