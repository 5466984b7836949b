# SPDX-License-Identifier: GPL-2.0-only
"""zfw attach."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from zfw_py.cli import output
from zfw_py.cli.commands.interfaces import complete, each
from zfw_py.firewall.service import Firewall


def command(
    interfaces: Annotated[
        list[str],
        typer.Argument(metavar="IFACE...", help="Names of interfaces.", autocompletion=complete),
    ],
    direction: Annotated[
        Literal["ingress", "egress", "both"],
        typer.Option(
            help="Direction of the packets; ingress alone tracks no flows, and admits answers"
            " to connected sockets only."
        ),
    ] = "both",
    mode: Annotated[
        Literal["auto", "tcx", "clsact"],
        typer.Option(help="How to attach; auto uses TCX where the kernel has it, else clsact."),
    ] = "auto",
) -> None:
    """Attach the firewall to interfaces.

    From then on it drops every packet that no rule and no setting allows.
    Interfaces that do not exist are reported and skipped; the command then exits
    with code 5. What is attached already stays, except that programs of an older
    version are replaced, without a gap. On a port of a bridge a rule is needed
    also for what the bridge sends on to another port: a warning says where.
    """

    def attach(name: str) -> None:
        from zfw_py.kernel.routing import bridge_of

        for attachment in Firewall().attach(name, direction, mode):
            output.line(
                f"attached {name} {attachment.direction} by {attachment.mode}"
                f" (program {attachment.program_id})"
            )
        if direction != "egress" and (bridge := bridge_of(attachment.ifindex)):
            output.warning(
                f"{name} is a port of {bridge}: a rule is needed also for frames that {bridge}"
                f" sends on to another port, unless you attach to {bridge} instead"
            )

    each(interfaces, attach)
