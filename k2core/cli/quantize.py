"""``k2 quantize``: a bfloat16 checkpoint in the family's INT4 form."""

from pathlib import Path

import click

from k2core.cli.app import App
from k2core.cli.output import emit, json_option, print_table


@click.command()
@click.argument("source", metavar="SOURCE")
@click.argument("target", metavar="TARGET")
@click.option("--group", type=int, default=32, show_default=True, metavar="N", help="Columns per scale; the family has 32.")
@json_option
@click.pass_obj
def quantize(app: App, source: str, target: str, group: int, as_json: bool) -> None:
    """Write the routed experts of a checkpoint as INT4, and say what that changes per layer.

    SOURCE is a checkpoint folder whose experts are not quantised, TARGET a folder that does not exist yet. Everything but the
    routed experts is copied as it is. The error of a layer is the root of the squared differences over the squared weights.
    """
    app.settings()

    from k2core.cli.screen import stderr_screen
    from k2core.events import StatusLine
    from k2core.model.quantiser import quantise_checkpoint

    screen, place = stderr_screen(), Path(target).expanduser()
    try:
        errors = quantise_checkpoint(
            Path(source).expanduser(),
            place,
            group=group,
            progress=lambda what, done, total: screen.status(StatusLine(text=what, done=done, total=total)),
        )
    finally:
        screen.status(None)
    size = sum(file.stat().st_size for file in place.glob("*.safetensors"))
    if as_json:
        layers = [
            {"layer": one.layer, "relative_error": one.relative, "worst": one.worst, "worst_name": one.worst_name}
            for one in errors
        ]
        emit({"path": str(place), "bytes": size, "layers": layers})
        return
    rows = [[str(one.layer), f"{one.relative:.4f}", f"{one.worst:.4f}", one.worst_name] for one in errors]
    print_table(("layer", "error", "worst", "matrix"), rows, "")
    click.echo(f"wrote {size:,} bytes to {place}")
