# SPDX-License-Identifier: GPL-2.0-only
"""Findings about rules, their listeners and their destinations."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING

from zfw_py.firewall import codec
from zfw_py.firewall.interfaces import settings_of
from zfw_py.firewall.lost_routes import lost
from zfw_py.firewall.model import OwnAddresses, Rule, RuleKey
from zfw_py.firewall.port_index import resolve, shadowed
from zfw_py.firewall.routes import obstacle_to
from zfw_py.firewall.rules.find import port_rules, settled
from zfw_py.kernel import bpf_links
from zfw_py.kernel.delivery import is_delivered
from zfw_py.kernel.own_netns import interface_addresses
from zfw_py.kernel.sysctl import local_port_range
from zfw_py.values.finding import Registry
from zfw_py.values.prefix import Prefix, address_text, mapped_address

if TYPE_CHECKING:
    from collections.abc import Iterator

    from zfw_py.firewall.findings.look import Look
    from zfw_py.kernel.lookups import PortSocket

REGISTRY: Registry[Look] = Registry()

_LOOPBACK = {4: bytes([127, 0, 0, 1]), 6: bytes(15) + b"\1"}
_SSH = 22
# A client of DHCP or DHCPv6: the firewall passes its answers.
_DHCP_CLIENTS = (68, 546)


def _intercepts(look: Look) -> list[Rule]:
    return [rule for rule in look.rules if rule.action == "intercept"]


def _listeners(look: Look, rule: Rule) -> list[PortSocket]:
    """The sockets that the kernel may choose for a rule: of one on exactly loopback, these."""
    found = [
        each
        for protocol, each in look.listening
        if (protocol, each.port) == (rule.key.protocol, rule.tproxy_port)
        and _takes(each, rule.key.family, _LOOPBACK[rule.key.family])
    ]
    return [each for each in found if not _is_wildcard(each)] or found


def _is_wildcard(listener: PortSocket) -> bool:
    """Whether it takes packets to any address."""
    return not any(listener.address)


def _takes(listener: PortSocket, family: int, address: bytes) -> bool:
    """Whether it takes packets to an address of 4 or 16 bytes."""
    if not _is_wildcard(listener):
        return listener.address in (address, mapped_address(family, address))
    return listener.family == family or (family == 4 and not listener.is_v6only)


def _may_take(listener: PortSocket) -> bool:
    """Whether the programs hand packets to it: transparent, or root's on exactly loopback."""
    return listener.is_transparent is not False or (
        listener.uid == 0 and not _is_wildcard(listener)
    )


def _text(family: int, address: bytes) -> str:
    return address_text(mapped_address(family, address))


def _key_options(key: RuleKey) -> list[str]:
    source = ["-o", str(key.source)] if key.source.length else []
    direction = ["-z", "egress"] if key.direction == "egress" else []
    options = ["-c", str(key.destination), *source, "-p", key.protocol, "-l", str(key.low_port)]
    return [*options, *direction]


def _delete(rule: Rule) -> str:
    return shlex.join(["zfw", "delete", *_key_options(rule.key)])


@REGISTRY.kind(
    "rule-without-listener",
    "warning",
    "The firewall drops the packets of this rule and counts them as no_listener. Start the"
    " proxy, or delete the rule.",
)
def rule_without_listener(look: Look) -> Iterator[tuple[str, str]]:
    """A rule that intercepts, and no socket listens on its port."""
    for rule in _intercepts(look):
        if not _listeners(look, rule):
            address = _text(rule.key.family, _LOOPBACK[rule.key.family])
            where = f"{address} port {rule.tproxy_port}"
            yield f"rule {rule}: no {rule.key.protocol} socket listens on {where}", _delete(rule)


@REGISTRY.kind(
    "listener-not-transparent",
    "warning",
    "Any program can listen on every address. The firewall hands packets to a socket with"
    " IP_TRANSPARENT, or to one that root bound to loopback; it drops the others' and counts"
    " them as listener_not_transparent. Set the option, bind to loopback, or delete the rule.",
)
def listener_not_transparent(look: Look) -> Iterator[tuple[str, str]]:
    """A listener that a rule would take by mistake, such as a service on 0.0.0.0."""
    for rule in _intercepts(look):
        listeners = _listeners(look, rule)
        if listeners and not any(map(_may_take, listeners)):
            first = listeners[0]
            at = f"{_text(first.family, first.address)} port {first.port} of user {first.uid}"
            what = f"rule {rule}: the socket on {at} is not transparent"
            yield what, _delete(rule)


@REGISTRY.kind(
    "reuseport-before-6.6",
    "warning",
    "Before Linux 6.6 TC cannot hand packets to a listener with SO_REUSEPORT. The firewall"
    " drops them and counts them as assign_failed. Turn the option off in the proxy.",
)
def reuseport(look: Look) -> Iterator[tuple[str, str]]:
    """Several listeners with SO_REUSEPORT on the port of a rule, before Linux 6.6."""
    indexes = list(look.filtered.values())
    if not indexes or bpf_links.supports_tcx(indexes[0]):
        return
    for rule in _intercepts(look):
        addresses = [each.address for each in _listeners(look, rule)]
        # Only with SO_REUSEPORT have two sockets one address and port.
        if rule.key.protocol == "tcp" and len(addresses) > len(set(addresses)):
            what = f"rule {rule}: {len(addresses)} listeners share port {rule.tproxy_port}"
            yield what, _delete(rule)


@REGISTRY.kind(
    "destination-not-local",
    "warning",
    "The kernel delivers an intercepted packet only if its destination is local; it drops the"
    " others. A rule of ip(8) that looks at a mark of nftables makes them local too, which is"
    " not seen here.",
)
def destination_not_local(look: Look) -> Iterator[tuple[str, str]]:
    """A rule that intercepts packets to a destination that is not local."""
    known: dict[tuple[int, bytes, tuple[str, int], str], bool | None] = {}
    # A finding of its own.
    no_more = set(lost(look.maps))
    for rule in _intercepts(look):
        destination = rule.key.destination
        if isinstance(destination, OwnAddresses) or destination in no_more:
            continue
        names = set(rule.interfaces) & set(look.filtered) if rule.is_limited else look.filtered
        for name in sorted(names):
            to = (rule.key.protocol, rule.key.low_port)
            place = (destination.family, _one_of(destination), to, name)
            if place not in known:
                known[place] = is_delivered(*place)
            if known[place] is False:
                yield (
                    f"rule {rule}: {destination} is not local for packets from {name}",
                    _make_local(rule, name),
                )


def _one_of(prefix: Prefix) -> bytes:
    """An address of a prefix that a host can have."""
    if prefix.length == 0:
        # RFC 5737, RFC 3849
        return Prefix.parse("192.0.2.1" if prefix.family == 4 else "2001:db8::1").address
    size = len(prefix.address)
    number = int.from_bytes(prefix.address, "big") + (prefix.length < 8 * size - 1)
    return number.to_bytes(size, "big")


def _make_local(rule: Rule, interface: str) -> str:
    destination = str(rule.key.destination)
    if rule.key.destination.length == 0 or obstacle_to(rule.key.destination):
        ip = "ip" if rule.key.family == 4 else "ip -6"
        to = [] if rule.key.destination.length == 0 else ["to", destination]
        return (
            f"{ip} rule add iif {shlex.quote(interface)} {shlex.join([*to, 'ipproto'])}"
            f" {rule.key.protocol} lookup 100"
            f" && {ip} route replace local {destination} dev lo table 100"
        )
    return _insert_with_route(rule)


def _insert_with_route(rule: Rule) -> str:
    ports = ["-h", str(rule.high_port), "-t", str(rule.tproxy_port)]
    service = ["-s", rule.service_id] if rule.service_id else []
    names = [word for name in rule.interfaces for word in ("-N", name)]
    if rule.interfaces and not rule.is_limited:
        # The modern grammar would limit the rule to its interfaces.
        key = rule.key
        words = ["-I", "-c", key.destination.address_text, "-m", str(key.destination.length)]
        words += ["-o", key.source.address_text, "-n", str(key.source.length)]
        words += ["-p", key.protocol, "-l", str(key.low_port), *ports, *service, *names, "-r"]
        return shlex.join(["zfw", *words])
    return shlex.join(
        ["zfw", "insert", *_key_options(rule.key), *ports, *service, *names, "--route"]
    )


@REGISTRY.kind(
    "rule-never-matches",
    "warning",
    "The first rule of a prefix that has a packet's port decides. Earlier rules have all ports"
    " of this one, so it has no effect.",
)
def rule_never_matches(look: Look) -> Iterator[tuple[str, str]]:
    """A rule that can never match, because earlier rules of its prefix cover it."""
    progress = look.maps.state().in_progress
    members_of = look.interfaces.members_of
    hidden = set()
    for prefix_key, _, found in port_rules(look.maps):
        some = settled(found, progress)
        if len(some) < 2:
            continue
        intervals, _ = resolve(some, members_of)
        direction, protocol, destination, source = codec.decode_prefix_key(prefix_key)
        for index in shadowed(some, intervals):
            port = some[index].low_port
            hidden.add(RuleKey.trusted(direction, destination, source, protocol, port))
    for rule in look.rules:
        if rule.key in hidden:
            yield (
                f"rule {rule} can never match: earlier rules of its prefix cover it",
                _delete(rule),
            )


@REGISTRY.kind(
    "listener-without-rule",
    "note",
    "The firewall drops every packet that no rule and no setting allows, so clients get no"
    " answer from this service. Insert a rule if it is for others.",
)
def listener_without_rule(look: Look) -> Iterator[tuple[str, str]]:
    """A service on an address of an attached interface, and no rule lets clients in."""
    low, high = local_port_range()
    own = interface_addresses()
    targets = {(rule.key.protocol, rule.tproxy_port) for rule in _intercepts(look)}
    for protocol, each in look.listening:
        # A UDP socket on a port that the kernel chose is a client's.
        is_client = protocol == "udp" and low <= each.port <= high
        if is_client or (protocol, each.port) in targets:
            continue
        for name, index in look.filtered.items():
            if each.ifindex not in (0, index):
                continue
            for address in sorted(map(address_text, own.get(name, ()))):
                to = Prefix.parse(address)
                # Link-local addresses are for the link's own protocols.
                is_reachable = not address.startswith(("fe80:", "169.254."))
                is_reachable &= _takes(each, to.family, to.address)
                if is_reachable and not _lets_in(look, protocol, each.port, name, to):
                    words = ["-c", address, "-p", protocol, "-l", str(each.port)]
                    yield (
                        f"{protocol} port {each.port} on {address} ({name}) has no rule",
                        shlex.join(["zfw", "insert", *words]),
                    )


def _lets_in(look: Look, protocol: str, port: int, interface: str, address: Prefix) -> bool:
    settings = look.interfaces.settings().get(interface) or settings_of(0)
    if address.family == 6 and not settings["ipv6"]:
        return True  # the interface has no IPv6 at all
    if (protocol, port) == ("tcp", _SSH) and settings["ssh"]:
        return True
    if protocol == "udp" and port in _DHCP_CLIENTS:
        return True
    return any(
        rule.key.direction == "ingress"
        and rule.key.protocol == protocol
        and rule.key.low_port <= port <= rule.high_port
        and _covers(rule.key.destination, address)
        and _counts_on(rule, interface, settings)
        for rule in look.rules
    )


def _covers(destination: Prefix, address: Prefix) -> bool:
    """Whether an address of an interface is in a destination."""
    if isinstance(destination, OwnAddresses):
        return destination.family == address.family
    return (
        destination.family == address.family
        and Prefix(address.family, address.address, destination.length) == destination
    )


def _counts_on(rule: Rule, interface: str, settings: dict[str, bool]) -> bool:
    if settings["per_interface_rules"] or rule.is_limited:
        return interface in rule.interfaces
    return True
