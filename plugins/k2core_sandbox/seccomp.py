"""The system-call filter: a classic BPF program made from `syscalls.toml`, for the kernel's seccomp mode 2.

What a call meets, in order: another architecture or the x32 table kills the process; calls whose arguments decide (clone,
ioctl, socket, prlimit64) are looked at; listed calls are allowed or answer EPERM; every other call answers ENOSYS, so that
the C library falls back (clone3 to clone, whose flags can be read). Formats: linux/filter.h, linux/seccomp.h.
"""

import platform
import struct
import tomllib
from collections.abc import Mapping
from functools import cache
from importlib.resources import files

from attrs import frozen

from k2core.errors import Unavailable

_LOAD, _EQUAL, _AT_LEAST, _ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_ALLOW, _KILL, _ERRNO = 0x7FFF0000, 0x80000000, 0x00050000
_EPERM, _ENOSYS, _EAFNOSUPPORT = 1, 38, 97
_NUMBER, _ARCHITECTURE, _FIRST, _SECOND = 0, 4, 16, 24  # offsets in struct seccomp_data; low halves of the arguments
_X32 = 0x40000000
_NEW_NAMESPACES = 0x7E020000  # CLONE_NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET
_TERMINAL_INJECTION = (0x5412, 0x541C)  # TIOCSTI, TIOCLINUX
_AF_UNIX = 1
_OURSELVES = 0  # a process number


@frozen(kw_only=True)
class Policy:
    """What differs between the levels.

    Attributes:
        local_sockets: AF_UNIX sockets may be made. Needs a file system and a network namespace of its own.
        modes: modes, times and attributes of files may be changed, links and attributes read, other processes of the same
            user slowed. Landlock governs none of it.
    """

    local_sockets: bool
    modes: bool


@cache
def _table() -> Mapping[str, Mapping[str, object]]:
    return tomllib.loads((files("k2core_sandbox") / "syscalls.toml").read_text(encoding="utf-8"))


def numbers(machine: str | None = None) -> dict[str, int]:
    """The number of every listed call on *machine* (this one by default); calls it does not have are left out.

    Raises:
        Unavailable: there is no table for the machine.
    """
    calls = str(_architecture(machine)["calls"])
    return {name: int(number) for name, _, number in (word.partition("=") for word in calls.split())}


def _architecture(machine: str | None) -> Mapping[str, object]:
    name = machine or platform.machine()
    known = _table()["numbers"]
    entry = known.get(name)
    if not isinstance(entry, Mapping):
        raise Unavailable(f"no system-call table for a processor of kind '{name}'; there are tables for {', '.join(known)}")
    return entry


def listed(which: str) -> list[str]:
    """The names under ``allow`` or ``refuse``."""
    return [str(name) for group in _table()[which].values() for name in group]  # type: ignore[attr-defined]


@cache
def program(policy: Policy, machine: str | None = None) -> bytes:
    """The filter as an array of ``struct sock_filter``, 8 bytes an instruction.

    Raises:
        Unavailable: there is no table for the machine.
    """
    known = numbers(machine)
    allowed, refused = set(listed("allow")), set(listed("refuse"))
    groups = _table()["allow"]
    if not policy.modes:
        modes = {*groups["modes"], *groups["beyond Landlock"]}  # type: ignore[misc]
        allowed, refused = allowed - modes, refused | modes
    if not policy.local_sockets:
        sockets = set(groups["local sockets"]) - {"socketpair"}  # type: ignore[call-overload]
        allowed, refused = allowed - sockets, refused | sockets
    code: list[tuple[int, int, int, int]] = [
        (_LOAD, 0, 0, _ARCHITECTURE),
        (_EQUAL, 1, 0, int(str(_architecture(machine)["audit"]))),
        (_RETURN, 0, 0, _KILL),
        (_LOAD, 0, 0, _NUMBER),
        (_AT_LEAST, 0, 1, _X32),
        (_RETURN, 0, 0, _KILL),
    ]
    code += _when(known["clone"], _FIRST, [(_ANY_BIT, _NEW_NAMESPACES)], _ERRNO | _EPERM, _ALLOW)
    code += _when(known["ioctl"], _SECOND, [(_EQUAL, one) for one in _TERMINAL_INJECTION], _ERRNO | _EPERM, _ALLOW)
    if policy.local_sockets:
        code += _when(known["socket"], _FIRST, [(_EQUAL, _AF_UNIX)], _ALLOW, _ERRNO | _EAFNOSUPPORT)
    if not policy.modes:  # limits of other processes of the same user
        code += _when(known["prlimit64"], _FIRST, [(_EQUAL, _OURSELVES)], _ALLOW, _ERRNO | _EPERM)
    for name, number in known.items():
        if name in allowed - {"clone", "ioctl", "socket"}:
            code += [(_EQUAL, 0, 1, number), (_RETURN, 0, 0, _ALLOW)]
        elif name in refused:
            code += [(_EQUAL, 0, 1, number), (_RETURN, 0, 0, _ERRNO | _EPERM)]
    code.append((_RETURN, 0, 0, _ERRNO | _ENOSYS))
    return b"".join(struct.pack("=HBBI", *instruction) for instruction in code)


def _when(
    number: int, argument: int, tests: list[tuple[int, int]], matched: int, otherwise: int
) -> list[tuple[int, int, int, int]]:
    """For one call: *matched* if any test holds of its argument, else *otherwise*; other calls go on behind it."""
    body: list[tuple[int, int, int, int]] = [(_LOAD, 0, 0, argument)]
    for place, (test, value) in enumerate(tests):
        body.append((test, len(tests) - place, 0, value))
    body += [(_RETURN, 0, 0, otherwise), (_RETURN, 0, 0, matched)]
    return [(_EQUAL, 0, len(body), number), *body]
