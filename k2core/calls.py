"""What a model may call: a tool, what its factory may ask for, what comes back, and a session's tools.

`k2core.toolmaking` makes tools of functions, `k2core.tools` runs calls.
"""

from collections.abc import Callable, Mapping
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
            ``idempotent`` (may be repeated with the same key), ``reversible`` (names its undo), ``external`` (never again
            unasked; the default).
        function: called with the validated arguments as keywords; returns text, or anything that is written as JSON.
        timeout_s: deadline of one call.
        control: handled by the loop itself (`answer`, `note`).
    """

    name: str
    description: str
    parameters: Mapping[str, Any] = field(eq=False)
    function: Callable[..., Any] = field(eq=False)
    effect: Effect = "external"
    timeout_s: float = 10.0
    control: bool = False

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
        data: k2core's folder for data of this user; may not exist yet.
    """

    documents: Path | None = None
    data: Path | None = None


@frozen(kw_only=True)
class ToolResult:
    """What came back from a call.

    Attributes:
        text: as the model sees it; failures start with ``error: ``.
        ok: whether the tool ran and returned.
        duration_ms: wall time.
        full_bytes: size before truncation, in bytes of UTF-8.
        truncated: whether the text was cut.
    """

    text: str
    ok: bool
    duration_ms: float = 0.0
    full_bytes: int = 0
    truncated: bool = False


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
