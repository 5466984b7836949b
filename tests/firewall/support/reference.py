# SPDX-License-Identifier: GPL-2.0-only
"""The firewall's reference model: decisions in plain Python, to compare the programs with.

It is written from the design and the RFCs, and shares no code and no idea with the C or with
zfw_py. Where the model and the programs differ, one of them has a bug.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network

from tests.firewall.support.tracked import (
    ACK,
    ICMP,
    ICMPV6,
    RST,
    SYN,
    TCP,
    UDP,
    Segment,
    TrackedFlows,
)

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

ETHERTYPE_IPV4 = 0x0800
ETHERTYPE_ARP = 0x0806
ETHERTYPE_IPV6 = 0x86DD
ETHERTYPE_EAPOL = 0x888E
ETHERTYPES_VLAN = (0x8100, 0x88A8)
MAX_VLAN_TAGS = 2

IGMP, VRRP = 2, 112
HOP_BY_HOP, ROUTING, FRAGMENT, AUTHENTICATION, DESTINATION_OPTIONS = 0, 43, 44, 51, 60
EXTENSION_HEADERS = (HOP_BY_HOP, ROUTING, FRAGMENT, AUTHENTICATION, DESTINATION_OPTIONS)
MAX_EXTENSION_HEADERS = 8
# The programs read no header that starts later in the frame.
MAX_OFFSET = 1024

BROADCAST = IPv4Address("255.255.255.255")
LINK_LOCAL = IPv6Network("fe80::/10")
ALL_DHCP_SERVERS = IPv6Address("ff02::1:2")
LOOPBACK: dict[int, Address] = {4: IPv4Address("127.0.0.1"), 6: IPv6Address("::1")}


@dataclass(frozen=True)
class Interface:
    """An interface: its settings, and its own addresses. The settings' defaults are zfw's."""

    name: str
    addresses: frozenset[Address] = frozenset()
    icmp_echo: bool = False
    ssh: bool = True
    ipv6: bool = False
    per_interface_rules: bool = False
    pass_non_tuple: bool = False
    outbound_filter: bool = False
    vrrp: bool = False
    eapol: bool = False
    is_loopback: bool = False

    def in_effect(self) -> Interface:
        """The interface with the settings in effect: some are fixed on loopback."""
        if not self.is_loopback:
            return self
        return replace(self, icmp_echo=True, ipv6=True, pass_non_tuple=True)


@dataclass(frozen=True)
class Rule:
    """A rule. ``protocol`` is "tcp" or "udp", ``action`` "intercept", "pass" or "deny"."""

    destination: Network
    protocol: str
    low: int
    high: int
    source: Network
    action: str = "pass"
    tproxy_port: int = 0
    interfaces: frozenset[str] = frozenset()
    direction: str = "ingress"
    # It counts on its interfaces alone, whatever their settings.
    is_limited: bool = False
    # It is for each own address of the host, whatever ``destination`` is but its family.
    is_own: bool = False

    @property
    def family(self) -> int:
        """4 or 6."""
        return self.destination.version

    @property
    def key(self) -> tuple[object, ...]:
        """The rule's key: a second rule with the same key replaces it."""
        to = f"own{self.family}" if self.is_own else self.destination
        return (self.direction, self.protocol, to, self.source, self.low)

    @property
    def precedence(self) -> tuple[float, int]:
        """The greatest is tried first: own addresses come between one address and two."""
        bits = self.destination.max_prefixlen
        return bits - 0.5 if self.is_own else self.destination.prefixlen, self.source.prefixlen

    def __str__(self) -> str:
        to = f" {self.tproxy_port}" if self.tproxy_port else ""
        on = f" on {','.join(sorted(self.interfaces))}" if self.interfaces else ""
        on += " alone" if self.is_limited else ""
        return (
            f"{self.direction} {self.protocol} {self.key[2]} from {self.source}"
            f" ports {self.low}-{self.high} {self.action}{to}{on}"
        )


def rule(
    destination: str,
    protocol: str,
    low: int,
    high: int | None = None,
    *,
    source: str | None = None,
    action: str = "pass",
    tproxy_port: int = 0,
    interfaces: Iterable[str] = (),
    direction: str = "ingress",
    is_limited: bool = False,
) -> Rule:
    """A rule from text; a tproxy port means intercept."""
    network = ip_network(destination, strict=False)
    return Rule(
        network,
        protocol,
        low,
        low if high is None else high,
        ip_network(source or ("0.0.0.0/0" if network.version == 4 else "::/0"), strict=False),
        "intercept" if tproxy_port else action,
        tproxy_port,
        frozenset(interfaces),
        direction,
        is_limited,
    )


class RuleSet:
    """The rules, in the order in which they were inserted."""

    def __init__(
        self, rules: Iterable[Rule] = (), own_addresses: frozenset[Address] = frozenset()
    ) -> None:
        """``own_addresses`` are those of the host's interfaces, whichever they are."""
        self.own_addresses = own_addresses
        self._rules: list[Rule] = []
        self._by_precedence: dict[tuple[object, ...], list[tuple[int, ...]]] | None = None
        for each in rules:
            self.insert(each)

    def __iter__(self) -> Iterator[Rule]:
        return iter(self._rules)

    def __len__(self) -> int:
        return len(self._rules)

    def insert(self, new: Rule) -> None:
        """Add a rule, or change the one of the same key where it stands.

        Interfaces that it names join those of the rule that was there; if it
        names none, none are left. Whether it is limited to them is its own.
        """
        self._by_precedence = None
        for place, old in enumerate(self._rules):
            if old.key == new.key:
                joined = old.interfaces | new.interfaces if new.interfaces else new.interfaces
                self._rules[place] = replace(new, interfaces=joined)
                return
        self._rules.append(new)

    def delete(self, key: tuple[object, ...], interfaces: Iterable[str] = ()) -> bool:
        """Remove a rule; with interfaces only these from its list, and it with the last.

        False where there is no such rule, or it does not name them all.
        """
        self._by_precedence = None
        gone = frozenset(interfaces)
        for place, old in enumerate(self._rules):
            if old.key == key and gone <= old.interfaces:
                left = old.interfaces - gone
                if gone and left:
                    self._rules[place] = replace(old, interfaces=left)
                else:
                    del self._rules[place]
                return True
        return False

    def match(
        self,
        protocol: str,
        source: Address,
        destination: Address,
        port: int,
        interface: Interface,
        direction: str = "ingress",
    ) -> Rule | None:
        """The rule for a packet.

        Longest destination, then longest source, then order of entry: so the
        first that matches when all rules stand in that order.
        """
        wanted = (direction, protocol, destination.version)
        from_, to = int(source), int(destination)
        for place, low, high, to_mask, to_net, from_mask, from_net in self._sorted().get(
            wanted, ()
        ):
            if not low <= port <= high:
                continue
            if from_ & from_mask != from_net:
                continue
            candidate = self._rules[place]
            if candidate.is_own:
                if destination not in self.own_addresses:
                    continue
            elif to & to_mask != to_net:
                continue
            looks_at_names = interface.per_interface_rules or candidate.is_limited
            if looks_at_names and interface.name not in candidate.interfaces:
                continue
            return candidate
        return None

    def _sorted(self) -> dict[tuple[object, ...], list[tuple[int, ...]]]:
        """By (direction, protocol, family): rules in order of precedence, as numbers.

        ipaddress is too slow to be asked for each rule and packet.
        """
        if self._by_precedence is None:
            self._by_precedence = {}
            places = sorted(
                range(len(self._rules)),
                key=lambda place: (
                    *(-length for length in self._rules[place].precedence),
                    place,
                ),
            )
            for place in places:
                each = self._rules[place]
                self._by_precedence.setdefault(
                    (each.direction, each.protocol, each.family), []
                ).append(
                    (
                        place,
                        each.low,
                        each.high,
                        int(each.destination.netmask),
                        int(each.destination.network_address),
                        int(each.source.netmask),
                        int(each.source.network_address),
                    )
                )
        return self._by_precedence


@dataclass(frozen=True)
class Flow:
    """A connected socket: TCP in any state but LISTEN, or UDP after connect()."""

    protocol: str
    local: Address
    local_port: int
    remote: Address
    remote_port: int


@dataclass
class Sockets:
    """The local sockets.

    ``listeners`` are (family, protocol, port) on 127.0.0.1 or ::1: TCP in LISTEN, UDP unconnected.
    """

    listeners: set[tuple[int, str, int]] = field(default_factory=set)
    flows: set[Flow] = field(default_factory=set)

    def is_established(self, flow: Flow) -> bool:
        """Is there a connected socket for this very flow?"""
        return flow in self.flows

    def owns(self, flow: Flow) -> bool:
        """Does a packet that an error quotes belong to a local socket?

        An unconnected UDP socket sends to anyone; a listener sends nothing.
        """
        family = flow.local.version
        return self.is_established(flow) or (
            flow.protocol == "udp"
            and flow.local == LOOPBACK[family]
            and (family, "udp", flow.local_port) in self.listeners
        )


@dataclass(frozen=True)
class Decision:
    """The decision for a packet: "pass", "drop" or "assign", the reason, and the rule.

    ``track`` is what it does to the entry of its flow: "none", or as TrackedFlows.track() has it.
    """

    verdict: str
    reason: str
    rule: Rule | None = None
    track: str = "none"


class Malformed(Exception):
    """The headers contradict each other, or do not fit into the frame."""


class HeaderChain(Exception):
    """More or longer IPv6 extension headers than the programs follow."""


class NotIp(Exception):
    """The frame carries neither IPv4 nor IPv6."""

    def __init__(self, ethertype: int) -> None:
        super().__init__(f"ethertype {ethertype:#06x}")
        self.ethertype = ethertype


@dataclass(frozen=True)
class Packet:
    """An IP packet: ``payload`` is what its IP header's length covers after the last header."""

    source: Address
    destination: Address
    hop_limit: int
    protocol: int
    payload: bytes
    offset: int  # of the payload, in the frame
    is_source_routed: bool = False
    fragment: str = "whole"  # "whole", "first" or "later"
    identification: int = 0
    header_protocol: int = 0  # of the IPv4 header: AH may stand before the protocol's

    @property
    def family(self) -> int:
        """4 or 6."""
        return self.source.version

    @property
    def icmp_protocol(self) -> int:
        """The protocol number of ICMP in its family."""
        return ICMP if self.family == 4 else ICMPV6

    @property
    def datagram(self) -> tuple[object, ...]:
        """The key of a datagram's fragments: RFC 791 section 3.2, RFC 8200 section 4.5."""
        protocol = self.header_protocol if self.family == 4 else None
        return (self.source, self.destination, self.identification, protocol)


def _number(data: bytes, offset: int, length: int) -> int:
    return int.from_bytes(data[offset : offset + length], "big")


def parse_frame(frame: bytes) -> Packet:
    """Read an Ethernet frame; raises Malformed, HeaderChain or NotIp."""
    if len(frame) < 14:
        raise Malformed("no Ethernet header")
    ethertype, offset = _number(frame, 12, 2), 14
    for _ in range(MAX_VLAN_TAGS):
        if ethertype in ETHERTYPES_VLAN:
            if len(frame) < offset + 4:
                raise Malformed("VLAN tag cut off")
            ethertype, offset = _number(frame, offset + 2, 2), offset + 4
    if ethertype == ETHERTYPE_IPV4:
        return _parse_ipv4(frame, offset)
    if ethertype == ETHERTYPE_IPV6:
        return _parse_ipv6(frame, offset)
    raise NotIp(ethertype)


def parse_packet(version: int, packet: bytes) -> Packet:
    """Read an IP packet without a frame; raises Malformed or HeaderChain."""
    return _parse_ipv4(packet, 0) if version == 4 else _parse_ipv6(packet, 0)


def _parse_ipv4(frame: bytes, start: int) -> Packet:
    ip = frame[start:]
    if len(ip) < 20:
        raise Malformed("IPv4 header cut off")
    version, header_length = ip[0] >> 4, (ip[0] & 15) * 4
    total_length = _number(ip, 2, 2)
    if version != 4:
        raise Malformed(f"version {version} where IPv4 is announced")
    # The header includes all of its options.
    if not 20 <= header_length <= total_length <= len(ip):
        raise Malformed(f"header {header_length}, total {total_length}, frame {len(ip)}")
    more_fragments = bool(ip[6] & 0x20)
    fragment_offset = _number(ip, 6, 2) & 0x1FFF
    protocol, used = ip[9], header_length
    if protocol == TCP and 0 < fragment_offset * 8 < 20:
        raise Malformed("a fragment within the TCP header")  # RFC 3128
    if protocol == AUTHENTICATION and not fragment_offset:
        if total_length < used + 8:
            raise Malformed("AH cut off")
        protocol, used = ip[used], used + (ip[used + 1] + 2) * 4
        if used > total_length:
            raise Malformed("AH longer than the packet")
        if start + used > MAX_OFFSET:
            raise HeaderChain("too long")
    return Packet(
        is_source_routed=_has_source_route(ip[20:header_length]),
        source=IPv4Address(ip[12:16]),
        destination=IPv4Address(ip[16:20]),
        hop_limit=ip[8],
        protocol=protocol,
        header_protocol=ip[9],
        payload=ip[used:total_length],
        offset=start + used,
        fragment="later" if fragment_offset else "first" if more_fragments else "whole",
        identification=_number(ip, 4, 2),
    )


def _has_source_route(options: bytes) -> bool:
    """Do the options (RFC 791 section 3.1) have a source route, or may they hide one?"""
    position = 0
    while position < len(options):
        kind = options[position]
        if kind == 0:
            return False
        if kind in (131, 137):
            return True
        if kind == 1:
            position += 1
            continue
        if position + 1 >= len(options):
            return True
        length = options[position + 1]
        if length < 2 or position + length > len(options):
            return True
        position += length
    return False


@dataclass(frozen=True)
class _Chain:
    """The end of a chain of IPv6 extension headers."""

    protocol: int
    length: int  # of the headers
    fragment: str
    identification: int
    is_source_routed: bool


def _walk_chain(protocol: int, payload: bytes, start: int) -> _Chain:
    """Walk extension headers (RFC 8200 section 4), the first at ``start`` in the frame."""
    position = 0
    fragment, identification = "whole", 0
    seen_fragment_header = is_source_routed = False
    for _ in range(MAX_EXTENSION_HEADERS):
        if protocol not in EXTENSION_HEADERS:
            break
        if position + 8 > len(payload):
            raise Malformed("extension header cut off")
        if start + position > MAX_OFFSET:
            raise HeaderChain("too long")
        header = payload[position:]
        if protocol == ROUTING:
            # Segments left, of whatever type (RFC 8200 section 4.4).
            is_source_routed |= header[3] > 0
        if protocol == FRAGMENT:
            # Section 4.1: at most one, and none after a fragment header.
            if seen_fragment_header:
                raise Malformed("fragment of a fragment")
            seen_fragment_header = True
            length = 8
            fragment_offset = _number(header, 2, 2) >> 3
            more_fragments = header[3] & 1
            identification = _number(header, 4, 4)
            if fragment_offset:
                if header[0] == TCP and fragment_offset * 8 < 20:
                    raise Malformed("a fragment within the TCP header")  # RFC 3128
                # A later fragment: its payload starts in the middle of the datagram's.
                return _Chain(header[0], position + 8, "later", identification, is_source_routed)
            if more_fragments:
                fragment = "first"
        elif protocol == AUTHENTICATION:
            length = (header[1] + 2) * 4  # RFC 4302 section 2.2
        else:
            length = (header[1] + 1) * 8
        protocol, position = header[0], position + length
    if protocol in EXTENSION_HEADERS:
        raise HeaderChain("too many")
    if position > len(payload):
        raise Malformed("extension header longer than the packet")
    if start + position > MAX_OFFSET:
        raise HeaderChain("too long")
    return _Chain(protocol, position, fragment, identification, is_source_routed)


def _parse_ipv6(frame: bytes, start: int) -> Packet:
    ip = frame[start:]
    if len(ip) < 40:
        raise Malformed("IPv6 header cut off")
    version, payload_length = ip[0] >> 4, _number(ip, 4, 2)
    if version != 6:
        raise Malformed(f"version {version} where IPv6 is announced")
    if 40 + payload_length > len(ip):
        raise Malformed(f"payload {payload_length}, frame {len(ip)}")
    payload = ip[40 : 40 + payload_length]
    chain = _walk_chain(ip[6], payload, start + 40)
    return Packet(
        source=IPv6Address(ip[8:24]),
        destination=IPv6Address(ip[24:40]),
        hop_limit=ip[7],
        protocol=chain.protocol,
        payload=payload[chain.length :],
        offset=start + 40 + chain.length,
        fragment=chain.fragment,
        identification=chain.identification,
        is_source_routed=chain.is_source_routed,
    )


def segment_of(packet: Packet) -> Segment | None:
    """The segment for the flow tables; None for fragments, and ICMP that is no echo.

    Its transport header is there: decide() has seen to that.
    """
    payload = packet.payload
    if packet.fragment == "later":
        return None
    if packet.protocol in (TCP, UDP):
        ends = (
            (packet.source, _number(payload, 0, 2)),
            (packet.destination, _number(payload, 2, 2)),
        )
        if packet.protocol == UDP:
            return Segment(UDP, *ends)
        return Segment(
            TCP,
            *ends,
            flags=payload[13],
            sequence=_number(payload, 4, 4),
            acknowledgment=_number(payload, 8, 4),
            length=len(payload) - (payload[12] >> 4) * 4,
        )
    if packet.protocol != packet.icmp_protocol:
        return Segment(packet.protocol, (packet.source, 0), (packet.destination, 0))
    if len(payload) < 8:
        return None
    if payload[0] not in _ECHO[packet.family]:
        return None
    identifier = _number(payload, 4, 2)
    return Segment(
        packet.protocol,
        (packet.source, identifier),
        (packet.destination, identifier),
        is_request=payload[0] == _ECHO_REQUEST[packet.family],
    )


def quoted_segment(packet: Packet) -> Segment | None:
    """The packet of a flow that an ICMP error quotes; None if that is not clear.

    A quote may end early, so the quoted lengths say nothing, but eight bytes of
    its payload are there (RFC 792, RFC 4443 section 2.4). No more of it is read.
    """
    quote = packet.payload[8:]
    try:
        if packet.family == 4:
            header_length = (quote[0] & 15) * 4 if quote else 0
            if len(quote) < 20 or quote[0] >> 4 != 4 or header_length < 20:
                return None
            if _number(quote, 6, 2) & 0x1FFF:
                return None
            protocol, used = quote[9], header_length
            if protocol == AUTHENTICATION:
                if len(quote) < used + 8:
                    return None
                protocol, used = quote[used], used + (quote[used + 1] + 2) * 4
            source: Address = IPv4Address(quote[12:16])
            destination: Address = IPv4Address(quote[16:20])
        else:
            if len(quote) < 40 or quote[0] >> 4 != 6:
                return None
            chain = _walk_chain(quote[6], quote[40:], packet.offset + 8 + 40)
            if chain.fragment == "later":
                return None
            protocol, used = chain.protocol, 40 + chain.length
            source, destination = IPv6Address(quote[8:24]), IPv6Address(quote[24:40])
    except (Malformed, HeaderChain):
        return None
    start = quote[used : used + 8]
    if len(start) < 8 or packet.offset + 8 + used > MAX_OFFSET:
        return None
    if protocol in (TCP, UDP):
        return Segment(
            protocol, (source, _number(start, 0, 2)), (destination, _number(start, 2, 2))
        )
    if protocol == packet.icmp_protocol and start[0] in _ECHO[packet.family]:
        identifier = _number(start, 4, 2)
        return Segment(protocol, (source, identifier), (destination, identifier))
    if protocol != packet.icmp_protocol:
        return Segment(protocol, (source, 0), (destination, 0))
    return None


def _believed_quote(error: Packet) -> Segment | None:
    """What an ICMP error quotes, if the error goes to the sender of it (RFC 5927 section 4)."""
    quoted = quoted_segment(error)
    return quoted if quoted is not None and quoted.source[0] == error.destination else None


def _own_flow(segment: Segment | None) -> Flow | None:
    """The flow of a quoted packet."""
    if segment is None or segment.protocol not in (TCP, UDP):
        return None
    protocol = "tcp" if segment.protocol == TCP else "udp"
    return Flow(protocol, *segment.source, *segment.destination)


# ICMP types: RFC 792; RFC 4443, RFC 4861, RFC 2710, RFC 3810.
_ECHO = {4: (0, 8), 6: (128, 129)}
_ECHO_REQUEST = {4: 8, 6: 128}
_ERRORS = {4: (3, 11, 12), 6: (1, 2, 3, 4)}
_NEIGHBOUR_DISCOVERY = (133, 134, 135, 136)
_MULTICAST_LISTENER = (130, 131, 132, 143)


def _kind_of_icmp(packet: Packet) -> str:
    """ "echo", "error", or the reason of the decision."""
    # Every message has at least eight bytes in both families, and no stack accepts fewer.
    if len(packet.payload) < 8:
        return "malformed"
    type_, code = packet.payload[0], packet.payload[1]
    if type_ in _ECHO[packet.family]:
        return "echo"
    if type_ in _ERRORS[packet.family]:
        return "error"
    if packet.family == 6:
        # RFC 4861 section 6.1: hop limit 255 shows that no router has forwarded it.
        if type_ in _NEIGHBOUR_DISCOVERY and packet.hop_limit == 255 and code == 0:
            return "neighbour_discovery"
        if type_ in _MULTICAST_LISTENER and packet.hop_limit == 1:
            return "multicast_listener"
    return "icmp_other"


def _icmp_decision(passes: bool, reason: str, interface: Interface, track: str) -> Decision:
    if passes:
        return Decision("pass", reason, track=track)
    if interface.pass_non_tuple:
        return Decision("pass", "non_tuple", track=track)
    return Decision("drop", reason)


def _arriving_icmp(
    packet: Packet, interface: Interface, sockets: Sockets, flows: TrackedFlows
) -> Decision:
    kind = _kind_of_icmp(packet)
    if kind == "error":
        quoted = _believed_quote(packet)
        own = _own_flow(quoted)
        is_known = (own is not None and sockets.owns(own)) or (
            quoted is not None and flows.find(quoted) is not None
        )
        reason = "icmp_error" if is_known else "icmp_error_unrelated"
        return _icmp_decision(is_known, reason, interface, "none")
    if kind != "echo":
        passes = kind in ("neighbour_discovery", "multicast_listener")
        return _icmp_decision(passes, kind, interface, "none")
    segment = segment_of(packet)
    assert segment is not None
    flow = flows.find(segment)
    if (
        flow is not None
        and not segment.is_request
        and flow.is_plausible(segment)
        and flow.is_admitted_out
    ):
        return Decision("pass", "flow", track="renew")
    reason = "icmp_echo" if interface.icmp_echo else "icmp_echo_off"
    return _icmp_decision(interface.icmp_echo, reason, interface, "none")


def _leaving_icmp(
    packet: Packet, interface: Interface, flows: TrackedFlows, *, is_forwarded: bool
) -> Decision:
    kind = _kind_of_icmp(packet)
    if kind == "error" and not is_forwarded:
        return Decision("pass", "icmp_error")
    if kind == "error":
        quoted = _believed_quote(packet)
        is_known = quoted is not None and (
            flows.find(quoted) is not None
            or (quoted.protocol == packet.icmp_protocol and interface.icmp_echo)
        )
        reason = "icmp_error" if is_known else "icmp_error_unrelated"
        return _icmp_decision(is_known, reason, interface, "none")
    if kind != "echo":
        passes = kind in ("neighbour_discovery", "multicast_listener")
        return _icmp_decision(passes, kind, interface, "none")
    segment = segment_of(packet)
    assert segment is not None
    flow = flows.find(segment)
    # Both ends may ping each other with one identifier: decide such a packet without the flow.
    if (
        flow is not None
        and flow.is_plausible(segment)
        and (not flow.is_from_initiator(segment) or flow.is_admitted_out)
    ):
        return Decision("pass", "flow", track="renew" if is_forwarded else "open")
    how = ("adopt" if is_forwarded else "open") if segment.is_request else "none"
    reason = "icmp_echo" if interface.icmp_echo else "icmp_echo_off"
    return _icmp_decision(interface.icmp_echo, reason, interface, how)


def _is_dhcp(packet: Packet, ports: tuple[int, int], interface: Interface) -> bool:
    if packet.protocol != UDP:
        return False
    if packet.family == 4:
        return ports == (67, 68) and (
            packet.destination == BROADCAST or packet.destination in interface.addresses
        )
    return ports == (547, 546) and packet.destination in LINK_LOCAL


def _is_dhcp_request(packet: Packet, ports: tuple[int, int], interface: Interface) -> bool:
    """Is it a client's request: RFC 2131 section 4.1, RFC 8415 section 7?"""
    if packet.protocol != UDP:
        return False
    if packet.family == 4:
        return ports == (68, 67) and (
            packet.source.is_unspecified or packet.source in interface.addresses
        )
    return (
        ports == (546, 547)
        and packet.source in LINK_LOCAL
        and packet.destination == ALL_DHCP_SERVERS
    )


def _is_dhcp_answer(packet: Packet, ports: tuple[int, int], interface: Interface) -> bool:
    """Is it the answer of a server on this host?"""
    if packet.protocol != UDP:
        return False
    if packet.family == 4:
        return ports == (67, 68) and packet.source in interface.addresses
    return ports == (547, 546) and packet.source in LINK_LOCAL


def _is_ssh(packet: Packet, ports: tuple[int, int], interface: Interface) -> bool:
    return (
        interface.ssh
        and packet.protocol == TCP
        and ports[1] == 22
        and packet.destination in interface.addresses
    )


def _is_ssh_answer(packet: Packet, ports: tuple[int, int], interface: Interface) -> bool:
    return (
        interface.ssh
        and packet.protocol == TCP
        and ports[0] == 22
        and packet.source in interface.addresses
        and bool(packet.payload[13] & (ACK | RST))
    )


def is_group(address: Address) -> bool:
    """Is it a multicast address, also one of IPv4 in IPv6's form?"""
    mapped = address.ipv4_mapped if address.version == 6 else None
    return (mapped or address).is_multicast


# The decision for the first fragment of a datagram on an interface; and the pairs of hosts between
# which something has passed lately, of which a later fragment may come before the first one.
Fragments = dict[tuple[object, ...], str]


def _pair(source: Address, destination: Address, packet: Packet) -> tuple[object, ...]:
    protocol = packet.header_protocol if packet.family == 4 else None
    return ("pair", source, destination, protocol)


def _whole(frame: bytes, interface: Interface) -> Packet | Decision:
    """The packet in a frame, or the decision for a frame without one."""
    try:
        packet = parse_frame(frame)
    except Malformed:
        return Decision("drop", "malformed")
    except HeaderChain:
        return Decision("drop", "header_chain")
    except NotIp as other:
        if other.ethertype == ETHERTYPE_ARP:
            return Decision("pass", "arp")
        if other.ethertype == ETHERTYPE_EAPOL and interface.eapol:
            return Decision("pass", "eapol")
        if interface.pass_non_tuple:
            return Decision("pass", "non_tuple")
        return Decision("drop", "non_ip")
    # The transport header must be complete, also in a first fragment (RFC 1858).
    if packet.fragment != "later":
        needed = {TCP: 20, UDP: 8}
        if len(packet.payload) < needed.get(packet.protocol, 0):
            return Decision("drop", "malformed")
    return packet


def _later_fragment(
    packet: Packet, interface: Interface, fragments: Fragments, direction: str
) -> Decision:
    first = fragments.get((direction, interface.name, *packet.datagram))
    if first is None and direction == "ingress" and packet.destination in interface.addresses:
        # The stack needs the first fragment as well, for which a rule decides.
        return Decision("pass", "fragment_passed")
    pair = _pair(packet.source, packet.destination, packet)
    if first is None and (pair in fragments or (*pair, interface.name, direction) in fragments):
        # So does another host; but only one to which a flow or a first fragment has led.
        return Decision("pass", "fragment_passed")
    if first is None:
        return Decision("drop", "fragment_orphan")
    if first == "pass":
        return Decision("pass", "fragment_passed")
    if first == "assign":
        return Decision("pass", "rule_intercept")
    return Decision("drop", "fragment_dropped")


def _other_protocol(
    packet: Packet,
    interface: Interface,
    flows: TrackedFlows,
    *,
    is_leaving: bool = False,
    is_forwarded: bool = False,
) -> Decision:
    if (
        # RFC 3376 section 4: what a host and its routers say of groups stays on the link.
        (packet.family, packet.protocol, packet.hop_limit) == (4, IGMP, 1)
        and packet.destination.is_multicast
        and len(packet.payload) >= 8
        and packet.payload[0] in (0x11, 0x12, 0x16, 0x17, 0x22)
    ):
        return Decision("pass", "multicast_listener")
    if packet.protocol == VRRP and interface.vrrp:
        return Decision("pass", "vrrp")
    segment = segment_of(packet)
    assert segment is not None
    flow = flows.find(segment)
    if flow is not None:
        is_first = flow.is_from_initiator(segment)
        if is_leaving and (not is_first or flow.is_admitted_out):
            return Decision("pass", "flow", track="renew" if is_forwarded else "open")
        if not is_leaving and not is_first and flow.is_admitted_out:
            return Decision("pass", "flow", track="renew")
    if interface.pass_non_tuple:
        how = "open" if is_leaving and not is_forwarded else "adopt"
        is_to_group = is_group(packet.destination)
        return Decision("pass", "non_tuple", track="none" if is_to_group else how)
    return Decision("drop", "protocol")


def decide(
    frame: bytes,
    interface: Interface,
    rules: RuleSet,
    sockets: Sockets | None = None,
    fragments: Fragments | None = None,
    flows: TrackedFlows | None = None,
    *,
    is_tracking: bool = False,
) -> Decision:
    """Decide a frame that arrives on an interface.

    ``is_tracking``: some interface filters what leaves, so what is admitted is remembered.
    """
    sockets, flows = sockets or Sockets(), flows or TrackedFlows()
    interface = interface.in_effect()
    packet = _whole(frame, interface)
    if isinstance(packet, Decision):
        return packet
    if packet.family == 6 and not interface.ipv6:
        return Decision("drop", "ipv6_off")
    if packet.is_source_routed:
        return Decision("drop", "source_route")
    if packet.fragment == "later":
        return _later_fragment(packet, interface, fragments or {}, "ingress")
    if packet.protocol == packet.icmp_protocol:
        return _arriving_icmp(packet, interface, sockets, flows)
    if packet.protocol not in (TCP, UDP):
        return _other_protocol(packet, interface, flows)

    segment = segment_of(packet)
    assert segment is not None
    ports = (segment.source[1], segment.destination[1])
    if _is_dhcp(packet, ports, interface):
        return Decision("pass", "dhcp")
    if _is_ssh(packet, ports, interface):
        return Decision("pass", "ssh")

    # Frames that leave by loopback are not filtered.
    is_tracking &= not interface.is_loopback
    protocol = "tcp" if packet.protocol == TCP else "udp"
    if sockets.is_established(
        Flow(protocol, packet.destination, ports[1], packet.source, ports[0])
    ):
        # Of TCP both ends have answered. Of UDP the socket says nothing about the other end.
        consent = "adopt" if packet.protocol == TCP else "if_ruled"
        return Decision("pass", "established", track=consent if is_tracking else "none")

    flow = flows.find(segment)
    if (
        flow is not None
        and flow.is_admitted_out
        and not flow.is_from_initiator(segment)
        and not segment.is_bare_syn
    ):
        if flow.is_plausible(segment):
            return Decision("pass", "flow", track="renew")
        return Decision("drop", "flow_invalid")

    matched = rules.match(protocol, packet.source, packet.destination, ports[1], interface)
    if matched is None:
        if interface.is_loopback:
            return Decision("pass", "loopback")
        if flow is not None and flow.crosses(segment):
            return Decision("pass", "flow", track="renew")
        return Decision("drop", "no_rule")
    if matched.action == "deny":
        return Decision("drop", "rule_deny", matched)
    # The answer must not look like a flow that begins here. A proxy's TCP cannot: its socket
    # is of this host, and begins no flow by an answer.
    is_remembered = is_tracking or packet.protocol == UDP or matched.action == "pass"
    admitted = "adopt" if is_remembered else "none"
    if matched.action == "pass":
        return Decision("pass", "rule_pass", matched, admitted)
    if (packet.family, protocol, matched.tproxy_port) in sockets.listeners:
        return Decision("assign", "rule_intercept", matched, admitted)
    return Decision("drop", "no_listener", matched)


def decide_egress(
    frame: bytes,
    interface: Interface,
    rules: RuleSet,
    fragments: Fragments | None = None,
    flows: TrackedFlows | None = None,
    *,
    sockets: Sockets | None = None,
    is_forwarded: bool = False,
) -> Decision:
    """Decide a frame that leaves by an interface; this host sends it, or forwards it."""
    flows = flows or TrackedFlows()
    interface = interface.in_effect()
    if interface.is_loopback:
        return Decision("pass", "loopback")
    packet = _whole(frame, interface)
    if not interface.outbound_filter:
        leaving = segment_of(packet) if isinstance(packet, Packet) else None
        if (
            leaving is not None
            and leaving.protocol not in (TCP, UDP)
            and is_group(leaving.destination[0])
        ):
            # Of a group each member sends by itself.
            leaving = None if not leaving.is_echo else leaving
        track = "none" if leaving is None else _how_it_leaves(leaving, is_forwarded=is_forwarded)
        return Decision("pass", "egress", track=track)
    if isinstance(packet, Decision):
        return packet
    if packet.family == 6 and not interface.ipv6:
        return Decision("drop", "ipv6_off")
    if packet.is_source_routed:
        return Decision("drop", "source_route")
    if packet.fragment == "later":
        return _later_fragment(packet, interface, fragments or {}, "egress")
    if packet.protocol == packet.icmp_protocol:
        return _leaving_icmp(packet, interface, flows, is_forwarded=is_forwarded)
    if packet.protocol not in (TCP, UDP):
        return _other_protocol(packet, interface, flows, is_leaving=True, is_forwarded=is_forwarded)

    segment = segment_of(packet)
    assert segment is not None
    ports = (segment.source[1], segment.destination[1])
    if _is_dhcp_request(packet, ports, interface) or _is_dhcp_answer(packet, ports, interface):
        return Decision("pass", "dhcp")
    if _is_ssh_answer(packet, ports, interface):
        return Decision("pass", "ssh")

    # The first SYN of a connection needs a rule, also if the flow is known.
    flow = None if segment.is_bare_syn else flows.find(segment)
    if flow is not None:
        from_initiator = flow.is_from_initiator(segment)
        if not from_initiator or flow.is_admitted_out:
            if not flow.is_plausible(segment):
                return Decision("drop", "flow_invalid")
            return Decision("pass", "flow", track="renew" if is_forwarded else "open")

    protocol = "tcp" if packet.protocol == TCP else "udp"
    matched = rules.match(
        protocol, packet.source, packet.destination, ports[1], interface, "egress"
    )
    if (
        not is_forwarded
        and (matched is None or matched.action == "deny")
        and flows.answers_question(segment, interface.name)
    ):
        return Decision("pass", "flow")
    if matched is None:
        # A connection of this host that is older than the filter.
        if (
            sockets is not None
            and not is_forwarded
            and segment.is_tcp
            and segment.flags & (SYN | ACK) == ACK
            and sockets.is_established(
                Flow("tcp", packet.source, ports[0], packet.destination, ports[1])
            )
        ):
            return Decision("pass", "established", track="adopt")
        return Decision("drop", "egress_no_rule")
    if matched.action == "deny":
        return Decision("drop", "rule_deny", matched)
    how = _how_it_leaves(segment, is_forwarded=is_forwarded)
    return Decision("pass", "rule_pass", matched, "adopt" if how == "open" else how)


def _how_it_leaves(segment: Segment, *, is_forwarded: bool) -> str:
    """How a packet is tracked that leaves.

    This host's TCP begins its flows with a SYN; forwarded flows may be older than the firewall.
    Of those, and of this host's UDP, the other end may have begun the flow: a rule says so.
    """
    if is_forwarded and segment.is_tcp and not segment.is_bare_syn:
        return "unless_ruled"
    if not is_forwarded and segment.protocol == UDP:
        return "unless_ruled"
    return "adopt" if is_forwarded else "open"


def carry_out(
    frame: bytes,
    decision: Decision,
    direction: str,
    flows: TrackedFlows,
    rules: RuleSet | None = None,
    interface: Interface | None = None,
    fragments: Fragments | None = None,
) -> None:
    """Update the flows after the decision for a frame at an interface with these rules."""
    if decision.track == "none" or decision.verdict == "drop":
        return
    packet = parse_frame(frame)
    segment = segment_of(packet)
    assert segment is not None
    how = decision.track
    if direction == "ingress" and how == "adopt" and _is_to_group(frame, packet):
        assert interface is not None
        flows.note_question(segment, interface.name)
    if how in ("if_ruled", "unless_ruled"):
        how = "adopt" if _makes_a_flow(segment, how, rules, interface, flows) else "renew"
    begins = flows.track(segment, how, "in" if direction == "ingress" else "out")
    if begins and not segment.is_tcp and decision.verdict == "pass" and fragments is not None:
        fragments[_pair(packet.destination, packet.source, packet)] = "pass"


def _is_to_group(frame: bytes, packet: Packet) -> bool:
    """Is it a datagram to a group, or to all?"""
    to = packet.destination
    is_to_all = to == BROADCAST or frame[:6] == b"\xff" * 6
    return packet.protocol == UDP and (is_group(to) or is_to_all)


def _makes_a_flow(
    segment: Segment,
    how: str,
    rules: RuleSet | None,
    interface: Interface | None,
    flows: TrackedFlows,
) -> bool:
    """Is this end the one that began: by the ingress rules of the interface?"""
    assert rules is not None
    assert interface is not None
    protocol = "tcp" if segment.is_tcp else "udp"
    if how == "if_ruled":
        (source, _), (destination, port) = segment.source, segment.destination
        matched = rules.match(protocol, source, destination, port, interface)
        return matched is not None and matched.action != "deny"
    (source, port), (destination, _) = segment.source, segment.destination
    # What this host sends from the interface's address is its own question, or answers a group's.
    if segment.protocol == UDP and source in interface.addresses:
        return not flows.answers_question(segment, interface.name)
    matched = rules.match(protocol, destination, source, port, interface)
    # The other end may have begun what a rule passes, or a datagram for a proxy.
    began = {"pass"} if segment.is_tcp else {"pass", "intercept"}
    return matched is None or matched.action not in began


def remember(
    frame: bytes,
    interface: Interface,
    decision: Decision,
    fragments: Fragments,
    direction: str = "ingress",
) -> None:
    """Remember a first fragment's decision for the later fragments."""
    try:
        packet = parse_frame(frame)
    except (Malformed, HeaderChain, NotIp):
        return
    if packet.fragment == "first":
        fragments[(direction, interface.name, *packet.datagram)] = decision.verdict
        if decision.verdict != "drop":
            pair = _pair(packet.source, packet.destination, packet)
            fragments[(*pair, interface.name, direction)] = "pass"


def addresses(*texts: str) -> frozenset[Address]:
    """Parse the addresses of an interface."""
    return frozenset(ip_address(text) for text in texts)
