"""What the inside sees of the outside: the interpreter's own prefix and the packages that cells may import, read-only."""

import importlib.metadata
import os
import re
import sys
from functools import cache
from pathlib import Path

from attrs import frozen

OFFERED = ("numpy", "sympy", "matplotlib")  # distributions whose code a cell may import, where installed
FOR_TESTS = (*OFFERED, "pytest")


@frozen(kw_only=True)
class Interpreter:
    """The Python that runs inside.

    Attributes:
        executable: its path, links resolved.
        prefix: the folder of its standard library, bound read-only at its own path.
    """

    executable: Path
    prefix: Path


def interpreter() -> Interpreter:
    """The interpreter that runs us, without its virtual environment."""
    executable = Path(os.path.realpath(getattr(sys, "_base_executable", "") or sys.executable))
    return Interpreter(executable=executable, prefix=Path(os.path.realpath(sys.base_prefix)))


@cache
def packages(names: tuple[str, ...] = OFFERED) -> dict[str, Path]:
    """Top-level entries of the named distributions and of all they require: name inside, path outside.

    What is not installed is left out. Metadata, scripts, data outside the import path and ``.pth`` files are not offered.
    """
    entries: dict[str, Path] = {}
    wanted, seen = list(names), set[str]()
    while wanted:
        name = wanted.pop().lower().replace("_", "-")
        if name in seen:
            continue
        seen.add(name)
        try:
            distribution = importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError:
            continue
        for file in distribution.files or ():
            top = file.parts[0]
            if top in ("..", "__pycache__") or top.endswith((".pth", ".virtualenv", ".dist-info")):
                continue
            path = Path(str(distribution.locate_file(top)))
            if path.exists():
                entries.setdefault(top, path)
        for requirement in distribution.requires or ():
            if "extra ==" not in requirement:
                match = re.match(r"[A-Za-z0-9._-]+", requirement)
                assert match is not None  # a requirement starts with a name
                wanted.append(match[0])
    return dict(sorted(entries.items()))
