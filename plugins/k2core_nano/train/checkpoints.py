"""Checkpoints of training: one file with everything that the next step depends on.

Keys: geometry and options (plain values), machine (names; not in older files), counters, masters (parameter name -> unrounded
float32), bias (one (experts,) float32 selection bias per MoE layer), adam and muon (optimiser states), family_smooth (family ->
loss). All tensors are written from the CPU, so a file goes on with any device and precision; an option that an older file lacks
had its default value then. `export` and `probe` read it too.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from attrs import asdict
from torch import Tensor

from k2core.errors import CheckpointError
from k2core_nano.train.export import load_exported
from k2core_nano.train.geometry import Geometry
from k2core_nano.train.machine import machine
from k2core_nano.train.training import Trainer


def save(trainer: Trainer, path: Path) -> None:
    """Write everything that training depends on; an older file is replaced in one move."""
    state = {
        "geometry": asdict(trainer.model.geometry),
        "options": {k: v for k, v in vars(trainer.options).items() if isinstance(v, (int, float, str, bool)) or v is None},
        "machine": machine(trainer.device, trainer.options.precision),
        "counters": dict(trainer.counters),
        "masters": dict(zip(trainer.names, trainer.masters, strict=True)),
        "bias": [layer.gate.e_score_correction_bias for layer in trainer.model.moe_layers],
        **trainer.optimisers.state_dict(),
        "family_smooth": dict(trainer.family_smooth),
    }
    part = path.with_suffix(".part")
    torch.save(_on_cpu(state), part)
    part.replace(path)


def _on_cpu(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.cpu()
    if isinstance(value, dict):
        return {key: _on_cpu(one) for key, one in value.items()}
    return [_on_cpu(one) for one in value] if isinstance(value, list) else value


def begin(trainer: Trainer, folder: Path) -> None:
    """Begin with the weights of an exported model, in the main phase, with fresh optimisers and a budget of its own.

    The counters go on from the folder's training.json, and ``began_from`` names the weights by their hash.

    Raises:
        CheckpointError: the folder is incomplete or holds a model of another size.
    """
    model = load_exported(folder)
    if model.geometry != trainer.model.geometry:
        raise CheckpointError(f"cannot begin with {folder}: it holds {model.geometry}, the model is {trainer.model.geometry}.")
    exported = dict(model.named_parameters())
    with torch.no_grad():
        for name, master in zip(trainer.names, trainer.masters, strict=True):
            master.copy_(exported[name])
        for layer, other in zip(trainer.model.moe_layers, model.moe_layers, strict=True):
            layer.gate.e_score_correction_bias.copy_(other.gate.e_score_correction_bias)
    past = json.loads((folder / "training.json").read_text())
    c = trainer.counters
    c.update(step=past["steps"], document_tokens=past["document_tokens"], prefix_tokens=past["prefix_tokens"])
    c.update(seconds=past["seconds"], base_seconds=past["seconds"], base_tokens=past["document_tokens"])
    c.update(phase="main", start_step=past["steps"])
    c["began_from"] = "sha256:" + hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    trainer.set_weights()


def load(trainer: Trainer, path: Path, *, restart_schedule: bool) -> None:
    """Continue from a checkpoint: changes the trainer's weights, optimisers and counters.

    Args:
        restart_schedule: whether the budget counts from here instead of from the very start.

    Raises:
        CheckpointError: the checkpoint is of a model of another size, or of another optimiser.
    """
    state = torch.load(path, weights_only=True)
    if Geometry(**state["geometry"]) != trainer.model.geometry:
        raise CheckpointError(
            f"cannot resume from {path}: it holds {state['geometry']}, the model is {trainer.model.geometry}. "
            "Give the --geometry it was trained with."
        )
    optimizer = state["options"].get("optimizer", "muonclip")
    if optimizer != trainer.options.optimizer:
        raise CheckpointError(
            f"cannot resume from {path} with --optimizer {trainer.options.optimizer}: it was trained with {optimizer}. "
            f"Give --optimizer {optimizer}, or begin from exported weights (--weights)."
        )
    for name, master in zip(trainer.names, trainer.masters, strict=True):
        master.copy_(state["masters"][name])
    for layer, bias in zip(trainer.model.moe_layers, state["bias"], strict=True):
        layer.gate.e_score_correction_bias.copy_(bias)
    trainer.optimisers.load_state_dict(state)
    trainer.counters.update(state["counters"])
    trainer.family_smooth = dict(state["family_smooth"])
    trainer.counters["start_step"] = trainer.counters["step"]
    if restart_schedule:
        trainer.counters["base_seconds"] = trainer.counters["seconds"]
        trainer.counters["base_tokens"] = trainer.counters["document_tokens"]
    trainer.set_weights()
