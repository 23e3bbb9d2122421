"""Confines its own process with Landlock, seccomp and limits, then runs the worker in it. Imports nothing of ours.

    python -I -S confine.py SPEC REQUESTS REPLIES PACKAGES WORKSPACE PROCESSES

SPEC is JSON: ``worker`` and ``filter`` (descriptors), ``read`` and ``write`` (paths), ``user`` (uid and gid to become, or
null), ``parent`` (the host's process number). Formats: linux/landlock.h, linux/seccomp.h, linux/filter.h. Everything that
cannot be set ends the process.
"""

import ctypes
import json
import os
import stat
import struct
import sys

_CREATE, _ADD, _RESTRICT = 444, 445, 446  # the same numbers on every architecture
_VERSION = 1
_PATH_BENEATH = 1
_EXECUTE, _WRITE_FILE, _READ_FILE, _READ_DIR = 1, 2, 4, 8
_ALL_FILE_RIGHTS = (1 << 16) - 1  # through ABI 5: up to IOCTL_DEV
_ON_FILES = _EXECUTE | _WRITE_FILE | _READ_FILE | 1 << 14  # what a rule on a single file may hold; bit 14 is TRUNCATE
_READ = _EXECUTE | _READ_FILE | _READ_DIR
_WRITE = _ALL_FILE_RIGHTS & ~(
    1 << 15 | 1 << 6 | 1 << 9 | 1 << 10 | 1 << 11
)  # no device calls; no device, socket or pipe is made
_NETWORK = 1 << 0 | 1 << 1  # bind and connect TCP
_SCOPES = 1 << 0 | 1 << 1  # abstract sockets, signals: ABI 6
_NO_NEW_PRIVILEGES, _SECCOMP, _FILTER = 38, 22, 2
_DEATH_SIGNAL, _SUBREAPER = 1, 36
LEAST_ABI = 6

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long


def abi() -> int:
    """The kernel's Landlock version; 0 if it has none."""
    return max(0, int(_libc.syscall(_CREATE, None, ctypes.c_size_t(0), _VERSION)))


def restrict_files(read: list[str], write: list[str]) -> None:
    """Allow reading beneath *read* and everything ordinary beneath *write*, and nothing else; no TCP, no signals outwards."""
    attributes = struct.pack("=QQQ", _ALL_FILE_RIGHTS, _NETWORK, _SCOPES)
    rules = _checked(_libc.syscall(_CREATE, attributes, ctypes.c_size_t(len(attributes)), 0), "landlock_create_ruleset")
    for paths, rights in ((read, _READ), (write, _WRITE)):
        for path in paths:
            place = os.open(path, os.O_PATH | os.O_CLOEXEC)
            allowed = rights if stat.S_ISDIR(os.fstat(place).st_mode) else rights & _ON_FILES
            rule = struct.pack("=Qi", allowed, place)
            _checked(_libc.syscall(_ADD, rules, _PATH_BENEATH, rule, 0), f"landlock_add_rule for {path}")
            os.close(place)
    _checked(_libc.syscall(_RESTRICT, rules, 0), "landlock_restrict_self")
    os.close(rules)


def restrict_calls(program: bytes) -> None:
    """Install a seccomp filter, an array of ``struct sock_filter``."""
    code = ctypes.create_string_buffer(program, len(program))
    header = struct.pack("@HP", len(program) // 8, ctypes.addressof(code))
    _checked(_libc.prctl(_SECCOMP, _FILTER, header, 0, 0), "seccomp")


def _checked(value: int, what: str) -> int:
    if value < 0:
        raise OSError(ctypes.get_errno(), f"{what}: {os.strerror(ctypes.get_errno())}")
    return int(value)


def main() -> None:
    """Confine, then run the worker."""
    specification = json.loads(sys.argv.pop(1))
    if specification["user"] is not None:
        os.setgroups([])
        os.setresgid(*[specification["user"]] * 3)
        os.setresuid(*[specification["user"]] * 3)
    _checked(_libc.prctl(_DEATH_SIGNAL, 9, 0, 0, 0), "death signal")  # after the change of the user, which would undo it
    if os.getppid() != specification["parent"]:
        raise OSError("the host has ended")
    _checked(_libc.prctl(_SUBREAPER, 1, 0, 0, 0), "subreaper")  # so that what loses its parent is still below us
    source = os.read(specification["worker"], 1 << 20)
    program = os.read(specification["filter"], 1 << 20)
    kept = {int(sys.argv[1]), int(sys.argv[2])}
    for name in os.listdir("/proc/self/fd"):  # noqa: PTH208 (pathlib costs start-up time)
        if int(name) > 2 and int(name) not in kept:
            try:
                os.close(int(name))
            except OSError:
                continue  # the listing's own
    os.chdir(sys.argv[4])
    _checked(_libc.prctl(_NO_NEW_PRIVILEGES, 1, 0, 0, 0), "no_new_privs")
    if abi() < LEAST_ABI:
        raise OSError(f"Landlock ABI {abi()} is below {LEAST_ABI}")
    restrict_files(specification["read"], specification["write"])
    restrict_calls(program)
    exec(compile(source, "/worker.py", "exec"), {"__name__": "__main__", "__builtins__": __builtins__})


if __name__ == "__main__":
    main()
