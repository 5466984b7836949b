# SPDX-License-Identifier: GPL-2.0-only
"""The programs of docker-dns, loaded but not attached: their maps, and runs of packets.

Keys and values are packed by the layout's formats and the comments of docker_dns/abi.h.
"""

from __future__ import annotations

import errno
import os
import struct
import sys
import time
from collections import Counter
from ipaddress import IPv4Address
from pathlib import Path
from socket import htons, ntohs
from typing import TYPE_CHECKING, NamedTuple

from zfw_py.docker_dns import layout
from zfw_py.kernel import bpf_maps, bpf_run
from zfw_py.kernel.libbpf import BpfObject, RingBuffer

if TYPE_CHECKING:
    from types import TracebackType

OBJECT = Path(__file__).parents[3] / "zfw_py/objects/docker_dns.bpf.o"

# Verdicts, include/uapi/linux/pkt_cls.h.
LEAVE, DROP, REDIRECT = 0xFFFFFFFF, 2, 7  # TC_ACT_UNSPEC, TC_ACT_SHOT, TC_ACT_REDIRECT
CHECKSUM_COMPLETE = 4  # BPF_F_TEST_SKB_CHECKSUM_COMPLETE, since 6.10 (a3cfe84cca28)
# struct __sk_buff; all other fields are 0.
_CONTEXT, _IFINDEX = bytes(192), 40
_ROOM = 4096
_ZERO = bytes(4)
_CLOCK_MONOTONIC_COARSE = 6  # include/uapi/linux/time.h


RESOLVER = IPv4Address("127.0.0.11")
SERVER = IPv4Address("10.9.0.1")
SOURCE = IPv4Address("10.9.0.2")


class Settings(NamedTuple):
    """struct dns_config, of a container at 10.9.0.2."""

    resolver: IPv4Address = RESOLVER
    server: IPv4Address = SERVER
    source: IPv4Address = SOURCE
    uplink_ifindex: int = 2
    resolver_port: int = 53
    server_port: int = 53
    first_port: int = 20000
    port_count: int = 1000
    has_ethernet: bool = True
    has_domains: bool = False
    redirects_tcp: bool = True
    is_watched: bool = True


class QueryKey(NamedTuple):
    """The key of a flow's query half: the query as its client sends it."""

    source: IPv4Address
    destination: IPv4Address
    source_port: int
    destination_port: int
    protocol: int


class Query(NamedTuple):
    """The value of a flow's query half: the redirected query."""

    last: int
    server: IPv4Address
    server_port: int
    port: int


class AnswerKey(NamedTuple):
    """The key of a flow's answer half: the answer as it arrives."""

    server: IPv4Address
    server_port: int
    port: int
    protocol: int


class Answer(NamedTuple):
    """The value of a flow's answer half: the query that is answered."""

    last: int
    query: QueryKey


class FragmentKey(NamedTuple):
    """The key of a datagram in fragments."""

    server: IPv4Address
    identification: int
    protocol: int


class Fragment(NamedTuple):
    """The value of such a datagram: the decision for its first fragment."""

    last: int
    source: IPv4Address
    destination: IPv4Address


class Truncated(NamedTuple):
    """The value of a client: how many truncated answers it has not asked again for."""

    last: int
    answers: int


class Event(NamedTuple):
    """struct dns_event without the time; ``name`` is None if it was not readable."""

    query: QueryKey
    server: IPv4Address
    server_port: int
    outcome: str
    port: int
    id: int
    name: bytes | None


def coarse_now() -> int:
    """CLOCK_MONOTONIC_COARSE in nanoseconds, which the programs read."""
    return time.clock_gettime_ns(_CLOCK_MONOTONIC_COARSE)


def _time(last: int) -> int:
    """A time as a __u64; it may be before the boot of a machine that has just started."""
    return last % (1 << 64)


def _signed(last: int) -> int:
    return last - (1 << 64) if last >> 63 else last


def _word(address: IPv4Address) -> int:
    """A __be32 as the struct module's native number."""
    return int.from_bytes(address.packed, sys.byteorder)


def _address(word: int) -> IPv4Address:
    return IPv4Address(word.to_bytes(4, sys.byteorder))


def _pack_query_key(key: QueryKey) -> bytes:
    return struct.pack(layout.QUERY_KEY, _word(key[0]), _word(key[1]), *key[2:])


def _query_key(data: bytes) -> QueryKey:
    source, destination, *rest = struct.unpack(layout.QUERY_KEY, data)
    return QueryKey(_address(source), _address(destination), *rest)


class Programs:
    """The two programs and their maps; a context manager that closes them."""

    def __init__(self, path: Path = OBJECT) -> None:
        self._object = BpfObject(path)
        self._object.load()
        self._programs = self._object.programs()
        self._maps = {name: bpf_maps.Map(os.dup(fd)) for name, fd in self._object.maps().items()}
        self._records: list[bytes] = []
        self._ring = RingBuffer(self._object.maps()["events"], self._records.append)

    def __enter__(self) -> Programs:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._ring.__exit__(kind, error, trace)
        for each in self._maps.values():
            each.close()
        self._object.__exit__(kind, error, trace)

    # Packets

    def run(
        self, program: str, frame: bytes, flags: int = 0, ifindex: int = 0
    ) -> tuple[int, bytes]:
        """Run a program for one packet at an interface of the caller's namespace, 0: ``lo``.

        The verdict, and what the packet is then.
        """
        context = bytearray(_CONTEXT)
        struct.pack_into("=I", context, _IFINDEX, ifindex)
        fd = self._programs[program]
        done = bpf_run.run(fd, frame, bytes(context), room=_ROOM, flags=flags)
        return done.returned, done.packet

    def supports_checksum_complete(self) -> bool:
        """Whether the kernel knows the flag."""
        frame = bytes(12) + b"\x08\6" + bytes(50)  # ARP
        try:
            self.run("query", frame, CHECKSUM_COMPLETE)
        except OSError as error:
            if error.errno == errno.EINVAL:
                return False
            raise
        return True

    def repeat(self, program: str, frame: bytes, times: int) -> tuple[int, bytes, int]:
        """Run a program many times, each time for the packet of the last run; its ns a run."""
        fd = self._programs[program]
        done = bpf_run.run(fd, frame, _CONTEXT, room=_ROOM, repeat=times)
        return done.returned, done.packet, done.nanoseconds

    def descriptor(self, program: str) -> int:
        """To attach it."""
        return self._programs[program]

    # Settings

    def configure(self, settings: Settings) -> None:
        """Write the settings."""
        value = struct.pack(
            layout.CONFIG,
            layout.ABI_VERSION,
            _word(settings.resolver),
            _word(settings.server),
            _word(settings.source),
            settings.uplink_ifindex,
            settings.resolver_port,
            settings.server_port,
            settings.first_port,
            settings.port_count,
            settings.has_ethernet,
            settings.has_domains,
            settings.redirects_tcp,
            settings.is_watched,
        )
        self._maps["config"].update(_ZERO, value)

    def set_daemon(self, udp_port: int, tcp_port: int) -> None:
        """Write the ports to which NAT translates queries."""
        self._maps["daemon"].update(_ZERO, struct.pack(layout.DAEMON, udp_port, tcp_port))

    def daemon(self) -> tuple[int, int]:
        """The ports for UDP and TCP that the programs know."""
        value = self._maps["daemon"].lookup(_ZERO)
        assert value is not None
        udp_port, tcp_port = struct.unpack(layout.DAEMON, value)
        return udp_port, tcp_port

    def set_domains(self, suffixes: set[str]) -> None:
        """Replace the suffixes: lower case, without a final dot; the root is ""."""
        domains = self._maps["domains"]
        for key, _ in list(domains.items()):
            domains.delete(key)
        for suffix in suffixes:
            backwards = suffix[::-1].encode() + b"." if suffix else b""
            key = struct.pack(layout.DOMAIN_KEY, len(backwards) * 8, backwards)
            domains.update(key, b"\1")

    # Tables

    def queries(self) -> dict[QueryKey, Query]:
        """The query halves of the flows."""
        found = {}
        for key, value in self._maps["queries"].items(512):
            last, server, server_port, port = struct.unpack(layout.QUERY, value)
            found[_query_key(key)] = Query(_signed(last), _address(server), server_port, port)
        return found

    def answers(self) -> dict[AnswerKey, Answer]:
        """The answer halves of the flows."""
        found = {}
        for key, value in self._maps["answers"].items(512):
            server, *rest = struct.unpack(layout.ANSWER_KEY, key)
            last, query = struct.unpack(layout.ANSWER, value)
            found[AnswerKey(_address(server), *rest)] = Answer(_signed(last), _query_key(query))
        return found

    def fragments(self) -> dict[FragmentKey, Fragment]:
        """The datagrams whose first fragment has arrived."""
        found = {}
        for key, value in self._maps["fragments"].items(512):
            server, identification, protocol = struct.unpack(layout.FRAGMENT_KEY, key)
            last, source, destination = struct.unpack(layout.FRAGMENT, value)
            datagram = FragmentKey(_address(server), ntohs(identification), protocol)
            found[datagram] = Fragment(_signed(last), _address(source), _address(destination))
        return found

    def write_query(self, key: QueryKey, query: Query) -> None:
        """Write the query half of a flow."""
        last, server, server_port, port = query
        value = struct.pack(layout.QUERY, _time(last), _word(server), server_port, port)
        self._maps["queries"].update(_pack_query_key(key), value)

    def write_answer(self, key: AnswerKey, answer: Answer) -> None:
        """Write the answer half of a flow."""
        value = struct.pack(layout.ANSWER, _time(answer.last), _pack_query_key(answer.query))
        self._maps["answers"].update(_pack_answer_key(key), value)

    def delete_answer(self, key: AnswerKey) -> None:
        """Delete the answer half of a flow, as LRU eviction does."""
        self._maps["answers"].delete(_pack_answer_key(key))

    def write_fragment(self, key: FragmentKey, fragment: Fragment) -> None:
        """Write a datagram's entry, as its first fragment does."""
        server, identification, protocol = key
        last, source, destination = fragment
        self._maps["fragments"].update(
            struct.pack(layout.FRAGMENT_KEY, _word(server), htons(identification), protocol),
            struct.pack(layout.FRAGMENT, _time(last), _word(source), _word(destination)),
        )

    def truncated(self) -> dict[IPv4Address, Truncated]:
        """The clients whose answers were truncated."""
        found = {}
        for key, value in self._maps["truncated"].items(512):
            last, answers = struct.unpack(layout.TRUNCATED, value)
            found[_address(int.from_bytes(key, sys.byteorder))] = Truncated(_signed(last), answers)
        return found

    def write_truncated(self, client: IPv4Address, truncated: Truncated) -> None:
        """Write a client, as truncated answers do."""
        value = struct.pack(layout.TRUNCATED, _time(truncated.last), truncated.answers)
        self._maps["truncated"].update(struct.pack("=I", _word(client)), value)

    def clear(self) -> None:
        """Delete all flows, fragments, clients, events and counts."""
        for name in ("queries", "answers", "fragments", "truncated"):
            table = self._maps[name]
            for key, _ in list(table.items(512)):
                table.delete(key)
        for name in ("outcomes", "lost"):
            table = self._maps[name]
            for key, value in list(table.items()):
                table.update(key, bytes(len(value)))
        self.events()

    # Events and counters

    def outcomes(self) -> Counter[str]:
        """The number of packets by outcome, without the outcomes that have none."""
        return Counter({name: packets for name, (packets, _) in self.counted().items()})

    def counted(self) -> dict[str, tuple[int, int]]:
        """Packets and bytes by outcome, summed over all CPUs."""
        found = {}
        for key, value in self._maps["outcomes"].items():
            each = list(struct.iter_unpack(layout.COUNTER, value))
            packets, size = (sum(numbers) for numbers in zip(*each, strict=True))
            if packets:
                found[layout.OUTCOMES[int.from_bytes(key, sys.byteorder)]] = (packets, size)
        return found

    def lost(self) -> int:
        """The number of events that were lost because the ring buffer was full."""
        value = self._maps["lost"].lookup(_ZERO)
        assert value is not None
        return sum(number for (number,) in struct.iter_unpack("=Q", value))

    def events(self) -> list[Event]:
        """Read the events that have not been read yet."""
        self._ring.consume()
        found = [_event(record) for record in self._records]
        self._records.clear()
        return found


def _pack_answer_key(key: AnswerKey) -> bytes:
    return struct.pack(layout.ANSWER_KEY, _word(key.server), *key[1:])


def _event(record: bytes) -> Event:
    _, query, server, server_port, outcome, has_name, port, length, number, name = struct.unpack(
        layout.EVENT, record
    )
    return Event(
        _query_key(query),
        _address(server),
        server_port,
        layout.OUTCOMES[outcome],
        port,
        number,
        name[:length] if has_name else None,
    )
