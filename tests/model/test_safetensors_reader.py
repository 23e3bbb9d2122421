"""The safetensors reader: agreement with the library, views without copies, and nothing but typed errors."""

import json
import os
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from k2core.errors import CheckpointError
from k2core.model.safetensors_reader import DTYPES, SafetensorsFile
from k2core.testing.checkpoints import write_safetensors


def raw(header: object, body: bytes = b"", *, length: int | None = None) -> bytes:
    """A file's bytes from a header (JSON text or object) and its body."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + body


def one(dtype: object = "F32", shape: object = (2,), offsets: object = (0, 8)) -> dict[str, object]:
    """A header with the tensor 'w'."""
    return {"w": {"dtype": dtype, "shape": shape, "data_offsets": offsets}}


def write(folder: Path, content: bytes) -> Path:
    """The content as a file."""
    path = folder / "model.safetensors"
    path.write_bytes(content)
    return path


def test_agrees_with_the_library(tmp_path: Path) -> None:
    """Files of the safetensors library read the same, every dtype and an empty tensor included."""
    from safetensors.numpy import save_file

    random = np.random.default_rng(3)
    tensors = {
        "a": random.standard_normal((3, 5)).astype(np.float32),
        "b": random.standard_normal((2, 2, 2)).astype(ml_dtypes.bfloat16),
        "c": random.integers(-9, 9, (7,)).astype(np.int8),
        "d": np.zeros((0, 4), np.int64),
        "e": np.array(3.5, np.float64),
        "f": np.array([True, False]),
    }
    save_file(tensors, tmp_path / "x.safetensors", metadata={"format": "np"})

    file = SafetensorsFile.open(tmp_path / "x.safetensors")

    assert sorted(file.entries) == sorted(tensors) and file.metadata == {"format": "np"}
    for name, tensor in tensors.items():
        assert file.view(name).dtype == tensor.dtype
        np.testing.assert_array_equal(file.view(name), tensor)


def test_the_library_reads_ours(tmp_path: Path) -> None:
    """What `write_safetensors` writes is a file for everyone."""
    from safetensors.numpy import load_file

    tensors = {"x": np.arange(6, dtype=np.int32).reshape(2, 3), "y": np.ones(3, ml_dtypes.bfloat16), "z": np.ones(1, np.int8)}
    loaded = load_file(write_safetensors(tmp_path / "x.safetensors", tensors, {"k": "v"}))

    assert {name: (value.dtype, value.tolist()) for name, value in loaded.items()} == {
        name: (value.dtype, value.tolist()) for name, value in tensors.items()
    }


def test_views_share_the_mapping_and_are_read_only(tmp_path: Path) -> None:
    """An aligned tensor is a view that cannot be written and that outlives the file object."""
    file = SafetensorsFile.open(write_safetensors(tmp_path / "x.safetensors", {"x": np.arange(4.0)}))
    view = file.view("x")
    del file

    assert view.base is not None and not view.flags.writeable and view.tolist() == [0, 1, 2, 3]


def test_unaligned_tensors_are_copied(tmp_path: Path) -> None:
    """A tensor at an odd byte still reads right, as an aligned array."""
    text = json.dumps({"a": {"dtype": "I8", "shape": [1], "data_offsets": [0, 1]}, **one("F32", [2], [1, 9])}).encode()
    text += b" " * (-len(text) % 8)
    path = write(tmp_path, raw(text, b"\x01" + np.array([1.5, -2.0], np.float32).tobytes()))
    view = SafetensorsFile.open(path).view("w")

    assert view.flags.aligned and view.tolist() == [1.5, -2.0]


BROKEN = {
    "empty": (b"", "at least 8"),
    "short": (b"\1\0\0", "at least 8"),
    "huge length": (raw(b"{}", length=2**63), "at most"),
    "length beyond the file": (raw(b"{}", length=99), "truncated"),
    "no brace": (raw(b"[]"), "start with"),
    "no JSON": (raw(b'{"w": '), "not JSON"),
    "not UTF-8": (raw(b'{"\xff": 1}'), "not JSON"),
    "deep": (raw(b'{"w":' + b"[" * 200_000), "not JSON"),
    "long number": (raw(b'{"w":' + b"9" * 5000 + b"}"), "not JSON"),
    "infinity": (raw(b'{"w": Infinity}'), "not JSON"),
    "twice": (raw(b'{"w":{},"w":{}}'), "twice"),
    "twice inside": (raw(b'{"w":{"dtype":"I8","dtype":"I8","shape":[0],"data_offsets":[0,0]}}'), "twice"),
    "metadata": (raw({"__metadata__": {"a": 1}}), "__metadata__"),
    "lone surrogate": (raw(b'{"\\ud800": {}}'), "Unicode"),
    "no object": (raw({"w": 5}), "exactly"),
    "extra key": (raw({"w": {**one()["w"], "more": 1}}, bytes(8)), "exactly"),  # type: ignore[dict-item]
    "unknown dtype": (raw(one("F4"), bytes(8)), "dtype"),
    "dtype no text": (raw(one([1]), bytes(8)), "dtype"),
    "negative size": (raw(one(shape=[-2]), bytes(8)), "shape"),
    "fractional size": (raw(one(shape=[2.0]), bytes(8)), "shape"),
    "true as a size": (raw(one("I8", [True], [0, 1]), bytes(1)), "shape"),
    "too many axes": (raw(one(shape=[1] * 9), bytes(4)), "shape"),
    "zero times huge": (raw(one(shape=[0, 2**61, 2**61], offsets=[0, 0])), "no memory"),
    "huge": (raw(one(shape=[2**40, 2**40], offsets=[0, 8]), bytes(8)), "no memory"),
    "span": (raw(one(shape=[3]), bytes(8)), "12 bytes"),
    "backwards": (raw(one(offsets=[8, 0]), bytes(8)), "span"),
    "three offsets": (raw(one(offsets=[0, 8, 9]), bytes(8)), "data_offsets"),
    "beyond the end": (raw(one(), bytes(7)), "beyond"),
    "left over": (raw(one(), bytes(9)), "belong to none"),
    "hole": (raw(one(offsets=[4, 12]), bytes(12)), "hole"),
    "overlap": (
        raw({**one(), "v": {"dtype": "F32", "shape": [2], "data_offsets": [4, 12]}}, bytes(12)),
        "overlaps",
    ),
}


@pytest.mark.parametrize(("content", "says"), BROKEN.values(), ids=list(BROKEN))
def test_broken(tmp_path: Path, content: bytes, says: str) -> None:
    """Each kind of damage gives one line with the file's path and what is wrong."""
    path = write(tmp_path, content)

    with pytest.raises(CheckpointError) as caught:
        SafetensorsFile.open(path)

    assert str(path) in str(caught.value) and says in str(caught.value) and "\n" not in str(caught.value)


def test_not_a_regular_file(tmp_path: Path) -> None:
    """A folder or a missing file is one line too."""
    with pytest.raises(CheckpointError, match="cannot open"):
        SafetensorsFile.open(tmp_path)
    with pytest.raises(CheckpointError, match="No such file"):
        SafetensorsFile.open(tmp_path / "absent.safetensors")


def test_unknown_tensor(tmp_path: Path) -> None:
    """Asking for a tensor that is not there names it."""
    file = SafetensorsFile.open(write_safetensors(tmp_path / "x.safetensors", {"x": np.zeros(1)}))

    with pytest.raises(CheckpointError, match="no tensor 'y'"):
        file.view("y")


BASE_HEADER = {
    "__metadata__": {"format": "pt"},
    "a.weight": {"dtype": "BF16", "shape": [2, 3], "data_offsets": [0, 12]},
    "b.weight_packed": {"dtype": "I32", "shape": [2, 2], "data_offsets": [12, 28]},
    "c.weight_shape": {"dtype": "I64", "shape": [2], "data_offsets": [28, 44]},
}
BASE = raw(BASE_HEADER, bytes(range(44)))


@st.composite
def mutated(draw: st.DrawFn) -> bytes:
    """A valid file with bytes flipped, cut, inserted or repeated, or with values of its header replaced."""
    if draw(st.booleans()):
        header = json.loads(json.dumps(BASE_HEADER))
        entry = header[draw(st.sampled_from([name for name in header if name != "__metadata__"]))]
        junk = st.none() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=3) | st.sampled_from(list(DTYPES))
        value = draw(junk | st.lists(junk, max_size=4) | st.dictionaries(st.text(max_size=3), junk, max_size=2))
        entry[draw(st.sampled_from(["dtype", "shape", "data_offsets", "more"]))] = value
        return raw(header, bytes(draw(st.integers(0, 60))))
    content = bytearray(BASE)
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(content)))
        match draw(st.sampled_from(["flip", "cut", "insert", "repeat", "length"])):
            case "flip" if at < len(content):
                content[at] ^= 1 << draw(st.integers(0, 7))
            case "cut":
                del content[at:]
            case "insert":
                content[at:at] = draw(st.binary(min_size=1, max_size=6))
            case "repeat":
                content[at:at] = content[at : at + draw(st.integers(1, 40))]
            case "length":
                content[:8] = draw(st.integers(0, 2**64 - 1)).to_bytes(8, "little")
    return bytes(content)


def assert_survives(folder: Path, content: bytes) -> None:
    """Opening either fails with one typed line, or every tensor of the file can be read in full."""
    path = folder / f"{os.getpid()}.safetensors"
    path.unlink(missing_ok=True)
    path.write_bytes(content)
    try:
        file = SafetensorsFile.open(path)
    except CheckpointError as error:
        assert str(path) in str(error) and "\n" not in str(error) and len(str(error)) < 1000
        return
    total = 0
    for name, entry in file.entries.items():
        view = file.view(name)
        assert view.shape == entry.shape and view.nbytes == entry.end - entry.begin
        total += len(view.tobytes())
    assert total <= len(content)


@settings(max_examples=300)
@given(mutated())
def test_mutations(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    """300 mutated headers and truncations: a typed error or a readable file, never anything else."""
    assert_survives(tmp_path_factory.getbasetemp(), content)


@pytest.mark.soak
@settings(max_examples=10_000)
@given(mutated())
def test_mutations_soak(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    """10,000 mutated headers and truncations."""
    assert_survives(tmp_path_factory.getbasetemp(), content)


def test_every_truncation(tmp_path: Path) -> None:
    """A valid file cut at any byte is refused."""
    for length in range(len(BASE)):
        with pytest.raises(CheckpointError):
            SafetensorsFile.open(write(tmp_path, BASE[:length]))
        (tmp_path / "model.safetensors").unlink()


def test_memory_stays_small(tmp_path: Path) -> None:
    """A header that claims gigabytes is refused without allocating them."""
    import tracemalloc

    claims = raw(one("F64", [2**27], [0, 2**30]), bytes(64))
    path = write(tmp_path, claims)
    tracemalloc.start()
    with pytest.raises(CheckpointError, match="beyond"):
        SafetensorsFile.open(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()

    assert peak < 1_000_000
