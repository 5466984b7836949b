# SPDX-License-Identifier: GPL-2.0-only
"""Random rules, and random frames to and around them.

Frames are packed with struct, tens of thousands of them: scapy takes milliseconds for each. All
checksums are 0, since the programs do not read them.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address
from random import Random

from tests.firewall.support.reference import (
    AUTHENTICATION,
    DESTINATION_OPTIONS,
    ETHERTYPE_ARP,
    ETHERTYPE_EAPOL,
    ETHERTYPE_IPV4,
    ETHERTYPE_IPV6,
    FRAGMENT,
    HOP_BY_HOP,
    LOOPBACK,
    ROUTING,
    VRRP,
    Address,
    Flow,
    Interface,
    Network,
    Packet,
    Rule,
    Sockets,
)
from tests.firewall.support.tracked import GRE, ICMP, ICMPV6, NEAR, TCP, UDP, WRAP, End, TrackedFlow

# The largest frame that BPF_PROG_TEST_RUN takes is a page less head and tail room.
MAX_FRAME = 3000
MIN_FRAME = 14


@dataclass
class Scene:
    """The addresses, ports and flows that frames are aimed at."""

    interface: Interface
    rules: Sequence[Rule] = ()
    sockets: Sockets = field(default_factory=Sockets)
    # First fragments that have arrived.
    first_fragments: list[Packet] = field(default_factory=list)
    tracked: Sequence[TrackedFlow] = ()


# --- headers ---------------------------------------------------------------------------------


def ethernet(payload: bytes, ethertype: int, tags: Sequence[int] = ()) -> bytes:
    """An Ethernet frame. ``tags`` are the types of its VLAN tags, outermost first."""
    types = [*tags, ethertype]
    header = b"\x02\0\0\0\0\x01\x02\0\0\0\0\x02" + types[0].to_bytes(2, "big")
    for number, inner in enumerate(types[1:], 100):
        header += struct.pack("!HH", number, inner)
    return header + payload


def ipv4(
    source: Address,
    destination: Address,
    protocol: int,
    payload: bytes,
    *,
    options: bytes = b"",
    identification: int = 0,
    fragment: int = 0,
    ttl: int = 64,
) -> bytes:
    """An IPv4 packet. ``fragment`` is the field of 16 bits: flags and offset."""
    length = 20 + len(options)
    return (
        struct.pack(
            "!BBHHHBBH4s4s",
            0x40 | length // 4,
            0,
            (length + len(payload)) & 0xFFFF,
            identification & 0xFFFF,
            fragment,
            ttl,
            protocol,
            0,
            source.packed,
            destination.packed,
        )
        + options
        + payload
    )


def ipv6(
    source: Address, destination: Address, next_header: int, payload: bytes, *, hop_limit: int = 64
) -> bytes:
    """An IPv6 packet; extension headers are part of the payload."""
    return (
        struct.pack("!IHBB", 0x60000000, len(payload) & 0xFFFF, next_header, hop_limit)
        + source.packed
        + destination.packed
        + payload
    )


def extension(kind: int, next_header: int, units: int = 0, *, segments_left: int = 0) -> bytes:
    """An IPv6 extension header other than Fragment: 8 + 8 * units bytes, AH 12 + 4 * units."""
    if kind == AUTHENTICATION:
        return struct.pack("!BBHII", next_header, 1 + units, 0, 7, 1) + bytes(4 * units)
    if kind == ROUTING:
        # A type for experiments (RFC 4727).
        fields = (next_header, units, 253, segments_left, 0)
        return struct.pack("!BBBBI", *fields) + bytes(8 * units)
    # One option, PadN, fills the header.
    return struct.pack("!BBBB", next_header, units, 1, 4 + 8 * min(units, 31)) + bytes(
        4 + 8 * units
    )


def fragment_header(next_header: int, offset: int, more: bool, identification: int) -> bytes:
    """An IPv6 Fragment header; ``offset`` in units of 8 bytes."""
    return struct.pack("!BBHI", next_header, 0, offset << 3 | more, identification)


def tcp(
    source_port: int,
    destination_port: int,
    flags: int = 2,
    payload: bytes = b"",
    *,
    sequence: int = 1,
    acknowledgment: int = 0,
) -> bytes:
    """A TCP segment, by default a SYN."""
    numbers = (sequence, acknowledgment)
    return (
        struct.pack("!HHIIBBHHH", source_port, destination_port, *numbers, 0x50, flags, 512, 0, 0)
        + payload
    )


def udp(source_port: int, destination_port: int, payload: bytes = b"") -> bytes:
    """A UDP datagram."""
    return struct.pack("!HHHH", source_port, destination_port, 8 + len(payload), 0) + payload


def icmp(kind: int, code: int = 0, rest: bytes = b"\0\0\0\0", payload: bytes = b"") -> bytes:
    """An ICMP or ICMPv6 message."""
    return struct.pack("!BBH", kind, code, 0) + rest + payload


# --- choices ---------------------------------------------------------------------------------


def _chance(rng: Random, probability: float) -> bool:
    return rng.random() < probability


def _port(rng: Random) -> int:
    if _chance(rng, 0.3):
        return rng.choice((0, 1, 21, 22, 23, 53, 67, 68, 80, 443, 546, 547, 65535))
    return rng.randrange(65536)


def _port_near(rng: Random, rule: Rule) -> int:
    """Within a rule's range, at its ends or just past them."""
    port = rng.choices(
        (rng.randint(rule.low, rule.high), rule.low, rule.high, rule.low - 1, rule.high + 1),
        (40, 20, 20, 10, 10),
    )[0]
    return min(max(port, 0), 65535)


def _address_near(rng: Random, network: Network) -> Address:
    """Within a prefix, at its ends or just past them."""
    kind = IPv4Address if network.version == 4 else IPv6Address
    first, last = int(network.network_address), int(network.broadcast_address)
    wide = 2**network.max_prefixlen
    number = rng.choices(
        (rng.randint(first, last), first, last, first - 1, last + 1, rng.randrange(wide)),
        (60, 15, 15, 4, 4, 2),
    )[0]
    return kind(number % wide)


_SPECIAL: dict[int, list[Address]] = {
    4: [
        IPv4Address(a)
        for a in ("0.0.0.0", "127.0.0.1", "255.255.255.255", "224.0.0.1", "169.254.1.1")
    ],
    6: [
        IPv6Address(a)
        for a in ("::", "::1", "fe80::1", "febf::1", "fec0::1", "ff02::1", "ff02::1:2")
    ],
}


def _address(rng: Random, scene: Scene, family: int) -> Address:
    """An address of a family, most often one of a rule or an interface."""
    own = [a for a in scene.interface.addresses if a.version == family]
    draw = rng.random()
    if own and draw < 0.3:
        return rng.choice(sorted(own, key=int))
    if draw < 0.5:
        return rng.choice(_SPECIAL[family])
    if draw < 0.7 and family == 6:
        # In a packet an IPv4-mapped address does not stand for the IPv4 address.
        return mapped(_address(rng, scene, 4))
    if draw < 0.85 and scene.rules:
        rule = rng.choice(scene.rules)
        if rule.family == family:
            return _address_near(rng, rule.destination)
    return IPv4Address(rng.randrange(2**32)) if family == 4 else IPv6Address(rng.randrange(2**128))


def mapped(address: Address) -> IPv6Address:
    """::ffff:a.b.c.d."""
    return IPv6Address(0xFFFF << 32 | int(address))


# --- transport -------------------------------------------------------------------------------


@dataclass
class _Segment:
    """The payload of an IP packet."""

    source: Address
    destination: Address
    protocol: int
    payload: bytes
    hop_limit: int = 64


def _transport(rng: Random, protocol: int, source_port: int, destination_port: int) -> bytes:
    payload = bytes(rng.choice((0, 0, 1, 4, 40, 200)))
    if protocol == TCP:
        return tcp(source_port, destination_port, rng.choice((2, 16, 18, 24, 4, 1, 0)), payload)
    return udp(source_port, destination_port, payload)


def _at_rule(rng: Random, scene: Scene) -> _Segment:
    """A packet that matches a rule, or just does not."""
    rule = rng.choice(scene.rules)
    protocol = TCP if (rule.protocol == "tcp") != _chance(rng, 0.08) else UDP
    source = _address_near(rng, rule.source)
    destination = _address_near(rng, rule.destination)
    if rule.family == 4 and _chance(rng, 0.03):
        source, destination = mapped(source), mapped(destination)
    ports = _port(rng), _port_near(rng, rule)
    flows = _sorted_flows(scene, rule.family)
    if flows and _chance(rng, 0.04):
        # The address and port of a local socket's peer.
        flow = rng.choice(flows)
        source, ports = flow.remote, (flow.remote_port, ports[1])
    return _Segment(source, destination, protocol, _transport(rng, protocol, *ports))


def _at_exception(rng: Random, scene: Scene) -> _Segment:
    """A packet of DHCP or SSH, or almost one."""
    family = rng.choice((4, 6))
    protocol, source_port, destination_port = rng.choice(
        ((TCP, 50000, 22), (UDP, 67, 68), (UDP, 547, 546), (UDP, 68, 67), (UDP, 546, 547))
    )
    if _chance(rng, 0.15):
        source_port, destination_port = destination_port, source_port
    if _chance(rng, 0.1):
        protocol = TCP if protocol == UDP else UDP
    if _chance(rng, 0.1):
        destination_port += rng.choice((-1, 1))
    return _Segment(
        _address(rng, scene, family),
        _address(rng, scene, family),
        protocol,
        _transport(rng, protocol, source_port, destination_port),
    )


_OFFSETS = (0, 0, 0, 0, 1, -1, 1000, -1000, NEAR, NEAR + 1, -NEAR, -NEAR - 1, 1 << 31)


def _number_of(rng: Random, numbers: Sequence[int]) -> int:
    """One of these numbers, or a number at a distance that matters; rarely any."""
    if _chance(rng, 0.05):
        return rng.randrange(WRAP)
    return (rng.choice(numbers) + rng.choice(_OFFSETS)) % WRAP


def _transport_of(rng: Random, flow: TrackedFlow, source: End, destination: End) -> bytes:
    if flow.protocol == TCP:
        flags = rng.choice((2, 18, 16, 16, 24, 17, 4, 20, 4, 1, 0, 3, 6, rng.randrange(64)))
        sequence = _number_of(
            rng, (flow.next.get(source, 0), flow.acknowledged.get(destination, 0))
        )
        acknowledgment = _number_of(
            rng, (flow.next.get(destination, 0), flow.acknowledged.get(source, 0))
        )
        return tcp(
            *(source[1], destination[1], flags, bytes(rng.choice((0, 0, 0, 5)))),
            sequence=sequence,
            acknowledgment=acknowledgment,
        )
    if flow.protocol == UDP:
        return udp(source[1], destination[1], bytes(rng.choice((0, 4))))
    kinds = (8, 0) if flow.protocol == ICMP else (128, 129)
    rest = source[1].to_bytes(2, "big") + rng.randbytes(2)
    return icmp(rng.choice(kinds), rest=rest, payload=bytes(rng.choice((0, 8))))


def _ends_of(rng: Random, flow: TrackedFlow) -> tuple[End, End]:
    """Source and destination; almost always the flow's own ends."""
    source, destination = rng.sample((flow.initiator, flow.responder), 2)
    if flow.protocol in (TCP, UDP) and _chance(rng, 0.05):
        destination = (destination[0], destination[1] ^ 1)
    return source, destination


def _at_tracked(rng: Random, scene: Scene) -> _Segment:
    """A packet of a tracked flow, or almost one."""
    flow = rng.choice(scene.tracked)
    source, destination = _ends_of(rng, flow)
    payload = _transport_of(rng, flow, source, destination)
    return _Segment(source[0], destination[0], flow.protocol, payload)


def random_flow(rng: Random, scene: Scene, now: float, ages: Sequence[float]) -> TrackedFlow:
    """A flow in any state, some of which no packets lead to."""
    family = rng.choice((4, 6))
    protocol = rng.choice((TCP, TCP, TCP, TCP, UDP, ICMP if family == 4 else ICMPV6, GRE))
    initiator, responder = (
        (
            _address(rng, scene, family),
            _port(rng) if _chance(rng, 0.5) else 40000 + rng.randrange(9),
        )
        for _ in range(2)
    )
    if scene.rules and _chance(rng, 0.5):
        rule = rng.choice(scene.rules)
        if rule.family == family:
            initiator = (_address_near(rng, rule.source), initiator[1])
            responder = (_address_near(rng, rule.destination), _port_near(rng, rule))
    if protocol in (ICMP, ICMPV6):
        responder = (responder[0], initiator[1])
    if protocol == GRE:
        # Of the whole protocol: no port is known.
        initiator, responder = (initiator[0], 0), (responder[0], 0)
    flow = TrackedFlow(
        protocol,
        initiator,
        responder,
        now - rng.choice(ages),
        stage=rng.choice(("started", "answered", "confirmed")),
        is_admitted_in=_chance(rng, 0.5),
        is_admitted_out=_chance(rng, 0.7),
    )
    if protocol == TCP:
        flow.is_adopted = _chance(rng, 0.25)
        flow.is_reset = _chance(rng, 0.1)
        flow.fins = {number for number in (0, 1) if _chance(rng, 0.25)}
        start = rng.choice((rng.randrange(WRAP), WRAP - 5, 5))
        flow.next[initiator] = start
        flow.acknowledged[initiator] = (start - rng.choice((0, 0, 5))) % WRAP
        if flow.stage != "started":
            flow.next[responder] = rng.randrange(WRAP)
            flow.acknowledged[responder] = (start - rng.choice((0, 0, 1000))) % WRAP
            flow.acknowledged[initiator] = (
                flow.next[responder] - rng.choice((0, 0, 1000, NEAR))
            ) % WRAP
    return flow


def _sorted_flows(scene: Scene, family: int) -> list[Flow]:
    """A set in a fixed order, which a seed needs."""
    return sorted(
        (f for f in scene.sockets.flows if f.local.version == family),
        key=lambda f: (f.protocol, int(f.local), f.local_port, int(f.remote), f.remote_port),
    )


def _flow(rng: Random, scene: Scene, family: int) -> Flow:
    """A flow of a local socket, or almost one, or of none."""
    flows = _sorted_flows(scene, family)
    listeners = sorted(each for each in scene.sockets.listeners if each[0] == family)
    draw = rng.random()
    if flows and draw < 0.5:
        flow = rng.choice(flows)
    elif listeners and draw < 0.8:
        _, protocol, port = rng.choice(listeners)
        flow = Flow(protocol, LOOPBACK[family], port, _address(rng, scene, family), _port(rng))
    else:
        flow = Flow(
            rng.choice(("tcp", "udp")),
            _address(rng, scene, family),
            _port(rng),
            _address(rng, scene, family),
            _port(rng),
        )
    if _chance(rng, 0.75):
        return flow
    return rng.choice(
        (
            replace(flow, protocol="udp" if flow.protocol == "tcp" else "tcp"),
            replace(flow, local=_address(rng, scene, family)),
            replace(flow, local_port=_port(rng)),
            replace(flow, remote=_address(rng, scene, family)),
            replace(flow, remote_port=_port(rng)),
        )
    )


def _at_flow(rng: Random, scene: Scene) -> _Segment:
    flow = _flow(rng, scene, rng.choice((4, 6)))
    protocol = TCP if flow.protocol == "tcp" else UDP
    payload = _transport(rng, protocol, flow.remote_port, flow.local_port)
    return _Segment(flow.remote, flow.local, protocol, payload)


def _quote(rng: Random, scene: Scene, family: int) -> bytes:
    """The packet of this host that an ICMP error quotes."""
    tracked = [each for each in scene.tracked if each.initiator[0].version == family]
    if tracked and _chance(rng, 0.4):
        segment = _at_tracked(rng, replace(scene, tracked=tracked))
        return _cut_quote(rng, family, _ip(rng, segment, simple=0.7))
    flow = _flow(rng, scene, family)
    protocol = TCP if flow.protocol == "tcp" else UDP
    payload = _transport(rng, protocol, flow.local_port, flow.remote_port)
    segment = _Segment(flow.local, flow.remote, protocol, payload)
    if _chance(rng, 0.08):
        # An echo request of this host, or a packet without ports.
        segment.protocol = rng.choice((ICMP, ICMPV6, GRE))
    return _cut_quote(rng, family, _ip(rng, segment, simple=0.6))


def _cut_quote(rng: Random, family: int, packet: bytes) -> bytes:
    quote = bytearray(packet)
    draw = rng.random()
    if draw < 0.25:
        # Routers may quote only eight bytes of payload, some quote less.
        del quote[(20 if family == 4 else 40) + rng.randrange(12) :]
    elif draw < 0.35:
        del quote[rng.randrange(len(quote)) :]
    elif draw < 0.4:
        quote[0] ^= 1 << rng.randrange(8)
    return bytes(quote)


def _at_icmp(rng: Random, scene: Scene) -> _Segment:
    family = rng.choice((4, 6))
    source, destination = _address(rng, scene, family), _address(rng, scene, family)
    protocol = ICMP if family == 4 else ICMPV6
    if _chance(rng, 0.04):
        protocol = ICMPV6 if family == 4 else ICMP
    kinds = (
        (0, 8, 3, 3, 11, 11, 12, 4, 5, 9, 10, 13, 30)
        if family == 4
        else (1, 2, 2, 3, 4, 128, 129, 130, 131, 132, 133, 134, 135, 136, 137, 143, 144, 0)
    )
    kind = rng.choice(kinds) if _chance(rng, 0.95) else rng.randrange(256)
    code = rng.choices((0, rng.randrange(256)), (80, 20))[0]
    is_error = kind in (3, 11, 12, 4) if family == 4 else kind < 128
    payload = _quote(rng, scene, family) if is_error else bytes(rng.choice((0, 4, 16, 56)))
    if is_error and _chance(rng, 0.8):
        # The sender of the quoted packet.
        quoted = payload[12:16] if family == 4 else payload[8:24]
        if len(quoted) == {4: 4, 6: 16}[family]:
            destination = ip_address(quoted)
    message = icmp(kind, code, payload=payload)
    if _chance(rng, 0.05):
        message = message[: rng.randrange(12)]
    hop_limit = rng.choice((255, 255, 1, 1, 64, 254, 0, 2))
    return _Segment(source, destination, protocol, message, hop_limit)


def _at_other_protocol(rng: Random, scene: Scene) -> _Segment:
    family = rng.choice((4, 6))
    protocol = rng.choice(
        (2, 4, 41, 47, 50, 51, 59, 89, VRRP, VRRP, VRRP, 132, 135, 253, rng.randrange(256))
    )
    if family == 4 and _chance(rng, 0.2):
        message = bytes((rng.choice((0x11, 0x12, 0x16, 0x17, 0x22, 0x13)), 0)) + bytes(6)
        group = rng.choice((ip_address("224.0.0.22"), _address(rng, scene, 4)))
        return _Segment(
            _address(rng, scene, 4),
            group,
            2,
            message[: rng.choice((8, 8, 7))],
            rng.choice((1, 1, 2)),
        )
    return _Segment(
        _address(rng, scene, family),
        _address(rng, scene, family),
        protocol,
        rng.randbytes(rng.randrange(60)),
    )


def _at_random(rng: Random, scene: Scene) -> _Segment:
    family = rng.choice((4, 6))
    protocol = rng.choice((TCP, UDP))
    return _Segment(
        _address(rng, scene, family),
        _address(rng, scene, family),
        protocol,
        _transport(rng, protocol, _port(rng), _port(rng)),
    )


# --- network ---------------------------------------------------------------------------------


def _ip(rng: Random, segment: _Segment, simple: float) -> bytes:
    """An IP packet: with probability ``simple`` no options, extension headers or fragments."""
    is_simple = _chance(rng, simple)
    if segment.source.version == 4:
        return _ip_version_4(rng, segment, is_simple)
    return _ip_version_6(rng, segment, is_simple)


def _fragment_offset(rng: Random) -> int:
    return rng.choice((1, 2, 185, 8191))


def _options(rng: Random) -> bytes:
    """IPv4 options, of 4 to 40 bytes, of which few have a source route."""
    draw = rng.random()
    if draw < 0.6:
        # No Operation, repeated.
        return b"\x01" * 4 * rng.randint(1, 10)
    if draw < 0.7:
        return rng.randbytes(4 * rng.randint(1, 10))
    route = bytes((rng.choice((131, 137, 7, 68)), 7, 4)) + rng.randbytes(4)
    alert = b"\x94\x04\0\0"
    options = rng.choice((alert, b"\0" * 4, b"\x01")) + route
    return options + b"\0" * (-len(options) % 4)


def _ip_version_4(rng: Random, segment: _Segment, is_simple: bool) -> bytes:
    options, fragment = b"", rng.choice((0, 0x4000))
    if not is_simple:
        if _chance(rng, 0.6):
            options = _options(rng)
        if _chance(rng, 0.6):
            # The reserved bit and "don't fragment" do not make a packet a fragment.
            fragment = rng.choice(
                (0x2000, 0, _fragment_offset(rng), 0x2000 | _fragment_offset(rng))
            )
            fragment |= rng.choice((0, 0, 0x4000, 0x8000))
    protocol, payload = segment.protocol, segment.payload
    if not is_simple and _chance(rng, 0.3):
        units = rng.choice((60, 254)) if _chance(rng, 0.1) else 0
        protocol, payload = AUTHENTICATION, extension(AUTHENTICATION, protocol, units) + payload
        if _chance(rng, 0.1):
            payload = payload[: rng.randrange(16)]
    return ipv4(
        segment.source,
        segment.destination,
        protocol,
        payload,
        options=options,
        identification=rng.randrange(4),
        fragment=fragment,
        ttl=segment.hop_limit,
    )


def _ip_version_6(rng: Random, segment: _Segment, is_simple: bool) -> bytes:
    next_header, payload = segment.protocol, segment.payload
    if not is_simple:
        # From the innermost header. The programs follow eight headers, but not nine.
        count = rng.choice((0, 1, 1, 2, 3, 7, 8, 9, 12))
        kinds = [
            rng.choice((HOP_BY_HOP, ROUTING, DESTINATION_OPTIONS, AUTHENTICATION))
            for _ in range(count)
        ]
        if _chance(rng, 0.6):
            kinds.insert(rng.randrange(len(kinds) + 1), FRAGMENT)
            if _chance(rng, 0.08):
                kinds.insert(rng.randrange(len(kinds) + 1), FRAGMENT)
        for kind in kinds:
            if kind == FRAGMENT:
                offset = rng.choice((0, 0, 0, _fragment_offset(rng)))
                header = fragment_header(next_header, offset, _chance(rng, 0.5), rng.randrange(4))
            else:
                units = rng.choice((1, 1, 2, 3, 20, 60, 254)) if _chance(rng, 0.06) else 0
                left = int(kind == ROUTING and _chance(rng, 0.1))
                header = extension(kind, next_header, units, segments_left=left)
            if len(header) + len(payload) < MAX_FRAME - 100:
                next_header, payload = kind, header + payload
    return ipv6(
        segment.source, segment.destination, next_header, payload, hop_limit=segment.hop_limit
    )


def _at_datagram(rng: Random, scene: Scene) -> bytes:
    """A later fragment of a known datagram, or of one that differs in one field."""
    first = rng.choice(scene.first_fragments)
    source, destination, protocol = first.source, first.destination, first.protocol
    identification = first.identification
    spoilt = rng.choice(("", "", "", "identification", "protocol", "source"))
    if spoilt == "identification":
        identification ^= 1
    elif spoilt == "protocol":
        protocol = TCP if protocol == UDP else UDP
    elif spoilt == "source":
        source = _address(rng, scene, first.family)
    offset, payload = _fragment_offset(rng), rng.randbytes(rng.randrange(40))
    if first.family == 4:
        return ipv4(
            source,
            destination,
            protocol,
            payload,
            identification=identification,
            fragment=rng.choice((0, 0x2000)) | offset,
        )
    header = fragment_header(protocol, offset, _chance(rng, 0.5), identification)
    return ipv6(source, destination, FRAGMENT, header + payload)


# --- frames ----------------------------------------------------------------------------------

_AIMS = (_at_rule, _at_random, _at_icmp, _at_exception, _at_flow, _at_other_protocol)
_WEIGHTS = (56, 8, 16, 8, 8, 4)
_VLAN = (0x8100, 0x88A8)


def _other_ethertype(rng: Random) -> bytes:
    ethertype = rng.choice(
        (
            ETHERTYPE_ARP,
            ETHERTYPE_ARP,
            ETHERTYPE_EAPOL,
            ETHERTYPE_EAPOL,
            0x88CC,
            0x8863,
            0x8864,
            0x8847,
            0x0026,
            0x9100,
            0,
        )
    )
    return ethernet(rng.randbytes(rng.randrange(60)), ethertype, _tags(rng))


def _tags(rng: Random) -> list[int]:
    count = rng.choices((0, 1, 2, 3), (82, 10, 6, 2))[0]
    return [rng.choice(_VLAN) for _ in range(count)]


def _spoil(rng: Random, frame: bytes) -> bytes:
    """Damage a frame: truncate it, change a length, or flip a bit of its headers."""
    draw = rng.random()
    spoilt = bytearray(frame)
    if draw < 0.35:
        del spoilt[rng.randint(MIN_FRAME, len(spoilt)) :]
    elif draw < 0.55:
        # IPv4's total length, or IPv6's payload length.
        spoilt[16:18] = rng.choice(
            (0, 1, 19, 20, 28, 40, len(frame) - 14, len(frame) - 13)
        ).to_bytes(2, "big")
    elif draw < 0.75:
        at = 18 if frame[12:14] == b"\x86\xdd" else 16
        length = int.from_bytes(frame[at : at + 2], "big") + rng.choice((-30, -9, -8, -1, 1, 8))
        spoilt[at : at + 2] = (length & 0xFFFF).to_bytes(2, "big")
    elif draw < 0.85:
        spoilt[14] = rng.choice((0x40, 0x44, 0x45, 0x46, 0x4F, 0x60, 0x55, 0x05))
    else:
        at = rng.randrange(12, min(len(spoilt), 120))
        spoilt[at] ^= 1 << rng.randrange(8)
    return bytes(spoilt)


def random_frame(rng: Random, scene: Scene) -> bytes:
    """A frame of at least 14 bytes, most often to something in the scene."""
    if _chance(rng, 0.03):
        return _other_ethertype(rng)
    if scene.first_fragments and _chance(rng, 0.06):
        packet = _at_datagram(rng, scene)
    else:
        aim = rng.choices(_AIMS, _WEIGHTS)[0]
        if scene.tracked and _chance(rng, 0.3):
            aim = _at_tracked
        if aim is _at_rule and not scene.rules:
            aim = _at_random
        packet = _ip(rng, aim(rng, scene), simple=0.75)
    ethertype = ETHERTYPE_IPV4 if packet[0] >> 4 == 4 else ETHERTYPE_IPV6
    if _chance(rng, 0.005):
        ethertype = ETHERTYPE_IPV4 + ETHERTYPE_IPV6 - ethertype
    frame = ethernet(packet, ethertype, _tags(rng))
    if _chance(rng, 0.1):
        frame = _spoil(rng, frame)
    if _chance(rng, 0.1):
        # Ethernet pads a frame to 60 bytes.
        frame += bytes(max(60 - len(frame), rng.randrange(20)))
    return frame


def is_testable(frame: bytes) -> bool:
    """Does BPF_PROG_TEST_RUN accept this frame?

    It refuses, with EINVAL, IP without room for the fixed IP header. Behind a VLAN tag
    it does not look, so that what the program makes of such frames is seen all the same.
    """
    needed = {ETHERTYPE_IPV4: 34, ETHERTYPE_IPV6: 54}
    return len(frame) >= needed.get(int.from_bytes(frame[12:14], "big"), MIN_FRAME)


# --- rules -----------------------------------------------------------------------------------

_DESTINATIONS = {
    4: (
        *("0.0.0.0/0", "100.64.0.0/10", "100.72.0.0/16", "100.72.0.0/23", "100.72.0.0/24"),
        *("100.72.0.4/30", "100.72.0.4/31", "100.72.0.4/32", "10.0.0.0/8", "10.1.2.3/32"),
    ),
    6: (
        *("::/0", "fd00::/8", "fd00:1::/32", "fd00:1::/33", "fd00:1::/64", "fd00:1::/65"),
        *("fd00:1::4/127", "fd00:1::4/128", "::ffff:100.72.0.0/112", "2001:db8::/47"),
    ),
}
_SOURCES = {
    4: ("0.0.0.0/0", "10.0.0.0/8", "10.0.0.0/9", "10.0.0.0/24", "10.0.0.1/32", "192.0.2.0/25"),
    6: ("::/0", "fd00::/8", "fd00:2::/31", "fd00:2::/64", "fd00:2::1/128", "2001:db8:1::/48"),
}


def random_rules(
    rng: Random,
    sizes: Sequence[int],
    *,
    tproxy_ports: Sequence[int],
    interfaces: Sequence[str] = (),
    egress: float = 0.05,
    own: Mapping[int, str] | None = None,
) -> list[Rule]:
    """Rules with distinct keys, in a random order of entry.

    For each of ``sizes`` one prefix with so many rules: the prefixes lie within
    each other, the port ranges of each overlap. ``egress`` is the share of their direction.
    With ``own``, an own address of each family, some are for own addresses.
    """
    rules: dict[tuple[object, ...], Rule] = {}
    for size in sizes:
        family = rng.choice((4, 6))
        network = IPv4Network if family == 4 else IPv6Network
        destination = network(rng.choice(_DESTINATIONS[family]), strict=False)
        source = network(rng.choice(_SOURCES[family]) if _chance(rng, 0.6) else _SOURCES[family][0])
        protocol = rng.choice(("tcp", "udp"))
        direction = "egress" if _chance(rng, egress) else "ingress"
        is_own = False
        if own is not None and direction == "ingress" and _chance(rng, 0.2):
            is_own, destination = True, network(own[family])
        # A few lists for all rules of the prefix: each list that a port may depend on
        # takes room in the prefix's port index.
        lists: list[frozenset[str]] = [frozenset()]
        if interfaces and _chance(rng, 0.6):
            lists += [
                frozenset(rng.sample(interfaces, rng.randint(1, min(3, len(interfaces)))))
                for _ in range(rng.randint(1, 3))
            ]
        # The narrower the ports, the more overlap; lows are distinct.
        first = rng.choice((0, 1, 1000, 65535 - 3 * size))
        for low in rng.sample(range(first, first + 3 * size + 1), size):
            width = rng.choice((0, 0, 1, 2, 5, 50, 1000, 65535))
            action = rng.choices(("intercept", "pass", "deny"), (6, 2, 2))[0]
            if direction == "egress" and action == "intercept":
                action = "pass"
            rule = Rule(
                destination,
                protocol,
                low,
                min(low + rng.randint(0, width), 65535),
                source,
                action,
                rng.choice(tproxy_ports) if action == "intercept" else 0,
                names := rng.choice(lists),
                direction,
                is_limited=bool(names) and _chance(rng, 0.5),
                is_own=is_own,
            )
            rules.setdefault(rule.key, rule)
    mixed = list(rules.values())
    rng.shuffle(mixed)
    return mixed
