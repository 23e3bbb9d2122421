"""A whole checkpoint as one ONNX model that ONNX Runtime runs alone: model.onnx, and its weights in model.data beside it.

Inputs: token_ids (tokens) int64, and per layer the cache so far, latents_L (past, rank) and keys_L (past, rope), empty in the
beginning. Outputs: logits (tokens, vocab), and per layer what the tokens add, new_latents_L and new_keys_L, to be appended.
"""

import shutil
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import onnx
from numpy.typing import NDArray

from k2core.errors import InputError
from k2core.interfaces import Numerics
from k2core.model.checkpoint import Checkpoint
from k2core.model.rotations import Rotations
from k2core_onnx import experts, halves, qmoe
from k2core_onnx.graph import ALIGNED, Graph, Weights

MODEL, DATA = "model.onnx", "model.data"


def export(checkpoint: Checkpoint, folder: Path, *, numerics: Numerics = "exact", fused: bool = False) -> Path:
    """Write the model into a folder that does not exist yet; it is written beside its place and takes it once it is whole.

    Args:
        checkpoint: what to export.
        folder: where to.
        numerics: ``exact`` or ``w4a8``.
        fused: routed experts as one `QMoE` a layer, in ``exact`` alone.

    Returns:
        The model's file.

    Raises:
        InputError: the folder is there already, or cannot be written.
        CheckpointError: a weight is not finite, or cannot be expressed.
    """
    if folder.exists():
        raise InputError(f"cannot export to {folder}: it is there already. Give a folder that does not exist.")
    beside = folder.with_name(f".{folder.name}.partial")
    try:
        shutil.rmtree(beside, ignore_errors=True)
        beside.mkdir(parents=True)
        with (beside / DATA).open("wb") as file:
            graph = FileGraph("model", file)
            _write(graph, Weights(checkpoint), numerics, fused)
        (beside / MODEL).write_bytes(graph.model(location=DATA).SerializeToString())
        beside.rename(folder)
    except OSError as error:
        raise InputError(f"cannot export to {folder}: {error.strerror or error}") from error
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    return folder / MODEL


class FileGraph(Graph):
    """A graph whose weights go into a file as they come, so that they need not all be in memory."""

    def __init__(self, name: str, file: BinaryIO) -> None:
        super().__init__(name)
        self._file = file

    def weight(self, name: str, array: NDArray[Any]) -> str:
        """Write an array to the file."""
        self._file.write(bytes(-self._file.tell() % ALIGNED))
        self.declare(name, array, self._file.tell())
        self._file.write(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
        return name


def _write(graph: Graph, weights: Weights, numerics: Numerics, fused: bool) -> None:
    """All layers in one graph."""
    g = weights.geometry
    ids = graph.input("token_ids", ("tokens",), onnx.TensorProto.INT64)
    cache = [
        (graph.input(f"latents_{layer}", ("past", g.kv_lora_rank)), graph.input(f"keys_{layer}", ("past", g.qk_rope_head_dim)))
        for layer in range(g.num_hidden_layers)
    ]
    turns = _turns(graph, weights, ids, cache[0][0])
    table = graph.weight("embedding", weights.plain("model.embed_tokens.weight"))
    x = graph.call("Cast", graph.call("Gather", table, ids, axis=0), to=onnx.TensorProto.FLOAT)
    for layer, (latents, keys) in enumerate(cache):
        attended = halves.attention_values(graph, weights, layer, x, turns, latents, keys)
        graph.output(attended.latents, f"new_{latents}", ("tokens", g.kv_lora_rank))
        graph.output(attended.keys, f"new_{keys}", ("tokens", g.qk_rope_head_dim))
        x = graph.call("Add", attended.y, _feed_forward(graph, weights, layer, numerics, fused, attended.normed))
    logits = halves.logits(graph, weights, halves.last_norm(graph, weights, x))
    graph.output(logits, "logits", ("tokens", g.vocab_size))


def _feed_forward(graph: Graph, weights: Weights, layer: int, numerics: Numerics, fused: bool, x: str) -> str:
    prefix = f"model.layers.{layer}.mlp"
    if layer not in weights.geometry.moe_layers:
        return halves.mlp(graph, weights, prefix, x)
    ids, shares = experts.router_values(graph, weights, layer, x)
    if fused:
        routed = qmoe.experts_value(graph, weights, layer, x, ids, shares)
    else:
        routed = experts.experts_value(graph, weights, layer, numerics, x, ids, shares)
    weights.give_back()
    both: str = graph.call("Add", routed, halves.mlp(graph, weights, f"{prefix}.shared_experts", x))
    return both


def _turns(graph: Graph, weights: Weights, ids: str, latents: str) -> halves.Turns:
    """Rotations and mask of the new tokens, which stand behind what a cache holds."""
    g = weights.geometry
    rotations = Rotations(g)
    rotations.reach(g.max_position_embeddings)
    past = graph.call("Squeeze", graph.call("Shape", latents, start=0, end=1))
    tokens = graph.call("Squeeze", graph.call("Shape", ids, start=0, end=1))
    places = graph.call("Range", graph.constant(0), tokens, graph.constant(1))
    positions, tables = graph.call("Add", places, past), {"cosines": rotations.cosine, "sines": rotations.sine}
    cosine, sine = (
        graph.call("Gather", graph.weight(name, table.reshape(g.max_position_embeddings, -1)), positions, axis=0)
        for name, table in tables.items()
    )
    row, column = (graph.call("Unsqueeze", places, graph.constant([axis])) for axis in (0, 1))
    mask = graph.call("Where", graph.call("Greater", row, column), graph.number(-np.inf), graph.number(0.0))
    return halves.Turns(cosine=cosine, sine=sine, mask=mask)
