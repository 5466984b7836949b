# SPDX-License-Identifier: GPL-2.0-only
"""What the commands of zfw steer share: arguments, and how mappings are shown."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from zfw_py.steer.listing import Listed

Protocol = Annotated[str, typer.Argument(metavar="tcp|udp")]
Address = Annotated[str, typer.Argument(metavar="ADDR[/LEN]|any", help="What clients connect to.")]
Port = Annotated[str, typer.Argument(metavar="PORT|LOW-HIGH|any")]
Netns = Annotated[
    str | None,
    typer.Option(
        "--netns", metavar="PATH", help="In another network namespace, as /run/netns/NAME."
    ),
]
Label = Annotated[
    str, typer.Option("--label", metavar="NAME", help="A name for mappings that go together.")
]
Override = Annotated[
    bool,
    typer.Option(
        "--override", help="Also take what another socket listens for on exactly this address."
    ),
]
Fallthrough = Annotated[
    bool,
    typer.Option(
        "--fallthrough",
        help="Without a socket leave it to the kernel's own look-up; else it is refused.",
    ),
]


def state_text(listed: Listed) -> str:
    """A mapping and how it is, as a line."""
    line = f"{listed.mapping}: {listed.state}"
    return f"{line}: {listed.problem}" if listed.problem else line
