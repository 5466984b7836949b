# SPDX-License-Identifier: GPL-2.0-only
"""What the maps of a redirected resolver hold, as bytes and as values. Pure.

Addresses are 4 bytes in network order.
"""

from __future__ import annotations

from struct import Struct
from typing import NamedTuple

from zfw_py.docker_dns import layout

_u32 = Struct("=I")
_u64 = Struct("=Q")
_address = Struct("=4s")
_config = Struct(layout.CONFIG)
_daemon = Struct(layout.DAEMON)
_query_key = Struct(layout.QUERY_KEY)
_domain_key = Struct(layout.DOMAIN_KEY)
_counter = Struct(layout.COUNTER)
_event = Struct(layout.EVENT)

ZERO = _u32.pack(0)
DOMAIN_VALUE = b"\1"


def _number(address: bytes) -> int:
    """An address as a struct of the layout has it: the same bytes, read as a number."""
    (number,) = _u32.unpack(_address.pack(address))
    return int(number)


class Config(NamedTuple):
    """What the programs go by."""

    abi_version: int
    resolver: bytes
    server: bytes
    source: bytes
    uplink_ifindex: int
    resolver_port: int
    server_port: int
    first_port: int
    port_count: int
    has_ethernet: bool
    has_domains: bool
    redirects_tcp: bool
    is_watched: bool

    def encode(self) -> bytes:
        """As the map has it."""
        addresses = map(_number, (self.resolver, self.server, self.source))
        return _config.pack(self.abi_version, *addresses, *self[4:])

    @classmethod
    def decode(cls, data: bytes) -> Config:
        """The inverse."""
        version, resolver, server, source, *numbers = _config.unpack(data)
        addresses = map(_u32.pack, (resolver, server, source))
        return cls(version, *addresses, *numbers[:5], *map(bool, numbers[5:]))  # type: ignore[arg-type]


class Daemon(NamedTuple):
    """The ports that NAT sends queries to; 0: none is known."""

    udp_port: int = 0
    tcp_port: int = 0

    def encode(self) -> bytes:
        """As the map has it."""
        return _daemon.pack(*self)

    @classmethod
    def decode(cls, data: bytes) -> Daemon:
        """The inverse."""
        return cls(*_daemon.unpack(data))


def domain_key(name: str) -> bytes:
    """Key of the trie for a name and all below it. ``name``: A-labels in lower case, no last dot.

    Backwards, with a dot where a name on the wire has the length of its first label: so
    the key of example.com is the beginning of the key of www.example.com, and of no other.
    """
    backwards = f".{name}"[::-1].encode("ascii")
    return _domain_key.pack(8 * len(backwards), backwards)


def counts(per_cpu: bytes) -> tuple[int, int]:
    """Packets and bytes, over all CPUs."""
    each = list(_counter.iter_unpack(per_cpu))
    return sum(packets for packets, _ in each), sum(size for _, size in each)


def total(per_cpu: bytes) -> int:
    """The sum over all CPUs of a number."""
    return sum(value for (value,) in _u64.iter_unpack(per_cpu))


class Event(NamedTuple):
    """What became of a query. ``time`` is CLOCK_MONOTONIC in nanoseconds.

    ``source`` and ``destination`` are as the query left its program, with the daemon's
    port where NAT had put it. ``port`` is its source's on the uplink, 0 if it did not
    go there. ``wire_name`` is without the root's byte; None: not known.
    """

    time: int
    source: tuple[bytes, int]
    destination: tuple[bytes, int]
    protocol: int
    server: tuple[bytes, int]
    outcome: str
    port: int
    message_id: int
    wire_name: bytes | None

    @classmethod
    def decode(cls, data: bytes) -> Event:
        """From a record of the ring buffer."""
        time, key, server, server_port, outcome, has_name, port, length, message_id, name = (
            _event.unpack_from(data)
        )
        source, destination, source_port, destination_port, protocol = _query_key.unpack(key)
        return cls(
            time=time,
            source=(_u32.pack(source), source_port),
            destination=(_u32.pack(destination), destination_port),
            protocol=protocol,
            server=(_u32.pack(server), server_port),
            outcome=layout.OUTCOMES[outcome],
            port=port,
            message_id=message_id,
            wire_name=name[:length] if has_name else None,
        )
