# SPDX-License-Identifier: GPL-2.0-only
"""Encodes and decodes the elements of steer's maps. Pure.

An address is 16 bytes in network order, IPv4 as ::ffff:a.b.c.d, a port a number in host
order. A protocol is IPPROTO_TCP or IPPROTO_UDP, a family 4 or 6.
"""

from __future__ import annotations

from struct import Struct
from typing import TYPE_CHECKING, NamedTuple

from zfw_py.steer import layout

if TYPE_CHECKING:
    from collections.abc import Sequence

IPPROTO_TCP, IPPROTO_UDP = 6, 17
PROTOCOLS = (IPPROTO_TCP, IPPROTO_UDP)
# How many bits precede the address in a mapping's key, and an IPv4 address in 16 bytes.
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
    """Key of an array, of a destination, of a mapping's counter; and value of ``target_ids``."""
    return _u32.pack(number)


def number_of(data: bytes) -> int:
    """The inverse of ``number_key``."""
    (number,) = _u32.unpack(data)
    return int(number)


def cookie_key(cookie: int) -> bytes:
    """Key of ``listening``, and argument of the program ``forget``."""
    return _u64.pack(cookie)


def cookie_of(data: bytes) -> int:
    """The inverse of ``cookie_key``; also decodes a value of ``sockets``."""
    (cookie,) = _u64.unpack(data)
    return int(cookie)


class Config(NamedTuple):
    """The settings of the programs: ``flags`` is TELL_ALL or 0."""

    netns_cookie: int
    abi_version: int
    flags: int

    def encode(self) -> bytes:
        """The bytes of the map element."""
        return _config.pack(*self)

    @classmethod
    def decode(cls, data: bytes) -> Config:
        """From the bytes of the map element."""
        return cls(*_config.unpack(data))


# Mappings


def class_bit(mapping_class: int, family: int, protocol: int) -> int:
    """The bit in ``Active.classes``; the program skips a look-up whose bit is 0."""
    group = (family == 6) + 2 * (protocol == IPPROTO_UDP)
    return 1 << (mapping_class + layout.CLASSES * group)


class Active(NamedTuple):
    """The word ``active``: the number of the table in use, and the bits of ``class_bit``."""

    table: int
    classes: int

    def encode(self) -> bytes:
        """The bytes of the map element."""
        return _u64.pack(self.classes << 32 | self.table)

    @classmethod
    def decode(cls, data: bytes) -> Active:
        """From the bytes of the map element."""
        (word,) = _u64.unpack(data)
        return cls(word & 0xFFFFFFFF, word >> 32)


class MappingKey(NamedTuple):
    """Key of a table. ``length``: of the prefix, up to 32 for IPv4 or 128 for IPv6.

    ``port``: the port, the number of the segment, or 0, depending on ``mapping_class``.
    """

    protocol: int
    family: int
    mapping_class: int
    port: int
    address: bytes
    length: int

    def encode(self) -> bytes:
        """The bytes of the map key; the bits of the address beyond the length must be 0."""
        bits = _FIXED_BITS + self.length + (_MAPPED_BITS if self.family == 4 else 0)
        return _mapping_key.pack(
            bits, self.protocol, self.family, self.port, self.mapping_class, self.address
        )


class Mapping(NamedTuple):
    """Value of a table: key of its counter, number of its destination, OVERRIDE | FALLTHROUGH."""

    id: int
    target: int
    flags: int

    def encode(self) -> bytes:
        """The bytes of the map element."""
        return _mapping.pack(*self)


def segment_elements(
    table: int, protocol: int, segments: Sequence[int]
) -> tuple[list[bytes], list[bytes]]:
    """Keys and values of ``segments`` for one protocol; ``segments`` has a number for each port."""
    first = (table * 2 + (protocol == IPPROTO_UDP)) * layout.SEGMENT_ELEMENTS
    step = layout.SEGMENT_PORTS
    return (
        [_u32.pack(first + number) for number in range(layout.SEGMENT_ELEMENTS)],
        [_segments.pack(*segments[start : start + step]) for start in range(0, 1 << 16, step)],
    )


# Sockets


class Address(NamedTuple):
    """What a socket is bound to. ``ifindex``: of its device or 0; always 0 in ``target_ids``."""

    address: bytes
    ifindex: int
    port: int
    protocol: int

    def encode(self) -> bytes:
        """The key of ``target_ids`` and ``listeners``."""
        return _address.pack(*self)

    @classmethod
    def decode(cls, data: bytes) -> Address:
        """From the bytes of the map element."""
        return cls(*_address.unpack(data))


def socket_key(target: int, slot: int) -> bytes:
    """Key of ``sockets``."""
    return _socket_key.pack(target, slot)


def slots_newest_first(taken: int) -> list[int]:
    """The slots of a destination, the newest first. ``taken``: how many it was given so far."""
    return [(taken - 1 - age) % layout.TARGET_SOCKETS for age in range(layout.TARGET_SOCKETS)]


def slot_request(target: int) -> bytes:
    """The argument of the program ``take_slot``."""
    return _slot.pack(target, 0)


def slot_of(answer: bytes) -> int:
    """The slot in the answer of ``take_slot``."""
    _, slot = _slot.unpack(answer)
    return int(slot)


class Listener(NamedTuple):
    """A TCP socket that listens, or a bound UDP socket. ``pid`` 0: older than the programs."""

    at: Address
    pid: int
    family: int  # of the socket
    is_exact: bool
    is_mptcp: bool  # never adopted: a SOCKHASH cannot hold it
    command: str

    @classmethod
    def decode(cls, data: bytes) -> Listener:
        """From a value of ``listening``."""
        at, pid, family, is_exact, is_mptcp, command = _listener.unpack(data)
        return cls(Address.decode(at), pid, family, bool(is_exact), bool(is_mptcp), _text(command))


class Event(NamedTuple):
    """The begin or end of a listener. ``time``: CLOCK_MONOTONIC in nanoseconds."""

    time: int
    cookie: int
    listener: Listener
    target: int | None
    kind: str  # of KINDS
    is_adopted: bool

    @classmethod
    def decode(cls, data: bytes) -> Event:
        """From a record of the ring buffer ``events``."""
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
    """Counters of one mapping.

    ``lookups``: times it was the best match. ``kept_by_listener``: times a listener on exactly
    that address and port kept the packet. ``no_socket``: times its target had no socket, so
    that the packet was refused, or left to the kernel's look-up.
    """

    lookups: int
    kept_by_listener: int
    no_socket: int

    @classmethod
    def total(cls, per_cpu: bytes) -> Counter:
        """The counters, summed over all CPUs."""
        return cls(*map(sum, zip(*_counter.iter_unpack(per_cpu), strict=True)))


def error_counts(per_cpu: Sequence[bytes]) -> dict[str, int]:
    """How often each error occurred, without zeros; ``per_cpu``: the values, in TROUBLES' order."""
    totals = (sum(value for (value,) in _u64.iter_unpack(data)) for data in per_cpu)
    return {name: total for name, total in zip(layout.TROUBLES, totals, strict=True) if total}


def _text(command: bytes) -> str:
    return command.partition(b"\0")[0].decode("utf-8", "backslashreplace")
