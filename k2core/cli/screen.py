"""Where a display writes: a terminal (rich: colours, wrapping, streamed text) or plain lines.

Both show blocks: a label of fixed width and text beside it. Text is given as spans ``(text, style)`` that are cleaned here, so
that nothing a model or tool wrote is taken for markup or reaches the terminal as an escape sequence.
"""

import os
import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol, TextIO

from attrs import define, field

from k2core.cli.streams import ours
from k2core.cli.text import clean
from k2core.events import StatusLine

if TYPE_CHECKING:
    from rich.console import Console

LABEL = 11  # columns of a label with the space behind it
LOG_LABEL = 16  # the same with an event's number in front
Spans = Sequence[tuple[str, str]]  # (text, style); styles are "", dim, bold, green, red, yellow, cyan and their combinations


class Screen(Protocol):
    """A place to show things."""

    @property
    def width(self) -> int | None:
        """Columns beside the label; None where lines have no end."""
        ...

    def block(self, label: str, spans: Spans, style: str = "") -> None:
        """A label and text beside it; *style* is the label's."""
        ...

    def gap(self) -> None:
        """An empty line where a person reads."""
        ...

    def stream(self, label: str, text: str) -> bool:
        """Add *text* to a dim block that grows; False where nothing can be streamed."""
        ...

    def status(self, line: StatusLine | None) -> None:
        """Show what slow thing goes on, None when it is over."""
        ...


def screen_on(stream: TextIO, *, label_width: int = LABEL) -> Screen:
    """The screen for a stream: a terminal's, or plain lines."""
    if stream.isatty() and os.environ.get("TERM") != "dumb":
        from rich.console import Console

        return RichScreen(console=Console(file=stream, highlight=False, markup=False, emoji=False), label_width=label_width)
    return PlainScreen(stream=stream, label_width=label_width)


@define(kw_only=True)
class PlainScreen:
    """Lines without colour or cursor movement."""

    stream_to: TextIO = field(alias="stream")
    label_width: int = LABEL
    width: None = field(default=None, init=False)
    _last_status: tuple[str, float] = ("", 0.0)

    def block(self, label: str, spans: Spans, style: str = "") -> None:
        """See `Screen`."""
        lines = clean("".join(text for text, _ in spans)).split("\n")
        for number, line in enumerate(lines):
            self.stream_to.write(f"{(label if number == 0 else '').ljust(self.label_width - 1)} {line}".rstrip() + "\n")
        self.stream_to.flush()

    def gap(self) -> None:
        """See `Screen`."""

    def stream(self, label: str, text: str) -> bool:
        """See `Screen`."""
        return False

    def status(self, line: StatusLine | None) -> None:
        """At most one line every two seconds, the first and the last in any case."""
        if line is None:
            return
        text, shown = self._last_status
        now = time.monotonic()
        if line.text != text or line.done == line.total or now - shown >= 2.0:
            self._last_status = (line.text, now)
            self.stream_to.write(clean(str(line)) + "\n")
            self.stream_to.flush()


@define(kw_only=True)
class RichScreen:
    """A terminal."""

    console: "Console"
    label_width: int = LABEL
    _column: int = field(default=0, init=False)  # of the growing block; 0 when there is none
    _pending: str = field(default="", init=False)  # the last word, not shown before it is whole
    _ready: str = field(default="", init=False)  # laid out, shown with the next flush
    _progress: Any = field(default=None, init=False)
    _task: Any = field(default=None, init=False)

    @property
    def width(self) -> int:
        """See `Screen`."""
        return max(20, self.console.width - self.label_width)

    def block(self, label: str, spans: Spans, style: str = "") -> None:
        """See `Screen`."""
        from rich.table import Table
        from rich.text import Text

        self._end_stream()
        body = Text(overflow="fold")
        for text, of in spans:
            body.append(clean(text), style=of or None)
        grid = Table.grid(padding=(0, 1, 0, 0))
        grid.add_column(width=self.label_width - 1, no_wrap=True)
        grid.add_column(overflow="fold")
        grid.add_row(Text(label, style=style), body)
        self.console.print(grid)

    def gap(self) -> None:
        """See `Screen`."""
        self._end_stream()
        self.console.print()

    def stream(self, label: str, text: str) -> bool:
        """See `Screen`; whole words, wrapped under the label."""
        if self._column == 0:
            self._write(label.ljust(self.label_width))
            self._column = self.label_width
        self._pending += text
        while True:
            cut_at = next((place for place, character in enumerate(self._pending) if character in " \n\t"), -1)
            if cut_at < 0:
                break
            word, mark, self._pending = self._pending[:cut_at], self._pending[cut_at], self._pending[cut_at + 1 :]
            self._word(word)
            if mark == "\n":
                self._new_line()
            elif self._column > self.label_width or not word:
                self._column += 1
                self._write(" ")
        self._flush()
        return True

    def status(self, line: StatusLine | None) -> None:
        """See `Screen`."""
        if line is None:
            if self._progress is not None:
                self._progress.stop()
                self._progress = None
            return
        if self._progress is None:
            from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn

            self._end_stream()
            columns = (SpinnerColumn(), TextColumn("{task.description}", markup=False), BarColumn(bar_width=24))
            self._progress = Progress(
                *columns, console=self.console, transient=True, redirect_stdout=False, redirect_stderr=False
            )
            self._progress.start()
            self._task = self._progress.add_task("", total=None)
        self._progress.update(self._task, description=clean(str(line)), completed=line.done or 0, total=line.total)

    def _word(self, word: str) -> None:
        from rich.cells import cell_len

        word = clean(word)
        width = max(20, self.console.width - 1)
        if self._column > self.label_width and self._column + cell_len(word) > width:
            self._new_line()
        while word:  # a word longer than a line is folded
            fitting = word
            while self._column + cell_len(fitting) > width:
                fitting = fitting[:-1]
            self._write(fitting)
            self._column += cell_len(fitting)
            word = word[len(fitting) :]
            if word:
                self._new_line()

    def _new_line(self) -> None:
        self._write("\n" + " " * self.label_width)
        self._column = self.label_width

    def _end_stream(self) -> None:
        if self._column:
            self._word(self._pending)
            self._pending = ""
            self._column = 0
            self._flush()
            self.console.print()

    def _write(self, text: str) -> None:
        self._ready += text

    def _flush(self) -> None:
        from rich.text import Text

        if self._ready:
            self.console.print(Text(self._ready, style="dim"), end="", soft_wrap=True)
            self._ready = ""


def stderr_screen() -> Screen:
    """The screen of live displays."""
    return screen_on(ours(sys.stderr))
