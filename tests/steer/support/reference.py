# SPDX-License-Identifier: GPL-2.0-only
"""Steer's reference model: its decisions in plain Python, to compare the program with.

It is written from the description, and shares no code and no idea with the C or with the code
that flattens mappings. Where the model and the program differ, one of them has a bug.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network


def is_mapped(address: Address) -> bool:
    """Is it an IPv4-mapped address?"""
    return isinstance(address, IPv6Address) and address.ipv4_mapped is not None


@dataclass(frozen=True)
class Mapping:
    """A mapping: the packets that go to a target.

    ``network`` None means any address of both families, ``ports`` None any port; one port is a
    range of one. Of two equally specific mappings the narrower range decides, and of two equally
    wide ranges the one that begins first.
    """

    id: int
    protocol: int
    network: Network | None
    ports: tuple[int, int] | None
    target: int
    is_override: bool = False
    is_fallthrough: bool = False

    def matches(self, packet: Packet) -> bool:
        """Does it match this packet?"""
        if self.protocol != packet.protocol:
            return False
        if self.network is not None and (
            self.network.version != packet.local.version or packet.local not in self.network
        ):
            return False
        return self.ports is None or self.ports[0] <= packet.port <= self.ports[1]

    @property
    def specificity(self) -> tuple[int, int, int, int]:
        """Its precedence: of the mappings that match a packet the greatest decides."""
        length = -1 if self.network is None else self.network.prefixlen
        if self.network is not None and length == 0:
            length = -1  # all addresses of one family are as specific as those of both
        if self.ports is None:
            return (0, length, 0, 0)
        low, high = self.ports
        if low == high:
            return (2, length, 0, 0)
        return (1, length, low - high, -low)


@dataclass(frozen=True)
class Bound:
    """A socket: its address, and the packets that it accepts.

    ``address`` is None for any; ``is_v6only`` matters only for sockets of IPv6.
    """

    name: int
    protocol: int
    family: int
    address: Address | None
    port: int
    ifindex: int = 0
    is_v6only: bool = False

    def can_take(self, packet: Packet) -> bool:
        """Would the kernel deliver the packet to it, whatever its address?"""
        if self.protocol != packet.protocol or self.ifindex not in (0, packet.ifindex):
            return False
        if packet.local.version == 6:
            return self.family == 6
        if self.family == 4:
            return True
        # inet6_bind() makes a socket that is bound to an IPv6 address IPv6 only.
        is_of_both = self.address is None or is_mapped(self.address)
        return is_of_both and not self.is_v6only

    def is_exactly_at(self, packet: Packet) -> bool:
        """Does it listen on exactly the packet's address, port and device?"""
        if self.address is None or self.ifindex not in (0, packet.ifindex):
            return False
        own = self.address
        if is_mapped(own):
            own = IPv4Address(int(own) & 0xFFFFFFFF)
        return (self.protocol, own, self.port) == (packet.protocol, packet.local, packet.port)


@dataclass(frozen=True)
class Packet:
    """The look-up of a packet."""

    protocol: int
    local: Address
    port: int
    remote: Address
    remote_port: int
    ifindex: int


@dataclass
class State:
    """The mappings, the listeners, and each target's sockets, the newest first."""

    mappings: list[Mapping] = field(default_factory=list)
    listening: list[Bound] = field(default_factory=list)
    targets: dict[int, list[Bound]] = field(default_factory=dict)


@dataclass(frozen=True)
class Decision:
    """The decision: the mapping that matched, and its result.

    ``outcome`` is "untouched", "kept", "steered", "refused" or "fallen through";
    ``socket`` has the name of the one that was chosen.
    """

    outcome: str
    mapping: int | None = None
    socket: int | None = None


def decide(packet: Packet, state: State) -> Decision:
    """Decide a packet that belongs to no connection."""
    matching = [mapping for mapping in state.mappings if mapping.matches(packet)]
    if not matching:
        return Decision("untouched")
    mapping = max(matching, key=lambda one: one.specificity)
    if not mapping.is_override and any(one.is_exactly_at(packet) for one in state.listening):
        return Decision("kept", mapping.id)
    for candidate in state.targets.get(mapping.target, []):
        if candidate.can_take(packet):
            return Decision("steered", mapping.id, candidate.name)
    return Decision("fallen through" if mapping.is_fallthrough else "refused", mapping.id)
