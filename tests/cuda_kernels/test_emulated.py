"""The CUDA C++ kernels' numbers without a GPU: the same source compiled as plain C++, its warps emulated, beside the oracle.

This proves the arithmetic, the layout, the edges and what is exchanged within a warp. It proves nothing about speed, nor that a
GPU is launched rightly.
"""

import ctypes
import importlib.util
import shutil
import subprocess
from importlib.resources import files
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from k2core.model.int4 import dequantise, pack
from k2core.oracle.bounds import moe_experts_bound
from k2core.oracle.moe_experts import moe_experts as oracle_experts

COMPILER = shutil.which("g++")
pytestmark = pytest.mark.skipif(COMPILER is None, reason="no g++ to compile the emulation with")
SOURCES = files("k2core_kernels") / "cuda"
THREADS, GATE_UP_TILE, DOWN_TILE = 128, 8, 16


@pytest.fixture(scope="module")
def emulated(tmp_path_factory):
    """The kernels as a library, by group and numerics; compiled once each, without a warning."""
    built = {}

    def build(group, exact):
        if (group, exact) not in built:
            out = tmp_path_factory.mktemp("emulated") / "experts.so"
            command = [
                COMPILER, "-std=c++17", "-O1", "-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas", "-shared", "-fPIC",
                f"-DGROUP={group}", f"-DROUNDED={int(not exact)}", "-I", str(SOURCES),
                "-o", str(out), str(Path(__file__).with_name("emulated.cpp")),
            ]  # fmt: skip
            subprocess.run(command, check=True, timeout=120)
            built[group, exact] = ctypes.CDLL(str(out))
        return built[group, exact]

    return build


class Experts:
    """Random packed experts, inputs and a routing without duplicates."""

    def __init__(self, tokens, experts, top_k, hidden, inner, group, seed=0):
        rng = np.random.default_rng(seed)
        self.group, self.matrices = group, []
        for rows, columns in ((inner, hidden), (inner, hidden), (hidden, inner)):
            codes = rng.integers(-8, 8, (experts, rows, columns)).astype(np.int8)
            scale = (rng.random((experts, rows, columns // group)) * 0.1).astype(ml_dtypes.bfloat16)
            self.matrices.append((np.stack([pack(one) for one in codes]), scale))
        self.x = rng.standard_normal((tokens, hidden)).astype(np.float32)
        self.ids = np.stack([rng.permutation(experts)[:top_k] for _ in range(tokens)])
        self.weights = rng.random((tokens, top_k)).astype(np.float32)

    def one(self, index):
        """An expert's three matrices, float32."""
        gate, up, down = (dequantise(packed[index], scale[index]) for packed, scale in self.matrices)
        return gate, up, down

    def run(self, kernels, exact):
        """The emulated kernels' sum; whatever they do not write stays NaN."""
        (tokens, hidden), top_k, inner = self.x.shape, self.ids.shape[1], self.matrices[0][0].shape[1]
        x = self.x if exact else self.x.astype(ml_dtypes.bfloat16).astype(np.float32)
        quads = 8 if self.group % 32 == 0 else 2
        planes = x.reshape(tokens, -1, quads, 4).transpose(0, 2, 1, 3)
        activated = aligned(np.full((tokens * top_k, inner), np.nan, np.float32))
        y = np.full((tokens, hidden), np.nan, np.float32)
        packed = [part for matrix in self.matrices for part in matrix]
        arrays = [aligned(one) for one in (planes, *packed, self.ids.astype(np.int32), self.weights)] + [activated, y]
        wrong = kernels.experts(
            *(ctypes.c_void_p(one.ctypes.data) for one in arrays),
            *(ctypes.c_int(size) for size in (tokens, hidden, inner, top_k, THREADS, GATE_UP_TILE, DOWN_TILE)),
        )
        assert not wrong, "a wide load was misaligned (1), or a lane missed an exchange (2)"
        return y


def aligned(array):
    """A contiguous copy at a multiple of 16 bytes, as memory of a GPU is."""
    raw = np.empty(array.nbytes + 16, np.uint8)
    start = -raw.ctypes.data % 16
    copy = raw[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
    copy[...] = array
    return copy


CASES = [
    Experts(1, 4, 2, 64, 32, 32),
    Experts(3, 5, 3, 1056, 96, 32, 1),  # 33 chunks: a lane's second, and 31 that have none
    Experts(2, 3, 2, 128, 192, 64, 2),
    Experts(2, 3, 1, 96, 40, 8, 3),
    Experts(8, 6, 2, 336, 24, 24, 4),  # 42 words of a row
    Experts(1, 2, 2, 8, 8, 8, 5),
]


@pytest.mark.parametrize("exact", [True, False], ids=["exact", "w4a16"])
@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{len(case.x)}x{case.x.shape[1]}g{case.group}")
def test_numbers_keep_the_bound(emulated, case, exact):
    """Every group and ragged size gives the oracle's sum; beside rounded inputs, w4a16 has float32 errors only."""
    got = case.run(emulated(case.group, exact), exact)
    want = oracle_experts(case.x, case.ids, case.weights, case.one, "none" if exact else "bfloat16")
    excess = np.abs(got - want) - moe_experts_bound(case.x, case.ids, case.weights, case.one)
    worst = np.unravel_index(np.nan_to_num(excess, nan=np.inf).argmax(), got.shape)
    assert excess[worst] <= 0, f"at {worst}: got {got[worst]}, expected {want[worst]}"


def test_bfloat16_is_rounded_to_nearest_even(emulated):
    """Ties, infinities, NaN and numbers on the way to infinity come out as ml_dtypes has them."""
    random = np.random.default_rng(0).standard_normal(1000)
    special = [1 + 2.0**-8, 1 + 3 * 2.0**-8, -1 - 2.0**-8, 0.0, -0.0, np.inf, -np.inf, np.nan, 3.4e38, -3.4e38, 1e-40]
    x = np.array([*special, *random], np.float32)
    y = np.empty_like(x)
    emulated(32, True).round_all(ctypes.c_void_p(x.ctypes.data), ctypes.c_void_p(y.ctypes.data), ctypes.c_int(len(x)))
    with np.errstate(over="ignore"):
        want = x.astype(ml_dtypes.bfloat16).astype(np.float32)
    assert np.array_equal(y, want, equal_nan=True)


def test_rows_do_not_depend_on_the_batch(emulated):
    """Token by token gives the batch's rows to the bit."""
    case, kernels = Experts(3, 4, 2, 96, 64, 32, 9), emulated(32, True)
    whole = case.run(kernels, True)
    x, ids, weights = case.x, case.ids, case.weights
    for token in range(3):
        case.x, case.ids, case.weights = x[token, None], ids[token, None], weights[token, None]
        assert np.array_equal(case.run(kernels, True)[0], whole[token])


@pytest.mark.skipif(not all(map(importlib.util.find_spec, ("torch", "cuda"))), reason="torch or cuda-bindings are missing")
def test_the_host_side_lays_vectors_out_the_same():
    """What the launcher hands to the kernels is the layout that the emulation is given, and tiles are as they are here."""
    torch = pytest.importorskip("torch")
    launcher = pytest.importorskip("k2core_kernels.cuda.moe_experts_decode")
    x = np.random.default_rng(0).standard_normal((3, 192)).astype(np.float32)
    for group, quads in ((32, 8), (96, 8), (24, 2)):
        want = x.reshape(3, -1, quads, 4).transpose(0, 2, 1, 3)
        assert np.array_equal(launcher.ordered(torch.from_numpy(x), group, True).numpy(), want)
    near = launcher.ordered(torch.from_numpy(x), 32, False).numpy()
    assert np.array_equal(near, want_rounded(x)) and launcher.THREADS == THREADS
    assert (launcher.GATE_UP_TILE, launcher.DOWN_TILE) == (GATE_UP_TILE, DOWN_TILE)


def want_rounded(x):
    """Rounded to bfloat16, in chunks of 32."""
    return x.astype(ml_dtypes.bfloat16).astype(np.float32).reshape(len(x), -1, 8, 4).transpose(0, 2, 1, 3)
