# SPDX-License-Identifier: GPL-2.0-only
"""The request for a redirect: servers, interface and names, parsed and checked. Pure."""

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
# The max_entries of the map ``domains``.
MAX_DOMAINS = 4096
_LOOPBACK = 127  # the first byte of 127.0.0.0/8
_MAX_INTERFACE = 15  # IFNAMSIZ, without the 0 at its end


class Redirect(NamedTuple):
    """Which queries are redirected, and to which server; both servers are IPv4.

    ``resolver``: the address and port whose queries are redirected. ``interface``: the
    interface by which they leave the namespace. ``domains``: only these names and all names
    below them, in A-labels and lower case, without a last dot; empty: all names. ``tcp``:
    whether TCP to the resolver is redirected. A TCP connection begins before a name is known,
    so ``domains`` do not apply to it.
    """

    server: Server
    resolver: Server = RESOLVER
    interface: str = INTERFACE
    domains: tuple[str, ...] = ()
    tcp: Tcp = "redirect"

    @classmethod
    def parse(
        cls,
        to: str,
        resolver: str | None = None,
        interface: str = INTERFACE,
        domains: Iterable[str] = (),
        tcp: Tcp | None = None,
    ) -> Redirect:
        """Read the texts of the command line's options. Raises UsageError.

        ``to`` and ``resolver`` are ADDR or ADDR:PORT. Without ``tcp`` it is "builtin" if there
        are domains: the server must not get queries for other names by TCP.
        """
        names = tuple(dict.fromkeys(_parse_domain(text) for text in domains))
        if len(names) > MAX_DOMAINS:
            raise UsageError(f"--only-domain: {len(names)} names; {MAX_DOMAINS} at most")
        made = cls(
            server=_parse_ipv4(to, "--to"),
            resolver=RESOLVER if resolver is None else _parse_ipv4(resolver, "--from"),
            interface=_parse_interface(interface),
            domains=names,
            tcp=tcp or ("builtin" if names else "redirect"),
        )
        if made.server.address == made.resolver.address:
            raise UsageError(f"--to: {made.server} is the resolver whose queries are redirected")
        if made.server.address[0] == made.resolver.address[0] == _LOOPBACK:
            raise UsageError(f"--to: {made.server} is a loopback address, which no query reaches")
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
    """Check the name of an interface as the kernel's dev_valid_name() does."""
    is_name = text not in ("", ".", "..") and not any(c.isspace() or c in "/:" for c in text)
    if not is_name or len(text.encode()) > _MAX_INTERFACE:
        raise UsageError(f"--interface: not an interface's name: {text!r}")
    return text
