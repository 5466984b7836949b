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
            help="Add a mapping until the command ends. FROM is PORT, LOW-HIGH, any, ADDR:PORT or"
            " [ADDR/LEN]:PORT; begin with udp: for UDP. Repeatable.",
        ),
    ] = [],  # noqa: B006 - Typer reads it, and makes another
    label: Annotated[
        str,
        typer.Option(
            "--label", metavar="NAME", help="Label of these mappings; run-PID if not given."
        ),
    ] = "",
    override: options.Override = False,
    fallthrough: options.Fallthrough = False,
    netns: options.Netns = None,
) -> None:
    """Manage the sockets of mappings in the foreground.

    It adopts UDP sockets, and sockets of processes and units, when they start to
    listen. The kernel adopts TCP sockets that listen on a --to address by itself,
    also while this command does not run. When the command ends, it removes the
    mappings of -t; other mappings and the steering stay. If several run, one
    manages and the others wait.
    """
    from zfw_py.steer import model
    from zfw_py.steer.manager import run
    from zfw_py.steer.service import Steering

    name = label or f"run-{os.getpid()}"
    mappings = []
    for text in to:
        protocol, address, port, target = model.parse_short(text)
        mappings.append(
            model.Mapping.make(
                model.MappingKey.parse(protocol, address, port),
                target,
                name,
                is_override=override,
                is_fallthrough=fallthrough,
            )
        )
    events = output.Events(sys.stdout)
    run(Steering(netns), mappings, events.write, _ENDS)
