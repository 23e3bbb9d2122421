"""``k2 models logits``, ``k2 models inspect``, ``k2 quantize`` and ``k2 backends check`` as processes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from k2core.cli.asking import _backends
from k2core.cli.backends import _told
from k2core.conformance.kit import Subject
from k2core.conformance.report import Difference, Outcome
from k2core.model.checkpoint import Checkpoint
from k2core.oracle.forward import forward
from k2core.testing.checkpoints import tiny_config, write_tiny_checkpoint

PROMPTS = [[1, 2, 3, 4, 5], [7]]


@pytest.fixture
def k2(tmp_path):
    """Run ``k2`` with everything that is installed; returns code, stdout and stderr."""

    def run(*arguments):
        cache = os.environ.get("XDG_CACHE_HOME", str(Path.home() / ".cache"))  # compiled kernels
        done = subprocess.run(
            [sys.executable, "-m", "k2core.cli", *map(str, arguments)],
            env=os.environ | {"HOME": str(tmp_path / "home"), "XDG_CACHE_HOME": cache},
            capture_output=True,
            text=True,
            cwd=tmp_path,
            timeout=300,
        )
        return done.returncode, done.stdout, done.stderr

    return run


@pytest.fixture
def folder(tmp_path):
    """A tiny checkpoint."""
    return write_tiny_checkpoint(tmp_path / "model", seed=4)


def test_logits_are_written_as_asked(k2, folder, tmp_path):
    """Rows of every prompt as float32 and greedy tokens, equal to the oracle's; --json says what was written."""
    (tmp_path / "ids.json").write_text(json.dumps(PROMPTS))
    code, out, _ = k2("models", "logits", folder, "ids.json", "out.npz", "-b", "numba", "--greedy", "4", "--json")
    assert code == 0
    assert json.loads(out)["arrays"] == {"logits_0": [5, 320], "greedy_0": [4], "logits_1": [1, 320], "greedy_1": [4]}
    found = np.load(tmp_path / "out.npz")
    for number, prompt in enumerate(PROMPTS):
        rows, ids = found[f"logits_{number}"], list(prompt)
        assert rows.dtype == np.float32 and found[f"greedy_{number}"].dtype == np.int64
        assert np.abs(rows - forward(Checkpoint.open(folder), prompt).logits).max() <= 1e-3
        for token in found[f"greedy_{number}"].tolist():
            assert token == forward(Checkpoint.open(folder), ids).logits[-1].argmax()
            ids.append(token)


def test_experts_within_a_limit_give_the_same(k2, folder, tmp_path):
    """With --expert-mb some are prepared when they are needed; the numbers are those of all at hand."""
    (tmp_path / "ids.json").write_text(json.dumps(PROMPTS))
    assert k2("models", "logits", folder, "ids.json", "a.npz")[0] == 0
    assert k2("models", "logits", folder, "ids.json", "b.npz", "--expert-mb", "1")[0] == 0
    with np.load(tmp_path / "a.npz") as one, np.load(tmp_path / "b.npz") as other:
        np.testing.assert_array_equal(one["logits_0"], other["logits_0"])


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("[[1, 2], []]", "prompt 1 is not as it should be"),
        ("[[1.5]]", "prompt 0 is not as it should be"),
        ("[[true]]", "prompt 0 is not as it should be"),
        ("{}", "it holds a dict"),
        ("[", "it is no JSON"),
        ("[[320]]", "token 0 is 320, the vocabulary has 0 to 319"),
        ("[[-1]]", "token 0 is -1"),
        (f"[[1], {[1] * 513}]", "prompt 1 of ids.json: its 513 tokens take 513 positions, the model has 512"),
    ],
)
def test_prompts_that_are_none_are_one_line(k2, folder, tmp_path, text, complaint):
    """What is wrong with the file is said, and an older result stays as it was."""
    (tmp_path / "ids.json").write_text(text)
    (tmp_path / "out.npz").write_bytes(b"old")
    code, out, err = k2("models", "logits", folder, "ids.json", "out.npz")
    assert (code, out, err.count("\n")) == (2, "", 1) and complaint in err
    assert (tmp_path / "out.npz").read_bytes() == b"old"
    assert sorted(one.name for one in tmp_path.iterdir() if one.suffix == ".npz") == ["out.npz"]


@pytest.mark.parametrize(
    ("arguments", "code", "complaint"),
    [
        (("missing.json", "out.npz"), 2, "No such file or directory"),
        (("ids.json", "nowhere/out.npz"), 2, "there is no folder nowhere"),
        (("ids.json", "model"), 2, "it is a folder"),
        (("ids.json", "out.npz", "-b", "nunba"), 2, "Did you mean 'numba'?"),
        (("ids.json", "out.npz", "--numerics", "w4a8"), 5, "no numerics 'w4a8'"),
        (("ids.json", "out.npz", "--device", "abacus"), 5, "no device 'abacus' here. Known: cpu."),
    ],
)
def test_what_cannot_be_is_one_line(k2, folder, tmp_path, arguments, code, complaint):
    """Files, folders, backends, numerics and devices that are not there."""
    (tmp_path / "ids.json").write_text(json.dumps(PROMPTS))
    found, out, err = k2("models", "logits", folder, *arguments)
    assert (found, out, err.count("\n")) == (code, "", 1) and complaint in err


def test_inspecting_shows_memory_before_anything_is_loaded(k2, folder, tmp_path):
    """A table of backends and contexts, and the same as JSON; for a config.json alone too."""
    code, out, _ = k2("models", "inspect", folder)
    assert code == 0 and "numba exact" in out and "512 tokens" in out and "free on this machine" in out
    alone = tmp_path / "config.json"
    alone.write_text(json.dumps(tiny_config(max_position_embeddings=262_144)))
    code, out, _ = k2("models", "inspect", alone, "--json")
    memory = json.loads(out)["memory"]
    assert code == 0 and memory["contexts"] == [4096, 32768, 131072, 262144]
    numba = next(one for one in memory["needs"] if one["backend"] == "numba")
    cache = 3 * (32 + 8) * 4  # bytes of a position
    assert numba["bytes"][1] - numba["bytes"][0] == (32768 - 4096) * cache


def test_quantizing_reports_each_layer(k2, tmp_path):
    """A table, or JSON, of errors per layer; what cannot be is one line."""
    source = write_tiny_checkpoint(tmp_path / "plain", quantised=False)
    code, out, _ = k2("quantize", source, "int4", "--json")
    found = json.loads(out)
    assert code == 0 and [one["layer"] for one in found["layers"]] == [1, 2]
    assert all(0.05 < one["relative_error"] < 0.2 for one in found["layers"])
    code, out, err = k2("quantize", source, "int4")
    assert (code, out, err.count("\n")) == (2, "", 1) and "there already" in err
    code, out, _ = k2("quantize", source, "again")
    assert code == 0 and "layer" in out and "wrote" in out


def test_checking_a_backend_prints_a_table(k2):
    """One column per backend and numerics, everything holds, exit code 0; an unknown name is told the nearest."""
    code, out, _ = k2("backends", "check", "numba", "--count", "1")
    assert code == 0 and "numba exact" in out and "0 do not hold" in out
    assert all(op in out for op in ("int4_dequant", "mla_attention", "model tiny", "promises"))
    code, _, err = k2("backends", "check", "nunba")
    assert code == 2 and "Did you mean 'numba'?" in err
    code, out, _ = k2("backends", "check", "numba", "--count", "1", "--json")
    found = json.loads(out)
    assert found["wrong"] == 0 and all(one["holds"] for one in found["checks"])


def test_the_line_of_the_cost_names_whose_experts_they_are():
    """Where they lie on another backend."""
    told = {"model": "nano", "backend": "torch", "numerics": "exact"}
    assert [_backends({**told, **more}) for more in ({}, {"experts": "torch"}, {"experts": "numba"})] == [
        "torch", "torch", "torch (experts numba)",
    ]  # fmt: skip


def test_errors_in_the_same_words_are_one_line():
    """With their number, so that a backend that cannot be loaded is short to read; differences are lines of their own."""
    subject = Subject(name="other", backend=None, device="cpu", numerics="exact")

    def outcome(error="", difference=None):
        return Outcome(
            op="lm_head", backend="other", numerics="exact", property="within_bound", cases=1, worst=0.0, error=error,
            difference=difference,
        )  # fmt: skip

    apart = Difference(
        op="lm_head", backend="other", numerics="exact", property="within_bound", case="", output="logits", index=(0,), got=1.0,
        expected=0.0, allowed=0.1,
    )  # fmt: skip
    found = [outcome(f"no library Case: seed={seed}") for seed in range(3)] + [
        outcome("no memory"),
        outcome(),
        outcome(difference=apart),
        outcome(difference=apart),
    ]
    lines = list(_told([(subject, one) for one in found]))
    assert [line.endswith("within_bound (so do 2 more): no library") for line in lines] == [False, False, True, False]
    assert lines[0] == lines[1] == f"wrong  {apart}" and lines[3].endswith("within_bound: no memory")


def test_only_an_ordinary_file_is_replaced(k2, folder, tmp_path):
    """A pipe, a folder and the prompts themselves are refused, a link stays one, and permissions are as of any new file."""
    (tmp_path / "ids.json").write_text("[[1, 2]]")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link.npz").symlink_to("real.npz")
    for out, why in (("pipe", "no ordinary file"), (".", "a folder"), ("ids.json", "holds the prompts")):
        code, _, said = k2("models", "logits", folder, "ids.json", out)
        assert code == 2 and why in said and said.count("\n") == 1
    assert (tmp_path / "ids.json").read_text() == "[[1, 2]]"
    assert k2("models", "logits", folder, "ids.json", "link.npz")[0] == 0
    assert (tmp_path / "link.npz").is_symlink()
    (tmp_path / "plain").touch()
    assert (tmp_path / "real.npz").stat().st_mode == (tmp_path / "plain").stat().st_mode
    (tmp_path / "real.npz").chmod(0o640)
    assert k2("models", "logits", folder, "ids.json", "real.npz")[0] == 0
    assert (tmp_path / "real.npz").stat().st_mode & 0o777 == 0o640


def test_a_backend_that_would_refuse_a_checkpoint_shows_no_memory(k2, tmp_path):
    """Numba takes packed experts alone, and inspecting says so instead of a size."""
    code, out, _ = k2("models", "inspect", write_tiny_checkpoint(tmp_path / "plain", quantised=False), "--json")
    needs = {(one["backend"], one["numerics"]): one for one in json.loads(out)["memory"]["needs"]}
    assert code == 0
    assert needs["numba", "exact"]["bytes"] == [] and "k2 quantize" in needs["numba", "exact"]["note"]


def test_the_suite_leaves_long_sizes_out_wherever_it_is_run(tmp_path):
    """From an empty folder, without this project's settings, the long sizes are skipped, and nothing warns of their mark."""
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "--pyargs", "k2core.conformance.suite", "-q", "-k", "numba and rms_norm", "-rs"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout
    assert "soak size: run with pytest -m soak" in done.stdout
    assert "warning" not in done.stdout.casefold()
