"""What every event has: a kind and versioned JSON."""

from typing import Any, ClassVar

EVENT_FORMAT = 1


class Journalled:
    """Base of the events that the journal stores."""

    __slots__ = ()
    kind: ClassVar[str]

    def to_json(self) -> dict[str, Any]:
        """The event as JSON values: its ``kind``, the format version ``v`` and its fields by name."""
        import msgspec

        return {"v": EVENT_FORMAT, "kind": self.kind, **msgspec.to_builtins(self)}
