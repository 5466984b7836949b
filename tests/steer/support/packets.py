# SPDX-License-Identifier: GPL-2.0-only
"""Random mappings, sockets and look-ups for steer, close to each other's edges."""

from __future__ import annotations

import socket
import struct
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import TYPE_CHECKING

from tests.steer.support.reference import Bound, Mapping, Packet, is_mapped

if TYPE_CHECKING:
    from random import Random

    from tests.steer.support.reference import Address, Network, State

TCP, UDP = socket.IPPROTO_TCP, socket.IPPROTO_UDP
PROTOCOLS = (TCP, UDP)

# Few addresses, so that many prefixes lie within each other. The host has the first two of
# each family, and sockets may be bound to them.
ADDRESSES: dict[int, tuple[Address, ...]] = {
    4: (
        IPv4Address("127.0.0.5"),
        IPv4Address("127.0.0.4"),
        IPv4Address("127.0.1.5"),
        IPv4Address("203.0.113.7"),
        IPv4Address("203.0.113.8"),
        IPv4Address("0.0.0.1"),
        IPv4Address("255.255.255.254"),
    ),
    6: (
        IPv6Address("fd00::7"),
        IPv6Address("fd00::6"),
        IPv6Address("fd00::1:7"),
        IPv6Address("2001:db8::7"),
        IPv6Address("::1"),
        # IPv4-mapped: no packet has such an IPv6 destination, but a prefix may contain it.
        IPv6Address("::ffff:127.0.0.5"),
        IPv6Address("::7f00:5"),
    ),
}
BINDABLE = {family: some[:2] for family, some in ADDRESSES.items()}
# Ports of sockets and packets: the edges of ranges and segments, and their neighbours.
PORTS = (1, 22, 53, 63, 64, 80, 127, 128, 443, 5555, 32767, 32768, 65534, 65535)
_EDGES = (0, 1, 22, 63, 64, 65, 80, 128, 1023, 1024, 5000, 5555, 32768, 65534, 65535)

# struct bpf_sk_lookup: cookie, family, protocol, remote_ip4, remote_ip6, remote_port,
# local_ip4, local_ip6, local_port, ingress_ifindex
_CONTEXT = struct.Struct("=QII4s16s2s2x4s16sII4x")


def context_of(packet: Packet) -> bytes:
    """The context for BPF_PROG_TEST_RUN."""
    is_ipv4 = packet.local.version == 4
    none = (bytes(4), bytes(16))

    def both(address: Address) -> tuple[bytes, bytes]:
        return (address.packed, none[1]) if is_ipv4 else (none[0], address.packed)

    return _CONTEXT.pack(
        0,
        socket.AF_INET if is_ipv4 else socket.AF_INET6,
        packet.protocol,
        *both(packet.remote),
        struct.pack("!H", packet.remote_port),
        *both(packet.local),
        packet.port,
        packet.ifindex,
    )


def cookie_chosen(context: bytes) -> int:
    """The cookie of the selected socket, 0 for none."""
    return int(_CONTEXT.unpack(context)[0])


def _network(rng: Random) -> Network | None:
    if rng.random() < 0.15:
        return None
    family = rng.choice((4, 6))
    address = rng.choice(ADDRESSES[family])
    bits = address.max_prefixlen
    length = rng.choice((bits, bits, bits - 1, rng.randint(0, bits), bits * 3 // 4, 0))
    if family == 4:
        return IPv4Network((int(address), length), strict=False)
    return IPv6Network((int(address), length), strict=False)


def _ports(rng: Random) -> tuple[int, int] | None:
    kind = rng.random()
    if kind < 0.25:
        return None
    if kind < 0.6:
        port = rng.choice(PORTS)
        return port, port
    low, high = sorted(rng.sample(_EDGES, 2))
    return low, high


def random_mappings(rng: Random, targets: int) -> list[Mapping]:
    """Random mappings, no two for the same addresses and ports."""
    mappings = []
    seen: set[object] = set()
    for number in range(rng.choice((0, 1, 3, 10, 30, 60))):
        network, ports, protocol = _network(rng), _ports(rng), rng.choice(PROTOCOLS)
        versions = (4, 6) if network is None else (network.version,)
        keys = {
            (protocol, version, str(network) if network and network.prefixlen else "all", ports)
            for version in versions
        }
        if keys & seen:
            continue
        seen |= keys
        mappings.append(
            Mapping(
                number,
                protocol,
                network,
                ports,
                rng.randrange(targets + 1),  # the last one has no socket
                is_override=rng.random() < 0.2,
                is_fallthrough=rng.random() < 0.2,
            )
        )
    return mappings


def random_packet(rng: Random, state: State) -> Packet:
    """A packet, often to an address and port of a mapping or a listener.

    It came in nowhere: BPF_PROG_TEST_RUN has no interface, so that what is bound to a
    device never takes it.
    """
    family = rng.choice((4, 6))
    address, port = rng.choice(ADDRESSES[family]), rng.choice(PORTS)
    protocol = rng.choice(PROTOCOLS)
    kind = rng.random()
    if kind < 0.4 and state.mappings:
        mapping = rng.choice(state.mappings)
        protocol = mapping.protocol
        if mapping.ports is not None:
            low, high = mapping.ports
            port = rng.choice((low, high, max(low - 1, 0), min(high + 1, 65535)))
        if mapping.network is not None:
            address = rng.choice(
                (mapping.network.network_address, mapping.network.broadcast_address)
            )
    elif kind < 0.6 and state.listening:
        one = rng.choice(state.listening)
        protocol, port = one.protocol, one.port
        if one.address is not None:
            own = one.address
            mapped = own.ipv4_mapped if isinstance(own, IPv6Address) else None
            address = mapped or own
    elif kind < 0.7:
        port = rng.randrange(1 << 16)
    if is_mapped(address):
        address = ADDRESSES[6][0]
    remote = rng.choice(ADDRESSES[address.version])
    return Packet(protocol, address, port, remote, rng.randrange(1, 1 << 16), ifindex=0)


def random_bound(rng: Random, name: int, interfaces: tuple[int, ...]) -> Bound:
    """Random addresses and ports to bind; some of them may conflict."""
    family = rng.choice((4, 6))
    address: Address | None = rng.choice(BINDABLE[family])
    kind = rng.random()
    if kind < 0.2:
        address = None
    elif kind < 0.4:
        family = 6
        address = IPv6Address(f"::ffff:{rng.choice(BINDABLE[4])}")
    return Bound(
        name=name,
        protocol=rng.choice(PROTOCOLS),
        family=family,
        address=address,
        port=rng.choice(PORTS),
        ifindex=rng.choice((0, 0, 0, *interfaces)),
        is_v6only=family == 6 and rng.random() < 0.3,
    )
