# SPDX-License-Identifier: GPL-2.0-only
"""Random rules for a guard, and their conversion to a policy and to entries of its maps."""

from __future__ import annotations

import time
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_network
from typing import TYPE_CHECKING

from tests.guard.support.reference import Rules, end
from zfw_py.guard.codec import Proxy, resolved_key, time_value
from zfw_py.guard.model import MAX_PORTS, Policy, parse_entry

if TYPE_CHECKING:
    from random import Random

    from tests.firewall.support.reference import Address, Network
    from zfw_py.kernel.bpf_maps import Map

_HOUR = 3_600_000_000_000  # nanoseconds

# All prefixes contain one of a few addresses, so that many lie within each other.
_CENTRES: dict[int, tuple[Address, ...]] = {
    4: (IPv4Address("10.20.30.40"), IPv4Address("10.20.31.0"), IPv4Address("198.51.100.255")),
    6: (
        IPv6Address("fd20:1:2:3::40"),
        IPv6Address("fd20:1:2:4::"),
        IPv6Address("2001:db8::ffff:ffff"),
    ),
}
# Loopback and parts of it; all; and IPv6 around the IPv4-mapped addresses.
_SPECIAL = tuple(
    ip_network(text)
    for text in (
        *("127.0.0.0/8", "127.0.0.1/32", "127.0.0.53/32", "::1/128", "::/127", "::/64"),
        *("0.0.0.0/0", "::/0", "0.0.0.0/1", "128.0.0.0/1", "::/1", "::ffc0:0:0/90", "::/80"),
    )
)
_PORTS = (1, 53, 80, 443, 443, 8080, 8443, 65535)
PROXIES: dict[int, tuple[Address, tuple[int, ...]]] = {
    4: (IPv4Address("127.0.0.1"), (40053, 40054, 40055, 40056)),
    6: (IPv6Address("::1"), (40063, 40064)),
}


def number_to_address(family: int, number: int) -> Address:
    """An address plus a number; the address after the last one is the first."""
    return IPv4Address(number % 2**32) if family == 4 else IPv6Address(number % 2**128)


def _around(rng: Random, family: int) -> Network:
    bits = 32 if family == 4 else 128
    length = bits - min(int(rng.expovariate(0.1)), bits)
    centre = (int(rng.choice(_CENTRES[family])), length)
    return IPv4Network(centre, strict=False) if family == 4 else IPv6Network(centre, strict=False)


def _networks(rng: Random, count: int) -> list[Network]:
    return [
        rng.choice(_SPECIAL) if rng.random() < 0.2 else _around(rng, rng.choice((4, 6)))
        for _ in range(count)
    ]


def _allowed(rng: Random) -> list[tuple[Network, int | None]]:
    entries: list[tuple[Network, int | None]] = []
    ports: dict[Network, set[int]] = {}
    for network in _networks(rng, rng.choice((0, 1, 3, 8, 20, 40))):
        if rng.random() < 0.4:
            entries.append((network, None))
            continue
        count = MAX_PORTS if rng.random() < 0.05 else rng.randint(1, 4)
        chosen = {rng.choice(_PORTS) for _ in range(count)}
        while len(chosen) < count and count == MAX_PORTS:
            chosen.add(rng.randint(1, 65535))
        # An element also holds the ports of all prefixes that contain its own.
        near = {p for other, found in ports.items() if _overlap(network, other) for p in found}
        if len(near | chosen) <= MAX_PORTS:
            ports.setdefault(network, set()).update(chosen)
            entries += [(network, port) for port in chosen]
    rng.shuffle(entries)
    return entries


def _overlap(one: Network, other: Network) -> bool:
    return one.version == other.version and one.overlaps(other)


def random_rules(rng: Random) -> Rules:
    """A policy, with resolved addresses and the address of the proxy."""
    rules = Rules(
        allow=_allowed(rng),
        block=_networks(rng, rng.choice((0, 0, 1, 3, 10))),
        is_allowed_by_default=rng.random() < 0.3,
        has_loopback=rng.random() < 0.7,
        is_log_only=rng.random() < 0.15,
    )
    for _ in range(rng.choice((0, 2, 10, 40))):
        address, port = edge(rng, rules)
        rules.resolved[end(address).address, rng.choice((None, port))] = rng.random() < 0.7
    for family, (address, ports) in PROXIES.items():
        if rng.random() < 0.8:
            rules.proxy[family] = (address, ports[: rng.randint(1, len(ports))])
    return rules


def edge(rng: Random, rules: Rules) -> tuple[Address, int]:
    """An address and a port of a rule, or next to one."""
    draw = rng.random()
    port = rng.choice(_PORTS) if rng.random() < 0.8 else rng.randint(1, 65535)
    if draw < 0.13:
        address, ports = PROXIES[rng.choice((4, 6))]
        return address, rng.choice((*ports, ports[0] - 1, port))
    if draw < 0.23 and rules.resolved:
        name, resolved = rng.choice(list(rules.resolved))
        return name, rng.choice((resolved or port, port))
    if draw < 0.27:
        return _near(rng, rng.choice(_SPECIAL)), port
    if draw < 0.32:
        family = rng.choice((4, 6))
        return number_to_address(family, rng.getrandbits(128)), port
    ported = [(network, port) for network, port in rules.allow if port is not None]
    if draw < 0.6 and ported:
        network, allowed = rng.choice(ported)
        return _near(rng, network), rng.choice((allowed, allowed, port))
    networks = [*(network for network, _ in rules.allow), *rules.block]
    return _near(rng, rng.choice(networks or _SPECIAL)), port


def _near(rng: Random, network: Network) -> Address:
    """Within a prefix, at its ends or just past them."""
    first, last = int(network.network_address), int(network.broadcast_address)
    centres = [int(one) for one in _CENTRES[network.version] if one in network]
    numbers = (rng.randint(first, last), first, last, first - 1, last + 1, *centres)
    return number_to_address(network.version, rng.choice(numbers))


# Conversion


def _text(network: Network, port: int | None, *, is_mapped: bool) -> str:
    """An entry; IPv4 may be written as IPv4-mapped as well."""
    text = str(network)
    if is_mapped and network.version == 4:
        text = f"::ffff:{network.network_address}/{96 + network.prefixlen}"
    if port is None:
        return text
    return f"[{text}]:{port}" if ":" in text else f"{text}:{port}"


def policy_of(rng: Random, rules: Rules) -> Policy:
    """The policy, parsed from text as a user writes it."""

    def text(network: Network, port: int | None = None) -> str:
        return _text(network, port, is_mapped=rng.random() < 0.1)

    return Policy(
        allow=tuple(parse_entry(text(network, port), "--allow") for network, port in rules.allow),
        block=tuple(
            parse_entry(text(network), "--block", is_block=True) for network in rules.block
        ),
        default="allow" if rules.is_allowed_by_default else "deny",
        has_loopback=rules.has_loopback,
        is_log_only=rules.is_log_only,
    )


def proxy_of(rules: Rules) -> Proxy:
    """The entries of the map of proxies."""
    fields: dict[str, bytes | tuple[int, ...]] = {}
    for family, (address, ports) in rules.proxy.items():
        fields[f"ipv{family}"] = packed(address)
        fields[f"ipv{family}_ports"] = ports
    return Proxy(**fields)  # type: ignore[arg-type]


def write_resolved(resolved: Map, rules: Rules) -> None:
    """Write the addresses of names; expired ones have an expiry of an hour ago."""
    now = time.monotonic_ns()
    for (address, port), is_current in rules.resolved.items():
        until = now + _HOUR if is_current else max(now - _HOUR, 0)
        resolved.update(resolved_key(packed(address), port or 0), time_value(until))


def packed(address: Address) -> bytes:
    """An address as in the maps: 16 bytes, IPv4 as IPv4-mapped."""
    return address.packed if address.version == 6 else b"\0" * 10 + b"\xff\xff" + address.packed
