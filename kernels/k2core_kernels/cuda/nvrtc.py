"""CUDA C++ compiled at first use through NVRTC, and kept: neither nvcc nor a host compiler is needed, nor a GPU to compile.

A binary is kept in a folder that the caller chooses, under a name made of all that decides it: the source, the architecture,
the options and NVRTC's version. It is written beside and moved into place, so that a reader finds a whole file or none.
"""

import hashlib
import os
import tempfile
from functools import cache
from pathlib import Path

from cuda.bindings import driver, nvrtc

ELF = b"\x7fELF"
STANDARD = "--std=c++17"


class CompileError(RuntimeError):
    """A source that NVRTC refuses; one line, with the first error of the log.

    Attributes:
        log: all that the compiler said.
    """

    def __init__(self, name: str, arch: str, log: str) -> None:
        self.log = log
        lines = [line.strip() for line in log.splitlines() if line.strip()]
        first = next((line for line in lines if "error" in line), lines[0] if lines else "no log")
        super().__init__(f"cannot compile {name} for {arch} (NVRTC {version()}): {first}")


@cache
def version() -> str:
    """NVRTC's, e.g. ``"13.0"``."""
    return ".".join(map(str, _checked(nvrtc.nvrtcVersion(), "nvrtcVersion")))


def compiled(source: str, name: str, arch: str, options: tuple[str, ...] = (), folder: Path | None = None) -> bytes:
    """A binary for one architecture.

    Args:
        source: CUDA C++ that includes nothing.
        name: of the source, for messages and the file.
        arch: e.g. ``"sm_90"``.
        options: of NVRTC, e.g. ``"-DGROUP=32"``.
        folder: where binaries are kept; made if it is missing. None keeps none.

    Raises:
        CompileError: the source is wrong, or NVRTC does not know the architecture.
        OSError: the folder cannot be written.
    """
    decides = "\0".join((source, arch, version(), STANDARD, *options))
    kept = folder and folder / f"{Path(name).stem}-{arch}-{hashlib.sha256(decides.encode()).hexdigest()[:32]}.cubin"
    if kept and kept.exists():
        binary = kept.read_bytes()
        if binary.startswith(ELF):
            return binary
    binary = _compile(source, name, arch, options)
    if kept:
        _write(kept, binary)
    return binary


def arch_of(device: int) -> str:
    """The architecture of a device by its number, e.g. ``"sm_90"``."""
    attribute = driver.CUdevice_attribute
    parts = (
        _checked(driver.cuDeviceGetAttribute(part, device), "cuDeviceGetAttribute")
        for part in (
            attribute.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR,
            attribute.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR,
        )
    )
    return "sm_" + "".join(map(str, parts))


def functions(binary: bytes, names: tuple[str, ...]) -> tuple[driver.CUfunction, ...]:
    """Kernels of a binary, loaded into the current context; they stay loaded as long as it lives."""
    module = _checked(driver.cuModuleLoadData(binary), "cuModuleLoadData")
    return tuple(_checked(driver.cuModuleGetFunction(module, name.encode()), f"cuModuleGetFunction {name}") for name in names)


def launch(function: driver.CUfunction, grid: tuple[int, int], threads: int, stream: int, arguments: list[tuple]) -> None:
    """Run a kernel on *stream*; *arguments* are pairs of value and ctypes type."""
    values, types = zip(*arguments, strict=True)
    done = driver.cuLaunchKernel(function, *grid, 1, threads, 1, 1, 0, stream, (values, types), 0)
    _checked(done, "cuLaunchKernel")


def _compile(source: str, name: str, arch: str, options: tuple[str, ...]) -> bytes:
    program = _checked(nvrtc.nvrtcCreateProgram(source.encode(), name.encode(), 0, [], []), "nvrtcCreateProgram")
    try:
        given = [f"--gpu-architecture={arch}", STANDARD, *options]
        (result,) = nvrtc.nvrtcCompileProgram(program, len(given), [one.encode() for one in given])
        if result != nvrtc.nvrtcResult.NVRTC_SUCCESS:
            log = bytes(_checked(nvrtc.nvrtcGetProgramLogSize(program), "nvrtcGetProgramLogSize"))
            _checked(nvrtc.nvrtcGetProgramLog(program, log), "nvrtcGetProgramLog")
            said = log.rstrip(b"\0 ").decode(errors="replace")
            raise CompileError(name, arch, said or _text(result))
        binary = bytes(_checked(nvrtc.nvrtcGetCUBINSize(program), "nvrtcGetCUBINSize"))
        _checked(nvrtc.nvrtcGetCUBIN(program, binary), "nvrtcGetCUBIN")
        return binary
    finally:
        nvrtc.nvrtcDestroyProgram(program)


def _write(path: Path, binary: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, beside = tempfile.mkstemp(dir=path.parent, prefix=path.stem, suffix=".part")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(binary)
        Path(beside).replace(path)
    except BaseException:
        Path(beside).unlink(missing_ok=True)
        raise


def _checked(answer: tuple, what: str) -> object:
    """The value of an answer of the bindings.

    Raises:
        RuntimeError: it is an error; the line names the call.
    """
    result, *values = answer
    if int(result):
        raise RuntimeError(f"{what} failed: {_text(result)}")
    return values[0] if len(values) == 1 else values


def _text(result: object) -> str:
    return getattr(result, "name", str(result))
