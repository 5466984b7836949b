# SPDX-License-Identifier: GPL-2.0-only
"""zfw steer run."""

from __future__ import annotations

import os
import signal
import sys
from typing import Annotated

import typer

from zfw_py.cli import output
from zfw_py.cli.commands.steer import options

_ENDS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def command(
    to: Annotated[
        list[str],
        typer.Option(
            "-t",
            metavar="FROM=ADDR:PORT",
            help="Steer, for as long as this runs. FROM: PORT, LOW-HIGH, any, ADDR:PORT,"
            " [ADDR/LEN]:PORT, after udp: perhaps. May be given again.",
        ),
    ] = [],  # noqa: B006 - Typer reads it, and makes another
    label: Annotated[
        str, typer.Option("--label", metavar="NAME", help="Of these mappings; else run-PID.")
    ] = "",
    override: options.Override = False,
    fallthrough: options.Fallthrough = False,
    netns: options.Netns = None,
) -> None:
    """Manage all targets in the foreground: UDP sockets, and those of processes and units.

    They are taken when they listen, as that event comes. TCP listeners on an address of a mapping
    are taken in the kernel, whether this runs or not. Its own mappings go when it ends; all others
    stay, and steering goes on. Of several that run, one manages and the others wait.
    """
    from zfw_py.steer import model
    from zfw_py.steer.manager import run
    from zfw_py.steer.service import Steering

    name = label or f"run-{os.getpid()}"
    mappings = []
    for text in to:
        protocol, address, port, target = model.parse_short(text)
        mappings.append(
            model.make_mapping(
                model.parse_key(protocol, address, port),
                target,
                name,
                is_override=override,
                is_fallthrough=fallthrough,
            )
        )
    events = output.Events(sys.stdout)
    run(Steering(netns), mappings, events.write, _ENDS)
