# SPDX-License-Identifier: GPL-2.0-only
"""zfw batch."""

from __future__ import annotations

import os
import sys
from contextlib import contextmanager
from pathlib import Path
from stat import S_ISREG
from typing import TYPE_CHECKING, Annotated, BinaryIO

import typer

from zfw_py import Deleted, Inserted
from zfw_py.cli import batch, output
from zfw_py.errors import NotFound, UsageError, ZfwError
from zfw_py.firewall.service import Firewall

if TYPE_CHECKING:
    from collections.abc import Iterator


def command(
    file: Annotated[str, typer.Argument(metavar="FILE|-", help="The lines; - is stdin.")] = "-",
) -> None:
    """Insert and delete many rules at once.

    A line is an insert or a delete, with or without zfw in front, in this grammar
    or in the classic one. Blank lines and lines that begin with # are skipped;
    quotes work as in a shell. zfw reads and checks all lines, and then applies them
    in order. On an error no rule changes.
    """
    name = "stdin" if file == "-" else file
    with output.Progress() as progress:
        with _opened(file) as lines:
            found = os.fstat(lines.fileno())
            total = found.st_size if S_ISREG(found.st_mode) else None
            edits = batch.read(lines, name, lambda done: progress.show("reading", done, total))
        edits.on_progress = lambda done: progress.show("applying", done, None)
        try:
            results = Firewall().apply(edits)
        except ZfwError as error:
            if edits.line is not None:
                error.message = f"{name}:{edits.line}: {error.message}"
            raise
    _tell(name, edits, results)


@contextmanager
def _opened(file: str) -> Iterator[BinaryIO]:
    if file == "-":
        yield sys.stdin.buffer
        return
    try:
        with Path(file).open("rb") as opened:
            yield opened
    except FileNotFoundError:
        raise NotFound(f"{file}: no such file") from None
    except OSError as error:
        raise UsageError(f"{file}: {error.strerror}") from None


def _tell(name: str, edits: batch.Edits, results: list[Inserted | Deleted]) -> None:
    warnings = (
        f"{name}:{edits.line_of(index)}: {text}"
        for index, result in enumerate(results)
        if isinstance(result, Inserted)
        for text in result.warnings()
    )
    output.warnings(warnings)
    deleted = sum(isinstance(result, Deleted) for result in results)
    replaced = sum(isinstance(result, Inserted) and result.is_replaced for result in results)
    inserted = len(results) - deleted - replaced
    output.line(f"{inserted} inserted, {replaced} replaced, {deleted} deleted")
