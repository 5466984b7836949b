# SPDX-License-Identifier: GPL-2.0-only
"""The reference model of docker-dns, written from its description and not from the C.

The model cannot predict the port of a new flow. The test passes it the port that the program
selected, and the model checks whether that port was possible.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from ipaddress import IPv4Address
from typing import NamedTuple

from tests.docker_dns.support.programs import (
    Answer,
    AnswerKey,
    Event,
    Fragment,
    FragmentKey,
    Query,
    QueryKey,
    Settings,
    Truncated,
)

TCP, UDP = 6, 17
SYN, ACK = 2, 16
SECOND = 1_000_000_000
IDLE = {UDP: 30, TCP: 300}
TRUNCATED_IDLE = 5
FRAGMENT_IDLE = 30
MTU = 1500  # of the uplink
MSS = MTU - 40
# What a table has for a packet that is being looked at: some time until it is over.
NOW = -1


class Ends(NamedTuple):
    """Addresses and ports of a packet; a later fragment has no ports."""

    source: IPv4Address
    destination: IPv4Address
    source_port: int | None = None
    destination_port: int | None = None


class LocalSocket(NamedTuple):
    """A socket of the container. Without an address it is bound to all; a peer connects it."""

    protocol: int
    address: IPv4Address | None
    port: int
    peer: tuple[IPv4Address, int] | None = None

    def takes(self, protocol: int, ends: Ends) -> bool:
        """Whether the kernel would deliver a packet with these ends to the socket."""
        return (
            (self.protocol, self.port) == (protocol, ends.destination_port)
            and self.address in (None, ends.destination)
            and self.peer in (None, (ends.source, ends.source_port))
        )


class Packet(NamedTuple):
    """An IPv4 packet of UDP or TCP."""

    protocol: int
    ends: Ends
    is_fragment: bool
    is_later: bool
    identification: int
    flags: int  # of TCP
    offered: int  # the segment size in TCP's first option, or 0
    message: bytes | None  # of UDP, if the lengths agree
    is_truncated: bool  # it has the header of a truncated DNS answer


class Expected(NamedTuple):
    """The decision. ``ends`` are the new ends, or None if the packet stays as it is.

    ``mss``: the segment size that it offers now, if that is another one.
    """

    verdict: str
    ends: Ends | None = None
    outcome: str | None = None
    event: Event | None = None
    mss: int = 0


LEFT = Expected("leave")


def parse(frame: bytes) -> Packet | None:
    """Parse a frame; None for anything but such a packet."""
    if frame[12:14] != b"\x08\0" or len(frame) < 34:
        return None
    ip = frame[14:]
    header, total = (ip[0] & 15) * 4, int.from_bytes(ip[2:4], "big")
    if ip[0] >> 4 != 4 or header < 20 or not header <= total <= len(ip):
        return None
    protocol, transport = ip[9], ip[header:total]
    if protocol not in (UDP, TCP):
        return None
    identification, fragment = struct.unpack("!HH", ip[4:8])
    is_later, is_fragment = fragment & 0x1FFF != 0, fragment & 0x3FFF != 0
    if protocol == TCP and 0 < (fragment & 0x1FFF) * 8 < 20:
        return None  # it would begin within the TCP header (RFC 3128)
    ends = Ends(IPv4Address(ip[12:16]), IPv4Address(ip[16:20]))
    flags, offered, message, is_truncated = 0, 0, None, False
    if not is_later:
        if len(transport) < (8 if protocol == UDP else 20):
            return None
        source_port, destination_port, length = struct.unpack("!HHH", transport[:6])
        ends = ends._replace(source_port=source_port, destination_port=destination_port)
        if protocol == TCP:
            flags = transport[13]
            has_option = min(transport[12] >> 4, len(transport) // 4) >= 6
            if has_option and transport[20:22] == b"\2\4":
                offered = int.from_bytes(transport[22:24], "big")
        else:
            is_truncated = len(transport) >= 20 and transport[10] & 2 != 0
            if 8 <= length <= len(transport):
                message = transport[8:length]
    return Packet(
        protocol,
        ends,
        is_fragment,
        is_later,
        identification,
        flags,
        offered,
        message,
        is_truncated,
    )


def first_question(message: bytes) -> tuple[int, list[bytes]] | None:
    """A query's id and the labels of its first question's name, or None if it is malformed.

    RFC 1035, sections 4.1.1 and 3.1. There is nothing yet that a pointer could point to.
    """
    if len(message) < 12:
        return None
    number, flags, questions = struct.unpack("!HHH", message[:6])
    if flags >> 15 or flags >> 11 & 15 or not questions:
        return None
    labels: list[bytes] = []
    rest = message[12:]
    while rest:
        size = rest[0]
        if size == 0:
            return (number, labels) if len(b".".join(labels)) <= 253 else None
        if size > 63 or len(rest) <= size:
            return None
        labels.append(rest[1 : 1 + size])
        rest = rest[1 + size :]
    return None


def is_covered(labels: list[bytes], suffixes: set[str]) -> bool:
    """Whether a name is one of the suffixes, or below one; the root is ""."""
    names = [label.lower() for label in labels]
    for suffix in suffixes:
        wanted = suffix.encode().split(b".") if suffix else []
        if not wanted or names[-len(wanted) :] == wanted:
            return True
    return False


@dataclass
class Model:
    """The programs' settings and tables."""

    settings: Settings = field(default_factory=Settings)
    daemon: dict[int, int] = field(default_factory=dict)  # ports by protocol
    suffixes: set[str] = field(default_factory=set)
    sockets: list[LocalSocket] = field(default_factory=list)
    queries: dict[QueryKey, Query] = field(default_factory=dict)
    answers: dict[AnswerKey, Answer] = field(default_factory=dict)
    fragments: dict[FragmentKey, Fragment] = field(default_factory=dict)
    truncated: dict[IPv4Address, Truncated] = field(default_factory=dict)

    # Queries

    def query(self, frame: bytes, now: int, port: int | None) -> Expected:
        """Decide a packet that leaves by ``lo``; ``port`` is its new source, None if dropped."""
        packet = parse(frame)
        if (
            packet is None
            or packet.is_fragment
            or packet.ends.destination != self.settings.resolver
            or not self._is_daemon(packet)
        ):
            return LEFT
        assert packet.ends.source_port is not None
        assert packet.ends.destination_port is not None
        key = QueryKey(*packet.ends, packet.protocol)  # type: ignore[arg-type]
        number, labels = 0, None
        if packet.message is not None and (read := first_question(packet.message)):
            number, labels = read
        name = None
        if labels is not None:
            name = b"".join(bytes([len(label)]) + label for label in labels)

        def event(outcome: str, port: int = 0) -> Event | None:
            told = (number, name) if outcome != "builtin_uplink" else (0, None)
            server = (self.settings.server, self.settings.server_port)
            is_watched = self.settings.is_watched
            return Event(key, *server, outcome, port, *told) if is_watched else None

        if len(frame) - 14 > MTU:
            return Expected("leave", None, "builtin_uplink", event("builtin_uplink"))
        if packet.protocol == UDP and self.settings.has_domains:
            for outcome, is_so in (
                ("builtin_unreadable", labels is None),
                ("builtin_name", not is_covered(labels or [], self.suffixes)),
            ):
                if is_so:
                    return Expected("leave", None, outcome, event(outcome))
        flow = self._flow(key, now)
        if packet.protocol == TCP and flow is None:
            begins = packet.flags & (SYN | ACK) == SYN
            if not begins or not (self.settings.redirects_tcp or self._asks_again(key, now)):
                told = event("builtin_tcp") if begins else None
                return Expected("leave", None, "builtin_tcp", told)
        is_told = packet.protocol == UDP or flow is None
        if flow is None:
            if port is None:
                assert self._may_find_no_port(packet.protocol, now)
                return Expected("drop", None, "no_port", event("no_port"))
            flow = self._open(key, port, now)
        self.queries[key] = flow._replace(last=NOW)
        self.answers[self._answer_key(key, flow)] = Answer(NOW, key)
        ends = Ends(self.settings.source, flow.server, flow.port, flow.server_port)
        told = event("query", flow.port) if is_told else None
        mss = MSS if packet.flags & SYN and packet.offered > MSS else 0
        return Expected("redirect", ends, "query", told, mss)

    def _asks_again(self, key: QueryKey, now: int) -> bool:
        """Whether a connection follows a truncated answer; each answer counts for one."""
        found = self.truncated.get(key.source)
        if (
            not self.settings.has_domains
            or found is None
            or found.answers == 0
            or now - found.last > TRUNCATED_IDLE * SECOND
        ):
            return False
        self.truncated[key.source] = found._replace(answers=found.answers - 1)
        return True

    def _is_daemon(self, packet: Packet) -> bool:
        known, port = self.daemon[packet.protocol], packet.ends.destination_port
        assert port is not None
        if port == self.settings.resolver_port:
            return True
        if port == known != 0:
            return True
        if self._has_daemon(packet.protocol, port):
            # The daemon has restarted at this port, unless its old socket still exists.
            if known and self._has_daemon(packet.protocol, known):
                return False
            self.daemon[packet.protocol] = port
            return True
        return False

    def _has_daemon(self, protocol: int, port: int) -> bool:
        wanted = (protocol, self.settings.resolver, port, None)
        return any(socket == wanted for socket in self.sockets)

    def _answer_key(self, key: QueryKey, flow: Query) -> AnswerKey:
        return AnswerKey(flow.server, flow.server_port, flow.port, key.protocol)

    def _flow(self, key: QueryKey, now: int) -> Query | None:
        flow, settings = self.queries.get(key), self.settings
        if (
            flow is None
            or now - flow.last > IDLE[key.protocol] * SECOND
            or (flow.server, flow.server_port) != (settings.server, settings.server_port)
        ):
            return None
        answer = self.answers.get(self._answer_key(key, flow))
        return flow if answer and answer.query == key else None

    def _is_free(self, protocol: int, port: int, now: int) -> bool:
        server, server_port = self.settings.server, self.settings.server_port
        taken = self.answers.get(AnswerKey(server, server_port, port, protocol))
        if taken and now - taken.last <= IDLE[protocol] * SECOND:
            return False
        ends = Ends(server, self.settings.source, server_port, port)
        return not any(socket.takes(protocol, ends) for socket in self.sockets)

    def _may_find_no_port(self, protocol: int, now: int) -> bool:
        """Whether the program may fail to find a port: it tries sixteen at random."""
        first, count = self.settings.first_port, self.settings.port_count
        free = sum(self._is_free(protocol, port, now) for port in range(first, first + count))
        # If a quarter of the ports is in use, all sixteen are so once in a billion times.
        return free < count * 3 / 4 or count == 0

    def _open(self, key: QueryKey, port: int, now: int) -> Query:
        first, count = self.settings.first_port, self.settings.port_count
        assert first <= port < first + count, f"port {port} is none of ours"
        assert self._is_free(key.protocol, port, now), f"port {port} is taken"
        return Query(NOW, self.settings.server, self.settings.server_port, port)

    def may_have_gone(self, key: AnswerKey, now: int) -> bool:
        """Whether a query that needed a port may have removed this answer, which is idle."""
        answer = self.answers[key]
        return answer.last != NOW and now - answer.last > IDLE[key.protocol] * SECOND

    # Answers

    def answer(self, frame: bytes, now: int) -> Expected:
        """Decide a packet that arrives; by ``lo`` in place of the uplink, whose address is 0.

        And whose MTU is larger than any segment size: none is lowered.
        """
        packet, settings = parse(frame), self.settings
        if (
            packet is None
            or frame[:6] != bytes(6)
            or packet.ends[:2] != (settings.server, settings.source)
        ):
            return LEFT
        datagram = FragmentKey(packet.ends.source, packet.identification, packet.protocol)
        if packet.is_later:
            fragment = self.fragments.get(datagram)
            if fragment is None or now - fragment.last > FRAGMENT_IDLE * SECOND:
                return Expected("leave", None, "orphan")
            ends = Ends(fragment.source, fragment.destination)
            return Expected("redirect", ends, "answer")
        _, _, server_port, port = packet.ends
        assert server_port is not None
        assert port is not None
        key = AnswerKey(packet.ends.source, server_port, port, packet.protocol)
        answer = self.answers.get(key)
        if answer is None or now - answer.last > IDLE[packet.protocol] * SECOND:
            # The server may send another datagram with the same identification.
            if packet.is_fragment:
                self.fragments.pop(datagram, None)
            return LEFT
        self.answers[key] = answer._replace(last=NOW)
        query = answer.query
        if packet.is_truncated and settings.has_domains and not settings.redirects_tcp:
            known = self.truncated.get(query.source)
            is_over = known is None or now - known.last > TRUNCATED_IDLE * SECOND
            answers = 1 if known is None or is_over else known.answers + 1
            self.truncated[query.source] = Truncated(NOW, answers)
        if packet.is_fragment:
            self.fragments[datagram] = Fragment(NOW, query.destination, query.source)
        ends = Ends(query.destination, query.source, query.destination_port, query.source_port)
        return Expected("redirect", ends, "answer")
