"""Logging of the process: structlog on stderr, readable on a terminal, JSON otherwise."""

import logging
import sys
from typing import Any

from k2core.cli.streams import ours
from k2core.cli.text import one_line


class _Stderr:
    """Standard error as it is at the time of writing: of ours, whichever thread logs."""

    def write(self, text: str) -> None:
        ours(sys.stderr).write(text)

    def flush(self) -> None:
        ours(sys.stderr).flush()


def _for_people(logger: Any, method: str, event: Any) -> Any:
    """What has a ``line`` that says it to people is shown as that line, unless log lines were asked for."""
    import structlog

    if "line" not in event:
        return event
    _Stderr().write(f"k2: {one_line(str(event['line']), 1000)}\n")
    raise structlog.DropEvent


def configure(level: str) -> None:
    """Show log lines from *level* on; the standard library's loggers of others stay as they are."""
    import structlog

    least = getattr(logging, level.upper())
    logging.getLogger("k2core").setLevel(least)
    shared: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    is_terminal = sys.stderr.isatty()
    last: list[Any] = [structlog.dev.ConsoleRenderer()]
    if not is_terminal:
        last = [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]
    if least >= logging.WARNING:
        last.insert(0, _for_people)
    structlog.configure(
        processors=[*shared, *last],
        wrapper_class=structlog.make_filtering_bound_logger(least),
        logger_factory=structlog.WriteLoggerFactory(file=_Stderr()),  # type: ignore[arg-type]  # these two are all that it uses
        cache_logger_on_first_use=False,
    )
