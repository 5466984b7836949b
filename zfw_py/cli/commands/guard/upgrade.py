# SPDX-License-Identifier: GPL-2.0-only
"""zfw guard upgrade."""

from __future__ import annotations

from typing import Annotated

import typer

from zfw_py.cli import guard_log, output
from zfw_py.cli.commands.guard import options
from zfw_py.errors import NotFound, ZfwError


def command(
    identifier: Annotated[
        str | None,
        typer.Argument(metavar="[ID]", help="The guard's id, as zfw guard list shows it."),
    ] = None,
) -> None:
    """Upgrade guards that an older version attached.

    Replaces the programs and the DNS process of one guard, or of every guard of the
    machine, while they are in use. Policies, counters and resolved addresses stay. A guard
    whose DNS process has died gets a new one.
    """
    from zfw_py.guard.maps import STORE
    from zfw_py.guard.service import Guard

    failures: list[ZfwError] = []
    for each in sorted(STORE.identifiers()) if identifier is None else [identifier]:
        try:
            is_done = Guard(each).upgrade(guard_log.sink_of)
        except NotFound:
            if identifier is not None:
                raise
            continue  # removed meanwhile
        except ZfwError as error:
            failures.append(error)
            continue
        output.line(f"guard {each}: {'upgraded' if is_done else 'up to date'}")
    options.end_with(failures)
