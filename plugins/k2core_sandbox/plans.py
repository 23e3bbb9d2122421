"""What a level says about starting its worker. `bubblewrap`, `landlock` and `wasm` each have one function ``plan``."""

import os
from collections.abc import Callable, Mapping
from pathlib import Path

from attrs import define, field, frozen

from k2core_sandbox.launcher import Reach
from k2core_sandbox.paths import Interpreter


@frozen(kw_only=True)
class Inside:
    """What the worker is given.

    Attributes:
        workspace: the folder it may write.
        stage: an empty folder that everyone may enter, for this worker's use until it ends.
        python: the interpreter inside; None for ours.
        packages: name inside and path outside of what it may import.
    """

    workspace: Path
    stage: Path
    python: Interpreter | None
    packages: Mapping[str, Path]


@define(kw_only=True)
class Ends:
    """The worker's descriptors: where it reads requests, writes replies, and where its launcher tells process numbers."""

    requests: int
    replies: int
    info: int
    descriptors: list[int] = field(factory=list)

    def file(self, name: str, data: bytes) -> int:
        """A file in memory that holds *data*, read from its begin; the worker gets its descriptor."""
        descriptor = os.memfd_create(name)
        self.descriptors.append(descriptor)
        os.write(descriptor, data)
        os.lseek(descriptor, 0, os.SEEK_SET)
        return descriptor


@frozen(kw_only=True)
class Plan:
    """How to start the worker.

    Attributes:
        build: makes the command, given what reaches a path outside.
        environment: of the command.
        change_user: whether root becomes the sandbox's user before the command runs.
        tells: whether process numbers come through ``info``, and the end of the first process ends all others; else the
            command's own process is the worker.
        folders: on the disk, that the worker may write beside the workspace.
        in_memory: file systems in memory that the worker may write, by their place inside.
    """

    build: Callable[[Reach], list[str]]
    environment: Mapping[str, str] = field(factory=dict)
    change_user: bool = False
    tells: bool = False
    folders: tuple[Path, ...] = ()
    in_memory: tuple[str, ...] = ()
