# SPDX-License-Identifier: GPL-2.0-only
"""Random packets of a guarded socket: to the edges of its rules, and many malformed ones."""

from __future__ import annotations

import struct
from ipaddress import IPv4Address, IPv6Address
from typing import TYPE_CHECKING, NamedTuple

from tests.firewall.support.packets import (
    extension,
    fragment_header,
    icmp,
    ipv4,
    ipv6,
    mapped,
    tcp,
    udp,
)
from tests.firewall.support.reference import (
    AUTHENTICATION,
    DESTINATION_OPTIONS,
    ETHERTYPE_ARP,
    ETHERTYPE_IPV4,
    ETHERTYPE_IPV6,
    FRAGMENT,
    HOP_BY_HOP,
    ROUTING,
)
from tests.firewall.support.tracked import ICMP, ICMPV6, TCP, UDP
from tests.guard.support.rules import edge

if TYPE_CHECKING:
    from random import Random

    from tests.firewall.support.reference import Address
    from tests.guard.support.reference import Rules

_SOURCES: dict[int, tuple[Address, ...]] = {
    4: (IPv4Address("10.9.0.2"), IPv4Address("127.0.0.1")),
    6: (IPv6Address("fd09::2"), IPv6Address("::1")),
}
# Protocols without ports for the guard: it does not read those of SCTP, UDP-Lite and DCCP.
_OTHERS = (2, 4, 33, 41, 47, 50, 51, 59, 89, 132, 135, 136, 139, 253)
_MAX_OPTIONS = 40


class Leaving(NamedTuple):
    """A packet, and the protocol and destination of its socket."""

    ethertype: int
    packet: bytes


def random_packet(rng: Random, rules: Rules) -> Leaving:
    """A packet; manifest one of three is malformed or unusual."""
    destination, port = edge(rng, rules)
    if destination.version == 4 and rng.random() < 0.03:
        destination = mapped(destination)
    if rng.random() < 0.08:
        port = 53
    elif rng.random() < 0.02:
        port = 0
    protocol, payload = _transport(rng, destination.version, port)
    ends = (_source(rng, rules, destination), destination)
    is_odd = rng.random() < 0.35
    if destination.version == 4:
        made = Leaving(ETHERTYPE_IPV4, _ipv4(rng, ends, protocol, payload, is_odd))
    else:
        made = Leaving(ETHERTYPE_IPV6, _ipv6(rng, ends, protocol, payload, is_odd))
    if rng.random() < 0.08:
        made = made._replace(packet=_spoilt(rng, made))
    if rng.random() < 0.05:
        # Bytes after the length that the header says.
        made = made._replace(packet=made.packet + rng.randbytes(rng.randrange(1, 30)))
    if rng.random() < 0.005:
        made = made._replace(ethertype=rng.choice((ETHERTYPE_IPV4, ETHERTYPE_IPV6, ETHERTYPE_ARP)))
    return made


def _source(rng: Random, rules: Rules, destination: Address) -> Address:
    """A source: an address of this host, the destination, or an address of a rule."""
    draw = rng.random()
    if draw < 0.6:
        return rng.choice(_SOURCES[destination.version])
    if draw < 0.65:
        return destination
    while (source := edge(rng, rules)[0]).version != destination.version or not int(source):
        pass
    if source.version == 6 and rng.random() < 0.05:
        return mapped(_SOURCES[4][0])
    return source


def _transport(rng: Random, version: int, port: int) -> tuple[int, bytes]:
    draw = rng.random()
    source_port = rng.randint(1024, 65535)
    if draw < 0.75:
        protocol = rng.choice((TCP, UDP))
        data = bytes(rng.choice((0, 0, 1, 40, 200)))
        if protocol == TCP:
            segment = tcp(source_port, port, rng.choice((2, 16, 24, 17, 0)), data)
        else:
            segment = udp(source_port, port, data)
        if rng.random() < 0.06:
            segment = segment[: rng.choice((0, 1, 3, 4, 7, 8, 12, 19, 20))]
        return protocol, segment
    if draw < 0.87:
        echo = icmp(8 if version == 4 else 128, payload=bytes(rng.randrange(60)))
        is_own = rng.random() < 0.9
        return (ICMP if is_own == (version == 4) else ICMPV6), echo
    # Payload that looks like a transport header with a port.
    return rng.choice(_OTHERS), udp(source_port, port, rng.randbytes(rng.randrange(40)))


# IPv4


def _option(rng: Random) -> bytes:
    """An option: a known one (RFC 791, RFC 1108, RFC 2113), or a malformed one."""
    draw = rng.random()
    if draw < 0.25:
        return b"\x01"
    if draw < 0.35:
        return b"\0"
    kind = rng.choice((7, 68, 130, 148, 136, 94, rng.randrange(2, 256)))
    if draw < 0.5:
        kind = rng.choice((131, 137))
    length = rng.choice((2, 3, 4, 7, 8, 11))
    if draw > 0.9:
        # A length that is too small to advance, or too large.
        return bytes((kind, rng.choice((0, 1, 2, 38, 40, 41, 63, 64, 200, 255))))
    return bytes((kind, length)) + rng.randbytes(length - 2)


def _options(rng: Random) -> bytes:
    made = b"".join(_option(rng) for _ in range(rng.choice((1, 1, 2, 3, 5, 40))))
    made = made[:_MAX_OPTIONS]
    # Padded by End of Option List, or cut in the middle of an option.
    if rng.random() < 0.8:
        return made + bytes(-len(made) % 4)
    return made[: len(made) // 4 * 4]


def _fragment_offset(rng: Random) -> int:
    return rng.choice((1, 2, 185, 8191))


def _ipv4(
    rng: Random, ends: tuple[Address, Address], protocol: int, payload: bytes, is_odd: bool
) -> bytes:
    options, fragment = b"", rng.choice((0, 0x4000))
    if is_odd and rng.random() < 0.7:
        options = _options(rng)
    if is_odd and rng.random() < 0.5:
        offset = _fragment_offset(rng)
        fragment = rng.choice((0x2000, offset, 0x2000 | offset)) | rng.choice((0, 0x4000, 0x8000))
    return ipv4(*ends, protocol, payload, options=options, fragment=fragment)


# IPv6


def _routing(rng: Random, next_header: int) -> bytes:
    """A routing header: type 0 (RFC 5095), 2 (mobile), 3 (RPL), 4 (segments), 253 (experiments)."""
    units = rng.choice((0, 2, 2, 4))
    left = rng.choice((0, 1, 2, 255))
    kind = rng.choice((0, 2, 3, 4, 253))
    return struct.pack("!BBBBI", next_header, units, kind, left, 0) + bytes(8 * units)


def _headers(rng: Random, protocol: int, payload: bytes) -> tuple[int, bytes]:
    """Put a chain of extension headers before a payload: eight at most, or more."""
    kinds = [
        rng.choice((HOP_BY_HOP, ROUTING, DESTINATION_OPTIONS, AUTHENTICATION))
        for _ in range(rng.choice((0, 1, 1, 2, 3, 7, 8, 9, 12)))
    ]
    if rng.random() < 0.6:
        kinds.insert(rng.randrange(len(kinds) + 1), FRAGMENT)
        if rng.random() < 0.08:
            kinds.insert(rng.randrange(len(kinds) + 1), FRAGMENT)
    for kind in kinds:
        if kind == FRAGMENT:
            offset = rng.choice((0, 0, 0, _fragment_offset(rng)))
            header = fragment_header(protocol, offset, rng.random() < 0.5, rng.randrange(4))
        elif kind == ROUTING and rng.random() < 0.4:
            header = _routing(rng, protocol)
        else:
            units = rng.choice((1, 2, 20, 60, 200)) if rng.random() < 0.06 else 0
            header = extension(kind, protocol, units)
        if len(header) + len(payload) < 2500:
            protocol, payload = kind, header + payload
    return protocol, payload


def _ipv6(
    rng: Random, ends: tuple[Address, Address], protocol: int, payload: bytes, is_odd: bool
) -> bytes:
    if is_odd:
        protocol, payload = _headers(rng, protocol, payload)
    return ipv6(*ends, protocol, payload)


def _spoilt(rng: Random, made: Leaving) -> bytes:
    """Damage a packet: truncate it, or change a length, its version or a bit."""
    packet = bytearray(made.packet)
    draw = rng.random()
    at = 2 if made.ethertype == ETHERTYPE_IPV4 else 4  # the total, or the payload length
    if draw < 0.3:
        return bytes(packet[: rng.randrange(len(packet))])
    if draw < 0.5:
        length = int.from_bytes(packet[at : at + 2], "big") + rng.choice((-30, -9, -8, -1, 1, 8))
        packet[at : at + 2] = (length & 0xFFFF).to_bytes(2, "big")
    elif draw < 0.65:
        packet[at : at + 2] = rng.choice((0, 1, 19, 20, 28, 40, 65535)).to_bytes(2, "big")
    elif draw < 0.8:
        packet[0] = rng.choice((0x40, 0x44, 0x45, 0x46, 0x4F, 0x60, 0x55, 0x05, 0x00, 0xF5))
    else:
        place = rng.randrange(min(len(packet), 100))
        packet[place] ^= 1 << rng.randrange(8)
    return bytes(packet)
