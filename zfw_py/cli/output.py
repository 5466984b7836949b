# SPDX-License-Identifier: GPL-2.0-only
"""The output of commands: lines, JSON, progress; tables are in ``tables``.

Only this module and ``tables`` import rich, for a terminal. Elsewhere output is plain text,
without colours or frames.
"""

from __future__ import annotations

import os
import select
import sys
import termios
from itertools import islice
from time import monotonic
from typing import TYPE_CHECKING

from zfw_py.errors import shortened

if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import TextIO

    from rich.progress import Progress as Bar
    from rich.progress import TaskID

# The exit code of a command that shows a state, where it is not as it was asked for.
DIFFERS = 21
# The exit code of a command whose answer is not the expected one.
REFUSED = 11

_CHUNK = 1000
_MOST_WARNINGS = 10
_BAR_AFTER = 1.0  # seconds
# Columns of a text that is not for a terminal, and of one for the narrowest.
_WIDTH, _LEAST_WIDTH = 80, 40


def safe(text: str) -> str:
    """The text, with escapes for characters that control a terminal."""
    if text.isprintable():
        return text
    return "".join([c if c.isprintable() else repr(c)[1:-1] for c in text])


def line(text: str) -> None:
    """Print a line on stdout."""
    print(safe(text))


def fields(rows: Iterable[tuple[str, Iterable[str]]]) -> None:
    """Print rows of a name and paragraphs on stdout, within the width of the terminal.

    A paragraph that begins with a blank is a command line to copy: it is never broken.
    """
    from shutil import get_terminal_size
    from textwrap import wrap

    rows = [(name, list(texts)) for name, texts in rows]
    margin = max((len(name) for name, _ in rows), default=0) + 2
    width = max(get_terminal_size((_WIDTH, 0)).columns, _LEAST_WIDTH) - margin
    for name, texts in rows:
        for text in texts:
            is_command = text.startswith(" ")
            lines = [text] if is_command else wrap(safe(text), width, break_on_hyphens=False)
            for each in lines:
                line(f"{name:<{margin}}{each}")
                name = ""


class Events:
    """Lines about events on a stream, for people.

    A line that cannot be written at once is dropped, and a later line says how many were: a
    reader that is slow or gone, or a stopped terminal, must not block the writer.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._left_out = 0

    def write(self, text: str) -> None:
        """Write a line, or drop it."""
        lines = [safe(text)]
        if self._left_out:
            lines.insert(0, f"zfw: {counted(self._left_out, 'line')} left out")
        poll = select.poll()
        poll.register(self._stream, select.POLLOUT)
        if not poll.poll(0):
            self._left_out += 1
            return
        try:
            end = _line_end(self._stream)
            text = "".join(f"{each}{end}" for each in lines)
            os.write(self._stream.fileno(), text.encode(errors="replace"))
        except OSError:
            self._left_out += 1
        else:
            self._left_out = 0


def warning(text: str) -> None:
    """Print a warning on stderr."""
    _tell(f"zfw: warning: {safe(shortened(text))}")


def warnings(texts: Iterable[str]) -> None:
    """Print the first of many warnings on stderr, and the number of the others."""
    rest = iter(texts)
    for text in islice(rest, _MOST_WARNINGS):
        warning(text)
    if more := sum(1 for _ in rest):
        warning(f"{more} more like these")


def error(text: str, hint: str | None = None) -> None:
    """Print an error, and perhaps a hint, on stderr."""
    _tell(f"zfw: {safe(shortened(text))}")
    if hint:
        _tell(f"hint: {safe(shortened(hint))}")


def _tell(text: str) -> None:
    """Print a line on stderr; a closed stderr is no error."""
    if sys.stderr is None:
        return
    try:
        print(text, end=_line_end(sys.stderr), file=sys.stderr, flush=True)
    except OSError:
        # The buffer keeps the text; flushing it at exit would fail and change the exit code.
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, sys.stderr.fileno())
        os.close(null)


def _line_end(stream: TextIO) -> str:
    """The end of a line; a terminal in raw mode needs a carriage return (OPOST, termios(3))."""
    try:
        output_flags = termios.tcgetattr(stream)[1]
    except (OSError, ValueError, termios.error):
        return "\n"  # not a terminal
    return "\n" if output_flags & termios.OPOST else "\r\n"


def counted(count: int, noun: str) -> str:
    """A number and a noun: "1 rule", "2 rules"."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def is_interactive() -> bool:
    """Whether stdin and stderr are a terminal."""
    return sys.stdin.isatty() and sys.stderr.isatty()


def confirm(question: str) -> bool:
    """Ask on stderr, so that stdout has results only. Return whether the answer is y or yes."""
    print(f"{question} [y/N] ", end="", file=sys.stderr, flush=True)
    return sys.stdin.readline().strip().lower() in ("y", "yes")


def json_object(value: object) -> None:
    """Print an object as JSON on stdout, indented."""
    from json import dumps

    print(dumps(value, indent=2))


def json_array(items: Iterable[dict[str, object]]) -> None:
    """Print an array of objects as JSON on stdout, one object a line."""
    from json import JSONEncoder

    encode = JSONEncoder(separators=(",", ":"), check_circular=False).encode
    start = "[\n"
    rest = iter(items)
    while some := list(islice(rest, _CHUNK)):
        sys.stdout.write(start + ",\n".join([encode(item) for item in some]))
        start = ",\n"
    print("[]" if start == "[\n" else "\n]")


class Progress:
    """A progress bar on stderr, if that is a terminal and the work takes more than a second."""

    def __init__(self) -> None:
        self._starts = monotonic() + _BAR_AFTER if sys.stderr.isatty() else float("inf")
        self._bar: Bar | None = None
        self._task: TaskID | None = None
        self._stage = ""

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *exception: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def show(self, stage: str, done: int, total: int | None) -> None:
        """Show the progress of a stage, of a total if known. Call it now and then."""
        if monotonic() < self._starts:
            return
        if self._bar is None:
            from rich.console import Console
            from rich.progress import Progress as Bar

            self._bar = Bar(console=Console(stderr=True), transient=True)
            self._bar.start()
        if self._task is None or stage != self._stage:
            if self._task is not None:
                self._bar.remove_task(self._task)
            self._task, self._stage = self._bar.add_task(stage, total=total), stage
        self._bar.update(self._task, completed=done)
