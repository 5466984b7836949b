# SPDX-License-Identifier: GPL-2.0-only
"""Arguments and options that the commands of zfw steer share, and a mapping as a line."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from zfw_py.steer.listing import MappingStatus

Protocol = Annotated[str, typer.Argument(metavar="tcp|udp")]
Address = Annotated[
    str, typer.Argument(metavar="ADDR[/LEN]|any", help="The address that clients connect to.")
]
Port = Annotated[str, typer.Argument(metavar="PORT|LOW-HIGH|any")]
Netns = Annotated[
    str | None,
    typer.Option(
        "--netns", metavar="PATH", help="Act in this network namespace, as /run/netns/NAME."
    ),
]
Label = Annotated[
    str, typer.Option("--label", metavar="NAME", help="A name for mappings that belong together.")
]
Override = Annotated[
    bool,
    typer.Option(
        "--override", help="Also take packets from a socket that listens on exactly their address."
    ),
]
Fallthrough = Annotated[
    bool,
    typer.Option(
        "--fallthrough",
        help="If the target has no socket, use the kernel's own lookup; else refuse.",
    ),
]


def state_text(listed: MappingStatus) -> str:
    """A line with a mapping, its state and its problem."""
    line = f"{listed.mapping}: {listed.state}"
    return f"{line}: {listed.problem}" if listed.problem else line
