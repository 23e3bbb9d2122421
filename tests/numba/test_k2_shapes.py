"""One layer of experts at Kimi K2's own sizes, lent through a cache that is smaller than the layer."""

import json
import shutil

import ml_dtypes
import numpy as np
import pytest

from k2core.interfaces import Routing
from k2core.model.checkpoint import Checkpoint
from k2core.model.config import Geometry
from k2core.model.layout import PROJECTIONS, expert_name, expert_shape, plain_tensors
from k2core.oracle.bounds import moe_experts_bound
from k2core.oracle.forward import expert_of
from k2core.oracle.moe_experts import moe_experts
from k2core.testing.checkpoints import tiny_config, write_safetensors
from k2core_numba.backend import NumbaBackend

HIDDEN, INNER, GROUP, TOP_K = 7168, 2048, 32, 2
ONE = 3 * HIDDEN * INNER // 2 + 3 * HIDDEN * INNER // GROUP * 2  # bytes of an expert: 24.8 MB
DISTINCT = 12  # experts of different weights; more of them repeat these, so that writing takes little memory


def write_layer(folder, experts):
    """A checkpoint of one dense layer and one layer of so many experts, everything but the experts' sizes tiny."""
    sizes = {"hidden_size": HIDDEN, "moe_intermediate_size": INNER, "n_routed_experts": experts}
    config = tiny_config(**sizes, num_hidden_layers=2, num_experts_per_tok=TOP_K)
    geometry, random = Geometry.from_config(config), np.random.default_rng(8)
    tensors = {one.name: np.full(one.shape, 0.01, ml_dtypes.bfloat16) for one in plain_tensors(geometry)}
    for expert in range(experts):
        for projection in PROJECTIONS:
            rows, columns = expert_shape(geometry, projection)
            packed, first = expert_name(1, expert, projection), expert_name(1, expert % DISTINCT, projection)
            if expert < DISTINCT:  # any bits are codes
                words = np.frombuffer(random.bytes(rows * columns // 2), np.int32).reshape(rows, columns // 8)
                scales = 0.2 * columns**-0.5 * (0.5 + random.random((rows, columns // GROUP)))
                tensors[f"{packed}.weight_packed"] = words
                tensors[f"{packed}.weight_scale"] = scales.astype(ml_dtypes.bfloat16)
            for part in ("weight_packed", "weight_scale"):
                tensors[f"{packed}.{part}"] = tensors[f"{first}.{part}"]
            tensors[f"{packed}.weight_shape"] = np.array([rows, columns], np.int64)
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    write_safetensors(folder / "model.safetensors", tensors)
    return folder


@pytest.fixture(scope="module", params=[12, pytest.param(384, marks=pytest.mark.soak)])
def layer(request, tmp_path_factory):
    """The checkpoint's folder and how many experts it has; removed behind the tests, 9.5 GB being the long size."""
    folder = write_layer(tmp_path_factory.mktemp("k2") / "layer", request.param)
    yield folder, request.param
    shutil.rmtree(folder)


def routing_to(rows):
    """Routing to given experts, with unequal weights."""
    ids = np.array(rows, np.int32)
    return Routing(expert_ids=ids, weights=np.random.default_rng(2).random(ids.shape, np.float32))


def test_a_layer_of_k2_keeps_its_bound(layer):
    """Tokens that need more experts than fit keep the oracle's bound, with the bits that a larger cache gives."""
    folder, experts = layer
    checkpoint, last = Checkpoint.open(folder), experts - 1
    x = np.random.default_rng(1).standard_normal((3, HIDDEN)).astype(np.float32)
    routing = routing_to([[0, last], [5, 0], [last, 5]])
    bounded, roomy = (NumbaBackend().load_experts(folder, expert_bytes=slots * ONE) for slots in (2, 8))
    y = bounded.experts(1, x, routing)
    np.testing.assert_array_equal(y, roomy.experts(1, x, routing))
    for token in range(len(x)):
        alone = Routing(expert_ids=routing.expert_ids[token : token + 1], weights=routing.weights[token : token + 1])
        np.testing.assert_array_equal(bounded.experts(1, x[token : token + 1], alone)[0], y[token])
    unpacked = {}

    def expert(index):
        if index not in unpacked:
            unpacked[index] = expert_of(checkpoint, 1, index)
        return unpacked[index]

    given = (x, routing.expert_ids.astype(np.int64), routing.weights, expert)
    expected = moe_experts(*given)
    error, allowed = np.abs(y - expected), moe_experts_bound(*given)
    place = np.unravel_index((error / allowed).argmax(), error.shape)
    assert (error <= allowed).all(), f"at {place}: error {error[place]:.3e}, allowed {allowed[place]:.3e}"
    # roundings that all went one way could reach the bound, which is as large as the values here: they do not
    assert (error**2).sum() <= 1e-11 * (expected**2).sum()
    bounded.close()
    roomy.close()


def test_the_hit_rate_is_that_of_the_pattern(layer):
    """Groups of experts that fit together hit once they lie there; a walk over one group more than fits never hits."""
    folder, experts = layer
    slots = 8 if experts == DISTINCT else 96
    lent = NumbaBackend().load_experts(folder, expert_bytes=slots * ONE + ONE // 2)
    x = np.random.default_rng(1).standard_normal((1, HIDDEN)).astype(np.float32)

    def counts(rows):
        before = lent.info()
        for row in rows:
            lent.experts(1, x, routing_to([row]))
        after = lent.info()
        return tuple(int(after[name]) - int(before[name]) for name in ("expert_hits", "expert_misses"))

    assert lent.info()["expert_bytes"] == str(slots * ONE)
    groups = [list(range(start, start + TOP_K)) for start in range(0, slots, TOP_K)]
    assert counts(groups) == (0, slots)
    assert counts(groups * 3) == (3 * slots, 0)
    walk = [list(range(start, start + TOP_K)) for start in range(0, slots + TOP_K, TOP_K)]
    counts(walk)
    assert counts(walk * 2) == (0, 2 * (slots + TOP_K))
    lent.close()
