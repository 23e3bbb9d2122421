"""One safetensors file, memory-mapped: nothing is unpickled, nothing is copied, nothing in it is trusted.

Layout: 8 bytes little-endian header length, a JSON header ``{name: {dtype, shape, data_offsets: [begin, end]}}``, then the
tensors' bytes; offsets count from the end of the header and must cover the rest of the file without holes or overlaps.
Whatever does not fit is a `CheckpointError` that names the file and the tensor; nothing larger than the header itself is
allocated to find out.

Source: huggingface/safetensors README, "Format".
"""

import json
import mmap
import os
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from attrs import field, frozen
from numpy.typing import NDArray

from k2core.errors import CheckpointError

LARGEST_HEADER = 100_000_000  # bytes, the format's own limit
LARGEST_RANK = 8
DTYPES: Mapping[str, np.dtype[Any]] = {
    "BOOL": np.dtype(np.bool_),
    "U8": np.dtype(np.uint8),
    "I8": np.dtype(np.int8),
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
    "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2),
    "U16": np.dtype("<u2"),
    "I16": np.dtype("<i2"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "U32": np.dtype("<u4"),
    "I32": np.dtype("<i4"),
    "F32": np.dtype("<f4"),
    "U64": np.dtype("<u8"),
    "I64": np.dtype("<i8"),
    "F64": np.dtype("<f8"),
}


@frozen(kw_only=True)
class TensorEntry:
    """What a header says of one tensor.

    Attributes:
        dtype: the format's name, e.g. ``BF16``.
        begin: first byte, counted from the start of the file.
        end: byte after the last.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


@frozen(kw_only=True)
class SafetensorsFile:
    """An open file; views stay valid as long as they live, whatever happens to this object.

    The file must not be truncated by others while it is mapped.
    """

    path: Path
    entries: Mapping[str, TensorEntry] = field(eq=False, repr=False)
    metadata: Mapping[str, str] = field(eq=False, repr=False)
    size: int
    _bytes: memoryview = field(eq=False, repr=False)

    @classmethod
    def open(cls, path: Path) -> "SafetensorsFile":
        """Map a file and check its header.

        Raises:
            CheckpointError: unreadable, truncated, or not a well-formed safetensors file.
        """
        try:
            with path.open("rb") as stream:
                about = os.fstat(stream.fileno())
                if not stat.S_ISREG(about.st_mode):
                    raise CheckpointError(f"cannot open {path}: it is not a regular file")
                if about.st_size < 8:
                    raise _broken(path, f"it has {about.st_size} bytes, a header needs at least 8")
                mapped = memoryview(mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ))
        except OSError as error:
            raise CheckpointError(f"cannot open {path}: {error.strerror or error}") from error
        length = int.from_bytes(mapped[:8], "little")
        if length > LARGEST_HEADER:
            raise _broken(path, f"its header claims {length} bytes, at most {LARGEST_HEADER} are allowed")
        if 8 + length > len(mapped):
            raise _broken(path, f"its header claims {length} bytes, but the file has {len(mapped)}; it may be truncated")
        header = _parse_header(path, bytes(mapped[8 : 8 + length]))
        metadata = _metadata(path, header.pop("__metadata__", None))
        entries = {name: _entry(path, name, raw, 8 + length) for name, raw in header.items()}
        _check_cover(path, list(entries.values()), 8 + length, len(mapped))
        return cls(path=path, entries=entries, metadata=metadata, size=len(mapped), bytes=mapped)

    def view(self, name: str) -> NDArray[Any]:
        """A read-only view of a tensor.

        A tensor whose bytes do not start at a multiple of its item size is copied, for no kernel takes such a view.

        Raises:
            CheckpointError: no such tensor.
        """
        entry = self.entry(name)
        dtype = DTYPES[entry.dtype]
        flat = np.frombuffer(self._bytes[entry.begin : entry.end], dtype=dtype)
        return (flat if flat.flags.aligned else flat.copy()).reshape(entry.shape)

    def entry(self, name: str) -> TensorEntry:
        """What the header says of a tensor.

        Raises:
            CheckpointError: no such tensor.
        """
        try:
            return self.entries[name]
        except KeyError:
            raise CheckpointError(f"{self.path} has no tensor '{short(name)}' among its {len(self.entries)}") from None

    def give_back(self, name: str) -> None:
        """Let the system take the pages of a tensor back; they are read again where they are needed again.

        Raises:
            CheckpointError: no such tensor.
        """
        entry = self.entry(name)
        first, last = -(-entry.begin // mmap.PAGESIZE) * mmap.PAGESIZE, entry.end // mmap.PAGESIZE * mmap.PAGESIZE
        mapped = self._bytes.obj
        if last > first and isinstance(mapped, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED"):
            mapped.madvise(mmap.MADV_DONTNEED, first, last - first)

    def chunks(self, size: int = 1 << 20) -> "list[memoryview]":
        """The whole file as views of *size* bytes, for hashing."""
        return [self._bytes[at : at + size] for at in range(0, len(self._bytes), size)]


def short(name: str) -> str:
    """A name fit for an error line."""
    clean = name.encode("ascii", "backslashreplace").decode("ascii") if not name.isprintable() else name
    return clean if len(clean) <= 120 else clean[:117] + "..."


def _broken(path: Path, what: str) -> CheckpointError:
    return CheckpointError(f"{path} is not a valid safetensors file: {what}")


def _parse_header(path: Path, text: bytes) -> dict[str, Any]:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            seen: set[str] = set()
            twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
            raise _broken(path, f"its header has the key '{short(twice)}' twice")
        return found

    def constant(word: str) -> Any:
        raise ValueError(f"{word} is no JSON")

    if text[:1] != b"{":
        raise _broken(path, "its header does not start with '{'")
    try:
        header = json.loads(text.decode("utf-8"), object_pairs_hook=unique, parse_constant=constant)
    except (ValueError, RecursionError) as error:
        raise _broken(path, f"its header is not JSON ({short(str(error))})") from error
    if not isinstance(header, dict):
        raise _broken(path, f"its header is {type(header).__name__}, expected an object")
    return header


def _metadata(path: Path, raw: Any) -> dict[str, str]:
    if raw is None:
        return {}
    if not isinstance(raw, dict) or not all(isinstance(value, str) for value in raw.values()):
        raise _broken(path, "its __metadata__ is not an object of texts")
    return raw


def _entry(path: Path, name: str, raw: Any, start: int) -> TensorEntry:
    def wrong(what: str) -> CheckpointError:
        return _broken(path, f"tensor '{short(name)}' {what}")

    try:
        name.encode("utf-8")
    except UnicodeEncodeError:
        raise wrong("has a name that is not valid Unicode") from None
    if not isinstance(raw, dict) or raw.keys() != {"dtype", "shape", "data_offsets"}:
        raise wrong("needs exactly dtype, shape and data_offsets")
    dtype, shape, offsets = raw["dtype"], raw["shape"], raw["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise wrong(f"has dtype {short(repr(dtype))}, known are {', '.join(DTYPES)}")
    if not isinstance(shape, list) or len(shape) > LARGEST_RANK or not all(_is_size(size) for size in shape):
        raise wrong(f"has shape {short(repr(shape))}, expected at most {LARGEST_RANK} sizes")
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(_is_size(offset) for offset in offsets):
        raise wrong(f"has data_offsets {short(repr(offsets))}, expected [begin, end]")
    nonzero = items = 1
    for size in shape:
        nonzero, items = nonzero * max(size, 1), items * size
    if nonzero * DTYPES[dtype].itemsize >= 2**62:
        raise wrong(f"has shape {short(repr(shape))}, which no memory holds")
    begin, end = offsets
    needed = items * DTYPES[dtype].itemsize
    if end - begin != needed:
        raise wrong(f"is {dtype} {tuple(shape)} of {needed} bytes, but its data_offsets span {end - begin}")
    return TensorEntry(name=name, dtype=dtype, shape=tuple(shape), begin=start + begin, end=start + end)


def _is_size(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**62


def _check_cover(path: Path, entries: list[TensorEntry], start: int, size: int) -> None:
    """Tensors lie one behind the other from the header to the end of the file."""
    at = start
    for entry in sorted(entries, key=lambda entry: (entry.begin, entry.end)):
        if entry.end > size:
            missing = entry.end - size
            raise _broken(path, f"tensor '{short(entry.name)}' reaches {missing} bytes beyond its end; it may be truncated")
        if entry.begin != at:
            kind = "overlaps the one before it" if entry.begin < at else f"leaves a hole of {entry.begin - at} bytes"
            raise _broken(path, f"tensor '{short(entry.name)}' {kind}")
        at = entry.end
    if at != size:
        raise _broken(path, f"{size - at} bytes after its last tensor belong to none")
