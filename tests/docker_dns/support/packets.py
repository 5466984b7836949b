# SPDX-License-Identifier: GPL-2.0-only
"""Packets by scapy for any addresses and ports; and a check of a packet that was rewritten."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from functools import partial
from random import Random
from typing import TYPE_CHECKING, Any, Protocol

from scapy.layers.inet import (
    IP,
    TCP,
    UDP,
    IPOption_NOP,
    IPOption_Router_Alert,
    IPOption_RR,
    IPOption_Timestamp,
)
from scapy.layers.l2 import Ether

from tests.docker_dns.support.reference import TCP as TCP_NUMBER
from tests.docker_dns.support.reference import UDP as UDP_NUMBER
from tests.docker_dns.support.reference import Ends, parse

if TYPE_CHECKING:
    from scapy.packet import Packet

_OPTIONS: tuple[list[Packet], ...] = (
    [],
    [],
    [],
    [IPOption_NOP()] * 4,
    [IPOption_Router_Alert()],
    [IPOption_RR(routers=["1.2.3.4", "0.0.0.0"]), IPOption_NOP()],
    [IPOption_NOP()] * 40,
    [IPOption_Timestamp(timestamp=7)],
)
_TCP_FLAGS = ("S", "S", "S", "SA", "A", "PA", "FA", "R", "RA", "SEC", "")
_ADDRESSES: tuple[int, ...] = (26, 28, 30, 32)
_NONE = b"\0\0"
_LO = "00:00:00:00:00:00"


class Build(Protocol):
    """Builds the frame of a packet, with correct checksums."""

    def __call__(self, ends: Ends, mss: int = 0) -> bytes:
        """Build it with these ends; for TCP, ``mss`` unless 0 is the value of the first option."""


@dataclass
class Style:
    """The fields of a packet that the programs must leave as they are."""

    ip: dict[str, Any]
    tcp: dict[str, Any]
    is_unsummed: bool = False  # UDP without a checksum
    padding: bytes = b""  # of the frame, behind the packet


PLAIN = Style({}, {"flags": "S"})


def random_style(rng: Random) -> Style:
    """A random style."""
    return Style(
        ip={
            "ttl": rng.choice((0, 1, 64, 255)),
            "tos": rng.randrange(256),
            "id": rng.randrange(65536),
            "flags": rng.choice(("", "DF", "evil")),
            "options": rng.choice(_OPTIONS),
        },
        tcp={
            "flags": rng.choice(_TCP_FLAGS),
            "seq": rng.getrandbits(32),
            "ack": rng.getrandbits(32),
            "urgptr": rng.getrandbits(16),
            "options": rng.choice(([], [("MSS", 65495), ("SAckOK", b"")], [("Timestamp", (1, 2))])),
        },
        is_unsummed=rng.random() < 0.2,
        padding=bytes(rng.choice((0, 0, 0, 1, 18))),
    )


def _transport(protocol: int, ends: Ends, payload: bytes, style: Style, mss: int = 0) -> Packet:
    ports: dict[str, Any] = {"sport": ends.source_port, "dport": ends.destination_port}
    if protocol == TCP_NUMBER:
        tcp = dict(style.tcp)
        if mss:
            tcp["options"] = [("MSS", mss), *tcp["options"][1:]]
        return TCP(**ports, **tcp) / payload
    return UDP(**ports, chksum=0 if style.is_unsummed else None) / payload


def whole(protocol: int, payload: bytes, style: Style = PLAIN) -> Build:
    """A packet that is not fragmented."""

    def build(ends: Ends, mss: int = 0) -> bytes:
        ip = IP(src=str(ends.source), dst=str(ends.destination), **style.ip)
        frame = Ether(src=_LO, dst=_LO) / ip / _transport(protocol, ends, payload, style, mss)
        return bytes(frame) + style.padding

    return build


def fragments(
    protocol: int, payload: bytes, ends: Ends, cuts: list[int], style: Style = PLAIN
) -> list[Build]:
    """A datagram in fragments, cut at these offsets, in units of 8 bytes of the IP payload."""
    starts = [0, *cuts]

    def build(number: int, now: Ends, mss: int = 0) -> bytes:
        # The first fragment has the checksum of the whole datagram.
        of = now if number == 0 else ends
        ip = IP(src=str(of.source), dst=str(of.destination), **style.ip)
        datagram = bytes(ip / _transport(protocol, of, payload, style, mss))
        carried = datagram[(datagram[0] & 15) * 4 :]
        is_last = number == len(cuts)
        piece = carried[starts[number] * 8 : None if is_last else starts[number + 1] * 8]
        header = IP(src=str(now.source), dst=str(now.destination), proto=protocol, **style.ip)
        header.frag, header.flags = starts[number], 0 if is_last else "MF"
        return bytes(Ether(src=_LO, dst=_LO) / header / piece) + style.padding

    return [partial(build, number) for number in range(len(starts))]


def is_rewritten(before: bytes, after: bytes, ends: Ends, mss: int) -> bool:
    """Whether a packet, malformed or not, has these ends now and is unchanged otherwise.

    ``mss``: the segment size that it offers now, unless it is 0.

    A checksum that is wrong stays wrong by as much: with the words that it covers it adds up
    to what it did (RFC 1624). A UDP checksum of none stays none, and no other becomes none.
    """
    packet = parse(before)
    assert packet is not None
    expected = bytearray(before)
    expected[26:34] = ends.source.packed + ends.destination.packed
    # Offset of a checksum: the words that it covers, of those that change.
    covered = {24: _ADDRESSES}
    if not packet.is_later:
        transport = 14 + (before[14] & 15) * 4
        expected[transport : transport + 4] = struct.pack("!HH", *ends[2:])
        # The value of the first option.
        sizes = (transport + 22,) if mss else ()
        if mss:
            expected[transport + 22 : transport + 24] = mss.to_bytes(2, "big")
        is_udp = packet.protocol == UDP_NUMBER
        checksum = transport + (6 if is_udp else 16)
        if not is_udp or before[checksum : checksum + 2] != _NONE:
            covered[checksum] = (*_ADDRESSES, transport, transport + 2, *sizes)
            if is_udp and after[checksum : checksum + 2] == _NONE:
                return False
    for place in covered:
        expected[place : place + 2] = after[place : place + 2]
    return bytes(expected) == after and all(
        _sum(before, (place, *words)) == _sum(after, (place, *words))
        for place, words in covered.items()
    )


def _sum(frame: bytes, places: tuple[int, ...]) -> int:
    return sum(int.from_bytes(frame[place : place + 2], "big") for place in places) % 0xFFFF
