# SPDX-License-Identifier: GPL-2.0-only
"""zfw detach."""

from __future__ import annotations

from socket import if_indextoname
from typing import TYPE_CHECKING, Annotated

import typer

from zfw_py.cli import output
from zfw_py.cli.commands.interfaces import complete, each
from zfw_py.errors import UsageError
from zfw_py.firewall.service import Firewall

if TYPE_CHECKING:
    from zfw_py.firewall.programs import Attachment


def command(
    interfaces: Annotated[
        list[str] | None, typer.Argument(metavar="IFACE...", autocompletion=complete)
    ] = None,
    everything: Annotated[
        bool,
        typer.Option("--all", help="All interfaces, and remove rules and settings as well."),
    ] = False,
) -> None:
    """Take the firewall off interfaces. Rules and settings stay, but with --all.

    What others have attached is left alone.
    """
    if everything == bool(interfaces):
        raise UsageError("either IFACE... or --all")
    if everything:
        _tell(Firewall().detach_all())
        output.line("removed all rules and settings")
    else:
        each(interfaces or [], lambda name: _tell(Firewall().detach(name)))


def _tell(taken: list[Attachment]) -> None:
    for attachment in taken:
        name = _name(attachment.ifindex)
        output.line(f"detached {name} {attachment.direction} ({attachment.mode})")


def _name(ifindex: int) -> str:
    try:
        return if_indextoname(ifindex)
    except OSError:  # it has gone just now
        return f"interface {ifindex}"
