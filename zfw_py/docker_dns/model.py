# SPDX-License-Identifier: GPL-2.0-only
"""Where a container's queries shall go, and which of them. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, NamedTuple

from zfw_py.errors import UsageError
from zfw_py.values.dns_name import ROOT, is_like_ipv4, parse_name
from zfw_py.values.endpoint import Server, parse_server, split_port

if TYPE_CHECKING:
    from collections.abc import Iterable

Tcp = Literal["builtin", "redirect"]

RESOLVER = Server(4, b"\x7f\0\0\x0b")
INTERFACE = "eth0"
# As many as the kernel's trie takes.
MAX_DOMAINS = 4096
_LOOPBACK = 127  # the first byte of 127.0.0.0/8
_MAX_INTERFACE = 15  # IFNAMSIZ, without the 0 at its end


class Redirect(NamedTuple):
    """What is asked for. Both servers are IPv4; without ``domains`` all names are redirected.

    ``domains`` are in A-labels and lower case, without a last dot. TCP carries no name
    where it could be read in time: with ``tcp`` "builtin" it stays where it is.
    """

    server: Server
    resolver: Server = RESOLVER
    interface: str = INTERFACE
    domains: tuple[str, ...] = ()
    tcp: Tcp = "redirect"


def parse_redirect(
    to: str,
    resolver: str | None = None,
    interface: str = INTERFACE,
    domains: Iterable[str] = (),
    tcp: Tcp | None = None,
) -> Redirect:
    """Read what the options of the command line say. Raises UsageError.

    Without ``tcp`` it is "builtin" if there are domains: a name that is not of them is
    not to be asked of the server by TCP either.
    """
    names = tuple(dict.fromkeys(_parse_domain(text) for text in domains))
    if len(names) > MAX_DOMAINS:
        raise UsageError(f"--only-domain: {len(names)} names; {MAX_DOMAINS} at most")
    made = Redirect(
        server=_parse_ipv4(to, "--to"),
        resolver=RESOLVER if resolver is None else _parse_ipv4(resolver, "--from"),
        interface=_parse_interface(interface),
        domains=names,
        tcp=tcp or ("builtin" if names else "redirect"),
    )
    if made.server.address == made.resolver.address:
        raise UsageError(f"--to: {made.server} is the resolver whose queries are to be redirected")
    if made.server.address[0] == made.resolver.address[0] == _LOOPBACK:
        raise UsageError(
            f"--to: {made.server} is a loopback address, which no packet reaches from outside of it"
        )
    return made


def _parse_ipv4(text: str, option: str) -> Server:
    server = parse_server(text, option)
    if server.family != 4:
        raise UsageError(f"{option}: IPv6 is unsupported, the resolver and its server are IPv4")
    return server


def _parse_domain(text: str) -> str:
    option = "--only-domain"
    host, port = split_port(text, option)
    if port is not None or ":" in host or is_like_ipv4(host.partition("/")[0]):
        raise UsageError(f"{option}: not a name: {text!r}")
    name = parse_name(host, option)
    if name == ROOT:
        raise UsageError(f"{option}: '.' is every name; leave the option out")
    return name


def _parse_interface(text: str) -> str:
    """As dev_valid_name() of the kernel has it."""
    is_name = text not in ("", ".", "..") and not any(c.isspace() or c in "/:" for c in text)
    if not is_name or len(text.encode()) > _MAX_INTERFACE:
        raise UsageError(f"--interface: not an interface's name: {text!r}")
    return text
