"""How everything is computed here: without gradients, in full float32, and no memory is a CapacityError in one line.

What is small is computed by one thread. PyTorch shares out even a softmax of 500 values, and threads wait for each other at the
end of every op: 4 to 8 ms each where another job has the second core, against 5 us alone. The process's setting comes back, but
a thread that uses PyTorch for the first time in between keeps what it met: PyTorch has no setting for one thread alone.
"""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch

from k2core.errors import CapacityError
from k2core.model.free_memory import free_bytes

ALONE = 1 << 25  # a layer's bytes times tokens: some 2 ms of a layer's work, 0.1 ms of an op's


@contextmanager
def computing(device: str, what: str, *, work: int = ALONE) -> Iterator[None]:
    """Compute what is inside.

    Args:
        device: where.
        what: it is for, to be told where memory does not suffice.
        work: a layer's bytes of weights times tokens; below `ALONE` it is for one thread.

    Raises:
        CapacityError: no memory; says what is free.
    """
    with torch.inference_mode(), full_precision(), one_thread() if work < ALONE else nullcontext():
        try:
            yield
        except (MemoryError, RuntimeError) as error:  # torch.OutOfMemoryError is a RuntimeError
            if not is_memory(error):
                raise
            free = bytes_free(device)
            told = "" if free is None else f", where {free:,} bytes are free"
            raise CapacityError(f"no memory on {device} for {what}{told}: {' '.join(str(error).split())[:200]}") from error


@contextmanager
def full_precision() -> Iterator[None]:
    """Products of float32 without TF32 or bfloat16 inside them, whatever the process has set; its setting comes back."""
    try:
        before = torch.get_float32_matmul_precision()
    except RuntimeError:  # set through the newer interface, which the older one does not understand
        with _newer_full_precision():
            yield
        return
    if before == "highest":
        yield
        return
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


@contextmanager
def _newer_full_precision() -> Iterator[None]:
    backends: Any = torch.backends  # mkldnn's part has no type information
    places = (backends.cuda.matmul, backends.mkldnn.matmul)
    before = [place.fp32_precision for place in places]
    for place in places:
        place.fp32_precision = "ieee"
    try:
        yield
    finally:
        for place, value in zip(places, before, strict=True):
            place.fp32_precision = value


@contextmanager
def one_thread() -> Iterator[None]:
    """Ops inside are not shared out; the process's setting comes back."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def is_memory(error: BaseException) -> bool:
    """Whether it says that there is no memory: on the CPU PyTorch has no exception of its own for it."""
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or "can't allocate memory" in str(error)


def bytes_free(device: str) -> int | None:
    """What the device can still give; None where that is not known."""
    return int(torch.cuda.mem_get_info()[0]) if device == "cuda" else free_bytes()
