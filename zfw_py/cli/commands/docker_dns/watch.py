# SPDX-License-Identifier: GPL-2.0-only
"""zfw docker-dns watch."""

from __future__ import annotations

import signal
import sys
from typing import Annotated

import typer

from zfw_py.cli import docker_dns_log, output
from zfw_py.cli.commands.docker_dns import options

_ENDS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def command(
    to: options.To,
    docker: Annotated[
        str,
        typer.Option("--docker", metavar="NAME", help="The container, which need not run yet."),
    ],
    resolver: options.From = None,
    interface: options.Interface = "eth0",
    only_domain: options.OnlyDomain = [],  # noqa: B006 - Typer reads it, and makes another
    tcp: options.Tcp = None,
    daemon_ports: options.DaemonPorts = None,
    no_probe: options.NoProbe = False,
    mode: options.Mode = "auto",
    log: options.Log = None,
) -> None:
    """Redirect a container's queries each time that it starts.

    Now as well, if it runs; and prints what they are. Stays until Ctrl-C or SIGTERM, and then takes
    its redirect away. An engine that goes is waited for, for two minutes. What keeps the first
    redirect from being made ends the command; what is in the way later is printed, and tried again.
    """
    from zfw_py.docker_dns.model import parse_redirect
    from zfw_py.docker_dns.watch import watch

    asked = parse_redirect(to, resolver, interface, only_domain, tcp)
    making = options.making_of(mode, daemon_ports, no_probe=no_probe)
    tell = docker_dns_log.teller(log, output.Events(sys.stdout))
    watch(docker, asked, making, tell, _ENDS)
