"""Appending to a journal from code without an event loop."""

import asyncio

from k2core.agent.journal import Journal
from k2core.events import Event, Stored


def append(journal: Journal, run: str, *events: Event) -> list[Stored]:
    """`Journal.append`; returns when the events are on disk."""
    return asyncio.run(journal.append(run, *events))
