"""A checkpoint folder's fingerprint: what the journal records so that a replay knows it has the same weights."""

import hashlib
from pathlib import Path

from k2core.errors import CheckpointError

WHOLE = 256 << 20  # bytes; a larger folder is sampled, since reading 600 GB would take minutes
_SAMPLE = 64 << 10
_SAMPLES = 64  # per file
_SUFFIXES = (".json", ".jinja", ".model", ".safetensors")


def fingerprint(checkpoint: Path) -> str:
    """``sha256:…`` over names and contents of the folder's weights, configuration and vocabulary.

    Above 256 MiB in all it is ``sampled:…``: names, sizes, and 64 evenly spaced blocks of 64 KiB of each file, the first
    (with a safetensors file's header) and the last among them.

    Raises:
        CheckpointError: a file cannot be read.
    """
    try:
        files = sorted(one for one in checkpoint.iterdir() if one.suffix in _SUFFIXES and one.is_file())
        sizes = [one.stat().st_size for one in files]
        whole = sum(sizes) <= WHOLE
        digest = hashlib.sha256()
        for file, size in zip(files, sizes, strict=True):
            digest.update(f"{file.name}\n{size}\n".encode())
            with file.open("rb") as data:
                if whole or size <= _SAMPLE * _SAMPLES:
                    while block := data.read(1 << 20):
                        digest.update(block)
                else:
                    for number in range(_SAMPLES):
                        data.seek((size - _SAMPLE) * number // (_SAMPLES - 1))
                        digest.update(data.read(_SAMPLE))
    except OSError as error:
        raise CheckpointError(f"cannot read the checkpoint {checkpoint}: {error.strerror or error}") from error
    return f"{'sha256' if whole else 'sampled'}:{digest.hexdigest()}"
