# SPDX-License-Identifier: GPL-2.0-only
"""zfw steer apply."""

from __future__ import annotations

from typing import Annotated

import typer

from zfw_py.cli import output
from zfw_py.cli.commands.steer import options
from zfw_py.cli.documents import read


def command(
    file: Annotated[
        str, typer.Argument(metavar="FILE|-", help="Output of zfw steer list --json; - is stdin.")
    ],
    netns: options.Netns = None,
) -> None:
    """Replace all mappings by those in a file.

    Mappings that stay keep their sockets and counters. Mappings of a running zfw
    steer run are neither read nor changed. On an error nothing changes.
    """
    from zfw_py.steer.model import MAX_BYTES, decode
    from zfw_py.steer.service import Steering

    entries = read(file, MAX_BYTES, decode)
    applied = Steering(netns).apply_entries(entries, "stdin" if file == "-" else file)
    output.line(
        f"{output.counted(applied.added, 'mapping')} added, {applied.changed} changed,"
        f" {applied.removed} removed, {applied.unchanged} kept"
    )
    if applied.pending:
        output.line(f"pending: {applied.pending}, nothing listens there yet")
