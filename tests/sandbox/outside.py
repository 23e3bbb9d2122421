"""What lies outside the sandbox in these tests, and the judge: what of it was seen, reached, changed or harmed.

Everything here is made for the tests and removed afterwards; every token is fresh and appears in no attack's text.
"""

import ctypes
import hashlib
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import suppress
from pathlib import Path

from sandbox.cases import Case
from sandbox.victim import Victim, system_python

from k2core_sandbox import bubblewrap, launcher, seccomp
from k2core_sandbox.process import OUTPUT_KEPT, Cell

TOKENS = (
    "file", "name of a file", "target of a link", "attribute of a file", "environment", "environment of a process",
    "command line", "memory of a process", "descriptor of a process", "descriptor", "key", "shared memory", "shared folder",
    "file of root",
)  # fmt: skip
_libc = ctypes.CDLL(None, use_errno=True)
_libc.shmat.restype = ctypes.c_void_p


class Outside:
    """The outside of one bench; `close` removes it."""

    def __init__(self) -> None:
        python = system_python()
        assert python is not None, "no Python that every user can start"
        self.python = python
        self.nonce = secrets.token_hex(4)
        self.tokens = {name: secrets.token_hex(8) for name in TOKENS}
        self.tokens["size of a file"] = str(secrets.randbelow(10**11) + 10**11)
        self.mark = f"8{secrets.randbelow(10**3):03d}.{secrets.randbelow(10**8):08d}"  # seconds of a sleep nobody else sleeps
        self.folder = Path(tempfile.mkdtemp(prefix="k2core-outside-"))
        self._files()
        self._kernel_objects()
        self.listeners = self._listeners()
        self.victim = Victim.start(python, self.folder / "read", self.tokens)
        self.before = self._snapshot()
        self.disks = [path for path in Path("/dev").iterdir() if path.is_block_device() and openable(path)]

    def _files(self) -> None:
        read, listed, self.canary = (self.folder / name for name in ("read", "listed", "canary"))
        self.home, self.package = self.canary / "home", self.canary / "offered"
        for folder in (self.folder, read, listed, self.canary, self.home, self.package):
            folder.mkdir(exist_ok=True)
            folder.chmod(0o777)
        self.secret, self.sized, self.link = read / "secret", read / "sized", self.folder / "link"
        self.secret.write_text(self.tokens["file"])
        self.sized.touch()
        os.truncate(self.sized, int(self.tokens["size of a file"]))
        (listed / self.tokens["name of a file"]).touch()
        self.listed = listed
        self.link.symlink_to(self.tokens["target of a link"])
        self.has_attributes = True
        try:
            os.setxattr(self.secret, "user.k2core", self.tokens["attribute of a file"].encode())
        except OSError:
            self.has_attributes = False
        self._refill()
        for path in (self.secret, self.sized):
            path.chmod(0o666)
        self.shared = [
            Path(place, f"k2core-shared-{self.nonce}") for place in ("/dev/shm", "/tmp", "/var/tmp", "/run", "/dev/mqueue")
        ]
        self.left = Path("/dev/shm", f"k2core-left-{self.nonce}")
        self.left.write_text(self.tokens["shared folder"])
        self.left.chmod(0o666)
        self.inherited = os.open(self.folder, os.O_TMPFILE | os.O_RDWR)
        os.write(self.inherited, self.tokens["descriptor"].encode())
        self.folder_open = os.open(read, os.O_RDONLY)
        for number in (self.inherited, self.folder_open):
            os.set_inheritable(number, True)
        os.environ["K2CORE_TEST_TOKEN"] = self.tokens["environment"]

    def _refill(self) -> None:
        for path in sorted(self.canary.rglob("*"), reverse=True):
            if path not in (self.home, self.package):
                path.unlink() if path.is_symlink() or not path.is_dir() else path.rmdir()
        for path, text in (
            (self.canary / "file", "as it was"),
            (self.home / ".bashrc", "# mine\n"),
            (self.package / "__init__.py", ""),
        ):
            path.write_text(text)
            path.chmod(0o777)
            if not os.geteuid():
                os.chown(path, launcher.USER, launcher.USER)

    def _kernel_objects(self) -> None:
        """A key in a session keyring of our own and a shared memory; where the kernel has none, the numbers are -1."""
        numbers = seccomp.numbers()
        _libc.syscall(numbers["keyctl"], 1, None)  # a session keyring of this process
        token = self.tokens["key"].encode()
        key = f"k2core-{self.nonce}".encode()
        self.key = _libc.syscall(numbers["add_key"], b"user", key, token, ctypes.c_size_t(len(token)), -3)
        self.shared_memory_key = secrets.randbelow(1 << 30) + 1
        self.shared_memory = _libc.shmget(self.shared_memory_key, 4096, 0o1666)
        if self.shared_memory >= 0:
            place = _libc.shmat(self.shared_memory, None, 0)
            token = self.tokens["shared memory"].encode()
            ctypes.memmove(place, token, len(token))
            _libc.shmdt(ctypes.c_void_p(place))

    def _listeners(self) -> dict[str, socket.socket]:
        found: dict[str, socket.socket] = {}
        for name, family, kind, address in (
            ("tcp4", socket.AF_INET, socket.SOCK_STREAM, ("127.0.0.1", 0)),
            ("tcp6", socket.AF_INET6, socket.SOCK_STREAM, ("::1", 0)),
            ("address", socket.AF_INET, socket.SOCK_STREAM, (own_address(), 0)),
            ("udp", socket.AF_INET, socket.SOCK_DGRAM, ("127.0.0.1", 0)),
            ("unix", socket.AF_UNIX, socket.SOCK_STREAM, str(self.folder / "socket")),
            ("abstract", socket.AF_UNIX, socket.SOCK_STREAM, f"\0k2core-{self.nonce}"),
        ):
            listener = socket.socket(family, kind)
            try:
                listener.bind(address)
            except OSError:  # no IPv6 here
                listener.close()
                continue
            if kind == socket.SOCK_STREAM:
                listener.listen()
            listener.setblocking(False)
            found[name] = listener
        (self.folder / "socket").chmod(0o777)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.called = free.getsockname()
        return found

    def names(self, settings: tuple[str, ...]) -> dict[str, object]:
        """What the attacks know: where everything is, and no token."""

        def at(name: str) -> object:
            return self.listeners[name].getsockname() if name in self.listeners else ("::1", 9)

        return {
            "SECRET": str(self.secret), "LISTED": str(self.listed), "SIZED": str(self.sized), "LINK": str(self.link),
            "CANARY": str(self.canary), "HOME": str(self.home), "PACKAGE": str(self.package),
            "SHARED_NAME": self.shared[0].name, "TCP4": at("tcp4"), "TCP6": at("tcp6"), "ADDRESS": at("address"),
            "UDP": at("udp"), "UNIX": str(self.folder / "socket"), "ABSTRACT": f"\0k2core-{self.nonce}", "CALLED": self.called,
            "VICTIM": self.victim.process.pid, "VICTIM_MEMORY": self.victim.memory, "VICTIM_FD": self.victim.descriptor,
            "KEY": f"k2core-{self.nonce}", "SHARED_MEMORY": self.shared_memory_key, "MARK": self.mark,
            "NUMBERS": {**seccomp.numbers(), "clone3": 435}, "SETTINGS": settings,
        }  # fmt: skip

    def missing(self, case: Case) -> str:
        """What this machine lacks for the case to be able to succeed anywhere; empty if nothing."""
        lacks = {
            "028-loopback-of-IPv6": "tcp6" not in self.listeners and "no IPv6",
            "029-address-of-the-host": self.listeners["address"].getsockname()[0] == "127.0.0.1"
            and "no address but the loopback",
            "049-session-keyring": self.key < 0 and "the kernel has no keyrings",
            "050-shared-memory-of-System-V": self.shared_memory < 0 and "the kernel has no shared memory of System V",
            "008-attributes-of-a-file": not self.has_attributes and "the file system has no attributes",
            "038-kernel-cryptography": not opens(socket.AF_ALG) and "the kernel has no sockets into its cryptography",
            "036-vsock": not opens(socket.AF_VSOCK) and "the kernel has no vsock",
            "061-disk-by-a-node": not self.disks and "no disk can be opened here, even by root",
            "061-disk-in-dev": not self.disks and "no disk can be opened here, even by root",
            "069-modules": not Path("/proc/modules").exists() and "the kernel has no modules",
            "069-kexec": not Path("/sys/kernel/kexec_loaded").exists() and "the kernel starts no other",
            "055-program-of-root": os.geteuid() != 0 and "only root can mark a program",
        }
        if "numpy" in case.key or "matplotlib" in case.key:  # compiled for us
            lacks[case.key] = not same_version(self.python) and "the Python that every user can start is of another version"
        return lacks.get(case.key) or ""

    def meanwhile(self, seconds: float) -> threading.Thread:
        """A thread that uses the listed folder and calls the inside's port until it is reached."""

        def work() -> None:
            until = time.monotonic() + seconds
            self.reached = False
            while time.monotonic() < until and not self.reached:
                (self.listed / self.tokens["name of a file"]).read_bytes()
                with suppress(OSError), socket.create_connection(self.called, 0.2):
                    self.reached = True
                time.sleep(0.02)

        thread = threading.Thread(target=work)
        thread.start()
        return thread

    reached = False
    watched: tuple[Path, ...] = ()  # more files to see changes of

    def watch(self, path: Path) -> None:
        """See changes of this file too, instead of the one before."""
        self.watched = (path,)
        self.before = self._snapshot()

    def findings(self, case: Case, cell: Cell, workspace: Path) -> list[str]:
        """Everything that shows an attack got through; what it did is undone."""
        text = f"{cell.output}\n{cell.value}\n{cell.error}"
        found = [f"the token of '{name}' was seen" for name, token in self.tokens.items() if token in text]
        for path in (Path("/etc/passwd"), Path("/etc/shadow")):
            with suppress(OSError):
                if hashlib.sha256(path.read_bytes()).hexdigest() in text:
                    found.append(f"{path} was read")
        for name, listener in self.listeners.items():
            if self._hit(listener):
                found.append(f"the listener '{name}' was reached")
        if self.reached:
            self.reached = False
            found.append("the host reached the inside")
        after = self._snapshot()
        if after != self.before:
            changed = sorted(
                str(path) for path in after.keys() | self.before.keys() if after.get(path) != self.before.get(path)
            )
            found.append(f"changed outside: {', '.join(changed)[:300]}")
            self._refill()
            self.before = self._snapshot()
        for path in self.shared:
            with suppress(FileNotFoundError):
                path.unlink()
                found.append(f"{path} was made")
        if harm := self.victim.harm("VICTIM" in case.code):
            found += harm
            self.victim.end()
            self.victim = Victim.start(self.python, self.folder / "read", self.tokens)
        if not os.geteuid():
            with suppress(FileNotFoundError):
                if (workspace / "owned").lstat().st_uid == 0:
                    found.append("it made a file of root")
        if len(cell.output.encode()) > 3 * OUTPUT_KEPT:  # an invalid byte becomes three
            found.append(f"{len(cell.output)} characters of output were kept")
        if cell.value is not None and len(cell.value) > OUTPUT_KEPT:
            found.append(f"a value of {len(cell.value)} characters was kept")
        return found

    @staticmethod
    def _hit(listener: socket.socket) -> bool:
        try:
            if listener.type == socket.SOCK_DGRAM:
                listener.recv(100)
            else:
                listener.accept()[0].close()
        except BlockingIOError:
            return False
        return True

    def left_processes(self) -> list[int]:
        """Processes that run the marked sleep."""
        found = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                with suppress(OSError):
                    if self.mark.encode() in (entry / "cmdline").read_bytes():
                        found.append(int(entry.name))
        return found

    def _snapshot(self) -> dict[str, tuple[object, ...]]:
        found = {}
        programs = [Path(one) for name in ("bwrap", "setpriv") if (one := bubblewrap.installed(name))]
        for path in [self.canary, self.secret, self.python, *self.watched, *programs, *self.canary.rglob("*")]:
            about = path.lstat()
            attributes = tuple(os.listxattr(path, follow_symlinks=False)) if self.has_attributes else ()
            found[str(path)] = (
                about.st_ino,
                about.st_mode,
                about.st_uid,
                about.st_gid,
                about.st_size,
                about.st_mtime_ns,
                attributes,
            )
        return found

    def close(self) -> None:
        """Remove everything."""
        self.victim.end()
        for listener in self.listeners.values():
            listener.close()
        os.close(self.inherited)
        os.close(self.folder_open)
        if self.shared_memory >= 0:
            _libc.shmctl(self.shared_memory, 0, None)
        self.left.unlink()
        os.environ.pop("K2CORE_TEST_TOKEN", None)
        shutil.rmtree(self.folder)


def same_version(python: Path) -> bool:
    """Whether an interpreter can use packages that are compiled for ours."""
    code = "import sys; print(sys.implementation.cache_tag)"
    said = subprocess.run([python, "-I", "-c", code], capture_output=True, text=True, check=True)
    return said.stdout.strip() == sys.implementation.cache_tag


def own_address() -> str:
    """An address of this machine that is not the loopback, if it has one. Nothing is sent to find it."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.9", 9))
        except OSError:
            return "127.0.0.1"
        return str(probe.getsockname()[0])


def opens(family: int) -> bool:
    """Whether the kernel makes sockets of the family."""
    with suppress(OSError), socket.socket(family, socket.SOCK_STREAM if family == socket.AF_VSOCK else socket.SOCK_SEQPACKET):
        return True
    return False


def openable(path: Path) -> bool:
    """Whether we can open the file for reading."""
    try:
        os.close(os.open(path, os.O_RDONLY | os.O_NONBLOCK))
    except OSError:
        return False
    return True
