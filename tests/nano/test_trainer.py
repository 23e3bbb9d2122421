"""Runs of the trainer: what they learn, save, resume and export."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from attrs import evolve

torch = pytest.importorskip("torch")

from nano.small import SMALL, Doc, Documents, copies, options, reference_logits  # noqa: E402

from k2core.errors import CheckpointError  # noqa: E402
from k2core_nano.train.checkpoints import load, save  # noqa: E402
from k2core_nano.train.export import export, load_exported  # noqa: E402
from k2core_nano.train.packing import pack  # noqa: E402
from k2core_nano.train.running import run  # noqa: E402
from k2core_nano.train.training import Trainer  # noqa: E402


def trained(tmp_path: Path, *extra: str) -> Trainer:
    """A trainer of the small model after a handful of steps, ending in the rounding phase."""
    trainer = Trainer(options("--tokens", "9000", "--copy-tokens", "3000", "--seconds", "0", *extra), SMALL, copies)
    run(trainer, tmp_path)
    return trainer


def test_exported_folder_is_what_was_trained(tmp_path: Path) -> None:
    """An exported, reloaded model gives the rounded model's logits bit for bit, and the published formulas' closely."""
    from safetensors.torch import load_file

    trainer = trained(tmp_path)
    assert trainer.counters["rounding"]
    export(tmp_path / "latest.pt", tmp_path / "hf", bos_token_id=0, eos_token_id=1, pad_token_id=2)
    reloaded = load_exported(tmp_path / "hf")
    ids = [5, 9, 7, 30, 12, 5, 9, 7, 41, 0, 3]
    document = Doc(ids=ids, weights=[0] + [1] * (len(ids) - 1), family="x")
    batch = pack([Documents(prefix=[], documents=[document])])
    with torch.no_grad():
        mine, theirs = trainer.model(batch), reloaded(batch)
    assert torch.equal(mine, theirs)
    tensors = load_file(tmp_path / "hf" / "model.safetensors")
    config = json.loads((tmp_path / "hf" / "config.json").read_text())
    expected = reference_logits(tensors, config, ids[:-1])
    assert torch.allclose(mine.double(), expected, rtol=1e-4, atol=1e-4)
    assert tensors["model.layers.1.mlp.experts.0.gate_proj.weight_packed"].dtype == torch.int32
    assert tensors["model.layers.1.mlp.experts.0.gate_proj.weight_shape"].tolist() == [32, 32]
    assert tensors["model.layers.1.mlp.gate.e_score_correction_bias"].dtype == torch.float32
    assert json.loads((tmp_path / "hf" / "training.json").read_text())["trained_rounded"] is True


def test_a_resumed_run_equals_an_uninterrupted_one(tmp_path: Path) -> None:
    """Stopping at a checkpoint and resuming changes no bit of the final weights."""
    whole = trained(tmp_path, "--warmup-steps", "1", "--copy-until", "0")
    (tmp_path / "part").mkdir()
    first = Trainer(
        options("--tokens", "9000", "--copy-tokens", "3000", "--warmup-steps", "1", "--copy-until", "0"), SMALL, copies
    )
    first.set_weights()
    for _ in range(6):
        first.step(started=0.0, watch_logits=False)
    save(first, tmp_path / "part" / "latest.pt")
    second = Trainer(
        options("--tokens", "9000", "--copy-tokens", "3000", "--warmup-steps", "1", "--copy-until", "0"), SMALL, copies
    )
    load(second, tmp_path / "part" / "latest.pt", restart_schedule=False)
    run(second, tmp_path / "part")
    assert second.counters["step"] == whole.counters["step"]
    for name, left, right in zip(whole.names, whole.masters, second.masters, strict=True):
        assert torch.equal(left, right), name


def test_copying_is_learnt(tmp_path: Path) -> None:
    """A few hundred steps on repeated runs bring the loss well below guessing."""
    trainer = Trainer(
        options("--tokens", "90000", "--copy-tokens", "1", "--rounding-share", "0", "--muon-rate", "0.02"), SMALL, copies
    )
    run(trainer, tmp_path)
    assert trainer.counters["smooth"] < 2.0  # guessing among the 16 letters: 2.77


def test_a_stop_request_ends_the_run_with_a_checkpoint(tmp_path: Path) -> None:
    """A trainer asked to stop finishes its step, saves, and says that it was stopped."""
    trainer = Trainer(options("--tokens", "9000"), SMALL, copies)
    trainer.stop_requested = True
    assert run(trainer, tmp_path) == "stopped"
    again = Trainer(options("--tokens", "9000"), SMALL, copies)
    load(again, tmp_path / "latest.pt", restart_schedule=True)
    assert again.counters["step"] == 1
    assert again.progress() == 0.0


def test_a_checkpoint_of_another_size_is_refused(tmp_path: Path) -> None:
    """Resuming with a model of another size names both sizes and leaves the trainer as it was."""
    save(Trainer(options(), SMALL, copies), tmp_path / "small.pt")
    larger = Trainer(options(), evolve(SMALL, intermediate_size=96), copies)
    before = [master.clone() for master in larger.masters]
    with pytest.raises(CheckpointError, match=r"'intermediate_size': 64.*intermediate_size=96.*--geometry"):
        load(larger, tmp_path / "small.pt", restart_schedule=False)
    assert all(map(torch.equal, before, larger.masters))


AT_EXIT = """
import atexit, os, sys

def product():
    if "torch" in sys.modules:
        value = sys.modules["torch"].tensor([1e-30]) * 1e-10
        open(os.path.join(os.environ["PRODUCTS"], str(os.getpid())), "w").write(str(value.item()))

atexit.register(product)
"""


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a short run in two processes; each left a file in products/ with a product too small to be normal."""
    folder = tmp_path_factory.mktemp("ranks")
    size = evolve(SMALL, vocab_size=3072, max_position_embeddings=2048)
    (folder / "config.json").write_text(json.dumps(size.config(bos_token_id=0, eos_token_id=1, pad_token_id=2)))
    (folder / "sitecustomize.py").write_text(AT_EXIT)  # every Python process that finds it runs it when it starts
    (folder / "products").mkdir()
    command = [sys.executable, "-m", "k2core_nano.train.trainer", "--out", str(folder), "--tokens", "1500"]
    sizes = ["--copy-step-tokens", "600", "--warmup-steps", "1", "--copy-until", "0", "--geometry"]
    paths = os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": paths, "PRODUCTS": str(folder / "products")}
    done = subprocess.run(
        [*command, *sizes, str(folder / "config.json")], capture_output=True, text=True, timeout=500, env=environment
    )
    assert done.returncode == 0, done.stderr
    return folder


def test_ranks_train_one_model(two_processes: Path) -> None:
    """Two processes on disjoint documents end with a checkpoint that has seen the documents of both."""
    counters = torch.load(two_processes / "latest.pt", weights_only=True)["counters"]
    assert counters["document_tokens"] >= 1500
    assert counters["step"] <= 3


def test_every_process_flushes_denormals(two_processes: Path) -> None:
    """In both processes of a run, a product below the smallest normal number is 0."""
    products = [file.read_text() for file in (two_processes / "products").iterdir()]
    assert products == ["0.0", "0.0"]
