"""``k2 models logits``: what a checkpoint says on a backend, as numbers."""

from collections.abc import Iterator
from contextlib import closing
from itertools import count
from pathlib import Path
from typing import Any

import click

from k2core.cli.app import App
from k2core.cli.hits import told_hits
from k2core.cli.options import apply_threads, backend_option, threads_option
from k2core.cli.output import emit, json_option
from k2core.cli.streams import strangers_code


@click.command()
@click.argument("model", metavar="PATH")
@click.argument("ids", metavar="IDS.JSON")
@click.argument("out", metavar="OUT.NPZ")
@backend_option
@click.option("--device", metavar="NAME", help="Where it runs it, e.g. cpu or cuda.")
@click.option("--numerics", metavar="NAME", help="exact (the default), w4a16 or w4a8.")
@click.option("--moe", metavar="NAME[:DEVICE]", help="Another backend that holds the routed experts.")
@click.option("--expert-mb", type=int, metavar="N", help="Limit of the memory of prepared experts.")
@click.option("--greedy", type=click.IntRange(min=0), default=0, metavar="N", help="Most probable tokens to go on with.")
@threads_option
@json_option
@click.pass_obj
def logits(app: App, /, model: str, ids: str, out: str, greedy: int, as_json: bool, **flags: Any) -> None:
    """Write the float32 logits of prompts.

    PATH is a checkpoint folder or a registered model, IDS.JSON a list of lists of token ids. OUT.NPZ gets logits_0, logits_1
    and so on, each (tokens, vocab), and with --greedy greedy_0, greedy_1, …; an older file is replaced once all is computed.
    """
    settings = app.settings(model=model, **flags)
    plugins = app.plugins()
    apply_threads(settings)

    from k2core.agent.choice import Choice
    from k2core.agent.placement import load_model
    from k2core.engine.logits import logits_of

    prompts = read_prompts(Path(ids).expanduser())
    named = Path(out).expanduser()
    target = see_writable(named, ids)
    choice = Choice(
        model=settings["model"],
        backend=settings["backend"],
        device=settings["device"],
        numerics=settings["numerics"],
        moe=settings["moe"],
        expert_bytes=None if settings["expert_mb"] is None else settings["expert_mb"] * 10**6,
    )
    with strangers_code():
        loaded = load_model(plugins, choice)
        try:
            see_known(prompts, loaded.geometry.vocab_size, ids)
            see_room(prompts, greedy, loaded.geometry.max_position_embeddings, ids)
            with closing(logits_of(loaded, prompts, greedy)) as found:
                shapes = replace(target, arrays_of(found, has_greedy=greedy > 0))
            hits = told_hits(loaded.info())
        finally:
            loaded.close()
    if as_json:
        emit({"path": str(named), "arrays": {name: list(shape) for name, shape in shapes.items()}, "experts": hits})
    else:
        click.echo(f"wrote {len(shapes)} arrays of {len(prompts)} prompts to {named}")
        if hits:
            click.echo(f"experts: {hits}")


def arrays_of(found: Iterator[tuple[Any, Any]], *, has_greedy: bool) -> Iterator[tuple[str, Any]]:
    """Names and arrays of the file, prompt after prompt.

    Raises:
        CapacityError: there is no memory for the logits of a prompt.
        K2Error: a logit is no number, or the backend cannot read or write what it needs.
    """
    import numpy as np

    from k2core.errors import CapacityError, K2Error, said

    for number in count():
        try:
            rows, following = next(found)
        except StopIteration:
            return
        except MemoryError as error:
            raise CapacityError(f"no memory for the logits of prompt {number}: {' '.join(str(error).split())}") from error
        except OSError as error:  # else it would be taken for the file's
            raise K2Error(f"cannot compute the logits of prompt {number}: {said(error)}") from error
        if not np.isfinite(rows).all():
            raise K2Error(f"cannot write logits of prompt {number}: the backend gave some that are no finite numbers")
        yield f"logits_{number}", rows
        if has_greedy:
            yield f"greedy_{number}", following


def read_prompts(path: Path) -> list[list[int]]:
    """The lists of token ids in a JSON file.

    Raises:
        InputError: it cannot be read, or holds anything else; says where.
    """
    import json

    from k2core.errors import InputError

    expected = "a list of lists of token ids, none of them empty, e.g. [[1, 2], [3]]"
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"cannot read prompts from {path}: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"cannot read prompts from {path}: it is no JSON ({error}). Expected {expected}.") from error
    if not isinstance(data, list) or not data:
        found = "nothing" if data == [] else f"a {type(data).__name__}"
        raise InputError(f"cannot read prompts from {path}: it holds {found}, expected {expected}")
    for number, prompt in enumerate(data):
        if not isinstance(prompt, list) or not prompt or not all(type(one) is int for one in prompt):
            raise InputError(f"cannot read prompts from {path}: prompt {number} is not as it should be, expected {expected}")
    return data


def see_known(prompts: list[list[int]], vocab: int, path: str) -> None:
    """See that every id is in the vocabulary.

    Raises:
        InputError: one is not; says which.
    """
    from k2core.errors import InputError

    for number, prompt in enumerate(prompts):
        for place, token in enumerate(prompt):
            if not 0 <= token < vocab:
                raise InputError(
                    f"cannot run prompt {number} of {path}: token {place} is {token}, the vocabulary has 0 to {vocab - 1}"
                )


def see_room(prompts: list[list[int]], greedy: int, positions: int, path: str) -> None:
    """See that every prompt, and what is to follow, has positions in the model.

    Raises:
        InputError: one has not; says which.
    """
    from k2core.errors import InputError

    for number, prompt in enumerate(prompts):
        needed = len(prompt) + max(0, greedy - 1)  # the last token is not computed any more
        if needed > positions:
            beside = f" and {greedy} greedy ones" if greedy else ""
            raise InputError(
                f"cannot run prompt {number} of {path}: its {len(prompt)} tokens{beside} take {needed} positions, "
                f"the model has {positions}"
            )


def see_writable(target: Path, ids: str) -> Path:
    """See that the file can be written before anything long begins.

    Returns:
        The file, or the one that it links to: a link stays, what it names is replaced.

    Raises:
        InputError: its folder is missing, it is no ordinary file, or it holds the prompts.
    """
    from k2core.errors import InputError

    try:
        real = target.resolve()
        if not real.parent.is_dir():
            raise InputError(
                f"cannot write {target}: there is no folder {real.parent if target.is_symlink() else target.parent}"
            )
        if real.exists() and not real.is_file():
            raise InputError(f"cannot write {target}: it is {'a folder' if real.is_dir() else 'no ordinary file'}")
        if real.exists() and real.samefile(Path(ids).expanduser()):
            raise InputError(f"cannot write {target}: it holds the prompts. Give another name.")
    except (OSError, RuntimeError) as error:  # a loop of links is a RuntimeError before Python 3.13
        raise InputError(f"cannot write {target}: {getattr(error, 'strerror', '') or error}") from error
    return real


def replace(target: Path, arrays: Iterator[tuple[str, Any]]) -> dict[str, tuple[int, ...]]:
    """Write arrays as they come beside the file, then take its name: an old file stays whole until the new one is.

    Returns:
        The arrays' shapes.

    Raises:
        InputError: it cannot be written. Errors of *arrays* pass through.
    """
    import os
    import tempfile
    import zipfile

    from numpy.lib.format import write_array

    from k2core.errors import InputError

    beside, shapes = None, {}
    mask = os.umask(0)
    os.umask(mask)
    try:
        mode = target.stat().st_mode & 0o777 if target.exists() else 0o666 & ~mask
        with tempfile.NamedTemporaryFile(dir=target.parent, prefix=f".{target.name}-", delete=False) as file:
            beside = Path(file.name)
            with zipfile.ZipFile(file, "w") as archive:  # as numpy.savez writes it, which wants all arrays at once
                for name, array in arrays:
                    shapes[name] = array.shape
                    with archive.open(f"{name}.npy", "w", force_zip64=True) as part:
                        write_array(part, array, allow_pickle=False)
        beside.chmod(mode)
        beside.replace(target)
    except OSError as error:
        raise InputError(f"cannot write {target}: {os.strerror(error.errno) if error.errno else error}") from error
    finally:
        if beside is not None:
            beside.unlink(missing_ok=True)
    return shapes
