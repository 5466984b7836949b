# SPDX-License-Identifier: GPL-2.0-only
"""zfw flush."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from zfw_py.cli import output
from zfw_py.errors import UsageError
from zfw_py.firewall.service import Firewall


def command(
    direction: Annotated[
        Literal["ingress", "egress"] | None,
        typer.Option("-z", "--direction", help="Only rules of this direction."),
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
) -> None:
    """Delete all rules, and the local routes of --route.

    Settings, attachments and established connections stay. The command asks first;
    without a terminal it needs --yes.
    """
    firewall = Firewall()
    if not yes:
        counts = firewall.status().rules
        directions = counts if direction is None else [direction]
        count = sum(sum(counts[one].values()) for one in directions)
        if count and not _is_confirmed(count, direction):
            output.line("nothing deleted")
            raise typer.Exit(1)
    output.line(f"deleted {output.counted(firewall.flush(direction), 'rule')}")


def _is_confirmed(count: int, direction: str | None) -> bool:
    if not output.is_interactive():
        raise UsageError("no terminal to ask on", hint="zfw flush --yes does not ask")
    which = f"{direction} " if direction else ""
    return output.confirm(f"Delete {output.counted(count, which + 'rule')}?")
