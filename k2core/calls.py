"""What a model may call: a tool, what its factory may ask for, what comes back, and a session's tools.

`k2core.toolmaking` makes tools of functions, `k2core.tools` runs calls.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from math import inf
from pathlib import Path
from typing import Any, Literal, Protocol

from attrs import field, frozen

from k2core.messages import ToolCall

Effect = Literal["pure", "read", "idempotent", "reversible", "external"]


@frozen(kw_only=True)
class Tool:
    """A function the model may call.

    Attributes:
        name: what the model writes; ``[A-Za-z_][A-Za-z0-9_-]{0,63}``.
        description: one line for the model.
        parameters: JSON Schema of the arguments object.
        effect: ``pure`` (same arguments, same result; may be cached), ``read`` (no effect, the result may change),
            ``idempotent`` (may be repeated with the same key), ``reversible`` (may be taken back by `undo` and then repeated),
            ``external`` (never again unasked; the default).
        function: called with the validated arguments as keywords; returns text, a `ToolOutput`, or anything that is written
            as JSON. `current_call` tells it which call of which run it is.
        timeout_s: deadline of one call.
        control: handled by the loop itself (`answer`, `note`).
        undo: of a ``reversible`` tool, a function of the same arguments that takes a call back, whether it took effect or not.
        reconcile: a function of the same arguments that looks whether a call took effect whose result is missing: it returns
            what the call would have returned, None where the call certainly took no effect, and raises `ToolError` where
            that cannot be known. `current_call` gives both functions the key of the call in question.
        untrusted: what it returns was written by somebody whom nobody has vetted: web pages, mail, documents. Once that is in a
            conversation, calls with side effects need a person's approval.
        confined: what it does stays within the session's workspace or sandbox.
    """

    name: str
    description: str
    parameters: Mapping[str, Any] = field(eq=False)
    function: Callable[..., Any] = field(eq=False)
    effect: Effect = "external"
    timeout_s: float = 10.0
    control: bool = False
    undo: Callable[..., Any] | None = field(default=None, eq=False)
    reconcile: Callable[..., Any] | None = field(default=None, eq=False)
    untrusted: bool = False
    confined: bool = False

    def declaration(self) -> dict[str, Any]:
        """The tool in OpenAI's form, as it goes into a prompt."""
        return {
            "type": "function",
            "function": {"name": self.name, "description": self.description, "parameters": self.parameters},
        }


@frozen(kw_only=True)
class ToolContext:
    """What a tool's factory may ask for.

    Attributes:
        documents: folder given with ``--docs``, or None.
        workspace: folder given with ``--workspace``, in which code may be run and files written, or None.
        sandbox: the isolation of code that the operator accepts: ``strong``, ``wasm`` or ``reduced``.
        data: k2core's folder for data of this user; may not exist yet.
        closing: closed when the session ends; a factory that opens something registers its end here.
    """

    documents: Path | None = None
    workspace: Path | None = None
    sandbox: str = "strong"
    data: Path | None = None
    closing: ExitStack = field(factory=ExitStack, eq=False, repr=False)


@frozen(kw_only=True)
class ToolOutput:
    """What a tool may return when there is more than text.

    Attributes:
        text: as the model sees it.
        ok: False where what the model asked for failed; its text then starts with ``error: ``.
        files: content by name, kept beside the journal: plots, documents.
        details: for the journal and for later calls of the tool, not for the model; JSON values.
    """

    text: str
    ok: bool = True
    files: Mapping[str, bytes] = field(factory=dict, repr=False)
    details: Mapping[str, Any] = field(factory=dict)


@frozen(kw_only=True)
class PastCall:
    """An earlier call of the same tool in the same run: its arguments, and what it returned."""

    arguments: Mapping[str, Any]
    text: str
    ok: bool
    details: Mapping[str, Any]


@frozen(kw_only=True)
class CallContext:
    """Where a call stands.

    Attributes:
        run: the run's id; empty outside a run.
        index: the call's number in the run.
        left_s: seconds until its deadline.
        key: the same for every attempt at this call and for no other call; for services that do a thing once per key.
            Empty outside a run.
        past: earlier calls of the tool in the run, in order.
    """

    run: str = ""
    index: int = 0
    left_s: float = inf
    key: str = ""
    past: tuple[PastCall, ...] = ()


_CURRENT: ContextVar[CallContext] = ContextVar("k2core_call")


def current_call() -> CallContext:
    """The call that the running tool was made for; one outside any run where there is none."""
    return _CURRENT.get(CallContext())


@contextmanager
def during(call: CallContext) -> Iterator[None]:
    """Calls made meanwhile see *call* as the current one."""
    token = _CURRENT.set(call)
    try:
        yield
    finally:
        _CURRENT.reset(token)


@frozen(kw_only=True)
class ToolResult:
    """What came back from a call.

    Attributes:
        text: as the model sees it; failures start with ``error: ``.
        ok: whether the tool ran and returned.
        duration_ms: wall time.
        full_bytes: size before truncation, in bytes of UTF-8.
        truncated: whether the text was cut.
        files: see `ToolOutput`.
        details: see `ToolOutput`.
        untrusted: see `Tool`; False where the tool did not run.
    """

    text: str
    ok: bool
    duration_ms: float = 0.0
    full_bytes: int = 0
    truncated: bool = False
    files: Mapping[str, bytes] = field(factory=dict, repr=False)
    details: Mapping[str, Any] = field(factory=dict)
    untrusted: bool = False


class ToolRegistry(Protocol):
    """The tools of one session."""

    def names(self) -> tuple[str, ...]:
        """Sorted names."""
        ...

    def get(self, name: str) -> Tool:
        """The tool.

        Raises:
            UnknownName: with the known names and the nearest.
        """
        ...

    def declarations(self) -> list[dict[str, Any]]:
        """All tools in OpenAI's form, in name order."""
        ...

    async def call(self, call: ToolCall, *, most_s: float | None = None) -> ToolResult:
        """Validate and run, within *most_s* seconds; never raises for what the model or the tool did wrong."""
        ...
