# SPDX-License-Identifier: GPL-2.0-only
"""All that the command prints: lines, tables, JSON, progress.

The only importer of rich, and only where a table or a bar goes to a terminal;
elsewhere output is plain text without colours or frames.
"""

from __future__ import annotations

import sys
from itertools import islice
from time import monotonic
from typing import TYPE_CHECKING, Generic, NamedTuple, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from rich.progress import Progress as Bar

Item = TypeVar("Item")

# rich takes a millisecond for a row, and nobody reads so many.
_MOST_RICH_ROWS = 1000
_CHUNK = 1000
_BAR_AFTER = 1.0  # seconds

_STYLES = {
    "intercept": "green",
    "pass": "cyan",
    "deny": "red",
    "tcx": "green",
    "clsact": "green",
}


def safe(text: str) -> str:
    """Text without anything that a terminal would obey."""
    if text.isprintable():
        return text
    return "".join([c if c.isprintable() else repr(c)[1:-1] for c in text])


def line(text: str) -> None:
    """A line on stdout."""
    print(safe(text))


def warning(text: str) -> None:
    """Something to know, on stderr."""
    print(f"zfw: warning: {safe(text)}", file=sys.stderr)


def error(text: str, hint: str | None = None) -> None:
    """What went wrong, on stderr."""
    print(f"zfw: {safe(text)}", file=sys.stderr)
    if hint:
        print(f"hint: {safe(hint)}", file=sys.stderr)


def is_interactive() -> bool:
    """Whether there is somebody to ask."""
    return sys.stdin.isatty() and sys.stderr.isatty()


class Column(NamedTuple, Generic[Item]):
    """A column of a table: its title, and what it shows of an item."""

    title: str
    value: Callable[[Item], str | int]
    unit: str = ""  # "bytes": people read them as kB and MB


def table(columns: Sequence[Column[Item]], items: Sequence[Item]) -> None:
    """A table on stdout. An empty text is shown as "-"."""
    if sys.stdout.isatty() and len(items) <= _MOST_RICH_ROWS:
        _rich_table(columns, items)
    else:
        _plain_table(columns, items)


def _cell(value: str | int) -> str:
    return safe(value) or "-" if isinstance(value, str) else str(value)


def _plain_table(columns: Sequence[Column[Item]], items: Sequence[Item]) -> None:
    """Twice over the items, so that a million of them need no more memory than one."""
    titles = [column.title for column in columns]
    values = [column.value for column in columns]
    widths = [
        max(len(title), max((len(_cell(value(item))) for item in items), default=0))
        for title, value in zip(titles, values, strict=True)
    ]
    is_number = [all(isinstance(value(item), int) for item in items[:1]) for value in values]
    form = "  ".join(
        f"{{:{'>' if right else '<'}{width}}}"
        for right, width in zip(is_number, widths, strict=True)
    ).format
    print(form(*titles).rstrip())
    for item in items:
        print(form(*[_cell(value(item)) for value in values]).rstrip())
