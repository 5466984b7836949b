# SPDX-License-Identifier: GPL-2.0-only
"""zfw steer add."""

from __future__ import annotations

from typing import Annotated

import typer

from zfw_py.cli import output
from zfw_py.cli.commands.steer import options
from zfw_py.errors import UsageError


def command(
    protocol: options.Protocol,
    address: options.Address,
    port: options.Port,
    to: Annotated[
        str | None,
        typer.Option(
            "--to",
            metavar="ADDR:PORT",
            help="The socket that listens on this address, now or later; IPv6 as [ADDR]:PORT.",
        ),
    ] = None,
    to_pid: Annotated[
        int | None,
        typer.Option("--to-pid", metavar="PID", help="The socket that this process listens on."),
    ] = None,
    to_unit: Annotated[
        str | None,
        typer.Option(
            "--to-unit", metavar="UNIT", help="The socket of this systemd unit's processes."
        ),
    ] = None,
    register: Annotated[
        bool,
        typer.Option(
            "--register",
            help="The socket that systemd passed to this process (Sockets=, LISTEN_FDS).",
        ),
    ] = False,
    label: options.Label = "",
    override: options.Override = False,
    fallthrough: options.Fallthrough = False,
    netns: options.Netns = None,
) -> None:
    """Add a mapping from an address and port to a socket.

    Prints the mapping's state: whether its socket exists. A socket that listens on
    exactly the address and port of a packet keeps it. Otherwise the most specific
    mapping decides: a port before a range of ports before any port, then the
    longest prefix. With --to, the address "any" means any address of its family.

    A UDP daemon answers from its own port: a mapping to another port is refused.
    """
    from zfw_py.steer import model
    from zfw_py.steer.service import Steering

    if (to is not None) + (to_pid is not None) + (to_unit is not None) + register != 1:
        raise UsageError("give exactly one of --to, --to-pid, --to-unit and --register")
    key = model.MappingKey.parse(protocol, address, port)
    steering = Steering(netns)

    def make(target: model.Target) -> model.Mapping:
        return model.Mapping.make(
            key, target, label, is_override=override, is_fallthrough=fallthrough
        )

    if register:
        added = steering.add_registered(make, key)
    elif to is not None:
        added = steering.add([make(model.AddressTarget.parse(to))])
    elif to_unit is not None:
        added = steering.add([make(model.UnitTarget.parse(to_unit))])
    else:
        assert to_pid is not None  # noqa: S101 - one of the four
        added = steering.add([make(steering.process_target(to_pid))])
    for listed in added:
        output.line(options.state_text(listed))
