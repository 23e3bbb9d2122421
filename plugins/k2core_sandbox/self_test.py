"""Ten attacks on a sandbox that was just made. All have to fail before code of a model may run in one.

Whether an attack succeeded is judged from outside wherever it can be: a connection that arrived, a file that changed, a
process that died, a token that was printed but never told to the inside.
"""

import os
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from attrs import frozen

from k2core.errors import Unavailable
from k2core_sandbox.launcher import USER
from k2core_sandbox.paths import Interpreter
from k2core_sandbox.process import Kind, Worker


@frozen
class Payload:
    """An attack. Its code prints the token or ``GOT IT`` when it succeeds; *outside* sees what it cannot lie about."""

    name: str
    code: str
    outside: Callable[[], bool] = lambda: False


READ = "print(open(SECRET).read())"
WRITE = "open(CANARY, 'w').write('changed')"
MODE = "import os; os.chmod(CANARY, 0)"
CONNECT = "import socket; socket.create_connection((HOST, PORT), 1)"
KILL = "import os; os.kill(VICTIM, 9)"
ENVIRONMENT = """
import glob
for path in glob.glob('/proc/*/environ'):
    try:
        print(open(path).read())
    except OSError as error:
        print(error)
"""
NAMESPACE = "import os; os.system('unshare -Ur true && echo GOT_IT | tr _ \\\\040')"
MEMORY = "x = bytearray(3 << 30); print('GOT IT')"
DESCRIPTOR = """
import os
for number in range(3, 256):
    try:
        where = os.readlink(f'/proc/self/fd/{number}')
    except OSError:
        continue
    if not where.startswith(('pipe:', '/proc/')):
        print('GOT IT', where)
"""
FORK = """
import os, signal, time
children = []
try:
    while len(children) < 200:
        child = os.fork()
        if not child:
            time.sleep(5)
            os._exit(0)
        children.append(child)
    print('GOT IT')
except OSError as error:
    print(error)
finally:
    for child in children:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
"""


@contextmanager
def places() -> Iterator[tuple[Path, Path]]:
    """A fresh workspace that the sandbox's user owns, and a staging folder; both are removed afterwards."""
    with tempfile.TemporaryDirectory(prefix="k2core-sandbox-") as folder:
        Path(folder).chmod(0o711)
        workspace, stage = Path(folder, "workspace"), Path(folder, "stage")
        workspace.mkdir(mode=0o700)
        stage.mkdir(mode=0o711)
        if not os.geteuid():
            os.chown(workspace, USER, USER)
        yield workspace, stage


def self_test(kind: Kind, python: Interpreter | None = None) -> dict[str, bool]:
    """Run ten payloads in one sandbox; for each whether it was held.

    Raises:
        Unavailable: the sandbox does not start.
    """
    token = os.urandom(12).hex()
    with places() as (workspace, stage), tempfile.TemporaryDirectory(prefix="k2core-self-test-") as folder:
        secret, canary = Path(folder, "secret"), Path(folder, "canary")
        secret.write_text(token)
        canary.write_text("as it was")
        for path in (Path(folder), secret, canary):
            path.chmod(0o777)
        with socket.socket() as listener, subprocess.Popen(["/bin/sleep", "60"], env={}) as victim:
            listener.bind(("127.0.0.1", 0))
            listener.listen()
            listener.setblocking(False)
            try:
                host, port = listener.getsockname()
                names = f"SECRET, CANARY, HOST, PORT, VICTIM = {(str(secret), str(canary), host, port, victim.pid)!r}"
                return _judged(kind, workspace, stage, python, token, names, payloads(canary, listener, victim))
            finally:
                victim.kill()


def _judged(
    kind: Kind, workspace: Path, stage: Path, python: Interpreter | None, token: str, names: str, attacks: list[Payload]
) -> dict[str, bool]:
    checks: dict[str, bool] = {}
    variable = "K2CORE_SANDBOX_SELF_TEST"
    os.environ[variable] = token
    try:
        worker = Worker.start(workspace, stage=stage, kind=kind, python=python, offered={})
        try:
            told = worker.run(names, timeout_s=10)
            if told.status != "ok":
                raise Unavailable(f"the sandbox does not run its self-test: {told.error}")
            for attack in attacks:
                cell = worker.run(attack.code, timeout_s=10)
                said = f"{cell.output}{cell.value}"
                checks[attack.name] = not ("GOT IT" in said or token in said or attack.outside())
                if cell.lost:
                    raise Unavailable(f"the sandbox died of the self-test's payload '{attack.name}': {cell.error}")
        finally:
            worker.close()
    finally:
        del os.environ[variable]
    return checks


def payloads(canary: Path, listener: socket.socket, victim: subprocess.Popen[bytes]) -> list[Payload]:
    """The attacks; each ends by itself and leaves the worker alive when it fails."""

    def reached() -> bool:
        time.sleep(0.02)
        try:
            listener.accept()[0].close()
        except BlockingIOError:
            return False
        return True

    def changed() -> bool:
        return canary.read_text() != "as it was" or canary.stat().st_mode & 0o777 != 0o777

    return [
        Payload("reads a file outside", READ),
        Payload("writes a file outside", WRITE, changed),
        Payload("changes a mode outside", MODE, changed),
        Payload("reaches the loopback", CONNECT, reached),
        Payload("kills a process outside", KILL, lambda: victim.poll() is not None),
        Payload("reads an environment", ENVIRONMENT),
        Payload("makes a user namespace", NAMESPACE),
        Payload("takes more memory than its limit", MEMORY),
        Payload("finds an inherited descriptor", DESCRIPTOR),
        Payload("forks without end", FORK),
    ]
