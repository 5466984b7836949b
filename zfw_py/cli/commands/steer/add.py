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
            help="Whichever socket listens there, [ADDR]:PORT for IPv6; it need not exist yet.",
        ),
    ] = None,
    to_pid: Annotated[
        int | None,
        typer.Option("--to-pid", metavar="PID", help="The socket that a process listens with."),
    ] = None,
    to_unit: Annotated[
        str | None,
        typer.Option("--to-unit", metavar="UNIT", help="The one of a systemd unit's processes."),
    ] = None,
    register: Annotated[
        bool,
        typer.Option(
            "--register", help="The one that systemd passed to this process (Sockets=, LISTEN_FDS)."
        ),
    ] = False,
    label: options.Label = "",
    override: options.Override = False,
    fallthrough: options.Fallthrough = False,
    netns: options.Netns = None,
) -> None:
    """Steer connections, or datagrams, to a socket, and print whether it is there.

    A socket that already listens on exactly the address and port of a packet keeps it. Else the
    most specific mapping counts: a port before a range of ports before any port, then the longest
    prefix. Without --to-pid, --to-unit and --register, any means any address of the family of --to.

    A UDP daemon answers from its own port: a mapping to another one is refused.
    """
    from zfw_py.steer import model
    from zfw_py.steer.service import Steering

    if (to is not None) + (to_pid is not None) + (to_unit is not None) + register != 1:
        raise UsageError("one of --to, --to-pid, --to-unit and --register says where it leads")
    key = model.parse_key(protocol, address, port)
    steering = Steering(netns)

    def made(target: model.Target) -> model.Mapping:
        return model.make_mapping(
            key, target, label, is_override=override, is_fallthrough=fallthrough
        )

    if register:
        added = steering.add_registered(made, key)
    elif to is not None:
        added = steering.add([made(model.parse_address_target(to))])
    elif to_unit is not None:
        added = steering.add([made(model.parse_unit_target(to_unit))])
    else:
        assert to_pid is not None  # noqa: S101 - one of the four
        added = steering.add([made(steering.process_target(to_pid))])
    for listed in added:
        output.line(options.state_text(listed))
