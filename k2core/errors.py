"""What can go wrong, as one tree of exceptions.

::

    K2Error                        one line for a person: what was tried, what was found, what to do
    ├── UsageError                 exit 2: the request itself cannot be met as written
    │   ├── UnknownName            no such tool, model, backend …; names the nearest
    │   ├── InputError             a file, folder or text given by the user is unusable
    │   └── ConfigError            a setting is wrong; names where it came from
    ├── PluginError                a plugin broke its side of the contract
    ├── Unavailable                exit 5: a backend or a model cannot work here; says why
    ├── CheckpointError            exit 5: weights or their configuration are malformed
    ├── ShapeError                 two arrays disagree
    ├── TokenizerError             exit 5: a vocabulary file is malformed, or a text needs what it lacks
    ├── FormatError                messages that the chat format cannot render
    ├── ToolError                  told to the model as an observation; raised by tools
    ├── CapacityError              a request that cannot fit, with the numbers
    └── JournalError               the store of runs cannot be used
        ├── JournalVersionError    written by a newer k2core
        ├── JournalDamaged         a row does not fit its hash chain
        ├── RunBusy                another process works on the run
        └── RunLost                another process took the run over

Mistakes of the model (a bad call, bad arguments) are never raised out of the loop: they become observations. Mistakes of
ours propagate.
"""

import difflib
from collections.abc import Iterable


class K2Error(Exception):
    """Base of everything k2core raises on purpose; ``str(error)`` is one clear line."""

    exit_code = 1


class UsageError(K2Error):
    """The request cannot be met as written."""

    exit_code = 2


class UnknownName(UsageError):
    """A name that nothing is registered under.

    Attributes:
        kind: what was looked for, e.g. ``"tool"``.
        name: the name that was given.
        known: the names that exist, sorted.
        nearest: the closest known name, or None.
    """

    def __init__(self, kind: str, name: str, known: Iterable[str], remedy: str = "") -> None:
        self.kind, self.name, self.known = kind, name, tuple(sorted(known))
        self.nearest = nearest(name, self.known)
        line = f"no {kind} '{name}'. Known: {', '.join(self.known) or 'none'}."
        if self.nearest is not None:
            line += f" Did you mean '{self.nearest}'?"
        super().__init__(f"{line} {remedy}".rstrip())


class InputError(UsageError):
    """A file, folder or text that the user gave is unusable."""


class ConfigError(UsageError):
    """A setting is wrong; the line names the setting and its origin."""


class PluginError(K2Error):
    """A plugin broke its side of the contract."""


class Unavailable(K2Error):
    """A backend or a model cannot work on this machine; the line says why and what to do."""

    exit_code = 5


class CheckpointError(K2Error):
    """Weights or their configuration are malformed, truncated or of another architecture."""

    exit_code = 5


class ShapeError(K2Error):
    """Two arrays disagree on an axis; the line names the op, the axis and both sizes."""


class TokenizerError(K2Error):
    """A vocabulary file is malformed, or an id is outside the vocabulary."""

    exit_code = 5


class FormatError(K2Error):
    """Messages or tools that the chat format cannot render; names the message's index."""

    exit_code = 2


class ToolError(K2Error):
    """A tool could not do what was asked; its line goes to the model as ``error: …``."""


class CapacityError(K2Error):
    """A request that cannot fit, with the numbers."""


class JournalError(K2Error):
    """The store of runs cannot be used."""


class JournalVersionError(JournalError):
    """The store was written by a newer k2core."""


class JournalDamaged(JournalError):
    """A row of the store does not fit its hash chain.

    Attributes:
        run: the run's id.
        sequence: number of the first event that does not fit.
    """

    def __init__(self, message: str, *, run: str, sequence: int) -> None:
        self.run, self.sequence = run, sequence
        super().__init__(message)


class RunBusy(JournalError):
    """A run that is to be written to is being worked on by another process.

    Attributes:
        run: the run's id.
    """

    def __init__(self, message: str, *, run: str) -> None:
        self.run = run
        super().__init__(message)


class RunLost(RunBusy):
    """Another process took the run over while this one gave no sign of life; it must do nothing more in it."""


def said(error: BaseException) -> str:
    """What somebody's code raised, as one line: ours as they are, anything else with its kind."""
    line = " ".join(str(error).split())
    return line if isinstance(error, K2Error) else f"raised {type(error).__name__}: {line}"


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The known name closest to *name*, or None when none is close (ratio below 0.6)."""
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return close[0] if close else None
