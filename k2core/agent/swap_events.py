"""What a run is told of swaps: those that happened, as they follow upon its own, and whatever else is in force by now."""

from collections.abc import Iterable, Mapping, Sequence

from attrs import evolve

from k2core.agent.swaps import DEFAULT, Swaps, declaration_hash
from k2core.events import Event, ModelSwitched, Part, RunStarted, Swapped
from k2core.tools import Registry

IDENTITY = ("model", "backend", "numerics", "weights")  # of a model: when one of these changes, it is another one


def following(events: Iterable[Event], told: Sequence[Event], swaps: Swaps) -> list[Event]:
    """*told*, behind a run's *events*: each swap of a part from what the run has it carried out by, none from that to itself.

    The run may know another implementation than the session began with, where it is continued from elsewhere. A switch of the
    model that `in_force` has told already is not told again.
    """
    events = list(events)
    known, found = _swapped(events), list[Event]()
    switched = next((one.model for one in reversed(events) if isinstance(one, ModelSwitched)), None)
    for event in told:
        if isinstance(event, ModelSwitched):
            if event.model == switched:
                continue
            switched = event.model
        if isinstance(event, Swapped):
            event = _behind(known.get((event.what, event.name)), event, swaps)
            if event.old == event.new:
                continue
            known[event.what, event.name] = event
        found.append(event)
    return found


def in_force(events: Sequence[Event], model: Mapping[str, str], swaps: Swaps, tools: Registry) -> list[Event]:
    """What a session has otherwise than a run with *events* knows of: another model, parts carried out by others."""
    known, found = _swapped(events), list[Event]()
    models = [one.model for one in events if isinstance(one, RunStarted | ModelSwitched)]
    if models and (
        any(models[-1].get(name) != model.get(name) for name in IDENTITY)
        or (model.get("switch") and all(one.get("switch") != model["switch"] for one in models))
    ):
        found.append(ModelSwitched(model=dict(model)))
    for key in sorted({*known, *swaps.now}):
        what, name = key
        if name not in tools.names() if what == "tool" else key not in swaps.now:
            continue  # this session has no such part
        now, same = swaps.now.get(key, DEFAULT), swaps.alike.get(key, True)
        told = declaration_hash(tools.get(name)) if what == "tool" else ""
        event = Swapped(what=what, name=name, old=now, new=now, same_prompt=same, declaration=told)
        event = _behind(known.get(key), event, swaps)
        if event.old != event.new:
            found.append(event)
    return found


def _behind(before: Swapped | None, event: Swapped, swaps: Swaps) -> Swapped:
    """A swap behind the one of the same part that a run has last."""
    same = event.same_prompt
    if event.what == "tool":
        declared = swaps.declared.get(event.name, event.declaration) if before is None else before.declaration
        same = event.declaration == declared
    return evolve(event, old=DEFAULT if before is None else before.new, same_prompt=same)


def _swapped(events: Iterable[Event]) -> dict[tuple[Part, str], Swapped]:
    """The last swap of each part."""
    return {(one.what, one.name): one for one in events if isinstance(one, Swapped)}
