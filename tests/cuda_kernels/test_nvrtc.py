"""CUDA C++ compiles through NVRTC without a GPU, binaries are kept, and a wrong source gives one line."""

import os
import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("cuda.bindings.nvrtc")

from k2core_kernels.cuda import moe_experts_decode, nvrtc  # only where cuda-bindings are installed

try:
    nvrtc.version()
except Exception as error:  # the bindings are there, NVRTC's own library is not
    pytest.skip(f"NVRTC cannot be loaded: {error}", allow_module_level=True)

EMPTY = 'extern "C" __global__ void nothing(float* y) { y[threadIdx.x] = VALUE; }'
OPTIONS = ("-DVALUE=1",)


@pytest.fixture
def count(monkeypatch):
    """How often NVRTC is asked to compile."""
    asked, compile_ = [], nvrtc._compile
    monkeypatch.setattr(nvrtc, "_compile", lambda *arguments: asked.append(arguments) or compile_(*arguments))
    return asked


@pytest.mark.parametrize("arch", ["sm_80", "sm_90"])
@pytest.mark.parametrize(("group", "exact"), [(32, True), (32, False), (24, True), (64, False)])
def test_the_decode_kernels_compile(arch, group, exact):
    """Both kernels are in the binary, for every architecture, group and numerics."""
    options = moe_experts_decode.options(group, exact)
    binary = nvrtc.compiled(moe_experts_decode.source(), moe_experts_decode.NAME, arch, options)
    assert binary.startswith(nvrtc.ELF) and b"gate_up_decode" in binary and b"down_decode" in binary


def test_a_group_that_fits_no_word_is_refused():
    """A compile-time limit of the source becomes one line."""
    with pytest.raises(nvrtc.CompileError, match="GROUP is a multiple of 8"):
        nvrtc.compiled(moe_experts_decode.source(), moe_experts_decode.NAME, "sm_90", ("-DGROUP=12",))


def test_a_binary_is_kept(tmp_path, count):
    """The second call takes the file; it is the only one in the folder."""
    folder = tmp_path / "made"
    first = nvrtc.compiled(EMPTY, "nothing.cu", "sm_90", OPTIONS, folder)
    assert nvrtc.compiled(EMPTY, "nothing.cu", "sm_90", OPTIONS, folder) == first
    assert len(count) == 1 and [one.read_bytes() for one in folder.iterdir()] == [first]


def test_whatever_decides_a_binary_is_in_its_name(tmp_path, count, monkeypatch):
    """Another source, architecture, option or version of NVRTC is compiled anew."""
    for source, arch, options in (
        (EMPTY, "sm_90", OPTIONS),
        (EMPTY + "\n", "sm_90", OPTIONS),
        (EMPTY, "sm_80", OPTIONS),
        (EMPTY, "sm_90", ("-DVALUE=2",)),
    ):
        nvrtc.compiled(source, "nothing.cu", arch, options, tmp_path)
    monkeypatch.setattr(nvrtc, "version", lambda: "99.0")
    nvrtc.compiled(EMPTY, "nothing.cu", "sm_90", OPTIONS, tmp_path)
    assert len(count) == len(list(tmp_path.iterdir())) == 5


def test_a_damaged_file_is_compiled_anew(tmp_path, count):
    """A file that is no binary is replaced."""
    first = nvrtc.compiled(EMPTY, "nothing.cu", "sm_90", OPTIONS, tmp_path)
    (kept,) = tmp_path.iterdir()
    kept.write_bytes(b"")
    assert nvrtc.compiled(EMPTY, "nothing.cu", "sm_90", OPTIONS, tmp_path) == first == kept.read_bytes()
    assert len(count) == 2


def test_many_at_once_leave_one_whole_file(tmp_path):
    """Threads that compile the same thing into one folder all get the binary, and no part of a file is left."""
    with ThreadPoolExecutor(4) as pool:
        found = set(pool.map(lambda _: nvrtc.compiled(EMPTY, "nothing.cu", "sm_90", OPTIONS, tmp_path), range(8)))
    assert len(found) == len(list(tmp_path.iterdir())) == 1


def test_a_write_that_fails_leaves_nothing(tmp_path, monkeypatch):
    """Where the file cannot be moved into place, the error comes through and the folder is as it was."""
    monkeypatch.setattr(nvrtc.Path, "replace", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        nvrtc.compiled(EMPTY, "nothing.cu", "sm_90", OPTIONS, tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_broken_source_gives_one_line(tmp_path):
    """The line names the source, the architecture and the first error; the log is kept; no file is."""
    with pytest.raises(nvrtc.CompileError) as caught:
        nvrtc.compiled(EMPTY, "nothing.cu", "sm_90", folder=tmp_path)
    line = str(caught.value)
    assert "\n" not in line and re.match(r"cannot compile nothing\.cu for sm_90 \(NVRTC \d+\.\d+\): .*VALUE", line)
    assert "VALUE" in caught.value.log and not list(tmp_path.iterdir())


def test_an_unknown_architecture_gives_one_line():
    """NVRTC's refusal of an architecture is a CompileError too."""
    with pytest.raises(nvrtc.CompileError, match=r"cannot compile nothing\.cu for sm_1 \(NVRTC"):
        nvrtc.compiled(EMPTY, "nothing.cu", "sm_1", OPTIONS)


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="no nvcc to compare with")
@pytest.mark.parametrize("arch", ["sm_80", "sm_90"])
@pytest.mark.parametrize("group", [24, 32])
def test_nvcc_takes_the_source_and_spills_nothing(tmp_path, arch, group):
    """The other compiler agrees, warns of nothing, and its assembler keeps all numbers in registers."""
    path = tmp_path / moe_experts_decode.NAME
    path.write_text(moe_experts_decode.source(), encoding="utf-8")
    command = ["nvcc", "-cubin", f"-arch={arch}", f"-DGROUP={group}", "-Xptxas", "-v", "-o", str(tmp_path / "out"), str(path)]
    said = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stderr
    assert "warning" not in said and re.findall(r"(\d+) bytes spill", said) == ["0"] * 4


LAUNCH = """
import sys
from ctypes import c_int, c_void_p
from pathlib import Path
from k2core_kernels.cuda import nvrtc

print(nvrtc.arch_of(0))
first, second = nvrtc.functions(Path(sys.argv[1]).read_bytes(), ("gate_up_decode", "down_decode"))
nvrtc.launch(second, (5, 6), 128, 0x7777, [(0x7F0012345678, c_void_p), (7168, c_int), (-3, c_int)])
try:
    nvrtc.arch_of(1)
except RuntimeError as error:
    print(error)
"""


@pytest.mark.skipif(shutil.which("g++") is None or sys.platform != "linux", reason="no g++ to compile the driver's stub with")
def test_the_driver_is_asked_rightly(tmp_path):
    """A stub in place of the driver is given the binary, the kernels' names, the grid and the arguments as they were meant."""
    stub = Path(__file__).with_name("driver_stub.cpp")
    library = tmp_path / "libcuda.so.1"
    command = ["g++", "-shared", "-fPIC", "-Wl,-soname,libcuda.so.1", "-o", str(library), str(stub)]
    subprocess.run(command, check=True, timeout=120)
    binary = tmp_path / "kernels.cubin"
    binary.write_bytes(nvrtc.compiled(moe_experts_decode.source(), moe_experts_decode.NAME, "sm_90"))
    environment = os.environ | {"LD_LIBRARY_PATH": str(tmp_path)}
    command = [sys.executable, "-c", LAUNCH, str(binary)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert not done.returncode, done.stderr
    assert sorted(done.stdout.splitlines()) == [
        "cuDeviceGetAttribute failed: CUDA_ERROR_INVALID_DEVICE",
        "function down_decode of 0x10",
        "function gate_up_decode of 0x10",
        "launch 0x20 grid 5 6 1 block 128 1 1 shared 0 stream 0x7777 arguments 0x7f0012345678 7168 -3 extra 0",
        "load ELF",
        "sm_90",
    ]
