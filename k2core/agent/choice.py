"""What a session is made of, as plain values."""

from pathlib import Path

from attrs import field, frozen

from k2core.agent.budget import Limits
from k2core.interfaces import Numerics, Prices

DEFAULT_MODEL = "nano"
DEFAULT_BACKEND = "numba"
PATH_CONTEXT = 4096  # tokens an agent may fill with a checkpoint given by its folder


@frozen(kw_only=True)
class Choice:
    """What a session is made of.

    Attributes:
        model: a registered model's name, or the path of a checkpoint folder.
        backend: a registered backend's name; unused by models that bring their own (remote, scripted).
        device: as the backend's probe names it; None takes what it takes unasked.
        numerics: rounding in force.
        moe: a backend that holds the routed experts, ``NAME`` or ``NAME:DEVICE``; None leaves them to `backend`.
        expert_bytes: the most memory that routed experts may take; None is as much as they need, where it fits.
        shadow: a backend that computes everything a second time, ``NAME`` or ``NAME:DEVICE``, to be compared; None is none.
        shadow_limit: the most that two logits of the shadow's may differ by; None is what the contract of the numerics says.
        tools: exactly these tools (control tools are always there), or None for all whose needs are met.
        documents: folder for the tools that search and read.
        workspace: folder for the tools that run code and write files.
        sandbox: the isolation of code that is acceptable: ``strong``, ``wasm`` or ``reduced``.
        store: the journal's file, or None for the user's own.
        limits: budgets of one question.
        prices: of the model's tokens; None leaves the model's own.
        temperature: None takes the model's recommendation.
        top_p: nucleus; 1 is off.
        min_p: 0 is off.
        max_tokens: of one turn.
        seed: of the sampler.
        masks: turns are held to the grammar of calls, where the model can.
        drafts: tokens guessed ahead per step; 0 is off. What is generated does not depend on it.
        memory: what makes room in the model's context, by name; None leaves it to the model.
        cache_bytes: limit of the model's cache memory; None leaves it to the engine.
        approve: effect classes of tools whose calls a person approves, or ``all``; see `k2core.agent.approving`.
        trust: calls with side effects need no approval after content that nobody has vetted.
    """

    model: str = DEFAULT_MODEL
    backend: str = DEFAULT_BACKEND
    device: str | None = None
    numerics: Numerics = "exact"
    moe: str | None = None
    expert_bytes: int | None = None
    shadow: str | None = None
    shadow_limit: float | None = None
    tools: tuple[str, ...] | None = None
    documents: Path | None = None
    workspace: Path | None = None
    sandbox: str = "strong"
    store: Path | None = None
    limits: Limits = field(factory=Limits)
    prices: Prices | None = None
    temperature: float | None = None
    top_p: float = 1.0
    min_p: float = 0.0
    max_tokens: int = 1024
    seed: int = 0
    masks: bool = True
    drafts: int = 8
    memory: str | None = None
    cache_bytes: int | None = None
    approve: tuple[str, ...] = ()
    trust: bool = False
