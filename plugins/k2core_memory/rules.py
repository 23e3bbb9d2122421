"""By rules: the oldest results and steps go, and of each call a line stays, such as ``call 12 facts area Liberia: 111369 km2``.

The newest calls keep their lines longest; all lines together have a share of the context. Results that are no longer than their
line would be are not hidden.
"""

import json
from collections.abc import Iterable

from attrs import evolve, frozen

from k2core.agent.window import HIDE_UNTIL, room_by_rules
from k2core.interfaces import MadeCall, MemoryView, Room
from k2core.memory import Ask
from k2core.tools import CONTROL_NAMES

LINES_SHARE = 0.2  # of the context, for all lines together
MADE_WITH, CAME_BACK = 40, 60  # characters of a line for the arguments and for the result


@frozen(kw_only=True)
class RulesMemory:
    """Hides and leaves out the oldest.

    Attributes:
        name: as it is registered.
        recalls: what a line leaves out can be recalled.
        lines: whether calls keep a line.
    """

    name: str = "rules"
    recalls: bool = True
    lines: bool = True

    async def make_room(self, view: MemoryView, ask: Ask) -> Room:
        """The oldest results, then the oldest steps, and a line for each of their calls."""
        if not self.lines:
            return room_by_rules(view) or Room()
        room = spared(view)
        return evolve(room, text="\n".join(lines_of(going(view, room), room_for_text(view, room))))


def spared(view: MemoryView) -> Room:
    """What goes, so that there is room for a text of a share of the context in its place."""
    return room_by_rules(view, until=HIDE_UNTIL - LINES_SHARE, short=CAME_BACK) or Room()


def room_for_text(view: MemoryView, room: Room) -> int:
    """Characters that the text in the place of what goes may have."""
    free = view.goal - view.measure(evolve(room, text="-"))  # with its header
    return max(0, min(view.text_limit, int(min(free, LINES_SHARE * view.context) / max(view.per_character, 1e-9))))


def going(view: MemoryView, room: Room) -> list[MadeCall]:
    """The calls whose results the model will no longer see, but for those of control tools."""
    unseen = {*view.left_out, *view.hidden, *room.hidden}
    return [one for one in view.calls if (one.index in unseen or one.index < room.left_out) and one.name not in CONTROL_NAMES]


def lines_of(calls: Iterable[MadeCall], characters: int) -> list[str]:
    """The lines of the newest *calls* that have room together, the newest of several calls that are the same."""
    lines: list[str] = []
    seen: set[tuple[str, str, str]] = set()
    for call in sorted(calls, key=lambda one: -one.index):
        same = (call.name, call.arguments, call.text)
        line = line_of(call)
        if same in seen:
            continue
        if len(line) + 1 > characters:
            break
        seen.add(same)
        lines.append(line)
        characters -= len(line) + 1
    return lines[::-1]


def line_of(call: MadeCall) -> str:
    """A call and what came back, in short."""
    made = _cut(_values(call.arguments), MADE_WITH)
    return f"call {call.index} {call.name}{made and ' '}{made}: {_cut(call.text, CAME_BACK)}"


def _values(arguments: str) -> str:
    try:
        given = json.loads(arguments)
    except (ValueError, RecursionError):
        return arguments
    values = given.values() if isinstance(given, dict) else [given]
    return " ".join(one if isinstance(one, str) else json.dumps(one, ensure_ascii=False) for one in values)


def _cut(text: str, most: int) -> str:
    line = " ".join(text.split())
    return line if len(line) <= most else f"{line[: most - 1]}…"
