"""The embedded model: a small model of K2's architecture in the real checkpoint format, and the recipe that trained it.

``weights/`` is the checkpoint (INT4 group-32 experts), ``train/`` the recipe (extra ``train``), ``evaluation`` what
``k2 eval nano`` runs. What the model sees and writes is frozen in k2core_specs/formats/nano_episode.toml.
"""

from pathlib import Path
from typing import Any

from k2core import hookimpl
from k2core.interfaces import ModelProfile

WEIGHTS = Path(__file__).parent / "weights"
PROFILE = ModelProfile(
    context=2048,
    system="You are k2core nano. Think, call tools, check what comes back, answer with evidence.",
    temperature=0.0,
    controls=(),
    memory="window",  # it was trained with steps left out, and without a word in their place
    description="embedded K2-architecture model: arithmetic and look-ups, with checks",
)


@hookimpl
def register_models(register: Any) -> None:
    """Register ``nano``."""
    register("nano", checkpoint=WEIGHTS, profile=PROFILE)


@hookimpl
def register_evaluations(register: Any) -> None:
    """Register ``k2 eval nano``."""
    register(
        "k2core_nano.evaluation:evaluate", name="nano", summary="the embedded model on fresh questions, by family and level"
    )
