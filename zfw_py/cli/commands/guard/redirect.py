# SPDX-License-Identifier: GPL-2.0-only
"""zfw guard redirect."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from zfw_py.cli import guard_log, output
from zfw_py.cli.commands.guard import options
from zfw_py.cli.commands.guard.attach import show


def command(
    dns_to: Annotated[
        list[str],
        typer.Option(
            metavar="ADDR[:PORT]", help="Where DNS goes. Given twice: one for IPv4, one for IPv6."
        ),
    ],
    cgroup: options.CgroupPath = None,
    pid: options.Pid = None,
    docker: options.Docker = None,
    move: options.Move = False,
    foreground: options.Foreground = False,
) -> None:
    """Send the DNS of a cgroup to a server of yours, and judge nothing else.

    Prints the guard's id. Nothing is left running. The server is reached as seen from each
    program's network namespace. DNS of a family without a server is refused.
    """
    from zfw_py.guard import service as guard
    from zfw_py.values.endpoint import parse_server

    servers = [parse_server(text, "--dns-to") for text in dns_to]
    target = options.target_of(cgroup, pid, docker, move=move)
    if foreground:
        events = output.Events(sys.stdout)
        tell = guard_log.teller(None, events, has_all=True, has_time=True)
        guard.redirect_here(target, servers, tell, show)
    else:
        show(guard.redirect(target, servers))
