"""``k2 onnx``: checkpoints as ONNX models."""

from pathlib import Path
from typing import Any

import click


@click.group()
def onnx() -> None:
    """Write checkpoints as ONNX models."""


@onnx.command()
@click.argument("checkpoint", metavar="PATH")
@click.argument("folder", metavar="FOLDER")
@click.option("--numerics", type=click.Choice(("exact", "w4a8")), default="exact", show_default=True, help="Of the experts.")
@click.pass_obj
def export(app: Any, /, checkpoint: str, folder: str, numerics: str) -> None:
    """Write the checkpoint PATH, a folder or a registered model, as FOLDER/model.onnx, which ONNX Runtime runs alone.

    It takes token_ids and the cache so far and gives logits and what the tokens add to the cache. Weights lie in
    FOLDER/model.data. With K2CORE_ONNX_EXPERTS=qmoe the experts are one node a layer.
    """
    from k2core.errors import Unavailable
    from k2core.interfaces import NotAvailable
    from k2core_onnx.backend import OnnxBackend, configured_experts, see_importable

    backend = OnnxBackend()
    found = backend.probe()
    if isinstance(found, NotAvailable):
        raise Unavailable(f"cannot export: {found.reason}")
    see_importable()
    fused = configured_experts() == "qmoe"
    if numerics not in backend.numerics:
        raise Unavailable(f"cannot export with numerics '{numerics}': QMoE has {', '.join(backend.numerics)} alone.")

    from k2core.agent.choice import Choice
    from k2core.agent.placement import checkpoint_of
    from k2core.model.checkpoint import Checkpoint
    from k2core_onnx.export import export as write

    known = Path(checkpoint_of(app.plugins(), Choice(model=str(Path(checkpoint).expanduser())))["checkpoint"])
    file = write(Checkpoint.open(known), Path(folder).expanduser(), numerics=numerics, fused=fused)
    size = sum(one.stat().st_size for one in file.parent.iterdir())
    click.echo(f"wrote {file}, {size:,} bytes with its weights")
