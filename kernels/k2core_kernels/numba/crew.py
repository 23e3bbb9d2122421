"""Threads that share the pieces of one job: how they claim them, wait for each other, and sleep in between.

One thread publishes a job, works on it too and returns when every piece is done. Pieces are claimed in order by whoever comes
first, so a piece may wait for what an earlier one does: that one is already in some thread's hands. A helper that comes too
late finds nothing left, and nobody has waited for it. Between jobs helpers sleep in a semaphore of the system and need no
interpreter to wake; a helper that was woken or has just worked looks for pieces for a while before it sleeps again.

The board that all share is a flat int64 array with a cache line for each word that threads write:

    LEFT           pieces that nobody has claimed; a claim is one subtraction, so it cannot mix two jobs
    DONE           pieces that are done
    PIECES, JOB    how many there are, and the address of what is to be done; they stay while a piece is not done
    POST, WAIT     addresses of the system's sem_post and sem_wait
    YIELD, CORE    addresses of its sched_yield and sched_getcpu; 0 where it has not the latter
    HELPERS        from here on two lines per helper: whether it sleeps (1 or 0), and its semaphore
"""

import platform
from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from k2core_kernels.numba.options import kernel, none, size

LINE = 64  # bytes of a cache line; places on the board are in bytes
LEFT, DONE, PIECES, JOB, POST, WAIT, YIELD, CORE, HELPERS = 0, 64, 128, 136, 144, 152, 160, 168, 192
HELPER = 2 * LINE
LOOKS = 9000  # at the board before a helper sleeps, about 300 us: as long as a step without it and what follows take
PATIENCE = 1000  # looks at a word before a thread lets others have its core

_I8, _I32, _I64 = ir.IntType(8), ir.IntType(32), ir.IntType(64)


def _word(builder: Any, address: Any) -> Any:
    return builder.inttoptr(address, _I64.as_pointer())


@intrinsic
def read(typing: Any, address: Any) -> Any:
    """The int64 at an address, with all that was written before it was announced there."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.load_atomic(_word(builder, arguments[0]), "acquire", 8, typ=_I64)

    return types.int64(types.int64), generate


@intrinsic
def announce(typing: Any, address: Any, value: Any) -> Any:
    """Write an int64 at an address; who reads it sees all that was written before."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        builder.store_atomic(arguments[1], _word(builder, arguments[0]), "release", 8)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64), generate


def _exchanging(operation: str) -> Any:
    @intrinsic
    def exchange(typing: Any, address: Any, value: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            return builder.atomic_rmw(operation, _word(builder, arguments[0]), arguments[1], "seq_cst")

        return types.int64(types.int64, types.int64), generate

    return exchange


add_to, swap = _exchanging("add"), _exchanging("xchg")  # both give what was there before


@intrinsic
def call(typing: Any, function: Any, argument: Any) -> Any:
    """Call a C function of one pointer, given by its address."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        pointer = builder.inttoptr(arguments[0], ir.FunctionType(_I32, [_I8.as_pointer()]).as_pointer())
        result = builder.call(pointer, [builder.inttoptr(arguments[1], _I8.as_pointer())])
        return builder.sext(result, _I64)

    return types.int64(types.int64, types.int64), generate


@intrinsic
def breathe(typing: Any) -> Any:
    """Tell the core that this thread only waits, where it can be told."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        if platform.machine().lower() in ("x86_64", "amd64"):
            module = builder.module
            name = "llvm.x86.sse2.pause"
            builder.call(module.globals.get(name) or ir.Function(module, ir.FunctionType(ir.VoidType(), []), name), [])
        return context.get_dummy_value()

    return types.void(), generate


@kernel(none(size, size, size))
def wait_for(board, address, least):
    """Return when the word at *address* is at least *least*."""
    looks = 0
    while read(address) < least:
        breathe()
        looks += 1
        if looks % PATIENCE == 0:
            call(read(board + YIELD), 0)


@kernel(none(size, size))
def wake(board, helpers):
    """Wake the first *helpers* helpers that sleep."""
    for helper in range(helpers):
        place = board + HELPERS + helper * HELPER
        if read(place) == 1 and swap(place, 0) == 1:
            call(read(board + POST), place + LINE)


@kernel(none(size, size))
def sleep(board, helper):
    """Return when the helper was woken."""
    place = board + HELPERS + helper * HELPER
    announce(place, 1)
    call(read(board + WAIT), place + LINE)


@kernel(none(size, size, size))
def publish(board, job, pieces):
    """Let helpers claim the pieces of a job; the one before is done."""
    announce(board + DONE, 0)
    announce(board + PIECES, pieces)
    announce(board + JOB, job)
    announce(board + LEFT, pieces)
    wake(board, pieces - 1)


@kernel(size(size))
def claim(board):
    """The next piece of the job, or -1 where none is left."""
    left = add_to(board + LEFT, -1)
    return read(board + PIECES) - left if left > 0 else -1


@kernel(types.boolean(size))
def look(board):
    """Whether a piece is left; gives up after a while."""
    for _ in range(LOOKS):
        if read(board + LEFT) > 0:
            return True
        breathe()
    return False
