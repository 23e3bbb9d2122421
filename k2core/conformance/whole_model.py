"""Whole models: the rules of `specs/k2core_specs/numerics.toml` end to end, caches and batches included.

A bound composed over all layers would allow anything. So the oracle follows the experts that the backend took, which is a
legitimate choice where no expert that was left out is clearly better. In `exact` logits must then be within a fixed distance
of the oracle's, and greedy tokens equal wherever the best leads clearly; other numerics are compared with the oracle that
rounds as they do, by the normalised mean square error (NMSE) of the logits. What goes through forks, cuts and ragged batches is
held to the same rules, and to the same bits where the model declares itself batch-invariant.
"""

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from attrs import frozen
from numpy.typing import NDArray

from k2core.conformance.contracts import numerics_contract
from k2core.conformance.kit import Subject
from k2core.conformance.records import NumericsContract
from k2core.conformance.report import Difference, Outcome
from k2core.errors import K2Error, said
from k2core.interfaces import LoadedModel, SequenceInput, Want
from k2core.model.checkpoint import Checkpoint
from k2core.oracle.forward import forward as oracle_forward
from k2core.oracle.moe_route import shortfall
from k2core.testing.checkpoints import write_tiny_checkpoint

TIE = 1e-5  # of two scores of a router in float32: the error of a product of a few hundred terms, many times over
EVERYTHING = Want(logits="all", routing=True)
Array = NDArray[Any]

GEOMETRIES: Mapping[str, Mapping[str, Any]] = {
    "tiny": {},
    "odd": {
        "hidden_size": 96, "num_attention_heads": 5, "num_key_value_heads": 5, "q_lora_rank": 19, "kv_lora_rank": 21,
        "qk_nope_head_dim": 13, "qk_rope_head_dim": 6, "v_head_dim": 11, "intermediate_size": 50, "n_routed_experts": 7,
        "num_experts_per_tok": 3, "n_shared_experts": 2, "vocab_size": 133, "norm_topk_prob": False,
        "first_k_dense_replace": 2,
    },
    "wide_choice": {"n_routed_experts": 384, "num_experts_per_tok": 8, "num_hidden_layers": 2, "kv_lora_rank": 16},
}  # fmt: skip


@frozen(kw_only=True)
class Trace:
    """What a backend gave for every token of one sequence.

    Attributes:
        logits: (tokens, vocab).
        expert_ids: per MoE layer (tokens, top_k).
    """

    logits: Array
    expert_ids: tuple[Array, ...]

    @classmethod
    def joined(cls, parts: Sequence["Trace"]) -> "Trace":
        """One after the other."""
        layers = zip(*(part.expert_ids for part in parts), strict=True)
        return cls(
            logits=np.concatenate([part.logits for part in parts]), expert_ids=tuple(np.concatenate(ids) for ids in layers)
        )


Run = Callable[[LoadedModel, list[int]], Trace]  # of one sequence, whatever else happens


def at_once(model: LoadedModel, ids: list[int]) -> Trace:
    """A prompt in one forward."""
    return _extended(model, model.new_sequence(), ids)


def token_by_token(model: LoadedModel, ids: list[int]) -> Trace:
    """One token after the other."""
    handle = model.new_sequence()
    return Trace.joined([_extended(model, handle, [token]) for token in ids])


def in_pieces(model: LoadedModel, ids: list[int]) -> Trace:
    """A prompt in uneven pieces."""
    handle, cuts = model.new_sequence(), [0, 1, 4, len(ids) // 2, len(ids)]
    return Trace.joined([_extended(model, handle, ids[a:b]) for a, b in pairwise(cuts) if a < b])


def behind_a_fork(model: LoadedModel, ids: list[int]) -> Trace:
    """A fork's tokens, while its parent goes another way."""
    parent, cut = model.new_sequence(), len(ids) // 2
    before = _extended(model, parent, ids[:cut])
    child = model.fork(parent, cut)
    _extended(model, parent, ids[::-1])
    return Trace.joined([before, _extended(model, child, ids[cut:])])


def behind_a_cut(model: LoadedModel, ids: list[int]) -> Trace:
    """Tokens behind others that were seen and cut off."""
    handle, cut = model.new_sequence(), len(ids) // 3
    before = _extended(model, handle, ids[:cut])
    _extended(model, handle, ids[::-1])
    model.truncate(handle, cut)
    return Trace.joined([before, _extended(model, handle, ids[cut:])])


def among_others(model: LoadedModel, ids: list[int]) -> Trace:
    """The second of three sequences of a ragged batch."""
    prompts = [ids[3:10], ids, ids[::-1][: len(ids) // 2]]
    batch = [SequenceInput(handle=model.new_sequence(), token_ids=prompt) for prompt in prompts]
    return _trace(model, batch, slice(len(prompts[0]), len(prompts[0]) + len(ids)))


RUNS: Mapping[str, Run] = {
    one.__name__: one for one in (at_once, token_by_token, in_pieces, behind_a_fork, behind_a_cut, among_others)
}


@frozen(kw_only=True)
class Verdict:
    """How far a trace is from the rules.

    Attributes:
        worst: 1 is the limit.
        why: what exceeds it; empty where nothing does or `place` says it.
        place: index, got, expected and allowed of the worst logit, in `exact`.
    """

    worst: float
    why: str = ""
    place: Mapping[str, Any] | None = None


def judge(trace: Trace, checkpoint: Checkpoint, ids: Sequence[int], rules: NumericsContract) -> Verdict:
    """Hold a trace to the rules of its numerics.

    Raises:
        K2Error: logits or choices are of the wrong shape.
    """
    geometry = checkpoint.geometry
    shapes = [(len(ids), geometry.num_experts_per_tok)] * len(geometry.moe_layers)
    found = [one.shape for one in trace.expert_ids]
    if trace.logits.shape != (len(ids), geometry.vocab_size) or found != shapes:
        raise K2Error(f"logits are {trace.logits.shape} and choices {found} for {len(ids)} tokens")
    exact = oracle_forward(checkpoint, ids, choices=trace.expert_ids)
    rounded = exact if rules.name == "exact" else oracle_forward(checkpoint, ids, rules.rounding, trace.expert_ids)
    choice = 0.0
    for scores, other, taken in zip(exact.scores, rounded.scores, trace.expert_ids, strict=True):
        allowed = TIE + 2 * float(np.abs(scores - other).max())
        choice = max(choice, float(shortfall(scores, np.asarray(taken, np.int64)).max()) / allowed)
    if choice > 1:
        return Verdict(worst=choice, why=f"an expert is left out that is better by {choice:.3g} times what is a tie")
    got, expected = np.asarray(trace.logits, np.float64), exact.logits
    if rules.nmse_factor is not None:
        limit = rules.nmse_factor * nmse(rounded.logits, expected)
        worst = nmse(got, expected) / limit if np.isfinite(got).all() else np.inf
        return Verdict(worst=worst, why=f"the error of the logits is {worst:.3g} times what is allowed" if worst > 1 else "")
    assert rules.logit_delta is not None and rules.greedy_margin is not None
    difference = np.where(np.isfinite(got), np.abs(got - expected), np.inf)
    top = np.partition(expected, -2, axis=1)[:, -2:]
    clear = top[:, 1] - top[:, 0] > rules.greedy_margin
    if flips := int((clear & (got.argmax(1) != expected.argmax(1))).sum()):
        return Verdict(worst=np.inf, why=f"{flips} greedy tokens differ where the best leads clearly")
    place = np.unravel_index(int(difference.argmax()), difference.shape)
    return Verdict(
        worst=float(difference[place]) / rules.logit_delta,
        place={
            "index": tuple(map(int, place)), "got": float(got[place]), "expected": float(expected[place]),
            "allowed": rules.logit_delta,
        },
    )  # fmt: skip


def nmse(got: Array, expected: Array) -> float:
    """Σ (got - expected)² over Σ expected²."""
    return float(np.square(got - expected).sum() / np.square(expected).sum())


def check_models(subject: Subject, *, tokens: int = 40) -> Iterator[Outcome]:
    """Every run of every geometry on one backend.

    Args:
        subject: what is checked.
        tokens: of a sequence.
    """
    with tempfile.TemporaryDirectory(prefix="k2core-") as place:
        for name, overrides in GEOMETRIES.items():
            folder = write_tiny_checkpoint(Path(place) / name, seed=7, **overrides)
            yield from _check_model(subject, name, folder, tokens)


def _check_model(subject: Subject, geometry: str, folder: Path, tokens: int) -> Iterator[Outcome]:
    told: dict[str, Any] = {"op": f"model {geometry}", "backend": subject.name, "numerics": subject.numerics}
    checkpoint, rules = Checkpoint.open(folder), numerics_contract(subject.numerics)
    ids = np.random.default_rng(0).integers(0, checkpoint.geometry.vocab_size, tokens).tolist()
    try:
        model = subject.backend.load(folder, device=subject.device, numerics=subject.numerics)
    except Exception as error:  # a stranger's code may raise anything: it becomes a line of the report
        yield Outcome(**told, property="load", cases=1, worst=0.0, error=said(error))
        return
    try:
        first: Array | None = None
        for name, run in RUNS.items():
            try:
                trace = run(model, ids)
                verdict = judge(trace, checkpoint, ids, rules)
            except Exception as error:
                yield Outcome(**told, property=name, cases=1, worst=0.0, error=said(error))
                continue
            first = trace.logits if first is None else first
            difference, error_line = None, verdict.why
            if model.batch_invariant and not np.array_equal(first, trace.logits):
                error_line = f"declared batch-invariant, but the bits are not those of {next(iter(RUNS))}"
            elif verdict.worst > 1 and verdict.place is not None:
                difference = Difference(**told, property=name, case=f"{tokens} tokens", output="logits", **verdict.place)
            yield Outcome(**told, property=name, cases=1, worst=verdict.worst, difference=difference, error=error_line)
    finally:
        model.close()


def _extended(model: LoadedModel, handle: int, ids: list[int]) -> Trace:
    return _trace(model, [SequenceInput(handle=handle, token_ids=ids)], slice(None))


def _trace(model: LoadedModel, batch: Sequence[SequenceInput], rows: slice) -> Trace:
    step = model.forward(batch, EVERYTHING)
    if step.routing is None:
        raise K2Error("a forward that was asked for its routing gave none")
    return Trace(logits=np.array(step.logits)[rows], expert_ids=tuple(np.array(one.expert_ids)[rows] for one in step.routing))
