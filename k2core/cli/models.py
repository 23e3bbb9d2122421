"""``k2 models``: what models there are, and what a checkpoint holds."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from k2core.cli.app import App, Nouns
from k2core.cli.logits import logits
from k2core.cli.output import emit, json_option, print_table

if TYPE_CHECKING:
    from k2core.model.config import Geometry
    from k2core.plugins import Plugins

CONTEXTS = (4_096, 32_768, 131_072)


@click.group(cls=Nouns)
def models() -> None:
    """List models and inspect checkpoints."""


models.add_command(logits)


@models.command("list")
@json_option
@click.pass_obj
def list_models(app: App, as_json: bool) -> None:
    """Every registered model; k2 run -m also takes a checkpoint folder."""
    found = []
    for entry in app.plugins().entries("model"):
        checkpoint = entry.options["checkpoint"]
        found.append(
            {
                "name": entry.name,
                "plugin": entry.plugin,
                "checkpoint": None if checkpoint is None else str(checkpoint),
                "present": checkpoint is None or (Path(checkpoint) / "config.json").is_file(),
                "summary": entry.summary,
            }
        )
    if as_json:
        emit({"models": found})
        return
    rows = [
        [str(one["name"]), str(one["plugin"]), str(one["summary"]) + ("" if one["present"] else " (its checkpoint is missing)")]
        for one in found
    ]
    print_table(("name", "plugin", "what it is"), rows, "No models are registered. See k2 plugins.")


@models.command()
@click.argument("model", metavar="PATH")
@json_option
@click.pass_obj
def inspect(app: App, model: str, as_json: bool) -> None:
    """Geometry and sizes of a checkpoint, from its config.json and the headers of its files.

    PATH is a checkpoint folder, a config.json alone, or the name of a registered model.
    """
    from k2core.cli.language import model_options
    from k2core.errors import UnknownName
    from k2core.model.checkpoint import Checkpoint
    from k2core.model.config import Geometry

    plugins, path = app.plugins(), Path(model).expanduser()
    options = model_options(plugins, model)
    if options is not None:
        path = Path(options["checkpoint"])
    elif not path.exists():
        raise UnknownName("model", model, plugins.names("model"), f"There is no file or folder {path} either.")
    opened = Checkpoint.open(path) if path.is_dir() else None
    geometry = opened.geometry if opened is not None else Geometry.read(path)
    described = describe(geometry)
    if opened is not None:
        described["weights"] = {
            "tensors": len(opened.names()),
            "bytes": opened.size_bytes,
            "tensor_bytes": opened.tensor_bytes,
            "experts_int4": opened.experts_are_packed,
        }
    memory = needed(plugins, geometry)
    described = {"path": str(path), **described, "memory": memory}
    if as_json:
        emit(described)
        return
    rows = [[key.replace("_", " "), _shown(value)] for key, value in described["geometry"].items()]
    print_table(("geometry", ""), rows, "")
    sizes = described["parameters"]
    click.echo(f"\n{_count(sizes['all'])} parameters, {_count(sizes['active'])} of them active for a token")
    click.echo(f"cache per token: {described['cache_values_per_token']:,} values")
    if opened is not None:
        packed = "INT4 experts" if opened.experts_are_packed else "plain experts"
        click.echo(f"weights: {opened.size_bytes:,} bytes in {len(opened.names()):,} tensors, {packed}")
    else:
        click.echo("weights: not looked at (a config.json alone)")
    free = memory["free_bytes"]
    contexts = memory["contexts"]
    rows = [
        [f"{one['backend']} {one['numerics']}", *(_gigabytes(size) for size in one["bytes"]), one["note"]]
        if one["bytes"]
        else [f"{one['backend']} {one['numerics']}".rstrip(), *[""] * len(contexts), one["note"]]
        for one in memory["needs"]
    ]
    click.echo()
    print_table(("memory", *(f"{context:,} tokens" for context in contexts), ""), rows, "No backends are registered.")
    click.echo(f"free on this machine: {'not known' if free is None else _gigabytes(free)}")
    if memory["expert_bytes"]:
        click.echo(
            f"an expert takes {memory['expert_bytes']:,} bytes; with --expert-mb numba keeps as many ready as fit, and torch "
            "on the CPU, where they are float32 and eight times as large"
        )


def describe(geometry: "Geometry") -> dict[str, Any]:
    """Geometry, parameters and cache as JSON values.

    Active parameters are what one token's forward reads: everything but the experts that its routers do not choose; of the
    embedding one row.
    """
    import math

    import attrs

    from k2core.model.layout import PROJECTIONS, expert_shape, plain_tensors

    plain = sum(math.prod(one.shape) for one in plain_tensors(geometry))
    expert = sum(math.prod(expert_shape(geometry, projection)) for projection in PROJECTIONS)
    layers = len(geometry.moe_layers)
    unread = (geometry.vocab_size - 1) * geometry.hidden_size
    return {
        "geometry": {name: value for name, value in attrs.asdict(geometry).items() if value is not None},
        "parameters": {
            "all": plain + layers * geometry.n_routed_experts * expert,
            "active": plain - unread + layers * geometry.num_experts_per_tok * expert,
        },
        "cache_values_per_token": geometry.cache_values_per_token,
        "weights": None,
    }


def needed(plugins: "Plugins", geometry: "Geometry") -> dict[str, Any]:
    """Memory that each backend would take per length of context, one sequence; backends that do not say are estimated."""
    from functools import partial

    from k2core.cli.plugins import fault
    from k2core.model.footprint import footprint
    from k2core.model.free_memory import free_bytes

    sizes, most = footprint(geometry), geometry.max_position_embeddings
    contexts = sorted({min(context, most) for context in (*CONTEXTS, most)})
    found: list[dict[str, Any]] = []
    for entry in plugins.entries("backend"):
        rows: list[dict[str, Any]] = []
        if reason := fault(partial(_needs, entry, sizes, contexts, rows)):
            rows = [{"backend": entry.name, "numerics": "", "bytes": [], "note": f"failed: {reason}"}]
        found += rows
    return {"contexts": contexts, "needs": found, "free_bytes": free_bytes(), "expert_bytes": sizes.expert}


def _needs(entry: Any, sizes: Any, contexts: list[int], into: list[dict[str, Any]]) -> None:
    from k2core.errors import ConfigError, Unavailable
    from k2core.interfaces import NotAvailable

    backend = entry.make()
    probed = backend.probe()
    told = getattr(backend, "needs", None)
    note = f"not available: {probed.reason}" if isinstance(probed, NotAvailable) else ""
    for numerics in getattr(backend, "numerics", ("exact",)):
        item = 2 if numerics == "w4a16" else 4
        try:
            needed = [
                sizes.tensors + sizes.cache(context, item) if told is None else told(sizes, context=context, numerics=numerics)
                for context in contexts
            ]
        except (Unavailable, ConfigError) as refused:
            into.append({"backend": entry.name, "numerics": numerics, "bytes": [], "note": f"refuses: {refused}"})
            continue
        about = "" if told is not None else "about: the backend does not say"
        into.append({"backend": entry.name, "numerics": numerics, "bytes": needed, "note": note or about})


def _gigabytes(size: int) -> str:
    return f"{size / 1e9:,.1f} GB" if size >= 10**8 else f"{size / 1e6:,.1f} MB"


def _shown(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_shown(one)}" for key, one in value.items())
    if isinstance(value, tuple | list):
        return ", ".join(map(_shown, value)) or "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _count(number: int) -> str:
    for size, name in ((10**12, "T"), (10**9, "B"), (10**6, "M")):
        if number >= size:
            return f"{number / size:.2f} {name}"
    return f"{number:,}"
