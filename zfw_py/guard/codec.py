# SPDX-License-Identifier: GPL-2.0-only
"""Encodes and decodes keys, values and events of the guard's maps. Pure.

Addresses are 16 bytes in network order, IPv4 as ::ffff:a.b.c.d. All other numbers, ports too, are
in host order.
"""

from __future__ import annotations

from struct import Struct
from typing import TYPE_CHECKING, NamedTuple

from zfw_py.guard import layout
from zfw_py.kernel.process import Process

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

_u32 = Struct("=I")
_u64 = Struct("=Q")
_config = Struct(layout.CONFIG)
_keeper = Struct(layout.KEEPER)
_prefix_key = Struct(layout.PREFIX_KEY)
_prefix = Struct("=BxH")
_ports = Struct(f"={layout.PREFIX_PORTS}H")
_learnt_key = Struct(layout.LEARNT_KEY)
_proxy = Struct(layout.PROXY)
_servers = Struct(f"={layout.SERVERS}H")
_socket = Struct(layout.SOCKET)
_asker_key = Struct(layout.ASKER_KEY)
_asker = Struct(layout.ASKER)
_event = Struct(layout.EVENT)

ZERO = _u32.pack(0)
_NO_ADDRESS = bytes(16)

# The reasons for a denial; those before them are for other verdicts.
DENIALS = layout.REASONS[layout.REASONS.index("not_allowed") :]
OTHERWISE = {
    "none": layout.OTHERWISE_NONE,
    "allow": layout.OTHERWISE_ALLOW,
    "block": layout.OTHERWISE_BLOCK,
}


class Config(NamedTuple):
    """The programs' configuration: ``flags`` combines LOG_ONLY, DEFAULT_ALLOW and others."""

    abi_version: int
    flags: int

    def encode(self) -> bytes:
        """The map's value."""
        return _config.pack(*self)

    @classmethod
    def decode(cls, data: bytes) -> Config:
        """The inverse of ``encode``."""
        return cls(*_config.unpack(data))


def encode_supervisor(process: Process) -> bytes:
    """The value of the map ``keeper``."""
    return _keeper.pack(process.start_time, process.pid)


def decode_supervisor(data: bytes) -> Process:
    """The inverse of ``encode_supervisor``; pid 0: the guard never had a supervisor."""
    started, pid = _keeper.unpack(data)
    return Process(pid, started)


def prefix_key(address: bytes, length: int) -> bytes:
    """Key of the trie ``prefixes``; ``length``: 0 to 128 bits."""
    return _prefix_key.pack(length, address)


def prefix_value(ports: Sequence[int], otherwise: str) -> bytes:
    """Value for a prefix: its allowed ports, and "none", "allow" or "block" for all others."""
    listed = [*ports, *[0] * (layout.PREFIX_PORTS - len(ports))]
    return _prefix.pack(OTHERWISE[otherwise], len(ports)) + _ports.pack(*listed)


def resolved_key(address: bytes, port: int) -> bytes:
    """Key of a resolved address; port 0: every port."""
    return _learnt_key.pack(address, port)


def resolved_key_parts(key: bytes) -> tuple[bytes, int]:
    """The inverse of ``resolved_key``: address and port."""
    address, port = _learnt_key.unpack(key)
    return address, port


def netns_key(cookie: int) -> bytes:
    """Key of a network namespace, by its cookie; 0: all namespaces without an entry."""
    return _u64.pack(cookie)


class Proxy(NamedTuple):
    """Where queries of a network namespace go: for each family an address and up to SERVERS ports.

    Without ports, queries of that family are denied.
    """

    ipv4: bytes = _NO_ADDRESS
    ipv4_ports: tuple[int, ...] = ()
    ipv6: bytes = _NO_ADDRESS
    ipv6_ports: tuple[int, ...] = ()

    def encode(self) -> bytes:
        """The map's value."""
        return _proxy.pack(self.ipv4, self.ipv6, _padded(self.ipv4_ports), _padded(self.ipv6_ports))


def proxies_of(items: Iterable[tuple[bytes, bytes]]) -> dict[int, Proxy]:
    """Decode the elements of the map ``proxies``, by the cookie of the network namespace."""
    found = {}
    for key, value in items:
        ipv4, ipv6, ports4, ports6 = _proxy.unpack(value)
        (cookie,) = _u64.unpack(key)
        found[cookie] = Proxy(ipv4, _ports_of(ports4), ipv6, _ports_of(ports6))
    return found


def _ports_of(data: bytes) -> tuple[int, ...]:
    return tuple(port for port in _servers.unpack(data) if port)


def _padded(ports: tuple[int, ...]) -> bytes:
    return _servers.pack(*ports, *[0] * (layout.SERVERS - len(ports)))


# A mark on a socket of the guard's DNS process, in the map ``sockets``: is_dns_process.
DNS_PROCESS_SOCKET = _socket.pack(
    *(0, 0, 0, b"", b"", b"", b"", 0, 0, 0, 0, 0, True, b"", 0),
)


def socket_key(fd: int) -> bytes:
    """Key of an open socket in the map ``sockets``, by its descriptor."""
    return _u32.pack(fd)


def time_value(time: int) -> bytes:
    """Value of a resolved address: its expiry, CLOCK_MONOTONIC in nanoseconds."""
    return _u64.pack(time)


def time_of(data: bytes) -> int:
    """The inverse of ``time_value``."""
    (time,) = _u64.unpack(data)
    return int(time)


def index_of(key: bytes) -> int:
    """The index that is the key of an array."""
    (index,) = _u32.unpack(key)
    return int(index)


def decision_counts(
    per_cpu: Sequence[bytes], added: Sequence[bytes] = ()
) -> dict[str, dict[str, int]]:
    """Counts by hook and reason, without those that are 0.

    For each index of the maps ``decisions`` and ``added_decisions``, the values of all CPUs.
    """
    counts: dict[str, dict[str, int]] = {}
    places = [
        *((divmod(place, layout.FIRST_REASONS), data) for place, data in enumerate(per_cpu)),
        *((divmod(place, layout.MOST_REASONS), data) for place, data in enumerate(added)),
    ]
    for (hook, reason), data in places:
        total = sum(value for (value,) in _u64.iter_unpack(data))
        if total:
            counts.setdefault(layout.HOOKS[hook], {})[layout.REASONS[reason]] = total
    return counts


def added_decision_key(hook: str, reason: str) -> bytes:
    """Key of a counter in the map ``added_decisions``."""
    place = layout.HOOKS.index(hook) * layout.MOST_REASONS + layout.REASONS.index(reason)
    return _u32.pack(place)


def increased(per_cpu: bytes, count: int) -> bytes:
    """A per-CPU counter's value, increased for the first CPU."""
    return _u64.pack(_u64.unpack_from(per_cpu)[0] + count) + per_cpu[_u64.size :]


def total(per_cpu: bytes) -> int:
    """The sum of a counter over all CPUs."""
    return sum(value for (value,) in _u64.iter_unpack(per_cpu))


def client_key(cookie: int, port: int, protocol: int, *, is_ipv6: bool) -> bytes:
    """Key of a client of the DNS proxy.

    The cookie of its network namespace, its source port, IPPROTO_UDP or IPPROTO_TCP.
    """
    return _asker_key.pack(cookie, port, protocol, is_ipv6)


class Client(NamedTuple):
    """The process that sent a query: the id of its cgroup, its pid (0: unknown), its command."""

    cgroup: int
    pid: int
    command: str

    @classmethod
    def decode(cls, data: bytes) -> Client:
        """Decode a value of the map ``askers``."""
        cgroup, pid, command = _asker.unpack(data)
        return cls(cgroup, pid, _text(command))


class Event(NamedTuple):
    """A decision of a program. ``time``: CLOCK_MONOTONIC in nanoseconds; ``pid`` 0: unknown."""

    time: int
    cgroup: int
    netns_cookie: int
    destination: bytes
    redirected: bytes
    port: int
    redirected_port: int
    pid: int
    protocol: int
    hook: str
    verdict: str
    reason: str
    is_log_only: bool
    command: str

    @classmethod
    def decode(cls, data: bytes) -> Event:
        """Decode a record of the ring buffer."""
        fields = _event.unpack_from(data)
        hook, verdict, reason, is_log_only, command = fields[9:]
        return cls._make(
            (
                *fields[:9],
                layout.HOOKS[hook],
                layout.VERDICTS[verdict],
                layout.REASONS[reason],
                bool(is_log_only),
                _text(command),
            )
        )


def _text(command: bytes) -> str:
    return command.partition(b"\0")[0].decode("utf-8", "backslashreplace")
