# SPDX-License-Identifier: GPL-2.0-only
"""zfw docker-dns redirect."""

from __future__ import annotations

from typing import Annotated

import typer

from zfw_py.cli import output
from zfw_py.cli.commands.docker_dns import options


def command(
    to: options.To,
    docker: Annotated[
        str | None, typer.Option("--docker", metavar="NAME", help="Those of a running container.")
    ] = None,
    pid: Annotated[
        int | None,
        typer.Option("--pid", metavar="PID", help="Those of a process's network namespace."),
    ] = None,
    netns: Annotated[
        str | None,
        typer.Option(
            "--netns", metavar="PATH", help="Those of a network namespace: /run/netns/NAME."
        ),
    ] = None,
    resolver: options.From = None,
    interface: options.Interface = "eth0",
    only_domain: options.OnlyDomain = [],  # noqa: B006 - Typer reads it, and makes another
    tcp: options.Tcp = None,
    daemon_ports: options.DaemonPorts = None,
    no_probe: options.NoProbe = False,
    mode: options.Mode = "auto",
) -> None:
    """Redirect a container's queries from now on.

    Until zfw docker-dns remove, or the container ends: one that starts again has another network
    namespace, see zfw docker-dns watch. Prints the redirect's id, and leaves nothing running.
    Queries of up to the interface's MTU are sent on, answers of any size come back; IPv6 servers
    are not supported.
    """
    from zfw_py.docker_dns import service as redirect
    from zfw_py.docker_dns.model import parse_redirect

    asked = parse_redirect(to, resolver, interface, only_domain, tcp)
    making = options.making_of(mode, daemon_ports, no_probe=no_probe)
    target = options.target_of(docker, pid, netns)
    output.line(redirect.redirect(target, asked, making).id)
