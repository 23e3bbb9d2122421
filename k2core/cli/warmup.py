"""``k2 warmup``: compile ahead."""

import time
from collections.abc import Callable
from importlib import import_module

import click

from k2core.cli.app import App
from k2core.cli.options import backend_option
from k2core.cli.output import emit, json_option


@click.command()
@backend_option
@json_option
@click.pass_obj
def warmup(app: App, backend: str | None, as_json: bool) -> None:
    """Compile the backend's kernels ahead of the first question."""
    from k2core.cli.screen import stderr_screen
    from k2core.errors import Unavailable
    from k2core.events import StatusLine
    from k2core.interfaces import NotAvailable

    name = app.settings(backend=backend)["backend"]
    chosen = app.plugins().get("backend", name).make()
    probed = chosen.probe()
    if isinstance(probed, NotAvailable):
        raise Unavailable(f"backend '{name}' is not available: {probed.reason}")
    started, screen = time.perf_counter(), stderr_screen()
    prepare = warmup_of(chosen)
    try:
        if prepare is not None:
            prepare(lambda what, done, total: screen.status(StatusLine(text=what, done=done, total=total)))
    finally:
        screen.status(None)
    seconds = round(time.perf_counter() - started, 3)
    if as_json:
        emit({"backend": name, "has_warmup": prepare is not None, "seconds": seconds})
    else:
        click.echo(f"{name} is ready ({seconds:.1f} s)" if prepare is not None else f"{name} has nothing to prepare")


def warmup_of(backend: object) -> Callable[[Callable[[str, int, int], None]], None] | None:
    """The backend's ``warmup(progress)``, or that of its package; None where it has none."""
    package = import_module(type(backend).__module__.partition(".")[0])
    found = getattr(backend, "warmup", None) or getattr(package, "warmup", None)
    return found if callable(found) else None
