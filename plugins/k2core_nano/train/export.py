"""From a training checkpoint to a Hugging Face folder, and back for checking.

    python -m k2core_nano.train.export --checkpoint DIR/latest.pt --out FOLDER --bos ID --eos ID --pad ID

Works while training runs: checkpoints are replaced in one move. The folder holds config.json, generation_config.json,
training.json (counters, losses, options, and the machine that the checkpoint was written on) and model.safetensors: routed
experts as compressed-tensors pack-quantized INT4 group 32, e_score_correction_bias float32, the rest bfloat16.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from k2core.errors import CheckpointError
from k2core.model.profile import write_profile
from k2core_nano import PROFILE
from k2core_nano.train.geometry import Geometry
from k2core_nano.train.model import NanoModel
from k2core_nano.train.quantise import dequantise, pack, quantise, unpack

BIAS = "model.layers.{}.mlp.gate.e_score_correction_bias"


def wire_tensors(masters: dict[str, Tensor], biases: dict[int, Tensor]) -> dict[str, Tensor]:
    """The tensors of model.safetensors.

    Args:
        masters: float32 parameters under the training model's names.
        biases: layer index -> (experts,) float32 selection bias.

    Returns:
        Hugging Face names -> tensors in wire form.
    """
    tensors: dict[str, Tensor] = {}
    for name, weight in masters.items():
        if ".mlp.experts." not in name:
            tensors[name] = weight.bfloat16().contiguous()
            continue
        prefix, kind = name.rsplit(".", 1)
        for expert, stacked in enumerate(weight):
            parts = {"gate_proj": stacked[0], "up_proj": stacked[1]} if kind == "gate_up" else {"down_proj": stacked}
            for projection, matrix in parts.items():
                codes, scale = quantise(matrix)
                base = f"{prefix}.{expert}.{projection}"
                tensors[f"{base}.weight_packed"] = pack(codes).contiguous()
                tensors[f"{base}.weight_scale"] = scale.contiguous()
                tensors[f"{base}.weight_shape"] = torch.tensor(matrix.shape)
    for layer, bias in biases.items():
        tensors[BIAS.format(layer)] = bias.float().contiguous()
    return tensors


def export(
    checkpoint: Path,
    folder: Path,
    *,
    bos_token_id: int,
    eos_token_id: int,
    pad_token_id: int,
    about: dict[str, Any] | None = None,
) -> None:
    """Write the folder.

    Args:
        checkpoint: file written by the trainer.
        folder: created if missing; its model files are overwritten.
        bos_token_id: of the tokenizer.
        eos_token_id: of the tokenizer.
        pad_token_id: of the tokenizer.
        about: further keys for training.json (commit, date).
    """
    state = torch.load(checkpoint, weights_only=True)
    geometry = Geometry(**state["geometry"])
    biases = {geometry.first_k_dense_replace + index: bias for index, bias in enumerate(state["bias"])}
    counters, options = state["counters"], state["options"]
    training = {
        "seed": options["seed"],
        "steps": counters["step"],
        "document_tokens": counters["document_tokens"],
        "prefix_tokens": counters["prefix_tokens"],
        "seconds": round(counters["seconds"], 1),
        "smoothed_loss": counters["smooth"],
        "family_losses": {name: round(value, 5) for name, value in sorted(state["family_smooth"].items())},
        "trained_rounded": counters["rounding"],
        "first_losses": counters.get("first_losses", []),
        **({"began_from": counters["began_from"]} if "began_from" in counters else {}),
        "machine": state.get("machine", {"device": "cpu", "precision": "float32"}),  # older checkpoints name none
        "options": options,
        **(about or {}),
    }
    folder.mkdir(parents=True, exist_ok=True)
    tokens = {"bos_token_id": bos_token_id, "eos_token_id": eos_token_id, "pad_token_id": pad_token_id}
    generation = {"eos_token_id": eos_token_id, "max_length": geometry.max_position_embeddings}
    for name, content in (
        ("config.json", geometry.config(**tokens)),
        ("generation_config.json", generation),
        ("training.json", training),
    ):
        (folder / name).write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n")
    write_profile(folder, PROFILE)
    save_file(wire_tensors(state["masters"], biases), folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "model.safetensors").chmod(0o644)  # save_file makes it readable to its owner only


def load_exported(folder: Path) -> NanoModel:
    """The training model with exactly the weights of an exported folder.

    Raises:
        CheckpointError: a tensor of the model is missing from the folder, or the folder holds one the model does not have.
    """
    geometry = Geometry.from_config(json.loads((folder / "config.json").read_text()))
    tensors = load_file(folder / "model.safetensors")

    def matrix(base: str) -> Tensor:
        rows, cols = tensors.pop(f"{base}.weight_shape").tolist()
        codes = unpack(tensors.pop(f"{base}.weight_packed"))
        return dequantise(codes, tensors.pop(f"{base}.weight_scale")).view(rows, cols)

    model = NanoModel(geometry)
    try:
        with torch.no_grad():
            for name, target in model.state_dict().items():
                if ".mlp.experts." not in name:
                    target.copy_(tensors.pop(name).float())
                    continue
                prefix, kind = name.rsplit(".", 1)
                for expert, slot in enumerate(target):
                    if kind == "gate_up":
                        slot[0].copy_(matrix(f"{prefix}.{expert}.gate_proj"))
                        slot[1].copy_(matrix(f"{prefix}.{expert}.up_proj"))
                    else:
                        slot.copy_(matrix(f"{prefix}.{expert}.down_proj"))
    except KeyError as missing:
        raise CheckpointError(
            f"cannot load {folder}: tensor {missing} is not in model.safetensors. Export the checkpoint again."
        ) from missing
    if tensors:
        raise CheckpointError(f"cannot load {folder}: {len(tensors)} tensors have no place in the model, first {min(tensors)}.")
    return model


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m k2core_nano.train.export", description="Write a Hugging Face folder.")
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--commit", help="commit of the code that trained, for training.json")
    parser.add_argument("--date", help="date of the training, for training.json")
    parser.add_argument("--bos", type=int, required=True, help="token id of [BOS]")
    parser.add_argument("--eos", type=int, required=True, help="token id of <|im_end|>")
    parser.add_argument("--pad", type=int, required=True, help="token id of [PAD]")
    o = parser.parse_args()
    about = {key: value for key, value in (("commit", o.commit), ("date", o.date)) if value}
    export(o.checkpoint, o.out, bos_token_id=o.bos, eos_token_id=o.eos, pad_token_id=o.pad, about=about)


if __name__ == "__main__":
    main()
