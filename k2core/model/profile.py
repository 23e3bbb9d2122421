"""What a checkpoint folder says of how its model wants to be used, in ``k2core.json`` beside ``config.json``.

Keys, all optional but ``context``: ``context`` (tokens that the agent may fill), ``system`` (the system text it was trained
with), ``temperature`` (the recommended one), ``description``, ``controls`` (control tools it is told of beside `answer` and
`note`; all unless given) and ``memory`` (what makes room in its context; ``rules`` unless given). A folder without the file is
used as any model is.
"""

from pathlib import Path

import msgspec

from k2core.errors import CheckpointError
from k2core.interfaces import ModelProfile

NAME = "k2core.json"


class _Profile(msgspec.Struct, forbid_unknown_fields=True):
    context: int
    system: str | None = None
    temperature: float = 1.0
    description: str = ""
    controls: tuple[str, ...] | None = None
    memory: str | None = None


def read_profile(folder: Path) -> ModelProfile | None:
    """The profile in *folder*; None where it has none.

    Raises:
        CheckpointError: the file is not of this form.
    """
    path = folder / NAME
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return None
    try:
        read = msgspec.json.decode(content, type=_Profile)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise CheckpointError(f"cannot read {path}: {error}. Correct it, or remove it to use the model without.") from error
    if read.context < 1 or read.temperature < 0:
        raise CheckpointError(f"cannot use {path}: context is {read.context}, temperature {read.temperature}.")
    return ModelProfile(**msgspec.structs.asdict(read))


def write_profile(folder: Path, profile: ModelProfile) -> None:
    """Write *profile* into *folder*."""
    values = {name: getattr(profile, name) for name in _Profile.__struct_fields__}
    made = _Profile(**values)
    (folder / NAME).write_bytes(msgspec.json.format(msgspec.json.encode(made)) + b"\n")
