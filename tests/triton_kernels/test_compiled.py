"""Every Triton kernel compiles ahead of time for sm_80 and sm_90, at K2's sizes, and fits the hardware.

No GPU is needed. The assembler's report says whether registers are spilled, the binary how much shared memory it takes.
"""

import re
import subprocess

import pytest

pytest.importorskip("torch")
triton = pytest.importorskip("triton")

from triton.backends.compiler import GPUTarget  # noqa: E402  # only where triton is installed
from triton.backends.nvidia.compiler import get_ptxas  # noqa: E402
from triton.compiler import ASTSource  # noqa: E402

from k2core_kernels.triton import mla_decode, moe_experts, numbers  # noqa: E402

if numbers.INTERPRETED:
    pytest.skip("TRITON_INTERPRET is set in this process: nothing can be compiled", allow_module_level=True)

pytestmark = pytest.mark.filterwarnings("ignore:AnnAssign:DeprecationWarning")  # Triton's own, from Python 3.13 on
SHARED = {80: 163 * 1024, 90: 227 * 1024}  # bytes a block may have
EIGHTHS = {"hidden_words", "inner_words"}  # sizes that are multiples of 16 for K2
TYPES = {
    "x": "*{0}", "inner_in": "*{0}", "inner_out": "*{0}", "query": "*{0}", "pages": "*{0}",
    "gate": "*i32", "up": "*i32", "down": "*i32", "gate_scale": "*bf16", "up_scale": "*bf16", "down_scale": "*bf16",
    "expert_ids": "*i64", "weights": "*fp32", "parts": "*fp32", "y": "*fp32", "sums": "*fp32", "tops": "*fp32",
    "totals": "*fp32", "order": "*i32", "block_expert": "*i32", "block_first": "*i32", "block_end": "*i32", "table": "*i32",
    "lengths": "*i32", "scale": "fp32",
}  # fmt: skip


def compiled(kernel, target, dtype, constants, **options):
    """The binary, and (spilled bytes, registers) by the assembler's report."""
    names = kernel.arg_names
    signature = {name: "constexpr" if name in constants else TYPES.get(name, "i32").format(dtype) for name in names}
    aligned = [name for name in names if name in EIGHTHS or signature[name].startswith("*")]
    source = ASTSource(
        kernel,
        signature,
        {(names.index(name),): value for name, value in constants.items()},
        {(names.index(name),): [["tt.divisibility", 16]] for name in aligned},
    )
    options["enable_fp_fusion"] = True
    built = triton.compile(source, target=GPUTarget("cuda", target, 32), options=options)
    machine = re.search(r"\.target (\w+)", built.asm["ptx"]).group(1)
    command = [get_ptxas(target).path, "-v", "--gpu-name", machine, "-o", "/dev/null", "/dev/stdin"]
    report = subprocess.run(command, input=built.asm["ptx"], capture_output=True, text=True, check=True).stderr
    return (
        built,
        sum(map(int, re.findall(r"(\d+) bytes spill", report))),
        int(re.search(r"Used (\d+) registers", report).group(1)),
    )


def assert_fits(kernel, target, dtype, constants, **options):
    """A binary came out, it spills nothing and takes no more shared memory than there is."""
    built, spilled, registers = compiled(kernel, target, dtype, constants, **options)
    assert built.asm["cubin"][:4] == b"\x7fELF"
    assert not spilled and registers * options.get("num_warps", 4) * 32 <= 65536
    assert built.metadata.shared <= SHARED[target]
    return built


@pytest.fixture(autouse=True)
def fresh(tmp_path, monkeypatch):
    """Compile, do not take from an older run."""
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))


@pytest.mark.parametrize("target", SHARED)
@pytest.mark.parametrize("exact", [True, False], ids=["exact", "w4a16"])
def test_decode_kernels_compile(target, exact):
    """Both decode kernels; words are loaded 128 bits at a time, and no conversion instruction makes a code a float."""
    constants = {"TOP_K": 8, "GROUP": 32, "ROWS": moe_experts.ROWS, "WORDS": moe_experts.WORDS}
    for kernel in (moe_experts.gate_up_decode, moe_experts.down_decode):
        ptx = assert_fits(kernel, target, "fp32" if exact else "bf16", constants, num_warps=8).asm["ptx"]
        assert re.search(r"ld\.global\.\S*v4\.b32", ptx) and "cvt.rn.f32.s32" not in ptx


CASES = [(8, 32, True), (100, 32, True), (8, 24, True), (8, 32, False), (8, 24, False), (100, 32, False)]
MORE = [(rows, group, False) for rows in (30, 60) for group in (8, 32, 64)]


@pytest.mark.parametrize("target", SHARED)
@pytest.mark.parametrize(("rows", "group", "exact"), [*CASES, *(pytest.param(*one, marks=pytest.mark.soak) for one in MORE)])
def test_grouped_kernels_compile(target, rows, group, exact):
    """Both matrix products with the tiles of so many rows per expert; w4a16 runs on the matrix units."""
    size = moe_experts.tiles(rows, exact)
    constants = {
        "GROUP": group, "BLOCK_M": size.m, "BLOCK_N": size.n, "BLOCK_K": size.k, "TOP_K": 8,
        **moe_experts.dot_options(group, exact),
    }  # fmt: skip
    for kernel in (moe_experts.gate_up_grouped, moe_experts.down_grouped):
        own = {name: value for name, value in constants.items() if name in kernel.arg_names}
        built = assert_fits(kernel, target, "fp32" if exact else "bf16", own, num_warps=size.warps, num_stages=size.stages)
        assert exact or re.search(r"mma\.sync|wgmma", built.asm["ptx"])


@pytest.mark.parametrize("target", SHARED)
def test_the_sum_over_slots_compiles(target):
    """The reduction of the grouped way."""
    assert_fits(moe_experts.sum_slots, target, "fp32", {"TOP_K": 8, "BLOCK": moe_experts.SUM_BLOCK})


@pytest.mark.parametrize("target", SHARED)
@pytest.mark.parametrize(("heads", "exact"), [(64, False), (8, False), (64, True)])
def test_mla_splits_compile(target, heads, exact):
    """Attention over one split with latents of 512 + 64: all heads in one tile, or few; w4a16 runs on the matrix units."""
    options = mla_decode.tiles(heads, 512, 64, exact, target // 10)
    build = {name: options.pop(name) for name in ("num_warps", "num_stages")}
    sizes = {"HEADS": heads, "RANK": 512, "ROPE": 64, "PAGE": 64}
    built = assert_fits(mla_decode.attend_split, target, "fp32" if exact else "bf16", sizes | options, **build)
    assert exact or re.search(r"mma\.sync|wgmma", built.asm["ptx"])


@pytest.mark.parametrize("target", SHARED)
@pytest.mark.parametrize("splits", [{}, {"splits": 1}], ids=["many", "one"])
def test_joining_splits_compiles(target, splits):
    """Many splits and, as Triton specialises it, one."""
    sizes = {"HEADS": 64, "RANK": 512, "RANK_TILE": 512}
    assert_fits(mla_decode.join_splits, target, "fp32", sizes | splits)
