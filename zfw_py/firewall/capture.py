# SPDX-License-Identifier: GPL-2.0-only
"""Reads packets of a capture file, pcap or pcapng, one after the other.

The formats are those of draft-ietf-opsawg-pcap and draft-ietf-opsawg-pcapng. Any byte may be
forged: each length is compared with a bound before so much is read, and no more than one packet
is in memory.
"""

from __future__ import annotations

from typing import IO, TYPE_CHECKING, Literal, NamedTuple

from zfw_py.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator

_Order = Literal["little", "big"]

# No program writes longer ones: tcpdump's and Wireshark's greatest length of a packet.
MOST_BYTES = 262_144
# A block has a packet and options, or the names of a few hosts.
_MOST_BLOCK = 1 << 20
_MOST_INTERFACES = 4096

# The first four bytes of a pcap: order, and parts of a second.
_PCAP: dict[bytes, tuple[_Order, int]] = {
    b"\xa1\xb2\xc3\xd4": ("big", 10**6),
    b"\xd4\xc3\xb2\xa1": ("little", 10**6),
    b"\xa1\xb2\x3c\x4d": ("big", 10**9),
    b"\x4d\x3c\xb2\xa1": ("little", 10**9),
}
_SECTION = b"\x0a\x0d\x0d\x0a"
_ORDERS: dict[bytes, _Order] = {b"\x1a\x2b\x3c\x4d": "big", b"\x4d\x3c\x2b\x1a": "little"}
_INTERFACE_BLOCK, _OLD_PACKET, _SIMPLE_PACKET, _PACKET = 1, 2, 3, 6
_OPTION_NAME, _OPTION_RESOLUTION = 2, 9

# Link types: https://www.ietf.org/archive/id/draft-ietf-opsawg-pcaplinktype
ETHERNET = 1
_NULL, _LOOP = 0, 108
_RAW = (12, 14, 101, 228, 229)
_COOKED, _COOKED_2 = 113, 276
_IPV4, _IPV6 = b"\x08\x00", b"\x86\xdd"
_ADDRESSES = bytes.fromhex("020000000001020000000002")


class Captured(NamedTuple):
    """A packet of a capture.

    ``number`` counts from 1, ``time`` is in seconds since 1970. ``data`` are the bytes that were
    captured of the packet's ``length``. ``interface`` is the name in the capture, if it has one.
    """

    number: int
    time: float
    link_type: int
    data: bytes
    length: int
    interface: str | None


class _Interface(NamedTuple):
    link_type: int
    snap_length: int
    units: int  # of time in a second
    name: str | None


def read(file: IO[bytes], name: str) -> Iterator[Captured]:
    """The packets of an open file. Raises UsageError, which begins with the file's name.

    Packets before a fault are yielded.
    """
    try:
        magic = file.read(4)
        if magic == _SECTION:
            yield from _read_pcapng(file)
        elif magic in _PCAP:
            yield from _read_pcap(file, *_PCAP[magic])
        else:
            raise _Fault("neither a pcap nor a pcapng file")
    except _Fault as fault:
        raise UsageError(f"{name}: {fault}") from None


def frame_of(captured: Captured) -> bytes:
    """The packet with an Ethernet header. Raises UsageError for a link type without IP."""
    data, kind = captured.data, captured.link_type
    if kind == ETHERNET:
        return data
    if kind in _RAW:
        return _ADDRESSES + (_IPV6 if data[:1] and data[0] >> 4 == 6 else _IPV4) + data
    if kind == _COOKED:
        return _ADDRESSES + data[14:16].ljust(2, b"\0") + data[16:]
    if kind == _COOKED_2:
        return _ADDRESSES + data[:2].ljust(2, b"\0") + data[20:]
    if kind in (_NULL, _LOOP):
        is_ipv6 = data[4:5] and data[4] >> 4 == 6
        return _ADDRESSES + (_IPV6 if is_ipv6 else _IPV4) + data[4:]
    raise UsageError(f"packet {captured.number}: link type {kind} is none that zfw reads")


class _Fault(Exception):
    """What is wrong with the file."""


def _take(file: IO[bytes], count: int, what: str) -> bytes:
    data = file.read(count)
    if len(data) < count:
        raise _Fault(f"it ends within {what}")
    return data


def _check_length(captured: int, number: int) -> None:
    if captured > MOST_BYTES:
        raise _Fault(f"packet {number} has {captured} bytes, more than {MOST_BYTES}")


# pcap


def _read_pcap(file: IO[bytes], order: _Order, units: int) -> Iterator[Captured]:
    header = _take(file, 20, "its header")
    link_type = int.from_bytes(header[16:20], order) & 0xFFFF
    number = 0
    while head := file.read(16):
        number += 1
        if len(head) < 16:
            raise _Fault(f"it ends within packet {number}")
        seconds, parts, size, length = (
            int.from_bytes(head[at : at + 4], order) for at in (0, 4, 8, 12)
        )
        _check_length(size, number)
        data = _take(file, size, f"packet {number}")
        yield Captured(number, seconds + parts / units, link_type, data, max(length, size), None)


# pcapng


def _read_pcapng(file: IO[bytes]) -> Iterator[Captured]:
    kind, number = _SECTION, 0
    order: _Order = "little"
    interfaces: list[_Interface] = []
    while kind:
        size_bytes = _take(file, 4, "a block")
        if kind == _SECTION:
            magic = _take(file, 4, "a section header")
            if magic not in _ORDERS:
                raise _Fault("a section header without a byte order")
            order, interfaces = _ORDERS[magic], []
            body = magic + _block(file, int.from_bytes(size_bytes, order), order, 16)
        else:
            body = _block(file, int.from_bytes(size_bytes, order), order, 12)
        block = int.from_bytes(kind, order)
        if block == _INTERFACE_BLOCK:
            if len(interfaces) == _MOST_INTERFACES:
                raise _Fault(f"more than {_MOST_INTERFACES} interfaces")
            interfaces.append(_read_interface(body, order))
        elif block in (_PACKET, _OLD_PACKET, _SIMPLE_PACKET):
            number += 1
            yield _read_packet(block, body, order, interfaces, number)
        kind = file.read(4)
        if kind and len(kind) < 4:
            raise _Fault("it ends within a block")


def _block(file: IO[bytes], size: int, order: _Order, begun: int) -> bytes:
    """The rest of a block of so many bytes, of which ``begun`` are its frame or were read."""
    if size < begun or size % 4:
        raise _Fault(f"a block of {size} bytes")
    if size > _MOST_BLOCK:
        raise _Fault(f"a block of {size} bytes, more than {_MOST_BLOCK}")
    body = _take(file, size - begun, "a block")
    if int.from_bytes(_take(file, 4, "a block"), order) != size:
        raise _Fault("a block with two lengths")
    return body


def _read_interface(body: bytes, order: _Order) -> _Interface:
    if len(body) < 8:
        raise _Fault("an interface without a link type")
    units, name = 10**6, None
    for option, value in _options(body[8:], order):
        if option == _OPTION_NAME:
            name = value.rstrip(b"\0").decode("utf-8", "surrogateescape")
        elif option == _OPTION_RESOLUTION and value:
            base, exponent = (2, value[0] & 0x7F) if value[0] & 0x80 else (10, value[0])
            # A float has no more digits than this.
            if exponent > 60:
                raise _Fault("an interface with an impossible resolution of time")
            units = base**exponent
    link_type = int.from_bytes(body[:2], order)
    return _Interface(link_type, int.from_bytes(body[4:8], order), units, name)


def _options(data: bytes, order: _Order) -> Iterator[tuple[int, bytes]]:
    while len(data) >= 4:
        option, length = (int.from_bytes(data[at : at + 2], order) for at in (0, 2))
        if option == 0:
            return
        yield option, data[4 : 4 + length]
        data = data[4 + (length + 3 & ~3) :]


def _read_packet(
    block: int, body: bytes, order: _Order, interfaces: list[_Interface], number: int
) -> Captured:
    def word(at: int, size: int = 4) -> int:
        return int.from_bytes(body[at : at + size], order)

    start = 4 if block == _SIMPLE_PACKET else 20
    if len(body) < start:
        raise _Fault(f"packet {number} has no header")
    index = 0 if block == _SIMPLE_PACKET else word(0, 2 if block == _OLD_PACKET else 4)
    if index >= len(interfaces):
        raise _Fault(f"packet {number} is of interface {index}, which is not described")
    interface = interfaces[index]
    if block == _SIMPLE_PACKET:
        length, time = word(0), 0.0
        size = min(length, interface.snap_length or length, len(body) - start)
    else:
        size, length = word(12), word(16)
        time = (word(4) << 32 | word(8)) / interface.units
    _check_length(size, number)
    if size > len(body) - start:
        raise _Fault(f"packet {number} is longer than its block")
    data = body[start : start + size]
    return Captured(number, time, interface.link_type, data, max(length, size), interface.name)
