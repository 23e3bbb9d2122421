"""Runs inside the sandbox: executes cells in one namespace and answers in frames. Imports nothing of ours.

    python -I -S worker.py REQUESTS REPLIES PACKAGES WORKSPACE PROCESSES

A frame is a 4-byte big-endian length and that many bytes of JSON. A request is ``{"cell": N, "code": "..."}``; its reply
``{"cell": N, "status": "ok" | "error" | "interrupted" | "exit", "value": repr or null, "error": traceback or null}``. What a
cell prints goes to the process's own output. The code that runs here owns this process and can forge every reply, so the
other side takes nothing in it for more than this tool's output.
"""

import ast
import builtins
import io
import json
import linecache
import os
import resource
import signal
import sys
import traceback

VALUE_LIMIT = 20_000  # characters of a value's repr
LIMITS = {  # soft and hard, set before any cell runs; that of processes is an argument
    resource.RLIMIT_AS: 2 << 30,
    resource.RLIMIT_FSIZE: 256 << 20,
    resource.RLIMIT_NOFILE: 256,
    resource.RLIMIT_CORE: 0,
}


class Cells:
    """The namespace of the cells, and the one that is running."""

    def __init__(self) -> None:
        self.namespace: dict[str, object] = {"__name__": "__main__", "__builtins__": builtins}
        self.running = False

    def interrupted(self, *_: object) -> None:
        """SIGINT: stops the running cell, and does nothing between cells."""
        if self.running:
            raise KeyboardInterrupt

    def run(self, number: int, code: str) -> dict[str, object]:
        """Execute one cell; the value of a last line that is an expression is its value."""
        name = f"<cell {number}>"
        linecache.cache[name] = (len(code), None, code.splitlines(keepends=True), name)
        status, value, error = "ok", None, None
        try:
            self.running = True
            try:
                value = self.execute(code, name)
                show_figures(number)
            finally:
                self.running = False
        except KeyboardInterrupt:
            status, error = "interrupted", "KeyboardInterrupt"
        except SystemExit as wanted:
            status, error = "exit", f"SystemExit: {wanted.code}"
        except BaseException as failure:  # a cell's own failure is its result
            status, error = "error", described(failure)
        return {"cell": number, "status": status, "value": value, "error": error}

    def execute(self, code: str, name: str) -> str | None:
        """Run the statements; the repr of the last expression unless it is None."""
        tree = ast.parse(code, name)
        last = tree.body[-1] if tree.body else None
        if not isinstance(last, ast.Expr):
            exec(compile(tree, name, "exec"), self.namespace)
            return None
        del tree.body[-1]
        exec(compile(tree, name, "exec"), self.namespace)
        value = eval(compile(ast.Expression(last.value), name, "eval"), self.namespace)
        if value is None:
            return None
        self.namespace["_"] = value
        text = repr(value)
        return text if len(text) <= VALUE_LIMIT else f"{text[:VALUE_LIMIT]} [cut: {len(text)} characters]"


def described(failure: BaseException) -> str:
    """The traceback from the cell's own frames on; of hostile exceptions only the type."""
    try:
        trace = failure.__traceback__
        while trace is not None and not trace.tb_frame.f_code.co_filename.startswith("<cell"):
            trace = trace.tb_next
        return "".join(traceback.format_exception(type(failure), failure, trace)).rstrip()[-8000:]
    except BaseException:
        return type(failure).__name__


def show_figures(number: int) -> None:
    """Save the open figures of matplotlib, if a cell imported it, as files of the workspace."""
    plotting = sys.modules.get("matplotlib.pyplot")
    if plotting is None:
        return
    for place, figure in enumerate(plotting.get_fignums(), 1):
        plotting.figure(figure).savefig(f"figure-{number}-{place}.png")
    plotting.close("all")


def read_exactly(descriptor: int, size: int) -> bytes:
    """Exactly *size* bytes; fewer at the end of the pipe."""
    data = b""
    while len(data) < size:
        more = os.read(descriptor, size - len(data))
        if not more:
            break
        data += more
    return data


def send(descriptor: int, message: dict[str, object]) -> None:
    """Write one frame."""
    body = json.dumps(message).encode()
    view = memoryview(len(body).to_bytes(4, "big") + body)
    while view:
        view = view[os.write(descriptor, view) :]


def main() -> None:
    """Set the limits, then run cells until the requests end."""
    requests, replies, packages, workspace = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4]
    for limit, value in {**LIMITS, resource.RLIMIT_NPROC: int(sys.argv[5])}.items():
        resource.setrlimit(limit, (value, value))
    os.set_inheritable(requests, False)  # programs that a cell starts do not get the pipes
    os.set_inheritable(replies, False)
    sys.argv[:] = [""]
    sys.path[:] = [*(entry for entry in sys.path if entry), packages, workspace]
    for stream in (sys.stdout, sys.stderr):  # in step with what programs that a cell starts print
        assert isinstance(stream, io.TextIOWrapper)
        stream.reconfigure(line_buffering=True, errors="backslashreplace")
    cells = Cells()
    signal.signal(signal.SIGINT, cells.interrupted)
    send(replies, {"cell": 0, "status": "ok", "value": sys.version.split()[0], "error": None})
    while True:
        head = read_exactly(requests, 4)
        if len(head) < 4:
            os._exit(0)  # neither exit handlers nor threads of a cell hold the end up
        request = json.loads(read_exactly(requests, int.from_bytes(head, "big")))
        reply = cells.run(request["cell"], request["code"])
        for stream in (sys.stdout, sys.stderr):
            try:
                stream.flush()
            except Exception:  # the cell closed or replaced it by whatever; the stream that the host reads is the descriptor
                continue
        send(replies, reply)


if __name__ == "__main__":
    main()
