# SPDX-License-Identifier: GPL-2.0-only
"""The options that zfw docker-dns redirect and watch share, and the values that they give."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from zfw_py.cli.options import Option, switch
from zfw_py.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from zfw_py.docker_dns.model import Redirect
    from zfw_py.docker_dns.service import DnsRedirect, RedirectOptions

_REDIRECT = {
    "to": Option(
        "--to",
        kind=str,
        default=...,
        metavar="ADDR[:PORT]",
        help="The DNS server that answers; its port is 53 if not given.",
    ),
    "resolver": Option(
        "--from",
        metavar="ADDR[:PORT]",
        help="The built-in resolver, if it is not Docker's 127.0.0.11:53.",
    ),
    "interface": Option(
        "--interface",
        kind=str,
        default="eth0",
        metavar="IFACE",
        help="The interface that queries leave by, by its name in the container.",
    ),
    "only_domain": Option(
        "--only-domain",
        kind=list[str],
        default=[],
        metavar="SUFFIX",
        help="Redirect only this name and all names below it; the built-in resolver answers the"
        " other queries. Repeatable.",
    ),
    "tcp": Option(
        "--tcp",
        kind=Literal["builtin", "redirect"] | None,
        help="TCP connections begin before their queries are known: leave all of them to the"
        " built-in resolver, or redirect all. Default: builtin with --only-domain, else redirect.",
    ),
    "daemon_ports": Option(
        "--daemon-ports",
        metavar="UDP,TCP",
        help="The ports that NAT in the container maps the resolver's port to, if zfw cannot find"
        " them; 0 for none.",
    ),
    "no_probe": switch("--no-probe", help="Do not check first that the server answers."),
    "mode": Option(
        "--mode",
        kind=Literal["auto", "tcx", "clsact"],
        default="auto",
        help="How to attach; auto uses TCX where the kernel has it, else clsact.",
    ),
}
REDIRECT = {
    "docker": Option("--docker", metavar="NAME", help="The queries of this running container."),
    "pid": Option(
        "--pid",
        kind=int | None,
        metavar="PID",
        help="The queries in the network namespace of this process.",
    ),
    "netns": Option(
        "--netns", metavar="PATH", help="The queries in this network namespace, as /run/netns/NAME."
    ),
} | _REDIRECT
WATCH = (
    {
        "docker": Option(
            "--docker",
            kind=str,
            default=...,
            metavar="NAME",
            help="The container; it need not run yet.",
        )
    }
    | _REDIRECT
    | {
        "log": Option(
            "--log", metavar="FILE", help="Append queries and changes to a file, as JSON lines."
        )
    }
)

_MAX_PORT = 65535


def asked_of(values: Mapping[str, Any]) -> Redirect:
    """The request that the options describe. Raises UsageError."""
    from zfw_py.docker_dns.model import Redirect

    names = ("to", "resolver", "interface", "only_domain", "tcp")
    return Redirect.parse(*[values[name] for name in names])


def redirect_of(values: Mapping[str, Any]) -> DnsRedirect:
    """Of the one namespace that is given. Raises UsageError, NotFound, ZfwError."""
    from zfw_py.docker_dns.service import DnsRedirect

    docker, pid, netns = values["docker"], values["pid"], values["netns"]
    if (docker, pid, netns).count(None) != 2:
        raise UsageError("give exactly one of --docker, --pid and --netns")
    if docker is not None:
        return DnsRedirect.of_container(docker)
    if netns is not None:
        return DnsRedirect(netns)
    return DnsRedirect.of_process(pid)


def options_of(values: Mapping[str, Any]) -> RedirectOptions:
    """How to attach the redirect. Raises UsageError."""
    from zfw_py.docker_dns.codec import DaemonPorts
    from zfw_py.docker_dns.service import RedirectOptions

    daemon, ports = None, values["daemon_ports"]
    if ports is not None:
        texts = ports.split(",")
        if len(texts) != 2 or not all(
            text.isascii() and text.isdigit() and len(text) <= 5 and int(text) <= _MAX_PORT
            for text in texts
        ):
            raise UsageError(f"--daemon-ports: not two ports, UDP,TCP: {ports!r}")
        daemon = DaemonPorts(*map(int, texts))
    return RedirectOptions(mode=values["mode"], daemon=daemon, is_probed=not values["no_probe"])
