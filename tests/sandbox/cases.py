"""One attack of the corpus: what it is, the code that runs inside, and what is known about weaker set-ups.

The files `attacks_*.py` hold the attacks by group. Their code uses the names that `outside.Outside.names` gives and the
functions of `HELPERS`. No attack contains a token, and none judges itself where the host can: `outside.Outside.findings` looks
at everything after each one, and only a case that *says* is asked for its last line's value (True: it got through).
"""

import textwrap
from typing import Literal

from attrs import field, frozen, validators

Control = Literal["plain", "rooted"]
STAT, DETACHED = "stat of paths outside", "a detached process outlives the run"


@frozen
class Case:
    """An attack.

    Attributes:
        family: its number among the escape families.
        name: a few words.
        tells: one sentence.
        code: a cell.
        says: its last line is True where it got through, for what only the inside can see.
        control: the weaker set-up in which it is seen to succeed: a worker without any isolation as the same user
            (``plain``) or as root in a mount namespace of its own (``rooted``).
        unproven: why it is not run there; it then proves little.
        gap: the known gap of level ``reduced`` that it uses.
        strong_only: why it is not run at ``reduced``.
        timeout_s: of its cell.
        ends: its worker is closed afterwards, and what is left is part of the verdict.
        collected: what the host's collector of files makes of the workspace afterwards is part of the verdict.
        called: the host calls the inside and uses its own folder meanwhile.
        plants: what the host puts into the workspace before.
    """

    family: int = field(validator=[validators.ge(1), validators.le(110)])
    name: str
    tells: str
    code: str = field(converter=textwrap.dedent)
    says: bool = field(default=False, kw_only=True)
    control: Control = field(default="plain", kw_only=True)
    unproven: str = field(default="", kw_only=True)
    gap: str = field(default="", kw_only=True)
    strong_only: str = field(default="", kw_only=True)
    timeout_s: float = field(default=8.0, kw_only=True)
    ends: bool = field(default=False, kw_only=True)
    collected: bool = field(default=False, kw_only=True)
    called: bool = field(default=False, kw_only=True)
    plants: str = field(default="", kw_only=True)

    @property
    def key(self) -> str:
        """Its name among all."""
        return f"{self.family:03d}-{self.name.replace(' ', '-')}"


HELPERS = '''
import ctypes, errno, os, sys
libc = ctypes.CDLL(None, use_errno=True)
libc.syscall.restype = ctypes.c_long

def call(name, *arguments):
    """A system call: its result, or minus the error's number."""
    numbers = [ctypes.c_long(one) if isinstance(one, int) else one for one in arguments]
    ctypes.set_errno(0)
    result = libc.syscall(ctypes.c_long(NUMBERS[name]), *numbers)
    return -ctypes.get_errno() if result == -1 else result

def in_child(work):
    """Whether *work* is true in a forked child; a child that dies gives False."""
    sys.stdout.flush()
    child = os.fork()
    if not child:
        status = 1
        try:
            status = 0 if work() else 1
            sys.stdout.flush()
        finally:
            os._exit(status)
    return os.waitpid(child, 0)[1] == 0

def attempt(work, *arguments):
    """What *work* gives, printed if it is text or bytes; an OSError gives its negative number."""
    try:
        found = work(*arguments)
    except OSError as error:
        return -(error.errno or 1)
    if isinstance(found, (str, bytes)):
        print(found)
    return found

def opens_for_writing(path):
    """Whether the path can be opened for writing; nothing is written."""
    try:
        os.close(os.open(path, os.O_WRONLY))
        return True
    except OSError:
        return False

def status_field(name):
    """A line of our own status, as text; empty where /proc is closed."""
    try:
        return next((line.split(":")[1].strip() for line in open("/proc/self/status") if line.startswith(name + ":")), "")
    except OSError:
        return ""
'''
