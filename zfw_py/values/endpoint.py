# SPDX-License-Identifier: GPL-2.0-only
"""Formats and parses an address with a port: ADDR:PORT, IPv6 in brackets. Pure."""

from __future__ import annotations

from ipaddress import ip_address
from typing import NamedTuple

from zfw_py.errors import UsageError
from zfw_py.values.prefix import Prefix, address_text, parse_address, unmapped

DNS_PORT = 53
# Longer than any name, prefix or address; a name in Unicode may become shorter.
_MAX_TEXT = 1024


class Endpoint(NamedTuple):
    """An address or prefix as text, and a port; port 0 stands for none."""

    address: str
    port: int

    @classmethod
    def from_mapped(cls, address: bytes, port: int) -> Endpoint:
        """From an address of 16 bytes in network order, IPv4 as ::ffff:a.b.c.d."""
        return cls(address_text(address), port)

    def __str__(self) -> str:
        if not self.port:
            return self.address
        return f"[{self.address}]:{self.port}" if ":" in self.address else f"{self[0]}:{self[1]}"


class Server(NamedTuple):
    """A DNS server: ``family`` 4 or 6, ``address`` in network order (4 or 16 bytes), port."""

    family: int
    address: bytes
    port: int = DNS_PORT

    @property
    def address_text(self) -> str:
        """The address alone, as text."""
        return str(ip_address(self.address))

    def __str__(self) -> str:
        return str(Endpoint(self.address_text, self.port))


def parse_server(text: str, option: str) -> Server:
    """Read ADDR or ADDR:PORT, IPv6 with a port in brackets; the port is 53 if not given.

    Raises UsageError, also for a name, 0.0.0.0, ::, multicast and broadcast.
    """
    host, port = split_port(text, option)
    prefix = unmapped(Prefix(*parse_address(host, option), 128 if ":" in host else 32))
    address = ip_address(prefix.address)
    if address.is_unspecified or address.is_multicast or prefix.address == b"\xff" * 4:
        raise UsageError(f"{option}: not the address of one server: {text!r}")
    return Server(prefix.family, prefix.address, DNS_PORT if port is None else port)


def split_port(text: str, option: str) -> tuple[str, int | None]:
    """Split HOST, HOST:PORT or [IPV6]:PORT into the host, without brackets, and the port.

    A host with a colon is IPv6; the caller checks its syntax. Raises UsageError.
    """
    if not text:
        raise UsageError(f"{option}: empty")
    if len(text) > _MAX_TEXT:
        raise UsageError(f"{option}: longer than {_MAX_TEXT} characters: {text[:32]!r}...")
    if any(c.isspace() or c < " " or "\x7f" <= c <= "\x9f" for c in text):
        raise UsageError(f"{option}: blanks or control characters in {text!r}")
    if "://" in text:
        raise UsageError(f"{option}: give the host name, not a URL: {text!r}")
    if text.startswith("["):
        host, bracket, rest = text[1:].partition("]")
        if not bracket or ":" not in host or not (rest == "" or rest.startswith(":")):
            raise UsageError(f"{option}: not IPv6 in brackets, with or without :PORT: {text!r}")
        return host, _parse_port(rest[1:], text, option) if rest else None
    if text.count(":") > 1:
        if ":" in text.partition("/")[2]:
            raise UsageError(f"{option}: IPv6 with a port is [ADDR/LEN]:PORT, not {text!r}")
        return text, None
    host, colon, rest = text.partition(":")
    return host, _parse_port(rest, text, option) if colon else None


def _parse_port(port: str, text: str, option: str) -> int:
    is_plain = port.isascii() and port.isdigit() and not port.startswith("0") and len(port) <= 5
    if not is_plain or int(port) > 65535:
        raise UsageError(f"{option}: the port of {text!r} is not within 1 to 65535")
    return int(port)
