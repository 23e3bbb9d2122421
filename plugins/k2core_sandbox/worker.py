"""Runs inside the sandbox: executes cells in one namespace and answers in frames. Imports nothing of ours.

    python -I -S worker.py REQUESTS REPLIES PACKAGES WORKSPACE PROCESSES

A frame is a 4-byte big-endian length and that many bytes. A request's are the code of a cell in UTF-8; cells count from 1. A
reply's are JSON, ``{"cell": N, "status": "ok" | "error" | "interrupted" | "exit", "value": repr or null, "error": traceback or
null}``. What a cell prints goes to the process's own output. The code that runs here owns this process and can forge every
reply, so the other side takes nothing in it for more than this tool's output.

What is imported here delays every start: so the C modules beneath ast and signal, and the rest only where it is needed. At
level ``wasm`` only `Cells` is used, in an interpreter that lacks some modules.
"""

import _ast
import builtins
import io
import os
import sys

VALUE_LIMIT = 20_000  # characters of a value's repr
ESCAPES = {34: '\\"', 92: "\\\\", **{code: f"\\u{code:04x}" for code in range(32)}}  # of JSON strings
# soft and hard, set before any cell runs; that of processes is an argument
LIMITS = {"RLIMIT_AS": 2 << 30, "RLIMIT_FSIZE": 256 << 20, "RLIMIT_NOFILE": 256, "RLIMIT_CORE": 0}


class Cells:
    """The namespace of the cells, and the one that is running."""

    def __init__(self) -> None:
        self.namespace: dict[str, object] = {"__name__": "__main__", "__builtins__": builtins}
        self.running = False
        self.sources: dict[str, str] = {}

    def interrupted(self, *_: object) -> None:
        """SIGINT: stops the running cell, and does nothing between cells."""
        if self.running:
            raise KeyboardInterrupt

    def run(self, number: int, code: str) -> bytes:
        """Execute one cell; the value of a last line that is an expression is its value. Gives the reply."""
        name = f"<cell {number}>"
        self.sources[name] = code
        status, value, error = "ok", None, None
        try:
            self.running = True
            try:
                if "linecache" in sys.modules:
                    self.tell_sources()
                value = self.execute(code, name)
                show_figures(number)
            finally:
                self.running = False
        except KeyboardInterrupt:
            status, error = "interrupted", "KeyboardInterrupt"
        except SystemExit as wanted:
            status, error = "exit", self.described(wanted).rpartition("\n")[2]
        except BaseException as failure:  # a cell's own failure is its result
            status, error = "error", self.described(failure)
        return reply(number, status, value, error)

    def described(self, failure: BaseException) -> str:
        """The traceback from the cell's own frames on; of hostile exceptions only the type."""
        try:
            import traceback

            self.tell_sources()
            trace = failure.__traceback__
            while trace is not None and not trace.tb_frame.f_code.co_filename.startswith("<cell"):
                trace = trace.tb_next
            return "".join(traceback.format_exception(type(failure), failure, trace)).rstrip()[-8000:]
        except BaseException:
            return type(failure).__name__

    def tell_sources(self) -> None:
        """Let tracebacks and `inspect` show the cells' lines."""
        import linecache

        for name, code in self.sources.items():
            lines = [f"{line}\n" for line in code.split("\n")]  # as Python counts them: other line ends are none
            linecache.cache[name] = (len(code), None, lines, name)
        self.sources.clear()

    def execute(self, code: str, name: str) -> str | None:
        """Run the statements; the repr of the last expression unless it is None."""
        tree = compile(code, name, "exec", _ast.PyCF_ONLY_AST, dont_inherit=True)
        assert isinstance(tree, _ast.Module)
        last = tree.body[-1] if tree.body else None
        if not isinstance(last, _ast.Expr):
            exec(compile(tree, name, "exec"), self.namespace)
            return None
        del tree.body[-1]
        exec(compile(tree, name, "exec"), self.namespace)
        value = eval(compile(_ast.Expression(last.value), name, "eval"), self.namespace)
        if value is None:
            return None
        self.namespace["_"] = value
        text = repr(value)
        return text if len(text) <= VALUE_LIMIT else f"{text[:VALUE_LIMIT]} [cut: {len(text)} characters]"


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


def reply(cell: int, status: str, value: str | None, error: str | None) -> bytes:
    """The bytes of a reply, in JSON."""
    said = ["null" if text is None else f'"{text.translate(ESCAPES)}"' for text in (value, error)]
    text = f'{{"cell": {cell}, "status": "{status}", "value": {said[0]}, "error": {said[1]}}}'
    return text.encode("utf-8", "replace")  # a lone surrogate becomes a question mark: no JSON holds one


def send(descriptor: int, body: bytes) -> None:
    """Write one frame."""
    view = memoryview(len(body).to_bytes(4, "big") + body)
    while view:
        view = view[os.write(descriptor, view) :]


def main() -> None:
    """Set the limits, then run cells until the requests end."""
    import _signal  # type: ignore[import-not-found]  # typeshed has signal only
    import resource

    requests, replies, packages, workspace = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4]
    for limit, value in {**LIMITS, "RLIMIT_NPROC": int(sys.argv[5])}.items():
        resource.setrlimit(getattr(resource, limit), (value, value))
    os.set_inheritable(requests, False)  # programs that a cell starts do not get the pipes
    os.set_inheritable(replies, False)
    sys.argv[:] = [""]
    sys.path[:] = [*(entry for entry in sys.path if entry), packages, workspace]
    for stream in (sys.stdout, sys.stderr):  # in step with what programs that a cell starts print
        assert isinstance(stream, io.TextIOWrapper)
        stream.reconfigure(line_buffering=True, errors="backslashreplace")
    cells = Cells()
    inside = type(sys)("__main__")  # so that what cells define is found there: by pickle, by type hints
    inside.__dict__.update(cells.namespace)
    cells.namespace, sys.modules["__main__"] = inside.__dict__, inside
    _signal.signal(_signal.SIGINT, cells.interrupted)
    send(replies, reply(0, "ok", sys.version.split()[0], None))
    number = 0
    while True:
        head = read_exactly(requests, 4)
        if len(head) < 4:
            os._exit(0)  # neither exit handlers nor threads of a cell hold the end up
        number += 1
        answer = cells.run(number, read_exactly(requests, int.from_bytes(head, "big")).decode("utf-8", "surrogatepass"))
        for stream in (sys.stdout, sys.stderr):
            try:
                stream.flush()
            except Exception:  # the cell closed or replaced it by whatever; the stream that the host reads is the descriptor
                continue
        send(replies, answer)


if __name__ == "__main__":
    main()
