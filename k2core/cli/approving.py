"""Ask a person on the terminal whether something may be done."""

import asyncio
import contextlib
import os
import sys
from typing import TextIO

from attrs import define, field

from k2core.agent.approving import Asker, Question, Spoken
from k2core.cli.streams import ours

PROMPT = "approve? y, n, or never for this tool (a reason may follow; Ctrl-D decides later): "


def terminal_asker() -> Asker | None:
    """Asks where standard input and standard error are a terminal; None where they are not."""
    if sys.stdin is None or sys.stderr is None or not (sys.stdin.isatty() and sys.stderr.isatty()):
        return None
    return TerminalAsker(stdin=sys.stdin, stream=ours(sys.stderr))


@define(kw_only=True)
class TerminalAsker:
    """Asks y, n or never; what is asked about was shown before, as an event.

    Attributes:
        stdin: the terminal that is typed on.
        stream: the terminal that is written to.
    """

    stdin: TextIO
    stream: TextIO
    _never: dict[str, int] = field(factory=dict, init=False)  # tool -> call at which never was said

    async def __call__(self, question: Question) -> Spoken | None:
        """See `Asker`; None at the end of input."""
        if question.tool in self._never:
            return Spoken(decision="deny", reason=f"never, as said at call {self._never[question.tool]}")
        self._forget_typed()
        while True:
            self.stream.write(PROMPT)
            self.stream.flush()
            line = await self._line()
            if line is None:
                self.stream.write("\n")
                return None
            word, _, reason = line.strip().partition(" ")
            if word.casefold() in ("y", "yes"):
                return Spoken(decision="approve", reason=reason.strip())
            if word.casefold() in ("n", "no"):
                return Spoken(decision="deny", reason=reason.strip())
            if word.casefold() == "never" and question.tool:
                self._never[question.tool] = question.needed.index
                return Spoken(decision="deny", reason=reason.strip() or "never")

    async def _line(self) -> str | None:
        """The next line that is typed; None at the end of input, or where nobody can be listened to."""
        loop, ready = asyncio.get_running_loop(), asyncio.Event()
        try:
            loop.add_reader(self.stdin.fileno(), ready.set)
        except (NotImplementedError, OSError):
            return None
        try:
            await ready.wait()  # not a read that blocks: Ctrl-C is to end the work
        finally:
            loop.remove_reader(self.stdin.fileno())
        try:
            data = os.read(self.stdin.fileno(), 4096)  # a terminal gives one line
        except OSError:
            return None
        return data.decode("utf-8", "replace") if data else None

    def _forget_typed(self) -> None:
        """What was typed before the question answers nothing."""
        with contextlib.suppress(ImportError, OSError):
            import termios

            termios.tcflush(self.stdin.fileno(), termios.TCIFLUSH)
