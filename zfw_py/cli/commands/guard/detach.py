# SPDX-License-Identifier: GPL-2.0-only
"""zfw guard detach."""

from __future__ import annotations

from typing import Annotated

import typer

from zfw_py.cli import output
from zfw_py.cli.commands.guard import options
from zfw_py.errors import UsageError


def command(
    identifier: Annotated[
        str | None,
        typer.Argument(metavar="[ID]", help="The guard's id, as zfw guard list shows it."),
    ] = None,
    every: Annotated[bool, typer.Option("--all", help="All guards.")] = False,
) -> None:
    """Remove a guard.

    The processes that it guarded continue, with unlimited access.
    """
    from zfw_py.guard.service import Guard

    if every == (identifier is not None):
        raise UsageError("give either an ID or --all")
    if identifier is not None:
        Guard(identifier).detach()
        output.line(f"detached {identifier}")
        return
    gone, foreign = Guard.detach_all()
    for each in gone:
        output.line(f"detached {each}")
    options.end_with(foreign)
