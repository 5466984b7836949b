# SPDX-License-Identifier: GPL-2.0-only
"""The OPT record (RFC 6891): ours, and which options go from one side of the proxy to the other."""

from __future__ import annotations

from struct import pack
from typing import TYPE_CHECKING

from dns.edns import OptionType
from dns.flags import DO
from dns.rdatatype import OPT

if TYPE_CHECKING:
    from collections.abc import Iterable

    from dns.edns import Option

# What every path carries in one piece: DNS Flag Day 2020, RFC 9715.
PAYLOAD = 1232

# An OPT record concerns one hop, and whoever does not know an option ignores it: what goes on to
# the other side is named here. Not COOKIE, KEEPALIVE and PADDING, which are between two hosts.
_ASKED_ON = frozenset({OptionType.ECS, OptionType.DAU, OptionType.DHU, OptionType.N3U})
_ANSWERED_ON = frozenset({OptionType.ECS})

# With them, the longest name and a header, a message has fewer than 512 bytes.
MOST_OPTIONS = 200

# Extended DNS errors, RFC 8914.
OTHER, BLOCKED, PROHIBITED, NO_REACHABLE_AUTHORITY, NETWORK_ERROR = 0, 15, 18, 22, 23


def opt_record(options: bytes = b"", *, rcode: int = 0, is_dnssec: bool = False) -> bytes:
    """An OPT record with our payload size, and the bits of ``rcode`` that a header has not."""
    flags = int(DO) if is_dnssec else 0
    return pack("!BHHBBHH", 0, OPT, PAYLOAD, rcode >> 4, 0, flags, len(options)) + options


def extended_error(code: int, text: str = "") -> bytes:
    """The option that says why an answer is an error."""
    data = text.encode()
    return pack("!HHH", OptionType.EDE, 2 + len(data), code) + data


def asked_on(options: Iterable[Option]) -> bytes:
    """The options of a question that concern whoever answers it in the end."""
    return _packed(options, _ASKED_ON)


def answered_on(options: Iterable[Option]) -> bytes:
    """The options of an answer that concern whoever asked first."""
    return _packed(options, _ANSWERED_ON)


def errors(options: Iterable[Option]) -> bytes:
    """The extended errors of an answer."""
    return _packed(options, frozenset({OptionType.EDE}))


def _packed(options: Iterable[Option], wanted: frozenset[OptionType]) -> bytes:
    packed = b""
    for option in options:
        if option.otype in wanted:
            data = option.to_wire() or b""
            if len(packed) + 4 + len(data) <= MOST_OPTIONS:
                packed += pack("!HH", option.otype, len(data)) + data
    return packed
