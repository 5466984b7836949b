# SPDX-License-Identifier: GPL-2.0-only
"""The steps of a boot program, as a plan made from the configuration alone. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from zfw_py.firewall.model import Rule, RuleKey
from zfw_py.firewall.service import Insert
from zfw_py.values.prefix import Prefix

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from zfw_py.compat.interfaces_config import BootInterface
    from zfw_py.compat.router_config import Resolver

KINDS = ("router", "tunnel", "controller")

# The anycast address of resolvers: on a gateway that has it, it is an address of lo.
_SHARED_RESOLVER = Prefix.parse("100.127.255.254/32")


class Plan(NamedTuple):
    """The steps, in their order.

    ``rules`` pass packets to the ports of the router or controller itself. ``flushes_routes``
    removes the local routes of old ingress rules too. ``missing`` has features of the
    configuration that this version does not have.
    """

    interfaces: list[BootInterface]
    flushes_routes: bool
    rules: list[Insert]
    missing: list[str]


def plan(
    kind: str,
    interfaces: list[BootInterface],
    *,
    own_addresses: Sequence[Prefix] = (),
    ports: Iterable[int] = (),
    resolvers: Iterable[Resolver] = (),
    guarded_ports: Iterable[int] = (),
) -> Plan:
    """The plan of the boot program of a kind of ``KINDS``.

    ``own_addresses`` are those of the LAN interfaces; without any, the ports are passed for
    every address. ``guarded_ports`` need protection against floods.
    """
    destinations = list(own_addresses) or [Prefix.any(4)]
    rules = [
        Insert(_passing(destination, "tcp", port))
        for port in sorted(set(ports))
        for destination in destinations
    ]
    for resolver in dict.fromkeys(resolvers):
        rules.append(Insert(_passing(resolver.address, "tcp", resolver.port)))
        rules.append(
            Insert(
                _passing(resolver.address, "udp", resolver.port),
                route=resolver.address == _SHARED_RESOLVER,
            )
        )
    missing = []
    if kind == "tunnel":
        missing.append("tunnel mode (zfw -T): interception into the tunnel interface")
    guarded = sorted(set(guarded_ports))
    if guarded:
        shown = ", ".join(map(str, guarded))
        missing.append(f"DDoS protection (zfw --ddos-dport-add) of TCP {shown}")
    return Plan(interfaces, kind == "router", rules, missing)


def _passing(destination: Prefix, protocol: str, port: int) -> Rule:
    return Rule(RuleKey(destination, protocol, port))
