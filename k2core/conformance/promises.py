"""What `k2core.interfaces` promises of a backend beyond its numbers: what is refused, what is given back, what is told.

Each promise is tried on a small checkpoint and raises `Broken` with one line where it is not kept.
"""

import json
import tempfile
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from k2core.conformance.kit import Subject
from k2core.conformance.report import Outcome
from k2core.conformance.whole_model import EVERYTHING, nmse
from k2core.errors import CapacityError, CheckpointError, K2Error, ShapeError, Unavailable, said
from k2core.interfaces import LoadedModel, Routing, SequenceInput, Want
from k2core.model.config import Geometry
from k2core.testing.checkpoints import tiny_config, tiny_tensors, write_safetensors, write_tiny_checkpoint

POSITIONS = 96
ROUNDED_NMSE = 1e-2  # of the same tokens in another batch; another sequence's are off by about 1
DAMAGED = (
    "model.embed_tokens.weight", "model.norm.weight", "model.layers.1.self_attn.kv_b_proj.weight",
    "model.layers.2.mlp.gate.e_score_correction_bias", "model.layers.1.mlp.experts.1.down_proj.weight_scale",
)  # fmt: skip


class Broken(K2Error):
    """A promise is not kept."""


Promise = Callable[[Subject, Path], None]


def refused_batches_change_nothing(subject: Subject, folder: Path) -> None:
    """A malformed batch is a K2Error, and every sequence is as long as before and goes on with the same numbers."""
    with _model(subject, folder) as model:
        good, other = model.new_sequence(), model.new_sequence()
        _extend(model, good, [1, 2, 3])
        vocab = model.geometry.vocab_size
        fine = SequenceInput(handle=other, token_ids=[1])
        for why, batch in (
            ("an empty batch", []),
            ("a sequence without new tokens", [fine, SequenceInput(handle=good, token_ids=[])]),
            ("a token outside the vocabulary", [fine, SequenceInput(handle=good, token_ids=[vocab])]),
            ("a negative token", [fine, SequenceInput(handle=good, token_ids=[-1])]),
            ("an unknown handle", [fine, SequenceInput(handle=999, token_ids=[1])]),
            ("a handle twice", [fine, fine]),
            ("more rows than tokens", [fine, SequenceInput(handle=good, token_ids=[1, 2], rows=3)]),
            ("negative rows", [fine, SequenceInput(handle=good, token_ids=[1, 2], rows=-1)]),
            ("too many positions", [fine, SequenceInput(handle=good, token_ids=[1] * (POSITIONS - 2))]),
        ):
            _refused(why, K2Error, partial(model.forward, batch))
            _see(model.length(good) == 3 and model.length(other) == 0, f"{why} is refused, but has changed a sequence")
        after, fresh = _extend(model, good, [4]), _extend(model, model.new_sequence(), [1, 2, 3, 4])[-1:]
        _see(_alike(subject, after, fresh), "after refused batches a sequence has other numbers")


def dead_handles_and_bad_lengths_are_refused(subject: Subject, folder: Path) -> None:
    """A freed handle is unknown to every method; a cut lies within its sequence."""
    with _model(subject, folder) as model:
        handle = model.new_sequence()
        _extend(model, handle, [1, 2])
        for length in (-1, 3):
            _refused(f"a cut at {length} of 2", K2Error, partial(model.truncate, handle, length))
            _refused(f"a fork at {length} of 2", K2Error, partial(model.fork, handle, length))
        model.free(handle)
        for call in (model.length, model.bytes_of, model.free):
            _refused("a freed handle", K2Error, partial(call, handle))
        for cut in (model.fork, model.truncate):
            _refused("a freed handle", K2Error, partial(cut, handle, 0))


def what_is_wanted_comes(subject: Subject, folder: Path) -> None:
    """Rows of logits, routing and hidden states follow the request and the batch's order."""
    with _model(subject, folder) as model:
        g, ids = model.geometry, list(range(1, 8))
        whole = model.forward([_input(model, ids)], Want(logits="all", routing=True, hidden=True))
        _see(np.asarray(whole.logits).shape == (7, g.vocab_size), "all rows are asked for, others come")
        _see(np.asarray(whole.hidden).shape == (7, g.hidden_size), "hidden states have another shape")
        _see(whole.routing is not None and len(whole.routing) == len(g.moe_layers), "a routing per MoE layer is missing")
        for routing in whole.routing or ():
            shapes = {np.asarray(routing.expert_ids).shape, np.asarray(routing.weights).shape}
            _see(shapes == {(7, g.num_experts_per_tok)}, "a routing has another shape")
        last, none = (model.forward([_input(model, ids)], Want(logits=one)) for one in ("last", "none"))
        _see(_alike(subject, last.logits, np.asarray(whole.logits)[-1:]), "the last row is another")
        _see(last.routing is None and last.hidden is None, "what was not asked for comes")
        _see(np.asarray(none.logits).shape == (0, g.vocab_size), "no rows are asked for, some come")
        mixed = [SequenceInput(handle=model.new_sequence(), token_ids=ids, rows=rows) for rows in (2, 0, None, 7)]
        rows = np.asarray(model.forward(mixed, Want(logits="last")).logits)
        every = np.asarray(whole.logits)
        expected = np.concatenate([every[-2:], every[-1:], every])
        _see(rows.shape == expected.shape and _alike(subject, rows, expected), "rows of a mixed batch are others")


def the_last_position_can_be_used(subject: Subject, folder: Path) -> None:
    """A sequence may be as long as the model has positions, and not longer."""
    with _model(subject, folder) as model:
        handle = model.new_sequence()
        model.forward([SequenceInput(handle=handle, token_ids=[1] * POSITIONS)], Want(logits="none"))
        _see(model.length(handle) == POSITIONS, "a sequence of all positions is shorter")
        _refused("a position too many", K2Error, lambda: _extend(model, handle, [1]))


def memory_is_told_and_given_back(subject: Subject, folder: Path) -> None:
    """Blocks in use grow with sequences and are none when all are freed; a token's bytes are at least the latent's."""
    with _model(subject, folder) as model:
        _see(model.used_blocks() == 0, "blocks are in use before there is a sequence")
        handle = model.new_sequence()
        _extend(model, handle, [1] * 70)
        memory = model.memory()
        _see(memory.block_tokens >= 1, "a block has no position")
        _see(memory.bytes_per_token >= model.geometry.cache_values_per_token * 2, "a token takes less than its latent")
        _see(model.used_blocks() >= -(-70 // memory.block_tokens), "fewer blocks are in use than 70 tokens take")
        _see(model.bytes_of(handle) > 0, "freeing a sequence would give nothing back")
        child = model.fork(handle, 65)
        _see(model.length(child) == 65, "a fork is of another length")
        model.free(handle)
        model.free(child)
        _see(model.used_blocks() == 0, "blocks are in use after everything was freed")
        _see(all(isinstance(one, str) for pair in model.info().items() for one in pair), "what is told is no text")


def the_seam_refuses_what_does_not_fit(subject: Subject, folder: Path) -> None:
    """A dense layer, a wrong width, a wrong routing and an expert that does not exist are one error each."""
    with _model(subject, folder) as model:
        g, layer = model.geometry, model.geometry.moe_layers.start
        x = np.ones((2, g.hidden_size), np.float32)
        routing = model.moe.route(layer, x)
        beyond = Routing(expert_ids=np.asarray(routing.expert_ids) + g.n_routed_experts, weights=routing.weights)
        _refused("routing a dense layer", K2Error, lambda: model.moe.route(0, x))
        _refused("a width too few", ShapeError, lambda: model.moe.route(layer, x[:, 1:]))
        _refused("a routing of other tokens", ShapeError, lambda: model.moe.experts(layer, x[:1], routing))
        _refused("an expert that does not exist", K2Error, lambda: model.moe.experts(layer, x, beyond))


def a_closed_model_says_so(subject: Subject, folder: Path) -> None:
    """Closing twice is fine; afterwards a forward and the seam are refused and no block is in use."""
    model = subject.backend.load(folder, device=subject.device, numerics=subject.numerics)
    handle, layer = model.new_sequence(), model.geometry.moe_layers.start
    _extend(model, handle, [1])
    model.close()
    model.close()
    _see(model.used_blocks() == 0, "a closed model has blocks in use")
    _refused("a forward of a closed model", K2Error, lambda: _extend(model, handle, [1]))
    x = np.ones((1, model.geometry.hidden_size), np.float32)
    _refused("the seam of a closed model", K2Error, lambda: model.moe.route(layer, x))


def a_damaged_weight_is_named(subject: Subject, folder: Path) -> None:
    """NaN or infinity in a weight of any kind is a CheckpointError that names the tensor."""
    config = tiny_config()
    tensors = tiny_tensors(Geometry.from_config(config), seed=5)
    for number, name in enumerate(DAMAGED):
        damaged = tensors | {name: tensors[name].copy()}
        damaged[name].reshape(-1)[-1] = np.inf if number % 2 else np.nan
        place = folder.parent / f"damaged-{number}"
        place.mkdir(exist_ok=True)
        (place / "config.json").write_text(json.dumps(config), encoding="utf-8")
        write_safetensors(place / "model.safetensors", damaged)
        error = _refused(f"a damaged {name}", CheckpointError, partial(_used, subject, place))
        _see(name in str(error), f"the error of a damaged {name} does not name it: {error}")


def what_it_has_not_is_refused(subject: Subject, folder: Path) -> None:
    """A device or a numerics that the backend has not is told before anything is read."""
    for what, options in (("device", {"device": "abacus"}), ("numerics", {"numerics": "w1a1"})):
        given: dict[str, Any] = {"device": subject.device, **options}
        error = _refused(f"an unknown {what}", Unavailable, partial(subject.backend.load, folder, **given))
        _see(next(iter(options.values())) in str(error), f"the error of an unknown {what} does not name it: {error}")


def lent_experts_do_the_same(subject: Subject, folder: Path) -> None:
    """Experts that were loaded alone and lent to a model of the same backend give its own numbers; it closes them."""
    options: dict[str, Any] = {"device": subject.device, "numerics": subject.numerics}
    with _model(subject, folder) as model:
        expected = _extend(model, model.new_sequence(), list(range(1, 12)))
        layer = model.geometry.moe_layers.start
        x = np.random.default_rng(1).standard_normal((3, model.geometry.hidden_size)).astype(np.float32)
        routing = model.moe.route(layer, x)
        own = np.asarray(model.moe.experts(layer, x, routing))
    experts = subject.backend.load_experts(folder, **options)
    _see(_alike(subject, experts.experts(layer, x, routing), own), "experts loaded alone give others")
    borrowing = subject.backend.load(folder, moe=experts, **options)
    try:
        got = _extend(borrowing, borrowing.new_sequence(), list(range(1, 12)))
        _see(_alike(subject, got, expected), "a model with lent experts has other logits")
        _see(_alike(subject, borrowing.moe.experts(layer, x, routing), own), "its seam gives others")
    finally:
        borrowing.close()
    _refused("experts of a closed model", K2Error, lambda: experts.experts(layer, x, routing))


PROMISES: Mapping[str, Promise] = {
    one.__name__: one
    for one in (
        refused_batches_change_nothing, dead_handles_and_bad_lengths_are_refused, what_is_wanted_comes,
        the_last_position_can_be_used, memory_is_told_and_given_back, the_seam_refuses_what_does_not_fit,
        a_closed_model_says_so, a_damaged_weight_is_named, what_it_has_not_is_refused, lent_experts_do_the_same,
    )
}  # fmt: skip


def keep(subject: Subject, promise: str) -> None:
    """Try one promise.

    Raises:
        K2Error: it is not kept.
    """
    with tempfile.TemporaryDirectory(prefix="k2core-") as place:
        folder = write_tiny_checkpoint(Path(place) / "tiny", seed=3, max_position_embeddings=POSITIONS)
        PROMISES[promise](subject, folder)


def check_promises(subject: Subject) -> Iterator[Outcome]:
    """Every promise of one backend."""
    for name in PROMISES:
        error = ""
        try:
            keep(subject, name)
        except Exception as broken:  # a stranger's code may raise anything: it becomes a line of the report
            error = said(broken)
        yield Outcome(
            op="promises", backend=subject.name, numerics=subject.numerics, property=name, cases=1, worst=0.0, error=error
        )


class _model:  # reads as the function that it is used as
    def __init__(self, subject: Subject, folder: Path) -> None:
        self._model = subject.backend.load(folder, device=subject.device, numerics=subject.numerics)

    def __enter__(self) -> LoadedModel:
        return self._model

    def __exit__(self, *_: object) -> None:
        self._model.close()


def _input(model: LoadedModel, ids: list[int]) -> SequenceInput:
    return SequenceInput(handle=model.new_sequence(), token_ids=ids)


def _extend(model: LoadedModel, handle: int, ids: list[int]) -> Any:
    return np.array(model.forward([SequenceInput(handle=handle, token_ids=ids)], EVERYTHING).logits)


def _used(subject: Subject, folder: Path) -> None:
    """Load, and run every expert once: a backend may read an expert only when it is needed."""
    with _model(subject, folder) as model:
        g = model.geometry
        for layer in g.moe_layers:
            x = np.ones((g.n_routed_experts, g.hidden_size), np.float32)
            ids = (np.arange(g.n_routed_experts)[:, None] + np.arange(g.num_experts_per_tok)) % g.n_routed_experts
            model.moe.experts(layer, x, Routing(expert_ids=ids.astype(np.int32), weights=np.ones(ids.shape, np.float32)))


def _refused(why: str, kind: type[K2Error], call: Callable[[], object]) -> K2Error:
    try:
        call()
    except kind as error:
        _see("\n" not in str(error), f"the error of {why} has several lines: {error}")
        return error
    except CapacityError as error:
        return error
    except Exception as error:  # a raw error is what the promise is about
        raise Broken(f"{why} gives {type(error).__name__}: {error}; expected {kind.__name__}") from error
    raise Broken(f"{why} is not refused; expected {kind.__name__}")


def _see(holds: bool, what: str) -> None:
    if not holds:
        raise Broken(what)


def _alike(subject: Subject, got: Any, expected: Any) -> bool:
    """Equal as far as the numerics goes: where inputs are rounded, a number on an edge may fall to either side."""
    if subject.numerics == "exact":
        return bool(np.abs(np.asarray(got) - np.asarray(expected)).max() <= 1e-3)
    return nmse(np.asarray(got, np.float64), np.asarray(expected, np.float64)) <= ROUNDED_NMSE
