"""Loading: what is refused, the cache of compiled kernels, processes, threads and CPUs."""

import json
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from k2core.errors import CheckpointError, ConfigError, Unavailable
from k2core.interfaces import Available, NotAvailable, SequenceInput, Want
from k2core.model.config import Geometry
from k2core.plugins import Plugins
from k2core.testing.checkpoints import tiny_config, tiny_tensors, write_safetensors, write_tiny_checkpoint
from k2core_numba import runtime
from k2core_numba.backend import NumbaBackend

SCRIPT = """
import hashlib, json, sys, time
from pathlib import Path
start = time.perf_counter()
from k2core_numba.backend import NumbaBackend
from k2core.interfaces import SequenceInput, Want
said = []
model = NumbaBackend().load(Path(sys.argv[1]), progress=lambda *step: said.append(step))
loaded = time.perf_counter() - start
handle = model.new_sequence()
step = model.forward([SequenceInput(handle=handle, token_ids=[i * 7 % 133 for i in range(300)])], Want(logits="all"))
digest = hashlib.sha256(step.logits.tobytes()).hexdigest()
print(json.dumps({"digest": digest, "loaded": loaded, "said": said, "info": dict(model.info())}))
"""


def run(folder, **environment):
    """Load the checkpoint in a process of its own and hash its logits."""
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(folder)], env=os.environ | environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)


def write_with(folder, change):
    """A tiny checkpoint whose tensors *change* edits."""
    config = tiny_config()
    tensors = tiny_tensors(Geometry.from_config(config), seed=5)
    change(tensors)
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    write_safetensors(folder / "model.safetensors", tensors)
    return folder


@pytest.mark.parametrize(
    "name",
    [
        "model.embed_tokens.weight",
        "model.norm.weight",
        "model.layers.1.self_attn.kv_b_proj.weight",
        "model.layers.2.mlp.gate.e_score_correction_bias",
        "model.layers.2.mlp.experts.3.down_proj.weight_scale",
    ],
)
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_weight_that_is_not_finite_is_refused(tmp_path, name, value):
    """NaN or infinity in any kind of tensor is a CheckpointError that names the tensor."""

    def spoil(tensors):
        tensors[name].reshape(-1)[-1] = value

    with pytest.raises(CheckpointError, match=name.replace(".", r"\.")):
        NumbaBackend().load(write_with(tmp_path, spoil))


def test_unpacked_experts_are_refused(tmp_path):
    """A checkpoint whose experts are bfloat16 is refused with what the backend needs."""
    with pytest.raises(CheckpointError, match="pack-quantized"):
        NumbaBackend().load(write_tiny_checkpoint(tmp_path, quantised=False))


def test_other_devices_and_numerics_are_refused(folder):
    """What the backend cannot do is said before anything is read."""
    with pytest.raises(Unavailable, match="device 'cuda'"):
        NumbaBackend().load(folder, device="cuda")
    with pytest.raises(Unavailable, match="numerics 'w4a8'"):
        NumbaBackend().load(folder, numerics="w4a8")


def test_threads_come_from_the_environment(folder, monkeypatch):
    """K2CORE_THREADS sets the threads; anything but a positive number is a ConfigError."""
    monkeypatch.setenv("K2CORE_THREADS", "1")
    assert NumbaBackend().load(folder).info()["threads"] == "1"
    for wrong in ("0", "-1", "many", ""):
        monkeypatch.setenv("K2CORE_THREADS", wrong)
        with pytest.raises(ConfigError, match="K2CORE_THREADS"):
            NumbaBackend().load(folder)


def test_the_plugin_registers_the_backend():
    """Discovery finds `numba`, and its target is the backend class."""
    entry = Plugins.discover().get("backend", "numba")
    assert entry.load() is NumbaBackend


def test_probing_imports_no_numba():
    """Listing and probing the backend leaves Numba unimported; without it the reason is said."""
    code = (
        "import sys; from k2core_numba.backend import NumbaBackend; found = NumbaBackend().probe();"
        "assert 'numba' not in sys.modules and 'llvmlite' not in sys.modules; print(type(found).__name__)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "Available"
    assert isinstance(NumbaBackend().probe(), Available)


def test_missing_numba_is_a_reason(monkeypatch):
    """Where Numba is not installed, probe says so and load raises the same line."""
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    found = NumbaBackend().probe()
    assert isinstance(found, NotAvailable)
    with pytest.raises(Unavailable, match="numba is not installed"):
        NumbaBackend().require()


def test_a_second_process_starts_from_the_cache(folder):
    """With compiled kernels in the cache nothing is compiled and loading takes little."""
    second = run(folder)
    assert second["said"] == []
    assert second["loaded"] < 10  # seconds; about 1 on an idle machine, 25 when it compiles


def test_kernels_that_are_written_again_have_a_cache_folder_of_their_own(tmp_path):
    """Numba would compile them again; the mark that a folder is complete must not hide that."""
    import k2core_kernels

    copy = tmp_path / "k2core_kernels"
    shutil.copytree(Path(k2core_kernels.__file__).parent, copy, ignore=shutil.ignore_patterns("__pycache__"))
    code = "from k2core_numba.runtime import cache_folder; print(cache_folder())"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])}

    def folder_now():
        done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
        return done.stdout.strip()

    before = folder_now()
    assert folder_now() == before
    os.utime(copy / "numba" / "rms_norm.py", (1, 1))
    assert folder_now() != before


def test_threads_of_a_process_change_no_bit(folder):
    """Processes with 1, 2 and 4 threads, and with another threading layer, agree on every logit."""
    digests = {run(folder, K2CORE_THREADS=str(threads), NUMBA_NUM_THREADS="4")["digest"] for threads in (1, 2, 4)}
    digests.add(run(folder, K2CORE_THREADS="4", NUMBA_NUM_THREADS="4", NUMBA_THREADING_LAYER="workqueue")["digest"])
    assert len(digests) == 1


def test_a_cold_start_on_the_portable_path(folder_of_round_sizes, tmp_path):
    """With an empty cache, code for the least CPU of the architecture is compiled, counted to the total, with native bits."""
    cold = run(folder_of_round_sizes, K2CORE_NUMBA_PORTABLE="1", XDG_CACHE_HOME=str(tmp_path))
    total = cold["said"][-1][2]
    assert [step[1] for step in cold["said"]] == list(range(1, total + 1))
    assert cold["info"]["kernel_path"] == "portable"
    assert cold["digest"] == run(folder_of_round_sizes)["digest"]


@pytest.mark.soak
def test_the_portable_path_has_the_same_bits(folder):
    """Odd sizes too give the same bits on the portable and the native path."""
    native, portable = run(folder), run(folder, K2CORE_NUMBA_PORTABLE="1")
    assert portable["info"]["kernel_path"] == "portable"
    assert portable["digest"] == native["digest"]


@pytest.mark.soak
def test_a_cold_start_has_the_same_bits(folder, tmp_path):
    """Native code that was compiled anew gives the bits of the cached code."""
    assert run(folder, XDG_CACHE_HOME=str(tmp_path))["digest"] == run(folder)["digest"]


def test_the_cache_folder_depends_on_every_kernel_file(tmp_path, monkeypatch):
    """Another file, another CPU or another path gives another folder."""
    before = runtime.cache_folder()
    assert runtime.cache_folder() == before
    monkeypatch.setenv("K2CORE_NUMBA_PORTABLE", "1")
    assert runtime.cache_folder() != before


def test_an_unwritable_cache_is_not_the_end(folder, tmp_path, monkeypatch):
    """Where the cache cannot be written, a folder for this process takes its place."""
    blocker = tmp_path / "file"
    blocker.write_text("not a folder")
    found = runtime._writable(blocker / "numba")
    assert found.is_dir()
    assert blocker not in found.parents
    found.rmdir()


def test_numba_settings_of_others_stay(compiled):
    """Importing the kernels leaves Numba's own cache folder setting as it was."""
    from numba.core import config

    assert os.environ.get("NUMBA_CACHE_DIR", "") == config.CACHE_DIR


def test_each_kernel_has_one_signature(model):
    """A forward and the seam of the experts compile nothing beyond what loading made ready."""
    from k2core_kernels.numba.options import KERNELS

    handle = model.new_sequence()
    model.forward([SequenceInput(handle=handle, token_ids=np.array([1, 2]))], Want(logits="all", routing=True, hidden=True))
    model.moe.forward(model.geometry.moe_layers.start, np.ones((1, model.geometry.hidden_size), np.float32))
    assert {dispatcher.__name__: list(dispatcher.overloads) for dispatcher, _ in KERNELS if len(dispatcher.overloads) > 1} == {}


def test_two_threads_with_two_models(folder):
    """Two Python threads that run two models at once get the bits that each gets alone."""
    ids = [index % 100 for index in range(250)]

    def work(results, place):
        model = NumbaBackend().load(folder)
        for _ in range(4):
            handle = model.new_sequence()
            results[place] = model.forward([SequenceInput(handle=handle, token_ids=ids)], Want(logits="all")).logits
            model.free(handle)
        model.close()

    results = [None] * 3
    work(results, 2)
    threads = [threading.Thread(target=work, args=(results, place)) for place in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    np.testing.assert_array_equal(results[0], results[2])
    np.testing.assert_array_equal(results[1], results[2])


def test_float32_weights_must_fit_bfloat16():
    """A float32 tensor is taken where bfloat16 holds its values, and refused by name where not."""
    from k2core_numba.weights import bfloat16_bits

    exact = np.array([[1.5, -2.0]], np.float32)
    np.testing.assert_array_equal(bfloat16_bits(exact, "x").view(ml_dtypes.bfloat16).astype(np.float32), exact)
    with pytest.raises(CheckpointError, match=r"a\.weight"):
        bfloat16_bits(np.array([[1.0001]], np.float32), "a.weight")
