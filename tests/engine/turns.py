"""Turns without an engine around them, for tests of the scheduler."""

import time

from attrs import define

from k2core.engine.drafts import Drafter
from k2core.engine.memory import MemoryPlan
from k2core.engine.prefix import PrefixTree
from k2core.engine.sampler import Sampler
from k2core.engine.scheduler import Scheduler
from k2core.engine.step_cost import StepCost
from k2core.engine.turn import Turn
from k2core.interfaces import GenerateOptions
from k2core.messages import Message, TurnEnd


class Plain:
    """A parser that keeps ids and never says anything."""

    def __init__(self):
        self.done = False
        self.ids = []

    def feed(self, token_ids):
        """Nothing becomes certain."""
        self.ids += token_ids
        return []

    def finish(self):
        """The ids."""
        return [], Message(role="assistant", token_ids=tuple(self.ids))


@define(eq=False)
class Asked:
    """A turn and what became of it."""

    turn: Turn
    end: TurnEnd | BaseException | None = None
    is_cancelled: bool = False

    @property
    def ids(self):
        """What it generated."""
        return self.end.message.token_ids


def ask(prompt, *, most=8, drafts=0, seed=0, temperature=0.0, stop=()):
    """A turn over *prompt*, to be added to a scheduler."""
    asked = Asked(None)

    def ended(end):
        assert asked.end is None
        asked.end = end

    asked.turn = Turn(
        prompt=list(prompt),
        sampler=Sampler(seed=seed, temperature=temperature),
        parser=Plain(),
        options=GenerateOptions(max_tokens=most),
        stop_ids=frozenset(stop),
        most=most,
        grammar=None,
        drafter=Drafter(most=drafts),
        put=lambda deltas: None,
        ended=ended,
        is_cancelled=lambda: asked.is_cancelled,
        asked=time.perf_counter(),
    )
    return asked


class Flat(StepCost):
    """Every step costs the same, so every guess is tried, however fast the machine."""

    def of(self, tokens):
        """One."""
        return 1.0


def schedule(model, *, context=4096, blocks=None, **options):
    """A scheduler over *model*; *blocks* bounds its cache. All guesses are tried unless *cost* says something else."""
    options = {"cost": Flat(), **options}
    memory = model.memory()
    limit = None if blocks is None else blocks * memory.block_tokens * memory.bytes_per_token
    plan = MemoryPlan.of(memory, context, limit)
    return Scheduler(model=model, prefix=PrefixTree(model=model, most_blocks=plan.blocks), plan=plan, **options)


def run(scheduler, *asked):
    """Add turns and step until nothing is left."""
    for one in asked:
        scheduler.add(one.turn)
    while scheduler.busy:
        scheduler.step()
