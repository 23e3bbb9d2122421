"""``k2 runs show --memory``: what was kept of a run's steps, what the model no longer sees, and what was recalled."""

from collections.abc import Iterable, Sequence

from k2core.agent import projection
from k2core.agent.kept import kept_text
from k2core.agent.remembered import remembered
from k2core.cli.output import emit, print_table
from k2core.cli.text import one_line
from k2core.events import Stored

HEADER = ("event", "what", "by", "calls", "characters", "text")


def show_memory(events: Sequence[Stored], *, as_json: bool) -> None:
    """A line for each thing that was kept, taken or given back; as JSON also what the model is still shown of it by the end."""
    from attrs import asdict

    found = remembered(events)
    if as_json:
        kept = kept_text(events, projection.gone(events))
        emit({"run": events[0].run, "memory": [asdict(one) for one in found], "kept": kept})
        return
    rows = [
        [str(one.event), one.what, one.by, ranges(one.calls), f"{one.characters:,}", one_line(one.text, 200)] for one in found
    ]
    print_table(HEADER, rows, "The model saw all of this run: nothing was noted, hidden, left out or recalled.")


def ranges(numbers: Iterable[int]) -> str:
    """Numbers in order, those in a row as first and last, e.g. ``0-11, 14``."""
    found: list[list[int]] = []
    for number in numbers:
        if found and number == found[-1][1] + 1:
            found[-1][1] = number
        else:
            found.append([number, number])
    return ", ".join(str(first) if first == last else f"{first}-{last}" for first, last in found)
