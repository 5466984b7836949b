# SPDX-License-Identifier: GPL-2.0-only
"""Encodes and decodes the elements of Docker DNS's maps. Pure.

An address is 4 bytes in network order, a port a number in host order.
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
    """The same 4 bytes as a number, because the layout has an address as an __u32."""
    (number,) = _u32.unpack(_address.pack(address))
    return int(number)


class Config(NamedTuple):
    """The settings of the programs: the only element of the map ``config``."""

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
        """The value of the map element."""
        addresses = map(_number, (self.resolver, self.server, self.source))
        return _config.pack(self.abi_version, *addresses, *self[4:])

    @classmethod
    def decode(cls, data: bytes) -> Config:
        """From the value of the map element."""
        version, resolver, server, source, *numbers = _config.unpack(data)
        addresses = map(_u32.pack, (resolver, server, source))
        return cls(version, *addresses, *numbers[:5], *map(bool, numbers[5:]))  # type: ignore[arg-type]


class DaemonPorts(NamedTuple):
    """The ports of Docker's DNS daemon, to which NAT changes port 53; 0: not known."""

    udp_port: int = 0
    tcp_port: int = 0

    def encode(self) -> bytes:
        """The value of the map element."""
        return _daemon.pack(*self)

    @classmethod
    def decode(cls, data: bytes) -> DaemonPorts:
        """From the value of the map element."""
        return cls(*_daemon.unpack(data))


def domain_key(name: str) -> bytes:
    """Key of the trie ``domains`` for a name and all names below it.

    ``name``: A-labels in lower case, without a last dot. The key is the name backwards with a
    dot at its end, so that the key of example.com is a prefix of the key of www.example.com,
    but not of the key of notexample.com.
    """
    backwards = f".{name}"[::-1].encode("ascii")
    return _domain_key.pack(8 * len(backwards), backwards)


def counts(per_cpu: bytes) -> tuple[int, int]:
    """Packets and bytes, summed over all CPUs."""
    each = list(_counter.iter_unpack(per_cpu))
    return sum(packets for packets, _ in each), sum(size for _, size in each)


def total(per_cpu: bytes) -> int:
    """A counter, summed over all CPUs."""
    return sum(value for (value,) in _u64.iter_unpack(per_cpu))


class Event(NamedTuple):
    """One query, or the first packet of a TCP connection, as the program ``query`` logged it.

    ``time``: CLOCK_MONOTONIC in nanoseconds. ``source``, ``destination`` and ``server``:
    address and port. ``destination`` has the daemon's port, because NAT changed port 53 before.
    ``protocol``: IPPROTO_UDP or IPPROTO_TCP. ``outcome``: of the layout's OUTCOMES. ``port``:
    its source port on the uplink, 0 if the query was not sent there. ``wire_name``: the first
    question's name (RFC 1035, section 3.1) without the root's byte; None: not known.
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
        """From a record of the ring buffer ``events``."""
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
