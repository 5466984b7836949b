# SPDX-License-Identifier: GPL-2.0-only
"""The guard's reference model: its decisions in plain Python, to compare the programs with.

It is written from the policy's description and the RFCs, and shares no code and no idea with the
C or with the code that flattens a policy. Where the model and the programs differ, one of them
has a bug.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv6Address, IPv6Network

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
        *("source_route", "martian", "malformed", "foreign_source", "expired"),
    )
)

# Denials that do not end a flow without a connection.
_BY_TIME = ("expired", "not_allowed")

# RFC 791, section 3.1
_END_OF_OPTIONS, _NO_OPERATION = 0, 1
_SOURCE_ROUTES = (131, 137)
_NAT64, _6TO4 = IPv6Network("64:ff9b::/96"), IPv6Network("2002::/16")
_LOCALHOST: dict[int, Address] = {4: IPv4Address("127.0.0.1"), 6: IPv6Address("::1")}


@dataclass(frozen=True)
class End:
    """A destination. ``port`` is None for a packet without ports, and for port 0."""

    address: Address
    port: int | None = None


def end(address: Address, port: int | None = None) -> End:
    """The destination, as IPv4 if it is IPv4-mapped, for sockets of either family."""
    if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
        return End(address.ipv4_mapped, port or None)
    return End(address, port or None)


def embedded(address: Address) -> tuple[IPv4Address, int] | None:
    """The IPv4 address to which NAT64 or 6to4 sends, and the bits before it in the IPv6 one."""
    if address.version == 4:
        return None
    if address in _NAT64:
        return IPv4Address(address.packed[12:]), 96
    return (IPv4Address(address.packed[2:6]), 16) if address in _6TO4 else None


@dataclass
class Rules:
    """A policy, and the addresses that DNS has added to it.

    ``allow`` has prefixes, each with a port or None for all. ``resolved`` says for a resolved
    address, and a port or None, whether its entry is still valid. ``proxy`` has the proxy's
    address and ports by family.
    """

    allow: list[tuple[Network, int | None]] = field(default_factory=list)
    block: list[Network] = field(default_factory=list)
    is_allowed_by_default: bool = False
    has_loopback: bool = True
    is_log_only: bool = False
    resolved: dict[tuple[Address, int | None], bool] = field(default_factory=dict)
    proxy: dict[int, tuple[Address, tuple[int, ...]]] = field(default_factory=dict)

    def judge(self, to: End) -> str:
        """Evaluate the rules for a destination."""
        said: dict[int, set[int | None] | None] = {}
        for network, port in self.allow:
            if to.address in network:
                ports = said.setdefault(network.prefixlen, set())
                assert ports is not None
                ports.add(port)
        # Loopback counts as an allow entry, but not for the default action. Docker's DNS does not.
        if self.has_loopback and to.address.is_loopback and str(to.address) != "127.0.0.11":
            length = 8 if to.address.version == 4 else 128
            said[length] = {None}
        for network in self.block:
            if to.address in network:
                said[network.prefixlen] = None
            elif (inner := embedded(to.address)) is not None and inner[0] in network:
                said[network.prefixlen + inner[1]] = None
        # The longest prefix that has a rule for the port decides.
        for _, ports in sorted(said.items(), reverse=True):
            if ports is None:
                return "blocked"
            if None in ports or (to.port is not None and to.port in ports):
                return "prefix"
        for port in (None, to.port):
            if self.resolved.get((to.address, port), False):
                return "name"
        if self.is_allowed_by_default:
            return "default"
        was_resolved = any((to.address, port) in self.resolved for port in (None, to.port))
        return "expired" if was_resolved else "not_allowed"

    def is_proxy(self, to: End, protocol: int) -> bool:
        """Is it the address of the proxy? TCP is redirected to the first port only."""
        address, ports = self.proxy.get(to.address.version, (None, ()))
        return to.address == address and to.port in (ports[:1] if protocol == TCP else ports)

    def lets(self, reason: str) -> bool:
        """Does a packet with this reason pass?"""
        return self.is_log_only or reason not in DENIALS


@dataclass
class Socket:
    """The guard's state of a socket: its kind, and the last destination that was allowed.

    ``flows``: destinations of names to which it has sent without a connection.

    ``kind`` is "guarded" for a socket whose options the guard has checked, "older" for one that
    existed before the guard, "raw" for one that writes the source addresses itself.
    """

    kind: str = "guarded"
    admitted: End | None = None
    flows: set[End] = field(default_factory=set)

    def may_have_foreign_source(self, version: int) -> bool:
        """May a socket of this kind send from an address of another host?"""
        return self.kind == "raw" or (self.kind == "older" and version == 6)


@dataclass(frozen=True)
class Decision:
    """The reason; destination and protocol, if the packet could be parsed."""

    reason: str
    to: End | None = None
    protocol: int = 0
    source_port: int = 0


def decide_packet(
    packet: bytes, ethertype: int, rules: Rules, socket: Socket, *, is_by_loopback: bool
) -> Decision:
    """Decide a packet that leaves a socket, and update the socket's state."""
    version = VERSIONS.get(ethertype)
    if version is None:
        return Decision("malformed")
    try:
        parsed = parse_packet(version, packet)
    except (Malformed, HeaderChain):
        return Decision("malformed")
    # IPv4-mapped addresses have no meaning in an IPv6 header.
    if version == 6 and any(
        isinstance(one, IPv6Address) and one.ipv4_mapped is not None
        for one in (parsed.source, parsed.destination)
    ):
        return Decision("malformed")
    is_later = parsed.fragment == "later"
    has_ports = parsed.protocol in (TCP, UDP) and not is_later
    # A first fragment must hold the whole transport header (RFC 1858).
    if has_ports and len(parsed.payload) < {TCP: 20, UDP: 8}[parsed.protocol]:
        return Decision("malformed")
    ports = parsed.payload[:4] if has_ports else bytes(4)
    to = end(parsed.destination, int.from_bytes(ports[2:], "big"))
    # This host answers a packet that leaves by loopback, to the source of the packet.
    is_reflected = is_by_loopback and socket.may_have_foreign_source(version)
    source = end(parsed.source) if is_reflected else None
    where = _Where(to, parsed.protocol, source, is_by_loopback, is_later)
    reason = _reason(packet, version, where, rules, socket)
    # Only the guard sends to the proxy; a program may not name it.
    if reason == "name" and parsed.protocol != TCP and not is_later:
        socket.flows.add(to)
    # A flow that goes on does not become the last destination.
    if reason not in (*DENIALS, "proxy", "socket") and not is_later:
        socket.admitted = to
    return Decision(reason, to, parsed.protocol, int.from_bytes(ports[:2], "big"))


@dataclass(frozen=True)
class _Where:
    """Source and destination. ``source`` is None if it counts as this host's."""

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
    reason = rules.judge(to)
    goes_on = where.protocol != TCP and not where.is_later and to in socket.flows
    return "socket" if goes_on and reason in _BY_TIME else reason


def _is_foreign(source: End, to: End, rules: Rules) -> bool:
    """Evaluate an address as a destination without a port."""
    is_own = source.address.is_loopback or source.address == to.address
    return not is_own and rules.judge(source) in DENIALS


def has_ipv4_route(options: bytes) -> bool:
    """Is there a source route among the options, or an option that may hide one?"""
    while options and options[0] != _END_OF_OPTIONS:
        if options[0] in _SOURCE_ROUTES:
            return True
        length = 1
        if options[0] != _NO_OPERATION:
            # RFC 791: the length counts the bytes of type and length. An option never ends
            # after the header.
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
    to: End,
    protocol: int,
    rules: Rules,
    socket: Socket | None = None,
    *,
    is_connect: bool,
    is_bound: bool = False,
) -> tuple[str | None, End]:
    """Decide a destination that a program named: the reason, and the new destination.

    The reason is None if no rule is evaluated. The programs may select any of the proxy's ports,
    the model selects the first. ``is_bound``: the socket is bound to an interface outside.
    """
    if to.address.is_unspecified:
        # Address 0 is this host (RFC 1122, section 3.2.1.3).
        to = End(_LOCALHOST[to.address.version], to.port)
    if rules.is_proxy(to, protocol):
        return "proxy", to
    if to.port == DNS and protocol in (TCP, UDP):
        address, ports = rules.proxy.get(to.address.version, (None, ()))
        # The proxy is on loopback, which such a socket does not reach.
        if address is None or is_bound:
            return "no_proxy", to
        return "dns", End(address, ports[0])
    if is_connect and protocol != TCP:
        return None, to  # no packet leaves of it
    reason = rules.judge(to)
    known = {socket.admitted, *socket.flows} if socket and not is_connect else set()
    return "socket" if reason in _BY_TIME and to in known else reason, to
