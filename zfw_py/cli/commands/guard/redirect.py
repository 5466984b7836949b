# SPDX-License-Identifier: GPL-2.0-only
"""zfw guard redirect."""

from __future__ import annotations

import sys
from typing import Annotated, Any

import typer

from zfw_py.cli import guard_log, output
from zfw_py.cli.commands.guard import options
from zfw_py.cli.commands.guard.attach import show
from zfw_py.cli.options import takes


@takes(options.REDIRECT)
def command(
    dns_to: Annotated[
        list[str],
        typer.Option(
            metavar="ADDR[:PORT]",
            help="The DNS server. Give it twice for one of IPv4 and one of IPv6.",
        ),
    ],
    **values: Any,
) -> None:
    """Send the DNS queries of a cgroup to a server of your choice.

    Other traffic is not evaluated. Prints the guard's id; no process stays behind.
    Each program reaches the server from its own network namespace. Queries over an
    address family that has no server are refused.
    """
    from zfw_py.guard.service import Guard
    from zfw_py.values.endpoint import parse_server

    servers = [parse_server(text, "--dns-to") for text in dns_to]
    target = options.target_of(values)
    if values["foreground"]:
        events = output.Events(sys.stdout)
        sink = guard_log.event_sink(None, events, has_all=True, has_time=True)
        Guard.redirect_in_foreground(target, servers, sink, show)
    else:
        show(Guard.redirect(target, servers))
