"""What may stand around every step, model call, tool call and answer: guards.

A guard is an object with a ``name`` and any of the hooks in `HOOKS`, sync (called in a worker thread) or async. A hook that
lets things pass returns None. What else it may return::

    before_step(step), before_model(step)       Refusal, AskFirst
    before_call(call)                           Refusal, AskFirst, ChangedArguments
    before_answer(answer, trajectory)           Refusal, AskFirst
    after_call(call, result)                    ChangedResult
    after_step(step), after_model(step, message), after_answer(answer, trajectory)
    on_model_error(step, reason), on_call_error(call, result)

A refused call is an error that the model is told, a refused answer goes back to the model and is never given, a refused step
or model call ends the work with what is known. A hook that raises, is late or returns something else takes no run down: a
call with side effects is not made then, everything else goes on with a warning.
"""

from collections.abc import Mapping
from typing import Any

from attrs import field, frozen

from k2core.calls import Effect
from k2core.errors import PluginError, UnknownName
from k2core.messages import Message


@frozen(kw_only=True)
class Refusal:
    """It is not to be done; *reason* is told to the model, or to the user where the work ends."""

    reason: str


@frozen(kw_only=True)
class AskFirst:
    """A person is to approve it first; *reason* is told to that person."""

    reason: str


@frozen(kw_only=True)
class ChangedArguments:
    """The call is to be made with other arguments; they are validated like the model's own.

    Attributes:
        arguments: all of them, JSON values.
        reason: for the journal.
    """

    arguments: Mapping[str, Any]
    reason: str


@frozen(kw_only=True)
class ChangedResult:
    """The model is to see another text; the journal keeps both.

    Attributes:
        text: what the model sees; of a failure it starts with ``error: ``.
        reason: for the journal.
    """

    text: str
    reason: str


@frozen(kw_only=True)
class GuardedStep:
    """Where a run stands before a turn of the model, and after what followed from it.

    Attributes:
        run: the run's id.
        calls: how many were made in the conversation.
        messages: the conversation as the model sees it.
    """

    run: str
    calls: int
    messages: tuple[Message, ...] = field(repr=False)


@frozen(kw_only=True)
class GuardedCall:
    """A call that is to be made, or was.

    Attributes:
        run: the run's id.
        index: the call's number in the run.
        name: the tool's.
        arguments: validated; changing them in place changes nothing.
        effect: the tool's effect class.
        untrusted: content that nobody has vetted is in the conversation.
    """

    run: str
    index: int
    name: str
    arguments: Mapping[str, Any]
    effect: Effect
    untrusted: bool = False


HOOKS: Mapping[str, tuple[type, ...]] = {
    "before_step": (Refusal, AskFirst),
    "after_step": (),
    "before_model": (Refusal, AskFirst),
    "after_model": (),
    "on_model_error": (),
    "before_call": (Refusal, AskFirst, ChangedArguments),
    "after_call": (ChangedResult,),
    "on_call_error": (),
    "before_answer": (Refusal, AskFirst),
    "after_answer": (),
}


@frozen(kw_only=True)
class MissingGuard:
    """Stands for a guard that is registered and cannot be made: no call with side effects is made without it."""

    name: str
    reason: str

    def before_call(self, call: GuardedCall) -> None:
        """Always fails, as the guard did."""
        raise PluginError(self.reason)


def check_guard(candidate: object) -> Any:
    """Return *candidate*, a guard or the class of one, if it has a hook and none that is misspelt.

    Raises:
        PluginError: it has not; names the hook that was meant.
    """
    named = [one for one in dir(candidate) if one.startswith(("before_", "after_", "on_"))]
    for one in named:
        if one not in HOOKS:
            raise PluginError(f"it implements {UnknownName('hook of guards', one, HOOKS)}")
        if not callable(getattr(candidate, one)):
            raise PluginError(f"its {one} is {type(getattr(candidate, one)).__name__}, expected a method")
    if not named:
        raise PluginError(f"it has none of a guard's hooks: {', '.join(HOOKS)}")
    return candidate
