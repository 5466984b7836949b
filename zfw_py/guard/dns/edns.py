# SPDX-License-Identifier: GPL-2.0-only
"""Builds OPT records (RFC 6891), and selects the options that the proxy forwards. Pure."""

from __future__ import annotations

from struct import pack
from typing import TYPE_CHECKING

from dns.edns import OptionType
from dns.flags import DO
from dns.rdatatype import OPT

if TYPE_CHECKING:
    from collections.abc import Iterable

    from dns.edns import Option

# A datagram that no path fragments: DNS Flag Day 2020, RFC 9715.
PAYLOAD = 1232

# An OPT record concerns one hop, so the options to forward are listed here. COOKIE, KEEPALIVE and
# PADDING are not among them: they are between two hosts.
_QUERY_OPTIONS = frozenset({OptionType.ECS, OptionType.DAU, OptionType.DHU, OptionType.N3U})
_ANSWER_OPTIONS = frozenset({OptionType.ECS})

# Bytes. With so many, the longest name and a header, a message still has fewer than 512 bytes.
MOST_OPTIONS = 200

# Extended DNS errors, RFC 8914.
OTHER, BLOCKED, PROHIBITED, NO_REACHABLE_AUTHORITY, NETWORK_ERROR = 0, 15, 18, 22, 23


def opt_record(options: bytes = b"", *, rcode: int = 0, is_dnssec: bool = False) -> bytes:
    """An OPT record with our payload size, and the bits of ``rcode`` that do not fit the header."""
    flags = int(DO) if is_dnssec else 0
    return pack("!BHHBBHH", 0, OPT, PAYLOAD, rcode >> 4, 0, flags, len(options)) + options


def extended_error(code: int, text: str = "") -> bytes:
    """The option that explains an error (RFC 8914)."""
    data = text.encode()
    return pack("!HHH", OptionType.EDE, 2 + len(data), code) + data


def query_options(options: Iterable[Option]) -> bytes:
    """The options of a query to forward upstream."""
    return _packed(options, _QUERY_OPTIONS)


def answer_options(options: Iterable[Option]) -> bytes:
    """The options of an answer to forward to the client."""
    return _packed(options, _ANSWER_OPTIONS)


def errors(options: Iterable[Option]) -> bytes:
    """The extended errors in an answer's options."""
    return _packed(options, frozenset({OptionType.EDE}))


def _packed(options: Iterable[Option], wanted: frozenset[OptionType]) -> bytes:
    packed = b""
    for option in options:
        if option.otype in wanted:
            data = option.to_wire() or b""
            if len(packed) + 4 + len(data) <= MOST_OPTIONS:
                packed += pack("!HH", option.otype, len(data)) + data
    return packed
