"""A question: its wording, the world it is asked in, and what a right answer says."""

import random
import re
from collections.abc import Callable, Generator, Mapping

from attrs import field, frozen

from k2core_nano.train.oracle import Policy, Returned, Step
from k2core_nano.train.world import Fact, Handler, World


@frozen(kw_only=True)
class Question:
    """One question with everything that is needed to pose it, to solve it and to judge the answer.

    ``needed`` are the tools without which it must be declined; ``faults`` are used up in order by the calls (see World), and
    ``odd`` names what else is not as it should be; ``handlers`` makes what tools do in this question alone, ``files`` are the
    workspace that it begins with, ``declares`` the declarations of tools that are not ours; ``expected`` are the values or
    names that a right answer contains, nothing where one of ``declines`` is right. ``policy`` is None where nobody has one:
    such a question is for judging a model alone.
    """

    family: str
    level: int | None
    text: str
    needed: tuple[str, ...] = ()
    world: tuple[Fact, ...] = ()
    faults: tuple[str, ...] = ()
    odd: str = ""
    expected: tuple[str, ...] = ()
    declines: tuple[str, ...] = ()
    files: Mapping[str, str] = field(factory=dict, eq=False, repr=False)
    declares: Mapping[str, str] = field(factory=dict, eq=False, repr=False)
    handlers: Callable[[], Mapping[str, Handler]] = field(default=dict, eq=False, repr=False)
    policy: Callable[[], Policy] | None = field(default=None, eq=False, repr=False)

    def tools(self, rng: random.Random) -> World:
        """A fresh world with this question's facts and faults."""
        return World({(fact.entity, fact.attribute): fact for fact in self.world}, list(self.faults), rng, self.handlers())

    def right(self, answer: str) -> bool:
        """Whether an answer's text is right: every expected value stands in it on its own, or it declines as it should."""
        if not self.expected:
            return answer in self.declines
        return all(re.search(rf"(?<![\w.\-/]){re.escape(value)}(?![\w/]|\.\d)", answer) for value in self.expected)


@frozen
class Turn:
    """A step that was taken, its call number and what came back."""

    step: Step
    index: int
    result: str


def solved(question: Question, rng: random.Random, start: int = 0) -> list[Turn]:
    """Run the oracle against the question's tools.

    Args:
        start: the number of its first call in the conversation.

    Returns:
        The turns in order; the last one is the answer, accepted.

    Raises:
        ValueError: the question has no policy.
    """
    tools = question.tools(rng)
    if question.policy is None:
        raise ValueError("cannot solve a question without a policy")
    policy: Generator[Step, Returned, Step] = question.policy()
    turns: list[Turn] = []
    try:
        step = next(policy)
        while True:
            index = start + len(turns)
            result = tools.call(step.tool, step.arguments)
            turns.append(Turn(step, index, result))
            step = policy.send(Returned(index, result))
    except StopIteration as stopped:
        turns.append(Turn(stopped.value, start + len(turns), "accepted"))
    return turns
