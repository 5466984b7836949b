# SPDX-License-Identifier: GPL-2.0-only
"""The options that zfw docker-dns redirect and watch share, and what they come to."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

import typer

from zfw_py.errors import UsageError

if TYPE_CHECKING:
    from zfw_py.docker_dns.service import Making, Target

To = Annotated[
    str,
    typer.Option(
        "--to",
        metavar="ADDR[:PORT]",
        help="The server that is to answer; its port is 53 by default.",
    ),
]
From = Annotated[
    str | None,
    typer.Option(
        "--from", metavar="ADDR[:PORT]", help="The built-in resolver; 127.0.0.11:53 is Docker's."
    ),
]
Interface = Annotated[
    str,
    typer.Option("--interface", metavar="IFACE", help="The way out, as the container calls it."),
]
OnlyDomain = Annotated[
    list[str],
    typer.Option(
        "--only-domain",
        metavar="SUFFIX",
        help="Redirect this name and all below it, and leave other names to the built-in resolver."
        " May be given again.",
    ),
]
Tcp = Annotated[
    Literal["builtin", "redirect"] | None,
    typer.Option(
        "--tcp",
        help="A TCP connection begins without a name: who has it, whatever names follow."
        " Without the option: builtin where there are domains, redirect where there are none.",
    ),
]
DaemonPorts = Annotated[
    str | None,
    typer.Option(
        "--daemon-ports",
        metavar="UDP,TCP",
        help="The ports that NAT makes of the resolver's, where they cannot be found; 0: none.",
    ),
]
NoProbe = Annotated[
    bool, typer.Option("--no-probe", help="Do not ask the server first whether it answers.")
]
Mode = Annotated[
    Literal["auto", "tcx", "clsact"],
    typer.Option("--mode", help="How to attach; auto takes TCX where the kernel has it."),
]
Log = Annotated[
    str | None,
    typer.Option("--log", metavar="FILE", help="Append all of it to a file, as JSON lines."),
]

_MAX_PORT = 65535


def target_of(docker: str | None, pid: int | None, netns: str | None) -> Target:
    """Whose queries. Raises UsageError unless it is said once, NotFound, ZfwError."""
    from zfw_py.docker_dns import service as redirect

    if sum(each is not None for each in (docker, pid, netns)) != 1:
        raise UsageError("one of --docker, --pid and --netns says whose queries")
    if docker is not None:
        from zfw_py.containers import find

        return redirect.of_container(find(docker))
    if netns is not None:
        return redirect.of_path(netns)
    assert pid is not None  # noqa: S101 - one of the three
    return redirect.of_process(pid)


def making_of(
    mode: Literal["auto", "tcx", "clsact"], daemon_ports: str | None, *, no_probe: bool
) -> Making:
    """How. Raises UsageError."""
    from zfw_py.docker_dns.codec import Daemon
    from zfw_py.docker_dns.service import Making

    daemon = None
    if daemon_ports is not None:
        texts = daemon_ports.split(",")
        if len(texts) != 2 or not all(
            text.isascii() and text.isdigit() and len(text) <= 5 and int(text) <= _MAX_PORT
            for text in texts
        ):
            raise UsageError(f"--daemon-ports: not two ports, UDP,TCP: {daemon_ports!r}")
        daemon = Daemon(*map(int, texts))
    return Making(mode=mode, daemon=daemon, is_probed=not no_probe)
