# SPDX-License-Identifier: GPL-2.0-only
"""zfw attach."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from zfw_py.cli import output
from zfw_py.cli.commands.interfaces import complete, each
from zfw_py.firewall.service import Firewall


def command(
    interfaces: Annotated[list[str], typer.Argument(metavar="IFACE...", autocompletion=complete)],
    direction: Annotated[
        Literal["ingress", "egress", "both"], typer.Option(help="Direction of the packets.")
    ] = "ingress",
    mode: Annotated[
        Literal["auto", "tcx", "clsact"],
        typer.Option(help="How: auto takes TCX where the kernel has it."),
    ] = "auto",
) -> None:
    """Put the firewall onto interfaces; from then on what no rule allows is dropped.

    An interface that does not exist is told and left out, and the exit code says
    so. Done again it changes nothing, but brings the programs of an older
    version up to date without a gap.
    """

    def attach(name: str) -> None:
        for attachment in Firewall().attach(name, direction, mode):
            output.line(
                f"attached {name} {attachment.direction} by {attachment.mode}"
                f" (program {attachment.program_id})"
            )

    each(interfaces, attach)
