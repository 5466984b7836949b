# SPDX-License-Identifier: GPL-2.0-only
"""zfw steer apply."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from zfw_py.cli import files, output
from zfw_py.cli.commands.steer import options
from zfw_py.errors import UsageError

if TYPE_CHECKING:
    from zfw_py.steer.model import Entry


def command(
    file: Annotated[
        str, typer.Argument(metavar="FILE|-", help="What list --json writes; - is stdin.")
    ],
    netns: options.Netns = None,
) -> None:
    """Make the mappings equal to a file, all at once, or on an error not at all.

    Mappings that stay keep their sockets and counters. Those that a zfw steer run holds are neither
    read nor touched.
    """
    from zfw_py.steer.service import Steering

    entries = load(file)
    applied = Steering(netns).apply_entries(entries, "stdin" if file == "-" else file)
    output.line(
        f"{output.counted(applied.added, 'mapping')} added, {applied.changed} changed,"
        f" {applied.removed} removed, {applied.kept} kept"
    )
    if applied.pending:
        output.line(f"pending: {applied.pending}, where nothing listens yet")


def load(file: str) -> list[Entry]:
    """Read a file, or stdin for "-". Raises UsageError, naming it, and NotFound."""
    from zfw_py.steer.model import MAX_BYTES, decode
    from zfw_py.values.structured import DocumentError

    data = files.read_stdin(MAX_BYTES) if file == "-" else files.read(file, MAX_BYTES)
    name = "stdin" if file == "-" else file
    try:
        return decode(data)
    except DocumentError as error:
        where = name if error.line is None else f"{name}:{error.line}"
        raise UsageError(f"{where}: {error.message}") from None
