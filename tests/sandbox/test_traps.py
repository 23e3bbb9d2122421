"""Traps that sandboxes of this kind were seen to fall into, each as a test of ours."""

import os
import signal
from pathlib import Path

import pytest
from sandbox.corpus import CASES
from sandbox.outside import TOKENS

from k2core_sandbox import bubblewrap, seccomp
from k2core_sandbox.paths import interpreter
from k2core_sandbox.process import Worker
from k2core_sandbox.self_test import places

FORKS = """
import os, signal
children = []
try:
    while len(children) < 90:
        child = os.fork()
        if not child:
            signal.pause()
        children.append(child)
except OSError:
    pass
len(children)
"""
ENVIRONMENTS = """
import glob, os
for path in glob.glob('/proc/[0-9]*/environ'):
    print(path, open(path).read())
print(os.environ)
"""
DESCRIPTORS = """
import os
def link(number):
    try:
        return os.readlink(f'/proc/self/fd/{number}').split(':')[0]
    except OSError:
        return 'gone'
sorted(link(number) for number in os.listdir('/proc/self/fd') if int(number) > 2)
"""
BY_SYSTEM_CALL = """
import ctypes, os
libc = ctypes.CDLL(None, use_errno=True)
def number_of(number, *arguments):
    ctypes.set_errno(0)
    return libc.syscall(ctypes.c_long(number), *arguments), ctypes.get_errno()
def ended_by(number):
    child = os.fork()
    if not child:
        number_of(number)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
"""


def value(worker: Worker, code: str) -> str | None:
    """The value of a cell that has to work."""
    cell = worker.run(code, timeout_s=20)
    assert cell.status == "ok", cell
    return cell.value


def test_the_launchers_environment_is_not_to_be_seen(worker: Worker, monkeypatch: pytest.MonkeyPatch, workspace) -> None:
    """What was in our environment when the sandbox started is in no environment inside, that of process 1 included."""
    token = os.urandom(8).hex()
    monkeypatch.setenv("K2CORE_TEST_TRAP", token)
    second = Worker.start(workspace[0], stage=workspace[1])
    try:
        cell = second.run(ENVIRONMENTS, timeout_s=20)
    finally:
        second.close()
    assert "/proc/1/environ" in cell.output + str(cell.error)
    assert token not in cell.output + str(cell.error)


def test_inheritable_descriptors_stay_outside(workspace, tmp_path: Path) -> None:
    """Descriptors that we hold open and would pass on are not inside: the worker has its pipes and nothing else."""
    held = os.open(tmp_path, os.O_RDONLY)
    os.set_inheritable(held, True)
    started = Worker.start(workspace[0], stage=workspace[1])
    try:
        found = value(started, DESCRIPTORS)
    finally:
        started.close()
        os.close(held)
    assert found == "['gone', 'pipe', 'pipe']"  # gone: the listing's own


def test_the_sandbox_is_nobody_outside(worker: Worker) -> None:
    """No process of the sandbox is root's outside, none holds a capability there, and none may get more rights."""
    for number in (worker.root, *map(int, Path(f"/proc/{worker.root}/task/{worker.root}/children").read_text().split())):
        status = dict(line.split(":\t", 1) for line in Path(f"/proc/{number}/status").read_text().splitlines() if ":\t" in line)
        assert "0" not in status["Uid"].split()
        assert status["NoNewPrivs"] == "1"
    assert int(status["CapEff"], 16) == int(status["CapPrm"], 16) == int(status["CapBnd"], 16) == 0
    assert status["Seccomp"] == "2"


def test_the_user_namespace_is_demanded() -> None:
    """The command demands a user namespace, and that no more can be made inside; it does not only try."""
    command = bubblewrap.command(
        interpreter=interpreter(),
        packages={},
        workspace=Path("/w"),
        worker=3,
        named="/worker.py",
        fonts=4,
        filter=5,
        info=6,
        arguments=(),
        reach=str,
    )
    assert {"--unshare-user", "--disable-userns", "--assert-userns-disabled", "--die-with-parent", "--new-session"} <= {
        *command
    }
    assert "--unshare-all" not in command and "--unshare-user-try" not in command


def test_every_launch_has_a_whole_filter(workspace) -> None:
    """The second sandbox is filtered as the first: the filter's descriptor is not one that was read to its end."""
    for _ in range(3):
        started = Worker.start(workspace[0], stage=workspace[1])
        try:
            assert (
                value(started, BY_SYSTEM_CALL + "number_of(101, 0, 0, 0, 0)" if os.uname().machine == "x86_64" else "(-1, 1)")
                == "(-1, 1)"
            )
        finally:
            started.close()


def test_sandboxes_do_not_take_each_others_processes(worker: Worker) -> None:
    """A sandbox that has all the processes it may have leaves another one all of its own."""
    with places() as (workspace, stage):
        other = Worker.start(workspace, stage=stage)
        try:
            first, second = int(value(worker, FORKS) or 0), int(value(other, FORKS) or 0)
        finally:
            other.close()
    assert 40 <= first < 64 and 40 <= second < 64


@pytest.mark.parametrize(
    "name", ["chmod", "utimensat", "setxattr", "getxattr", "readlink", "inotify_add_watch", "setpriority", "socket"]
)
def test_what_landlock_does_not_govern_is_refused_at_reduced(name: str) -> None:
    """The filter of reduced answers EPERM to calls on paths and processes that Landlock lets through."""
    number = seccomp.numbers().get(name)
    if number is None:
        pytest.skip(f"this processor has no call '{name}'")
    policy = seccomp.Policy(local_sockets=False, modes=False)
    code = seccomp.program(policy)
    steps = [code[at : at + 8] for at in range(0, len(code), 8)]
    (place,) = [
        at for at, step in enumerate(steps) if step[:2] == b"\x15\0" and int.from_bytes(step[4:], "little") == number and at > 5
    ]
    assert int.from_bytes(steps[place + 1][4:], "little") == 0x00050001


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="the other tables are of x86-64")
def test_other_tables_of_calls_kill_and_unknown_calls_are_not_there(worker: Worker) -> None:
    """A call by the x32 table kills; clone3, whose flags no filter reads, answers ENOSYS, so that clone is used."""
    value(worker, BY_SYSTEM_CALL + "None")
    assert value(worker, "ended_by(0x40000000 | 39)") == str(-signal.SIGSYS)
    assert value(worker, "number_of(435, None, 0)") == "(-1, 38)"


def test_no_attack_contains_what_would_convict_it() -> None:
    """A traceback prints source lines, so no attack's text holds a token: tokens are random and made at each run."""
    assert len(TOKENS) == len(set(TOKENS))
    for case in CASES.values():
        assert "hex(" not in case.code or "hexdigest" in case.code or "fromhex" in case.code


@pytest.mark.parametrize("library", ["numpy", "sympy", "matplotlib"])
def test_libraries_that_read_and_write_have_their_cases(library: str) -> None:
    """No list of allowed imports is a boundary: the corpus goes outside through every library that is offered."""
    assert any(library in case.code for case in CASES.values() if case.family == 83)


def test_the_default_hides(worker: Worker) -> None:
    """Nothing of the machine is there unless it is named: no configuration, no home, no host's temporary files."""
    found = value(worker, "import os; sorted(os.listdir('/'))") or ""
    assert not {"etc", "home", "root", "sys", "run", "var", "opt", "mnt", "srv", "boot"} & set(eval(found)) - (
        {Path(interpreter().prefix).parts[1]} if not interpreter().prefix.is_relative_to("/usr") else set()
    )
    assert value(worker, "os.listdir('/tmp')") == "[]"
    assert value(worker, "os.listdir('/dev/shm')") == "[]"
