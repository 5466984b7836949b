# SPDX-License-Identifier: GPL-2.0-only
"""The lines of a batch: an insert or a delete each, in either grammar.

A batch has up to millions of lines, and Typer takes a millisecond for one: hence this small
parser of the modern grammar. Like the commands, it takes the options of ``rule_options``.
"""

from __future__ import annotations

import shlex
from array import array
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, BinaryIO, overload

from zfw_py.cli.classic import grammar
from zfw_py.cli.commands.rule_options import OPTIONS, inverse, read_insert
from zfw_py.errors import UsageError, ZfwError
from zfw_py.firewall.service import Delete, Insert

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

MAX_LINE_BYTES = 64 * 1024
MAX_LINES = 2_000_000

# Lines between two reports of progress.
_STEP = 4096


_NAMES = {text: name for name, option in OPTIONS.items() for text in option.spellings}
_FLAGS = {text: name for text, name in _NAMES.items() if OPTIONS[name].kind is bool}
_VALUES = {text: name for text, name in _NAMES.items() if text not in _FLAGS}


class Edits(Sequence[Insert | Delete]):
    """The edits of a batch with their lines.

    While the edits are iterated over, ``line`` is the line of the current one, None at the end,
    and ``on_progress`` is called now and then with the number of edits so far.
    """

    def __init__(self) -> None:
        self._edits: list[Insert | Delete] = []
        self._lines = array("I")
        self.line: int | None = None
        self.on_progress: Callable[[int], None] = lambda done: None

    def add(self, edit: Insert | Delete, line: int) -> None:
        """Append an edit from this line."""
        self._edits.append(edit)
        self._lines.append(line)

    def line_of(self, index: int) -> int:
        """The line of an edit."""
        return self._lines[index]

    def __len__(self) -> int:
        return len(self._edits)

    @overload
    def __getitem__(self, index: int) -> Insert | Delete: ...
    @overload
    def __getitem__(self, index: slice) -> list[Insert | Delete]: ...
    def __getitem__(self, index: int | slice) -> Insert | Delete | list[Insert | Delete]:
        return self._edits[index]

    def __iter__(self) -> Iterator[Insert | Delete]:
        for index, edit in enumerate(self._edits):
            self.line = self._lines[index]
            if index % _STEP == 0:
                self.on_progress(index)
            yield edit
        self.line = None


def read(file: BinaryIO, name: str, on_progress: Callable[[int], None]) -> Edits:
    """Read and check all lines of a file; ``on_progress`` gets the bytes read so far.

    Raises UsageError for the first bad line, naming file and line.
    """
    edits = Edits()
    done = number = 0
    while data := file.readline(MAX_LINE_BYTES + 1):
        number += 1
        done += len(data)
        if number > MAX_LINES:
            raise UsageError(f"{name}: more than {MAX_LINES} lines")
        if len(data) > MAX_LINE_BYTES:
            raise UsageError(f"{name}:{number}: longer than {MAX_LINE_BYTES} bytes")
        if number % _STEP == 0:
            on_progress(done)
        try:
            words = split(data.decode("utf-8", "surrogateescape"))
            if words:
                edits.add(parse(words), number)
        except ZfwError as error:
            raise UsageError(f"{name}:{number}: {error.message}") from None
    return edits


def split(text: str) -> list[str]:
    """Split a line into words as a shell does; none if it is blank or a comment."""
    words = text.split()
    if not words or words[0].startswith("#"):
        return []
    if '"' in text or "'" in text or "\\" in text:
        try:
            return shlex.split(text)
        except ValueError as error:
            raise UsageError(f"{error}".lower()) from None
    return words


def parse(words: list[str]) -> Insert | Delete:
    """Read the words of a line, which may begin with the command's name."""
    if words[0] == "zfw":
        words = words[1:]
    verb = words[0] if words else ""
    if verb == "insert":
        return _parse_modern(words)
    if verb == "delete":
        return inverse(_parse_modern(words))
    if verb.startswith("-"):
        return _parse_classic(words)
    raise UsageError(f"neither insert nor delete: {verb!r}")


def _parse_modern(words: list[str]) -> Insert:
    values: dict[str, Any] = {}
    rest = iter(words)
    next(rest)
    for word in rest:
        value: str | None
        name = _VALUES.get(word)
        if name is not None:
            value = next(rest, None)
            if value is None:
                raise UsageError(f"{word}: needs a value")
        elif word in _FLAGS:
            values[_FLAGS[word]] = True
            continue
        else:
            name, value = _glued(word)
        if name == "interfaces":
            values.setdefault(name, []).append(value)
        else:
            values[name] = value
    return read_insert(values)


def _glued(word: str) -> tuple[str, str]:
    """Split --low-port=22 or -l22 into the option's name and its value."""
    if word.startswith("--"):
        spelling, equals, value = word.partition("=")
        if spelling in _FLAGS:
            raise UsageError(f"{spelling}: takes no value")
        if equals and spelling in _VALUES:
            return _VALUES[spelling], value
    elif word[:2] in _VALUES:
        return _VALUES[word[:2]], word[2:]
    if word.startswith("-"):
        raise UsageError(f"no such option: {word!r}")
    raise UsageError(f"unexpected word: {word!r}")


def _parse_classic(words: list[str]) -> Insert | Delete:
    request = grammar.parse(words)
    if request.verb == "insert":
        return Insert(request.rule, route=request.route)
    if request.verb == "delete":
        return Delete(request.key, request.interfaces, route=request.route)
    raise UsageError(f"neither -I nor -D: {words[0]!r}")
