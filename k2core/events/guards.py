"""What guards did: refused, asked for approval, changed something, or failed."""

from typing import ClassVar, Literal

from attrs import frozen

from k2core.events.base import Journalled


@frozen(kw_only=True)
class GuardActed(Journalled):
    """A guard refused or changed something, asked for approval, or failed; what it lets pass is no event.

    Attributes:
        guard: its name.
        hook: where it did, e.g. ``before_call``.
        action: ``refused``, ``asked``, ``changed`` or ``failed`` (it raised, was late, or gave what the hook does not take).
        why: its reason, or what is wrong with it and what follows from that.
        index: number of the call, where it is about one.
        before, after: of a change, the arguments as JSON text, or the result's text.
    """

    kind: ClassVar[str] = "guard"
    guard: str
    hook: str
    action: Literal["refused", "asked", "changed", "failed"]
    why: str
    index: int | None = None
    before: str = ""
    after: str = ""
