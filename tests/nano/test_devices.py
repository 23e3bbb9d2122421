"""Other devices, precisions and optimisers than the usual ones."""

import json
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from nano.elsewhere import Elsewhere, simulated  # noqa: E402
from nano.small import SMALL, copies, options  # noqa: E402

from k2core.errors import CheckpointError  # noqa: E402
from k2core_nano.train.attention import Block, block_attention  # noqa: E402
from k2core_nano.train.checkpoints import load, save  # noqa: E402
from k2core_nano.train.export import export  # noqa: E402
from k2core_nano.train.model import RmsNorm, _Rotate  # noqa: E402
from k2core_nano.train.options import parse  # noqa: E402
from k2core_nano.train.precision import stays_float32  # noqa: E402
from k2core_nano.train.trainer import main  # noqa: E402
from k2core_nano.train.training import Trainer  # noqa: E402

SIZES = "--tokens 1000 --step-tokens 150 --copy-step-tokens 150 --pass-tokens 150 --copy-mix-tokens 300 --copy-tokens 200"
RUN = (*SIZES.split(), "--copy-until", "0", "--rounding-share", "0.5", "--logit-limit", "0.5")


def trainer(*extra: str, device: str = "cpu") -> Trainer:
    """A trainer of the small model on a device, which the command line may not know."""
    chosen = options(*RUN, *extra)
    chosen.device = device
    made = Trainer(chosen, SMALL, copies)
    made.set_weights()
    return made


def steps(one: Trainer, count: int) -> list[float]:
    """The losses of some steps."""
    return [one.step(started=0.0, watch_logits=True)["loss"] for _ in range(count)]


@pytest.mark.parametrize("optimizer", ["muonclip", "adamw"])
def test_training_elsewhere_is_training_here(tmp_path: Path, optimizer: str) -> None:
    """On a device that refuses tensors of the CPU, steps of both phases, clipped, rounded and resumed, give the same losses."""
    here = trainer("--optimizer", optimizer)
    expected = steps(here, 5)
    with simulated() as device:
        away = trainer("--optimizer", optimizer, device=device.type)
        found = steps(away, 3)
        save(away, tmp_path / "latest.pt")
        resumed = trainer("--optimizer", optimizer, device=device.type)
        load(resumed, tmp_path / "latest.pt", restart_schedule=False)
        resumed.counters["start_step"] = away.counters["start_step"]  # no new warm-up
        found += steps(resumed, 2)
    assert here.counters["rounding"]
    assert (here.counters["clipped"] > 0) == (optimizer == "muonclip")
    assert found == pytest.approx(expected, rel=1e-4)
    tensors = (*resumed.masters, *resumed.parameters, *resumed.model.buffers(), resumed.summed, resumed.peaks)
    assert all(isinstance(tensor, Elsewhere) for tensor in tensors)
    load(trainer("--optimizer", optimizer), tmp_path / "latest.pt", restart_schedule=False)


def test_bfloat16_elsewhere() -> None:
    """The same in bfloat16 trains without a tensor out of place."""
    with simulated() as device:
        away = steps(trainer("--precision", "bfloat16", device=device.type), 4)
    assert away == pytest.approx(steps(trainer(), 4), rel=1e-3)


def test_bfloat16_gradients_are_close() -> None:
    """A bfloat16 model's summed float32 gradients point where the float32 model's do; its small parameters are float32."""
    whole, rounded = trainer(), trainer("--precision", "bfloat16")
    for one in (whole, rounded):
        one.accumulate(watch_logits=True)
    for name, parameter, left, right in zip(whole.names, rounded.parameters, whole.gradients, rounded.gradients, strict=True):
        assert parameter.dtype == (torch.float32 if stays_float32(name) else torch.bfloat16)
        assert right.dtype == torch.float32
        assert float(torch.cosine_similarity(left.flatten(), right.flatten(), dim=0)) > 0.98, name
    assert rounded.numbers[0] == pytest.approx(float(whole.numbers[0]), rel=1e-3)
    assert torch.allclose(rounded.peaks, whole.peaks, rtol=0.02)


def test_bfloat16_norm_rotation_and_scores_are_computed_in_float32() -> None:
    """Norm and rotation of bfloat16 numbers are float32's rounded once; attention is near float32's at logits of hundreds."""
    torch.manual_seed(0)
    x = torch.randn(6, 16).bfloat16()
    norm = RmsNorm(16, 1e-5)
    assert torch.equal(norm(x), norm(x.float()).bfloat16())
    rotation = torch.polar(torch.ones(6, 1, 8), torch.randn(6, 1, 8))
    turned = lambda t: _Rotate.apply(t.unsqueeze(1), rotation)  # noqa: E731
    assert torch.equal(turned(x), turned(x.float()).bfloat16())
    blocks = (Block(start=0, rows=1, length=6), Block(start=6, rows=2, length=5, prefix_start=0, prefix_length=6))
    inputs = [(torch.randn(16, 2, width) * size).bfloat16() for width, size in ((8, 9), (8, 9), (4, 1))]

    def attended(dtype: Any) -> list[Any]:
        query, key, value = (tensor.to(dtype).requires_grad_() for tensor in inputs)
        peak = torch.zeros(2)
        result = block_attention(query, key, value, blocks, 0.9, peak)
        result.backward(torch.cos(torch.arange(result.numel())).view_as(result).to(dtype))
        assert result.dtype == dtype
        assert float(peak.min()) > 100
        return [result.detach().float(), *(tensor.grad.float() for tensor in (query, key, value))]

    for full, half in zip(attended(torch.float32), attended(torch.bfloat16), strict=True):
        assert float((full - half).norm() / full.norm()) < 0.01


def test_adamw_differs_in_the_matrices_alone() -> None:
    """After the first step, embedding, head, norms and router are MuonClip's to the bit; matrices are not."""
    muonclip, adamw = trainer(), trainer("--optimizer", "adamw")
    assert steps(muonclip, 1) == steps(adamw, 1)
    matrices = set(adamw.optimisers.matrices)
    same = {n for n, a, b in zip(adamw.names, muonclip.masters, adamw.masters, strict=True) if torch.equal(a, b)}
    assert same == set(adamw.names) - matrices
    assert "model.layers.1.mlp.experts.down" in matrices


def test_adamw_decays_matrices_alone() -> None:
    """Weight decay shrinks the matrices of AdamW and nothing else."""
    gradients = {name: torch.zeros_like(master) for name, master in zip(trainer().names, trainer().masters, strict=True)}
    one = trainer("--optimizer", "adamw", "--weight-decay", "0.1", "--adam-rate", "0.5")
    before = [master.clone() for master in one.masters]
    one.optimisers.step(gradients, 1.0)
    for name, old, new in zip(one.names, before, one.masters, strict=True):
        assert torch.allclose(new, old * 0.95 if name in one.optimisers.matrices else old), name


def test_a_checkpoint_of_another_optimiser_is_refused(tmp_path: Path) -> None:
    """Resuming with another optimiser names both."""
    save(trainer("--optimizer", "adamw"), tmp_path / "latest.pt")
    with pytest.raises(CheckpointError, match=r"--optimizer muonclip: it was trained with adamw"):
        load(trainer(), tmp_path / "latest.pt", restart_schedule=False)


def test_the_machine_is_exported(tmp_path: Path) -> None:
    """training.json names the machine, its versions, device and precision; of an older checkpoint the defaults."""
    save(trainer("--precision", "bfloat16"), tmp_path / "new.pt")
    state = torch.load(tmp_path / "new.pt", weights_only=True)
    del state["machine"]
    later = ("device", "precision", "optimizer", "shares", "feeders", "rectangle_tokens", "padding_overhead", "score_limit")
    for name in later:
        del state["options"][name]
    torch.save(state, tmp_path / "old.pt")
    load(trainer(), tmp_path / "old.pt", restart_schedule=False)
    found = []
    for name in ("new", "old"):
        export(tmp_path / f"{name}.pt", tmp_path / name, bos_token_id=0, eos_token_id=1, pad_token_id=2)
        found.append(json.loads((tmp_path / name / "training.json").read_text())["machine"])
    assert found[0].pop("processor")
    assert found[0].pop("python").startswith("3.")
    assert found[0] == {"torch": torch.__version__, "device": "cpu", "precision": "bfloat16"}
    assert found[1] == {"device": "cpu", "precision": "float32"}


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("--device cuda --processes 2", "--device cuda trains in one process, not in 2"),
        ("--feeders 3", "--feeders make documents for one training process, not for 2: give --processes 1"),
        ("--shares 3", "--shares 3 is not a multiple of --processes 2 up to 64"),
        ("--processes 1 --shares 65", "--shares 65 is not a multiple of --processes 1 up to 64"),
    ],
)
def test_options_that_cannot_be_together_are_refused(capsys: pytest.CaptureFixture[str], given: str, said: str) -> None:
    """Such a command line ends with status 2 and one line that says what to change."""
    with pytest.raises(SystemExit) as ended:
        parse(["--out", "x", *given.split()])
    line = capsys.readouterr().err
    assert ended.value.code == 2
    assert said in line
    assert line.count("\n") == 1


def test_defaults_depend_on_the_device() -> None:
    """The CPU keeps its two processes and small rectangles; CUDA has one process and large ones, each settable."""
    names = ("processes", "shares", "rectangle_tokens", "padding_overhead", "score_limit")
    found = [
        tuple(getattr(parse(["--out", "x", *given.split()]), name) for name in names)
        for given in ("", "--device cuda", "--device cuda --score-limit 9 --shares 4")
    ]
    assert found == [(2, 2, 192, 48, 0), (1, 1, 8192, 1024, 2**24), (1, 4, 8192, 1024, 9)]


@pytest.mark.skipif(torch.cuda.is_available(), reason="CUDA is here")
def test_a_missing_gpu_is_said_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    """Asking for CUDA where there is none ends with status 2 and one line."""
    with pytest.raises(SystemExit) as ended:
        main(["--out", "x", "--device", "cuda"])
    assert ended.value.code == 2
    assert "sees no CUDA device" in capsys.readouterr().err
