# SPDX-License-Identifier: GPL-2.0-only
"""zfw detach."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from zfw_py.cli import output
from zfw_py.cli.commands.interfaces import complete, each, name_of
from zfw_py.errors import UsageError
from zfw_py.firewall.service import Firewall

if TYPE_CHECKING:
    from zfw_py.firewall.programs import Attachment


def command(
    interfaces: Annotated[
        list[str] | None,
        typer.Argument(metavar="IFACE...", help="Names of interfaces.", autocompletion=complete),
    ] = None,
    everything: Annotated[
        bool,
        typer.Option("--all", help="All interfaces; also remove all rules and settings."),
    ] = False,
) -> None:
    """Detach the firewall from interfaces.

    Rules and settings stay, except with --all. Programs of other software stay
    attached.
    """
    if everything == bool(interfaces):
        raise UsageError("give either IFACE... or --all")
    if everything:
        _tell(Firewall().detach_all())
        output.line("removed all rules and settings")
    else:
        each(interfaces or [], _detach)


def _detach(name: str) -> None:
    firewall = Firewall()
    _tell(firewall.detach(name))
    if not firewall.is_installed():
        return  # the programs were those of another network namespace's firewall
    for difference in firewall.status().differences:
        if difference.interface == name:
            output.warning(str(difference))


def _tell(taken: list[Attachment]) -> None:
    for attachment in taken:
        name = name_of(attachment.ifindex)
        output.line(f"detached {name} {attachment.direction} ({attachment.mode})")
