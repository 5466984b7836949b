# SPDX-License-Identifier: GPL-2.0-only
"""Tables on stdout: the only place that lays out columns.

A pipe or a file gets every column, in lines as long as they need, so that programs can read
them. A terminal gets lines that fit: columns without information are left out, lists break
between items, the frame goes where it has no room, and a row that is still too wide has further,
indented lines. A value is broken only if it alone is longer than a line.
"""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from zfw_py.cli.output import json_array, line, safe

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    Cell = str | int
    from rich.console import Console

    # The texts of a row, from its item.
    Texts = Callable[["Item"], list[str]]

Item = TypeVar("Item")

_GAP = "  "
_INDENT = "  "  # of the second line of a row, and of those after it
_EMPTY = "-"
# rich takes a millisecond for a row of a table: longer ones have no frame.
_MOST_RICH_ROWS = 1000

_HEADER = "bold"
_STYLES = {
    "intercept": "green",
    "pass": "cyan",
    "deny": "red",
    "drop": "red",
    "tcx": "green",
    "clsact": "green",
}


class Column(NamedTuple):
    """A column of a table.

    ``is_bytes``: a number of bytes, on a terminal as kB or MB. ``is_list``: the text may break
    after a comma. ``is_detail``: if a row needs two lines, the second one has this column.
    ``defaults``: texts without information. A terminal leaves out a column that has only these
    and empty texts.
    """

    title: str
    is_number: bool = False
    is_bytes: bool = False
    is_list: bool = False
    is_detail: bool = False
    defaults: tuple[str, ...] = ()


class _Field(NamedTuple):
    """A column in a line: its place in the row, and its width in character cells."""

    place: int
    width: int


def headline(word: str, rest: str) -> None:
    """Print a line on stdout that begins with a verdict, which has a colour on a terminal."""
    if not sys.stdout.isatty() or word not in _STYLES:
        line(f"{word}{rest}")
        return
    from rich.text import Text

    _console().print(Text.assemble((word, _STYLES[word]), safe(rest)), soft_wrap=True)


def table(
    columns: Sequence[Column],
    items: Sequence[Item],
    cells: Callable[[Item], tuple[Cell, ...]],
    *,
    wide: bool = False,
) -> None:
    """Print a table on stdout, one row for each item. An empty text is shown as "-".

    ``wide``: on a terminal as well all columns, in one line a row.
    """
    if not sys.stdout.isatty():
        _plain(columns, items, lambda item: list(map(_text, cells(item))))
        return

    def texts(item: Item) -> list[str]:
        return [
            _size(int(cell)) if column.is_bytes else _text(cell)
            for column, cell in zip(columns, cells(item), strict=True)
        ]

    console = _console()
    widths, least, shown = _measured(columns, items, texts)
    if wide:
        lines = [list(map(_Field, range(len(columns)), widths))]
    else:
        lines = _laid_out(columns, widths, least, shown, console.width)
    fits = _sum(width for _, width in lines[0]) <= console.width
    if len(lines) == 1 and fits and len(items) <= _MOST_RICH_ROWS:
        _rich(console, columns, lines[0], list(map(texts, items)))
    else:
        _stacked(console, columns, lines, map(texts, items))


def listing(
    items: Sequence[Item],
    as_object: Callable[[Item], dict[str, object]],
    columns: Sequence[Column],
    cells: Callable[[Item], tuple[Cell, ...]],
    *,
    as_json: bool,
    none: str,
    wide: bool = False,
) -> None:
    """Print items on stdout: as JSON, as a table, or the text ``none`` if there are none."""
    if as_json:
        json_array(map(as_object, items))
    elif items:
        table(columns, items, cells, wide=wide)
    else:
        line(none)


def _plain(columns: Sequence[Column], items: Sequence[Item], texts: Texts[Item]) -> None:
    # The texts are made twice: those of a million rows need more memory than the rules.
    widths = [len(column.title) for column in columns]
    for item in items:
        widths = list(map(max, widths, map(len, texts(item))))
    line_of = _GAP.join(
        f"{{:{'>' if column.is_number else '<'}{width}}}"
        for column, width in zip(columns, widths, strict=True)
    ).format
    print(line_of(*[column.title for column in columns]).rstrip())
    for item in items:
        print(line_of(*texts(item)).rstrip())


def _measured(
    columns: Sequence[Column], items: Sequence[Item], texts: Texts[Item]
) -> tuple[list[int], list[int], list[bool]]:
    """Of each column its width, the width of its longest item, and whether it says anything."""
    widths = [len(column.title) for column in columns]
    least = list(widths)
    silent = [{_EMPTY, *column.defaults} for column in columns]
    shown = [False] * len(columns)
    lists = [place for place, column in enumerate(columns) if column.is_list]
    for item in items:
        row = texts(item)
        widths = list(map(max, widths, map(_width, row)))
        for place, text in enumerate(row):
            if not shown[place] and text not in silent[place]:
                shown[place] = True
        for place in lists:
            least[place] = max(least[place], *map(_width, _items_of(row[place])))
    for place, column in enumerate(columns):
        if not column.is_list:
            least[place] = widths[place]
    return widths, least, shown


def _laid_out(
    columns: Sequence[Column],
    widths: Sequence[int],
    least: Sequence[int],
    shown: Sequence[bool],
    limit: int,
) -> list[list[_Field]]:
    """The lines of a row: as few as the columns that say anything need."""
    places = [place for place, is_shown in enumerate(shown) if is_shown] or list(
        range(len(columns))
    )
    if _sum(least[place] for place in places) > limit:
        places.sort(key=lambda place: columns[place].is_detail)
    lines: list[list[int]] = [[]]
    for place in places:
        room = limit if len(lines) == 1 else limit - len(_INDENT)
        if lines[-1] and _sum(least[each] for each in [*lines[-1], place]) > room:
            lines.append([])
        lines[-1].append(place)
    return [
        _fitted(each, widths, least, limit if number == 0 else limit - len(_INDENT))
        for number, each in enumerate(lines)
    ]


def _fitted(
    places: Sequence[int], widths: Sequence[int], least: Sequence[int], room: int
) -> list[_Field]:
    """The columns of a line, the widest ones narrowed until the line fits."""
    fitted = {place: widths[place] for place in places}
    while (over := _sum(fitted.values()) - room) > 0:
        slack = {place: width for place, width in fitted.items() if width > least[place]}
        if not slack:
            # One value that is longer than a line.
            return [_Field(place, min(width, room)) for place, width in fitted.items()]
        widest = max(slack, key=slack.__getitem__)
        others = [width for place, width in slack.items() if place != widest]
        step = max(1, slack[widest] - max(others, default=0))
        fitted[widest] = max(least[widest], slack[widest] - min(over, step))
    return [_Field(place, width) for place, width in fitted.items()]


def _sum(widths: Iterable[int]) -> int:
    """The width of a line with columns of these widths."""
    some = list(widths)
    return sum(some) + len(_GAP) * (len(some) - 1)


def _rich(
    console: Console,
    columns: Sequence[Column],
    fields: Sequence[_Field],
    rows: Sequence[Sequence[str]],
) -> None:
    """Print rows of one line, with a frame if there is room for it."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    framed = sum(width + 3 for _, width in fields) + 1 <= console.width
    made = Table(
        box=box.ROUNDED if framed else None,
        padding=(0, 1) if framed else (0, len(_GAP), 0, 0),
        pad_edge=framed,
        header_style=_HEADER,
    )
    for place, width in fields:
        column = columns[place]
        made.add_column(
            column.title, justify="right" if column.is_number else "left", width=width, no_wrap=True
        )
    for row in rows:
        made.add_row(
            *[
                # Text, not a str: service ids may look like markup.
                Text(
                    "\n".join(_broken(row[place], width, columns[place])),
                    _STYLES.get(row[place], ""),
                )
                for place, width in fields
            ]
        )
    console.print(made)


def _stacked(
    console: Console,
    columns: Sequence[Column],
    lines: Sequence[Sequence[_Field]],
    rows: Iterable[Sequence[str]],
) -> None:
    """Print rows of several lines, many rows, or lines that are longer than the terminal's."""
    from rich.color import ColorSystem
    from rich.style import Style

    system = ColorSystem.STANDARD if console.color_system else None

    def painted(text: str, style: str) -> str:
        return Style.parse(style).render(text, color_system=system)

    titles = [column.title for column in columns]
    for text in _lines_of(
        titles, columns, lines, {title: painted(title, _HEADER) for title in titles}
    ):
        print(text)
    words = {word: painted(word, style) for word, style in _STYLES.items()}
    for row in rows:
        for text in _lines_of(row, columns, lines, words):
            print(text)


def _lines_of(
    row: Sequence[str],
    columns: Sequence[Column],
    lines: Sequence[Sequence[_Field]],
    painted: Mapping[str, str],
) -> Iterator[str]:
    """The lines of a row. ``painted``: short texts with their colours."""
    for number, fields in enumerate(lines):
        indent = _INDENT if number else ""
        if number and all(row[place] == _EMPTY for place, _ in fields):
            continue
        broken = [_broken(row[place], width, columns[place]) for place, width in fields]
        for height in range(max(map(len, broken))):
            parts = []
            for (place, width), pieces in zip(fields, broken, strict=True):
                text = pieces[height] if height < len(pieces) else ""
                padding = " " * (width - _width(text))
                text = painted.get(text, text)
                parts.append(padding + text if columns[place].is_number else text + padding)
            yield f"{indent}{_GAP.join(parts)}".rstrip()


def _broken(text: str, width: int, column: Column) -> list[str]:
    """A text in pieces of at most this width: a list after its commas, another anywhere."""
    if _width(text) <= width:
        return [text]
    if not column.is_list:
        return _folded(text, width)
    pieces: list[str] = []
    for item in _items_of(text):
        if pieces and _width(pieces[-1] + item) <= width:
            pieces[-1] += item
        else:
            pieces += _folded(item, width)
    return pieces


def _folded(text: str, width: int) -> list[str]:
    pieces = [""]
    for character in text:
        if pieces[-1] and _width(pieces[-1] + character) > width:
            pieces.append("")
        pieces[-1] += character
    return pieces


def _items_of(text: str) -> list[str]:
    """The items of a list, each with its comma."""
    *items, last = text.split(",")
    return [*(f"{item}," for item in items), last]


def _text(cell: Cell) -> str:
    return safe(cell) or _EMPTY if isinstance(cell, str) else str(cell)


def _size(count: int) -> str:
    from rich.filesize import decimal

    return decimal(count).replace("bytes", "B").replace("byte", "B")


def _width(text: str) -> int:
    """The number of a terminal's character cells that a text takes."""
    if text.isascii():
        return len(text)
    from rich.cells import cell_len

    return cell_len(text)


def _console() -> Console:
    from rich.console import Console

    # https://no-color.org; rich would still print bold text.
    return Console(color_system=None) if os.environ.get("NO_COLOR") else Console()
