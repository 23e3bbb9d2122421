"""The executable specifications of k2core: operators, formats and the worked cases that belong to them.

``load("formats/nano_episode.toml")`` gives one specification as plain data;
the files are the contract and code and tests read them.
"""

import tomllib
from functools import cache
from importlib.resources import files
from typing import Any


@cache
def load(path: str) -> dict[str, Any]:
    """Read one specification.

    Args:
        path: the file below this package, for example ``formats/nano_episode.toml``.

    Returns:
        The TOML file as plain data. It is cached: do not change it.

    Raises:
        FileNotFoundError: there is no such specification.
    """
    return tomllib.loads(files(__name__).joinpath(path).read_text(encoding="utf-8"))
