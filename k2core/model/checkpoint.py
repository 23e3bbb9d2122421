"""A checkpoint folder in the Hugging Face layout: config.json and one or many safetensors files, memory-mapped.

Opening reads headers only and checks that every tensor the geometry asks for is there with the right dtype and shape, so
that a broken folder fails at once and not in the middle of a run. Tensors that the forward does not need are left alone.
"""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from attrs import define, field
from numpy.typing import NDArray

from k2core.errors import CheckpointError
from k2core.model.config import Geometry, LatentNorm, read_json_object
from k2core.model.int4 import PackedMatrix
from k2core.model.layout import (
    Expected,
    Projection,
    expert_name,
    expert_shape,
    expert_tensors,
    is_packed,
    packed_tensors,
    plain_tensors,
)
from k2core.model.safetensors_reader import DTYPES, SafetensorsFile, TensorEntry, short

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
LARGEST_INDEX = 100_000_000  # bytes; the released one has about 30 MB


@define(eq=False, kw_only=True)
class Checkpoint:
    """An open checkpoint. All arrays are read-only views; they stay valid as long as they live.

    Attributes:
        folder: where it lies.
        geometry: from its config.json.
    """

    folder: Path
    geometry: Geometry
    _files: Mapping[str, SafetensorsFile] = field(repr=False)
    _places: Mapping[str, SafetensorsFile] = field(repr=False)
    _fingerprint: str | None = None

    @classmethod
    def open(cls, folder: Path | str, *, latent_norm: LatentNorm = "config") -> "Checkpoint":
        """Open and check a folder.

        Args:
            folder: with config.json and model.safetensors, or shards and model.safetensors.index.json.
            latent_norm: see `Geometry.read`.

        Raises:
            CheckpointError: the folder, its config, its index or a file is missing or malformed, or a tensor is missing or
                of the wrong dtype or shape; names the file and the tensor.
        """
        folder = Path(folder)
        if not folder.is_dir():
            raise CheckpointError(f"cannot open checkpoint {folder}: there is no such folder")
        geometry = Geometry.read(folder, latent_norm=latent_norm)
        files, places = _single(folder) if (folder / SINGLE).exists() else _sharded(folder)
        checkpoint = cls(folder=folder, geometry=geometry, files=files, places=places)
        checkpoint._check()
        return checkpoint

    @property
    def files(self) -> Mapping[str, SafetensorsFile]:
        """The files that tensors lie in, by name."""
        return self._files

    def names(self) -> tuple[str, ...]:
        """Names of all tensors, sorted."""
        return tuple(sorted(self._places))

    def tensor(
        self,
        name: str,
        dtype: Any | tuple[Any, ...] | None = None,
        shape: tuple[int, ...] | None = None,
    ) -> NDArray[Any]:
        """A read-only view of one tensor, bfloat16 as ml_dtypes'.

        Args:
            name: e.g. ``model.norm.weight``.
            dtype: a NumPy dtype, its name, or several of which one must match.
            shape: what it must be.

        Raises:
            CheckpointError: no such tensor, or of another dtype or shape.
        """
        entry = self._entry(name)
        if dtype is not None:
            wanted = [np.dtype(one) for one in (dtype if isinstance(dtype, tuple) else (dtype,))]
            if DTYPES[entry.dtype] not in wanted:
                raise self._wrong(entry, f"expected {' or '.join(str(one) for one in wanted)}")
        if shape is not None and entry.shape != tuple(shape):
            raise self._wrong(entry, f"expected shape {tuple(shape)}")
        return self._places[name].view(name)

    def expert(self, layer: int, expert: int, projection: Projection) -> PackedMatrix | NDArray[Any]:
        """One matrix of a routed expert: packed in a quantised checkpoint, else a plain (out, in) array.

        Raises:
            CheckpointError: no such expert.
        """
        geometry = self.geometry
        if layer not in geometry.moe_layers or not 0 <= expert < geometry.n_routed_experts:
            raise CheckpointError(
                f"{self.folder} has no expert {expert} in layer {layer}: layers {geometry.moe_layers.start} to "
                f"{geometry.num_hidden_layers - 1} have experts 0 to {geometry.n_routed_experts - 1}"
            )
        name, shape = expert_name(layer, expert, projection), expert_shape(geometry, projection)
        if not is_packed(geometry, name):
            return self.tensor(f"{name}.weight")
        return PackedMatrix(packed=self.tensor(f"{name}.weight_packed"), scale=self.tensor(f"{name}.weight_scale"), shape=shape)

    def give_back(self, name: str) -> None:
        """Let the system take the mapped pages of a tensor back, once it was copied; views of it stay valid.

        Raises:
            CheckpointError: no such tensor.
        """
        self._entry(name)
        self._places[name].give_back(name)

    @property
    def experts_are_packed(self) -> bool:
        """Whether the routed experts are INT4 (all of them, or the first's matrices stand for all)."""
        layers = self.geometry.moe_layers
        return bool(layers) and is_packed(self.geometry, expert_name(layers.start, 0, "gate_proj"))

    @property
    def size_bytes(self) -> int:
        """Bytes of all files."""
        return sum(file.size for file in self._files.values())

    @property
    def tensor_bytes(self) -> int:
        """Bytes of all tensors."""
        return sum(entry.end - entry.begin for entry in map(self._entry, self._places))

    def fingerprint(self) -> str:
        """SHA-256 in hex over config.json and every file's name and bytes; computed once, at the speed of the disk."""
        if self._fingerprint is None:
            digest = hashlib.sha256()
            config = (self.folder / "config.json").read_bytes()
            for name, size, chunks in (
                ("config.json", len(config), [memoryview(config)]),
                *((name, file.size, file.chunks()) for name, file in sorted(self._files.items())),
            ):
                digest.update(f"{name}\0{size}\0".encode())
                for chunk in chunks:
                    digest.update(chunk)
            self._fingerprint = digest.hexdigest()
        return self._fingerprint

    def _entry(self, name: str) -> TensorEntry:
        if name not in self._places:
            raise CheckpointError(f"{self.folder} has no tensor '{short(name)}' among its {len(self._places)}")
        return self._places[name].entries[name]

    def _wrong(self, entry: TensorEntry, expected: str) -> CheckpointError:
        path = self._places[entry.name].path
        return CheckpointError(f"{path}: tensor '{entry.name}' is {entry.dtype} {entry.shape}, {expected}")

    def _check(self) -> None:
        for expected in plain_tensors(self.geometry):
            self._expect(expected)
        for layer in self.geometry.moe_layers:
            for expert in range(self.geometry.n_routed_experts):
                for expected in expert_tensors(self.geometry, layer, expert):
                    self._expect(expected)
        # Every stated shape, not a sample: a packed matrix of another width would be read as noise.
        for name in self._places:
            if name.endswith(".weight_shape"):
                self._check_stated_shape(name.removesuffix(".weight_shape"))

    def _expect(self, expected: Expected) -> None:
        if expected.name not in self._places:
            packed = expected.name + "_packed" in self._places
            hint = " (it is packed there, but config.json has no quantization_config for it)" if packed else ""
            raise CheckpointError(f"{self.folder} has no tensor '{expected.name}', which its config.json asks for{hint}")
        entry = self._entry(expected.name)
        if entry.dtype not in expected.dtypes or entry.shape != expected.shape:
            raise self._wrong(entry, f"expected {' or '.join(expected.dtypes)} {expected.shape}")

    def _check_stated_shape(self, module: str) -> None:
        stated = self._entry(f"{module}.weight_shape")
        packed = self._places.get(f"{module}.weight_packed")
        if packed is None or self.geometry.quantisation is None or stated.shape != (2,) or stated.dtype not in ("I32", "I64"):
            return  # belongs to a tensor that the forward does not read
        rows, cols = (int(size) for size in self._places[stated.name].view(stated.name))
        found = packed.entries[f"{module}.weight_packed"].shape
        if rows < 0 or cols < 0 or packed_tensors(module, (rows, cols), 8)[0].shape != found or cols % 8:
            raise CheckpointError(
                f"{packed.path}: tensor '{stated.name}' says ({rows}, {cols}), but weight_packed is {found} words of 8 columns"
            )


Places = tuple[dict[str, SafetensorsFile], dict[str, SafetensorsFile]]


def _single(folder: Path) -> Places:
    file = SafetensorsFile.open(folder / SINGLE)
    return {SINGLE: file}, dict.fromkeys(file.entries, file)


def _sharded(folder: Path) -> Places:
    index = folder / INDEX
    if not index.exists():
        raise CheckpointError(f"cannot open checkpoint {folder}: it has neither {SINGLE} nor {INDEX}")
    weight_map = read_json_object(index, LARGEST_INDEX).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{index}: key 'weight_map' is missing or no object of tensor names to file names")
    files: dict[str, SafetensorsFile] = {}
    places: dict[str, SafetensorsFile] = {}
    for name, shard in weight_map.items():
        if not isinstance(shard, str) or not _is_plain_name(shard):
            raise CheckpointError(
                f"{index}: tensor '{short(name)}' lies in {short(repr(shard))}, expected a .safetensors file beside it"
            )
        if shard not in files:
            if not (folder / shard).exists():
                raise CheckpointError(f"{folder / shard} is missing; {INDEX} places tensor '{short(name)}' in it")
            files[shard] = SafetensorsFile.open(folder / shard)
        if name not in files[shard].entries:
            raise CheckpointError(f"{folder / shard} has no tensor '{short(name)}', which {INDEX} places in it")
        places[name] = files[shard]
    return files, places


def _is_plain_name(name: str) -> bool:
    """Whether *name* is a file's name without any folder: nothing outside the checkpoint can be reached."""
    return (
        name.endswith(".safetensors")
        and len(name) <= 255
        and name.isprintable()
        and not name.startswith(".")
        and not any(mark in name for mark in ("/", "\\", ":", "\0"))
    )
