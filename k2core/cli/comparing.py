"""What comes of comparing two things that are said to do the same, told in words or as JSON."""

from typing import TYPE_CHECKING, Any

import click

from k2core.cli.output import emit, print_text
from k2core.cli.text import counted

if TYPE_CHECKING:
    from k2core.conformance.drawing import Comparison

DIFFER = 4  # exit code


def tell(names: tuple[str, str], what: str, found: "Comparison[Any]", given: Any, shown: str, *, as_json: bool) -> int:
    """Show *found*; returns the exit code.

    Args:
        names: of the two.
        what: was drawn, e.g. ``call``.
        found: what came of it.
        given: what they differ on, as JSON values.
        shown: the same as text.
        as_json: as one JSON object.
    """
    differ = found.disagreement
    if as_json:
        told = None if differ is None else {"given": given, "first": differ.first, "second": differ.second}
        emit(
            {
                "agree": differ is None,
                "calls": found.calls,
                "failures": found.failures,
                "steady": found.steady,
                "disagreement": told,
            }
        )
    elif differ is None:
        errors = f", {found.failures} of them as errors on both sides" if found.failures else ""
        click.echo(f"{counted(found.calls, what)} {'agrees' if found.calls == 1 else 'agree'}{errors}")
    else:
        print_text(f"{names[0]} and {names[1]} differ on {shown}\n")
        print_text(f"{names[0]}:\n{differ.first}\n\n{names[1]}:\n{differ.second}")
        if not found.steady:
            print_text("\nThey did not differ when this was tried again: one of them does not always give the same.")
    return 0 if differ is None else DIFFER
