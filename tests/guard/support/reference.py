# SPDX-License-Identifier: GPL-2.0-only
"""What the guard decides, a second time: plain and slow, to compare the programs with.

Written from the policy's description and the RFCs, without sharing a line or an idea
with the C or with how a policy is flattened for it. What it decides is meant to be
right: where the two differ, one of them has a bug.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv6Address

from tests.firewall.support.reference import (
    AUTHENTICATION,
    ETHERTYPE_IPV4,
    ETHERTYPE_IPV6,
    EXTENSION_HEADERS,
    FRAGMENT,
    ROUTING,
    Address,
    HeaderChain,
    Malformed,
    Network,
    parse_packet,
)
from tests.firewall.support.tracked import TCP, UDP

DNS = 53
VERSIONS = {ETHERTYPE_IPV4: 4, ETHERTYPE_IPV6: 6}
DENIALS = frozenset(
    (
        *("not_allowed", "blocked", "no_proxy", "dns_direct"),
        *("source_route", "martian", "malformed", "foreign_source"),
    )
)

# RFC 791, section 3.1
_END_OF_OPTIONS, _NO_OPERATION = 0, 1
_SOURCE_ROUTES = (131, 137)
_LOCALHOST: dict[int, Address] = {4: IPv4Address("127.0.0.1"), 6: IPv6Address("::1")}


@dataclass(frozen=True)
class End:
    """Where something goes. ``port`` is None where there is none: port 0 is none either."""

    address: Address
    port: int | None = None


def end(address: Address, port: int | None = None) -> End:
    """An IPv4-mapped destination is IPv4, whatever socket it is named to."""
    if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
        return End(address.ipv4_mapped, port or None)
    return End(address, port or None)


@dataclass
class Rules:
    """A policy, and what DNS has added to it.

    ``allow`` has prefixes, each with a port or None for all; ``learnt`` whether an
    address (and port, or None) of a name may still be reached; ``proxy``, for each
    family that has one, its address and its ports.
    """

    allow: list[tuple[Network, int | None]] = field(default_factory=list)
    block: list[Network] = field(default_factory=list)
    is_allowed_by_default: bool = False
    has_loopback: bool = True
    is_log_only: bool = False
    learnt: dict[tuple[Address, int | None], bool] = field(default_factory=dict)
    proxy: dict[int, tuple[Address, tuple[int, ...]]] = field(default_factory=dict)

    def judge(self, to: End) -> str:
        """What the rules say of a destination."""
        said: dict[int, set[int | None] | None] = {}
        for network, port in self.allow:
            if to.address in network:
                ports = said.setdefault(network.prefixlen, set())
                assert ports is not None
                ports.add(port)
        # As if there were allow entries, but for what the default is.
        if self.has_loopback and to.address.is_loopback:
            length = 8 if to.address.version == 4 else 128
            said[length] = {None}
        for network in self.block:
            if to.address in network:
                said[network.prefixlen] = None
        # Of prefixes the longest that says anything about the port decides.
        for _, ports in sorted(said.items(), reverse=True):
            if ports is None:
                return "blocked"
            if None in ports or (to.port is not None and to.port in ports):
                return "prefix"
        for port in (None, to.port):
            if self.learnt.get((to.address, port), False):
                return "name"
        return "default" if self.is_allowed_by_default else "not_allowed"

    def is_proxy(self, to: End, protocol: int) -> bool:
        """Is that where DNS is redirected to? TCP is so to the first port alone."""
        address, ports = self.proxy.get(to.address.version, (None, ()))
        return to.address == address and to.port in (ports[:1] if protocol == TCP else ports)

    def lets(self, reason: str) -> bool:
        """Does it pass, with this reason?"""
        return self.is_log_only or reason not in DENIALS


@dataclass
class Socket:
    """What the guard knows of a socket: what it is, and where it was let to last.

    ``kind`` is "guarded" for one whose options the guard has seen to, "older" for one
    that was there before it, "raw" for one that writes sources itself.
    """

    kind: str = "guarded"
    admitted: End | None = None

    def may_have_foreign_source(self, version: int) -> bool:
        """Without asking anybody? IPv4 takes a capability for it."""
        return self.kind == "raw" or (self.kind == "older" and version == 6)


@dataclass(frozen=True)
class Decision:
    """Why; where to and what, as far as there is a packet to say so."""

    reason: str
    to: End | None = None
    protocol: int = 0
    source_port: int = 0


def decide_packet(
    packet: bytes, ethertype: int, rules: Rules, socket: Socket, *, is_by_loopback: bool
) -> Decision:
    """What becomes of a packet that leaves; the socket remembers it."""
    version = VERSIONS.get(ethertype)
    if version is None:
        return Decision("malformed")
    try:
        parsed = parse_packet(version, packet)
    except (Malformed, HeaderChain):
        return Decision("malformed")
    # What stands for an IPv4 address on a socket means nothing in a header.
    if version == 6 and any(
        isinstance(one, IPv6Address) and one.ipv4_mapped is not None
        for one in (parsed.source, parsed.destination)
    ):
        return Decision("malformed")
    is_later = parsed.fragment == "later"
    has_ports = parsed.protocol in (TCP, UDP) and not is_later
    # No first fragment leaves a part of its header to the next (RFC 1858).
    if has_ports and len(parsed.payload) < {TCP: 20, UDP: 8}[parsed.protocol]:
        return Decision("malformed")
    ports = parsed.payload[:4] if has_ports else bytes(4)
    to = end(parsed.destination, int.from_bytes(ports[2:], "big"))
    # What leaves by loopback is answered by this host, to its source.
    is_reflected = is_by_loopback and socket.may_have_foreign_source(version)
    source = end(parsed.source) if is_reflected else None
    where = _Where(to, parsed.protocol, source, is_by_loopback, is_later)
    reason = _reason(packet, version, where, rules, socket)
    # The proxy is no destination of the program's own.
    if reason not in DENIALS and reason != "proxy" and not is_later:
        socket.admitted = to
    return Decision(reason, to, parsed.protocol, int.from_bytes(ports[:2], "big"))


@dataclass(frozen=True)
class _Where:
    """A packet's way. ``source`` is None where it counts as this host's."""

    to: End
    protocol: int
    source: End | None
    is_by_loopback: bool
    is_later: bool


def _reason(packet: bytes, version: int, where: _Where, rules: Rules, socket: Socket) -> str:
    to = where.to
    options = packet[20 : (packet[0] & 15) * 4]
    if has_ipv4_route(options) if version == 4 else has_ipv6_route(packet):
        return "source_route"
    if where.source and _is_foreign(where.source, to, rules):
        return "foreign_source"
    if to.address.is_loopback:
        if not where.is_by_loopback:
            return "martian"
        if rules.is_proxy(to, where.protocol):
            return "proxy"
    if to.port == DNS:
        return "dns_direct"
    if to == socket.admitted and not where.is_later:
        return "socket"
    return rules.judge(to)


def _is_foreign(source: End, to: End, rules: Rules) -> bool:
    """Judged like a destination, on no port in particular."""
    is_own = source.address.is_loopback or source.address == to.address
    return not is_own and rules.judge(source) in DENIALS


def has_ipv4_route(options: bytes) -> bool:
    """Is there a source route among the options, or something it may hide behind?"""
    while options and options[0] != _END_OF_OPTIONS:
        if options[0] in _SOURCE_ROUTES:
            return True
        length = 1
        if options[0] != _NO_OPERATION:
            # RFC 791: the length counts the type and itself; there is no option
            # that ends behind the header.
            if len(options) < 2 or not 2 <= options[1] <= len(options):
                return True
            length = options[1]
        options = options[length:]
    return False


def has_ipv6_route(packet: bytes) -> bool:
    """Is there a routing header with segments left (RFC 8200, section 4.4)?"""
    protocol, position = packet[6], 40
    while protocol in EXTENSION_HEADERS:
        header = packet[position:]
        if protocol == ROUTING and header[3] > 0:
            return True
        if protocol == FRAGMENT:
            if int.from_bytes(header[2:4], "big") >> 3:
                return False  # what follows is the middle of something
            position += 8
        elif protocol == AUTHENTICATION:
            position += (header[1] + 2) * 4
        else:
            position += (header[1] + 1) * 8
        protocol = header[0]
    return False


def decide_named(
    to: End, protocol: int, rules: Rules, *, is_connect: bool, is_bound: bool = False
) -> tuple[str | None, End]:
    """What becomes of a destination that a program named: why, and where it goes then.

    None: nobody is asked. Of the proxy's ports any may be the one, here the first.
    ``is_bound``: by no other interface than one outside.
    """
    if to.address.is_unspecified:
        # This host (RFC 1122, section 3.2.1.3).
        to = End(_LOCALHOST[to.address.version], to.port)
    if rules.is_proxy(to, protocol):
        return "proxy", to
    if to.port == DNS and protocol in (TCP, UDP):
        address, ports = rules.proxy.get(to.address.version, (None, ()))
        # It is on loopback, where such a socket does not get to.
        if address is None or is_bound:
            return "no_proxy", to
        return "dns", End(address, ports[0])
    if is_connect and protocol != TCP:
        return None, to  # no packet leaves of it
    return rules.judge(to), to
