# SPDX-License-Identifier: GPL-2.0-only
"""zfw steer remove."""

from __future__ import annotations

from typing import Annotated

import typer

from zfw_py.cli import output
from zfw_py.cli.commands.steer import options
from zfw_py.errors import UsageError


def command(
    protocol: Annotated[str | None, typer.Argument(metavar="[tcp|udp]")] = None,
    address: Annotated[str | None, typer.Argument(metavar="[ADDR[/LEN]|any]")] = None,
    port: Annotated[str | None, typer.Argument(metavar="[PORT|LOW-HIGH|any]")] = None,
    label: Annotated[
        str | None, typer.Option("--label", metavar="NAME", help="All mappings with this label.")
    ] = None,
    every: Annotated[bool, typer.Option("--all", help="All mappings.")] = False,
    netns: options.Netns = None,
) -> None:
    """Remove a mapping, or several.

    Name the mapping as zfw steer list shows it. Open connections stay. The address
    "any" also names a mapping for every address of one family, if there is only one
    such mapping.
    """
    from zfw_py.steer.model import MappingKey
    from zfw_py.steer.service import Steering

    named = (protocol, address, port)
    is_one = None not in named
    if is_one + (label is not None) + every != 1 or (not is_one and any(named)):
        raise UsageError("give PROTOCOL ADDRESS PORT, --label or --all")
    steering = Steering(netns)
    if protocol is not None and address is not None and port is not None:
        gone = steering.remove(MappingKey.parse(protocol, address, port))
    else:
        gone = steering.remove_all(label)
    for mapping in gone:
        output.line(f"removed {mapping}")
