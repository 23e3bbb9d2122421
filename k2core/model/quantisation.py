"""What a config's ``quantization_config`` says: which modules are INT4, in groups of how many columns.

Source: compressed-tensors' config as shipped with Kimi K2 (k2's own files state group_0 with targets ["Linear"] and an
ignore list in which ``re:`` marks a regular expression).
"""

import re
from typing import Any

from attrs import frozen

from k2core.errors import CheckpointError
from k2core.model.fields import Fields


@frozen(kw_only=True)
class Quantisation:
    """INT4, symmetric, one scale per group of input columns.

    Attributes:
        group_size: columns per scale, a multiple of 8.
        ignore: modules left plain; an entry that starts with ``re:`` is a regular expression matched from the start.
    """

    group_size: int
    ignore: tuple[str, ...] = ()

    def covers(self, module: str) -> bool:
        """Whether the linear module named *module* is stored packed."""
        for entry in self.ignore:
            if entry.startswith("re:"):
                if re.match(entry[3:], module):
                    return False
            elif entry == module:
                return False
        return True


def read_quantisation(fields: Fields) -> Quantisation | None:
    """The quantisation of a config, None where it has none.

    Raises:
        CheckpointError: another method, format or number of bits than compressed-tensors' pack-quantized INT4.
    """
    if fields.get("quantization_config") is None:
        return None
    top = fields.inside("quantization_config")
    top.one_of("quant_method", ("compressed-tensors",), "only INT4 in compressed-tensors' form is supported")
    top.one_of("format", ("pack-quantized",), "only packed INT4 is supported")
    groups = top.inside("config_groups")
    if len(groups.data) != 1:
        raise top.wrong("config_groups", "exactly one group")
    group = groups.inside(next(iter(groups.data)))
    for key in ("input_activations", "output_activations"):
        if group.get(key) is not None:
            raise group.wrong(key, "null: activations are not quantised")
    weights = group.inside("weights")
    for key, only in (("num_bits", 4), ("type", "int"), ("symmetric", True), ("strategy", "group")):
        weights.one_of(key, (only,), "only symmetric INT4 in groups is supported")
    weights.fixed("dynamic", False, "weights are stored, not computed")
    if weights.get("actorder") is not None:
        raise weights.wrong("actorder", "null: columns in their own order")
    size = weights.integer("group_size", most=1024)
    if size % 8:
        raise weights.wrong("group_size", "a multiple of 8")
    ignore = top.get("ignore") or []
    if not isinstance(ignore, list) or not all(isinstance(entry, str) for entry in ignore):
        raise top.wrong("ignore", "a list of names")
    for entry in ignore:
        _check_pattern(top, entry)
    return Quantisation(group_size=size, ignore=tuple(ignore))


def family_config(group_size: int = 32) -> dict[str, Any]:
    """The family's ``quantization_config``: routed experts only, INT4, symmetric, in groups.

    Source: MoonshotAI/Kimi-Vendor-Verifier beam/tokenizer/config.json @3dad65a.
    """
    weights: dict[str, Any] = {
        "actorder": None,
        "block_structure": None,
        "dynamic": False,
        "group_size": group_size,
        "num_bits": 4,
        "observer": "minmax",
        "observer_kwargs": {},
        "strategy": "group",
        "symmetric": True,
        "type": "int",
    }
    group = {"input_activations": None, "output_activations": None, "targets": ["Linear"], "weights": weights}
    return {
        "config_groups": {"group_0": group},
        "format": "pack-quantized",
        "ignore": ["lm_head", "re:.*self_attn.*", "re:.*shared_experts.*", r"re:.*mlp\.(gate|up|gate_up|down)_proj.*"],
        "kv_cache_scheme": None,
        "quant_method": "compressed-tensors",
        "quantization_status": "compressed",
    }


def _check_pattern(fields: Fields, entry: str) -> None:
    if entry.startswith("re:"):
        try:
            re.compile(entry[3:])
        except (re.error, RecursionError, OverflowError) as error:
            raise CheckpointError(
                f"{fields.where}: key '{fields.prefix}ignore' has a bad expression {entry!r}: {error}"
            ) from error
