# SPDX-License-Identifier: GPL-2.0-only
"""What steer's maps hold, as bytes and as values. Pure.

Addresses are 16 bytes in network order, IPv4 as ::ffff:a.b.c.d. A protocol is
IPPROTO_TCP or IPPROTO_UDP, a family 4 or 6.
"""

from __future__ import annotations

from struct import Struct
from typing import TYPE_CHECKING, NamedTuple

from zfw_py.steer import layout

if TYPE_CHECKING:
    from collections.abc import Sequence

IPPROTO_TCP, IPPROTO_UDP = 6, 17
PROTOCOLS = (IPPROTO_TCP, IPPROTO_UDP)
# What precedes the address in a mapping's key, and an IPv4 address in an address: bits.
_FIXED_BITS, _MAPPED_BITS = 64, 96

_u32 = Struct("=I")
_u64 = Struct("=Q")
_config = Struct(layout.CONFIG)
_mapping_key = Struct(layout.MAPPING_KEY)
_mapping = Struct(layout.MAPPING)
_segments = Struct(f"={layout.SEGMENT_PORTS}H")
_address = Struct(layout.ADDRESS)
_socket_key = Struct(layout.SOCKET_KEY)
_listener = Struct(layout.LISTENER)
_slot = Struct(layout.SLOT)
_counter = Struct(layout.COUNTER)
_event = Struct(layout.EVENT)

ZERO = _u32.pack(0)


def number_key(number: int) -> bytes:
    """Key of an array, of a target, of a mapping's counter; and the value of target_ids."""
    return _u32.pack(number)


def number_of(data: bytes) -> int:
    """The inverse."""
    (number,) = _u32.unpack(data)
    return int(number)


def cookie_key(cookie: int) -> bytes:
    """Key of a listener; what the program ``forget`` is asked."""
    return _u64.pack(cookie)


def cookie_of(data: bytes) -> int:
    """The inverse; also of what a look-up in ``sockets`` gives."""
    (cookie,) = _u64.unpack(data)
    return int(cookie)


class Config(NamedTuple):
    """What the programs go by: ``flags`` is TELL_ALL or 0."""

    netns_cookie: int
    abi_version: int
    flags: int

    def encode(self) -> bytes:
        """As the map has it."""
        return _config.pack(*self)

    @classmethod
    def decode(cls, data: bytes) -> Config:
        """The inverse."""
        return cls(*_config.unpack(data))


# Mappings


def class_bit(mapping_class: int, family: int, protocol: int) -> int:
    """The bit in ``Active.classes`` without which a look-up is not made."""
    group = (family == 6) + 2 * (protocol == IPPROTO_UDP)
    return 1 << (mapping_class + layout.CLASSES * group)


class Active(NamedTuple):
    """Which table is in use, and which look-ups can find anything in it."""

    table: int
    classes: int

    def encode(self) -> bytes:
        """As the map has it."""
        return _u64.pack(self.classes << 32 | self.table)

    @classmethod
    def decode(cls, data: bytes) -> Active:
        """The inverse."""
        (word,) = _u64.unpack(data)
        return cls(word & 0xFFFFFFFF, word >> 32)


class MappingKey(NamedTuple):
    """Key of a table. ``length`` is the prefix's as users know it: up to 32 or 128.

    ``port`` by ``mapping_class``: the port, the segment's number, or 0.
    """

    protocol: int
    family: int
    mapping_class: int
    port: int
    address: bytes
    length: int

    def encode(self) -> bytes:
        """As the map has it; the bits of the address beyond the length have to be 0."""
        bits = _FIXED_BITS + self.length + (_MAPPED_BITS if self.family == 4 else 0)
        return _mapping_key.pack(
            bits, self.protocol, self.family, self.port, self.mapping_class, self.address
        )

    @classmethod
    def decode(cls, data: bytes) -> MappingKey:
        """The inverse."""
        bits, protocol, family, port, mapping_class, address = _mapping_key.unpack(data)
        length = bits - _FIXED_BITS - (_MAPPED_BITS if family == 4 else 0)
        return cls(protocol, family, mapping_class, port, address, length)


class Mapping(NamedTuple):
    """Value of a table: ``flags`` are of OVERRIDE and FALLTHROUGH, ``id`` is its counter's."""

    id: int
    target: int
    flags: int

    def encode(self) -> bytes:
        """As the map has it."""
        return _mapping.pack(*self)

    @classmethod
    def decode(cls, data: bytes) -> Mapping:
        """The inverse."""
        return cls(*_mapping.unpack(data))


def segment_elements(
    table: int, protocol: int, segments: Sequence[int]
) -> tuple[list[bytes], list[bytes]]:
    """Keys and values that say of all 65,536 ports of a protocol which segment they are in."""
    first = (table * 2 + (protocol == IPPROTO_UDP)) * layout.SEGMENT_ELEMENTS
    step = layout.SEGMENT_PORTS
    return (
        [_u32.pack(first + number) for number in range(layout.SEGMENT_ELEMENTS)],
        [_segments.pack(*segments[start : start + step]) for start in range(0, 1 << 16, step)],
    )


# Sockets


class Address(NamedTuple):
    """What a socket is bound to; ``ifindex`` of its device or 0, always 0 in ``target_ids``."""

    address: bytes
    ifindex: int
    port: int
    protocol: int

    def encode(self) -> bytes:
        """As the maps have it: key of ``target_ids`` and ``listeners``."""
        return _address.pack(*self)

    @classmethod
    def decode(cls, data: bytes) -> Address:
        """The inverse."""
        return cls(*_address.unpack(data))


def socket_key(target: int, slot: int) -> bytes:
    """Key of ``sockets``."""
    return _socket_key.pack(target, slot)


def slots_newest_first(taken: int) -> list[int]:
    """A target's slots, the one that was taken last first; ``taken`` is its element."""
    return [(taken - 1 - age) % layout.TARGET_SOCKETS for age in range(layout.TARGET_SOCKETS)]


def slot_request(target: int) -> bytes:
    """What the program ``take_slot`` is asked."""
    return _slot.pack(target, 0)


def slot_of(answer: bytes) -> int:
    """What it answers."""
    _, slot = _slot.unpack(answer)
    return int(slot)


class Listener(NamedTuple):
    """A socket that listens, or a bound one of UDP. ``pid`` 0: it did before we looked."""

    at: Address
    pid: int
    family: int  # of the socket
    is_exact: bool
    is_mptcp: bool  # never adopted: no map of sockets takes it
    command: str

    @classmethod
    def decode(cls, data: bytes) -> Listener:
        """From what the map has."""
        at, pid, family, is_exact, is_mptcp, command = _listener.unpack(data)
        return cls(Address.decode(at), pid, family, bool(is_exact), bool(is_mptcp), _text(command))


class Event(NamedTuple):
    """A listener that came or left. ``time`` is CLOCK_MONOTONIC in nanoseconds."""

    time: int
    cookie: int
    listener: Listener
    target: int | None
    kind: str  # of KINDS
    is_adopted: bool

    @classmethod
    def decode(cls, data: bytes) -> Event:
        """From a record of the ring buffer."""
        time, cookie, listener, target, kind, is_adopted = _event.unpack_from(data)
        return cls(
            time,
            cookie,
            Listener.decode(listener),
            None if target == layout.NO_TARGET else target,
            layout.KINDS[kind],
            bool(is_adopted),
        )


# Counts


class Counter(NamedTuple):
    """Of a mapping: how often it was the one, and how often that did not lead to its target."""

    lookups: int
    kept: int  # a listener on exactly that address and port took it
    no_socket: int  # refused, or left to the kernel's look-up

    @classmethod
    def total(cls, per_cpu: bytes) -> Counter:
        """The sum over all CPUs."""
        return cls(*map(sum, zip(*_counter.iter_unpack(per_cpu), strict=True)))


def trouble_counts(per_cpu: Sequence[bytes]) -> dict[str, int]:
    """By trouble how often it occurred, of those that did; ``per_cpu`` has all values in order."""
    totals = (sum(value for (value,) in _u64.iter_unpack(data)) for data in per_cpu)
    return {name: total for name, total in zip(layout.TROUBLES, totals, strict=True) if total}


def _text(command: bytes) -> str:
    return command.partition(b"\0")[0].decode("utf-8", "backslashreplace")
