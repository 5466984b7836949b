# SPDX-License-Identifier: GPL-2.0-only
"""Why a packet passes or not: the program's decision, with all that explains it.

The decision is that of the program. Which prefixes were tried is found by a search of our own,
and is reported only where that search and the program agree. Nothing is written.
"""

from __future__ import annotations

from socket import if_indextoname
from typing import TYPE_CHECKING, NamedTuple

from zfw_py.errors import UsageError
from zfw_py.firewall import programs, question, reasons, tried
from zfw_py.firewall.explain import Programs
from zfw_py.firewall.interfaces import index_of, primary_name
from zfw_py.firewall.listing import read_rule
from zfw_py.kernel import lookups
from zfw_py.kernel.process import command_name
from zfw_py.kernel.process_sockets import holders
from zfw_py.values.endpoint import Endpoint
from zfw_py.values.prefix import IPV4_MAPPED, address_text, mapped_address

if TYPE_CHECKING:
    from zfw_py.firewall.explain import Decision
    from zfw_py.firewall.interfaces import Interfaces
    from zfw_py.firewall.maps import Maps
    from zfw_py.firewall.model import Rule
    from zfw_py.firewall.question import Question
    from zfw_py.firewall.tried import Search, Tried
    from zfw_py.kernel.lookups import PacketRoute, PortSocket

# By the program's verdict.
VERDICTS = {"pass": "pass", "drop": "drop", "assign": "intercept"}

# The reasons that the search for a rule ends in: with a rule, and with none.
_WITH_RULE = (
    "rule_deny",
    "rule_pass",
    "rule_intercept",
    "no_listener",
    "listener_not_transparent",
    "fragment_intercept",
)
_WITHOUT_RULE = ("no_rule", "egress_no_rule")
_INTERCEPTING = ("rule_intercept", "no_listener", "listener_not_transparent")
_LOOPBACK = {4: b"\x7f\0\0\1", 6: bytes(15) + b"\1"}


class Listener(NamedTuple):
    """A socket that waits for any peer.

    ``processes`` have it open, by number and command; none are known where the caller may not
    look at them. ``is_transparent`` is None where the kernel does not report it.
    """

    protocol: str
    address: str
    port: int
    user: str
    processes: list[tuple[int, str]]
    is_transparent: bool | None


class RouteFound(NamedTuple):
    """The kernel's route of the packet: its type, or why there is none; see lookups."""

    kind: str
    interface: str | None
    gateway: str | None


class Explanation(NamedTuple):
    """A decision and what explains it.

    ``verdict`` is "pass", "drop" or "intercept". ``reason`` is that of the program, or
    "not_attached". ``advice`` has a purpose and a command each. ``contradiction``: the rule
    that our own search found instead of the program's; ``tried`` is empty then.
    """

    verdict: str
    reason: str
    interface: str
    rule: Rule | None
    tried: list[Tried]
    listener: Listener | None
    route: RouteFound | None
    advice: list[tuple[str, str]]
    unknown: list[str]
    contradiction: str | None = None


def explain(maps: Maps, interfaces: Interfaces, asked: Question) -> Explanation:
    """Explain what happens to a packet. The caller holds the lock.

    Raises NotFound for an interface that does not exist, UsageError where none is named and no
    route leads to one.
    """
    name, ifindex = _interface_of(asked)
    came_by = _came_by(asked)
    attachment = programs.attachment_at(maps, ifindex, asked.direction)
    with Programs(maps) as running:
        decision = running.decide(question.frame(asked), ifindex, asked.direction, came_by)
    place = tried.place_of(maps, ifindex)
    found, contradiction = _search(maps, interfaces, place, asked, decision)
    rule = None
    if decision.slot is not None:
        rule = _rule_of(maps, interfaces, found, decision.slot)
    verdict, reason = VERDICTS[decision.verdict], decision.reason
    if attachment is None:
        verdict, reason = "pass", reasons.NOT_ATTACHED
        found, rule = None, None
    route = lookups.route_of(
        asked.family,
        asked.destination,
        asked.source if asked.direction == "ingress" or came_by == 0 else None,
        ifindex if asked.direction == "ingress" else came_by,
    )
    is_local = route.kind in ("local", "broadcast", "multicast")
    return Explanation(
        verdict,
        reason,
        name,
        rule,
        found.tried if found else [],
        _listener(asked, verdict, reason, rule, is_local=is_local),
        _named(route),
        _route_advice(asked, reason, rule, route, name)
        + reasons.advice(
            reason,
            asked,
            name,
            rule,
            is_local=is_local,
            is_per_interface=place.is_per_interface,
        ),
        _unknown(asked, verdict, reason, found, came_by)
        + (_ahead(attachment) if attachment else []),
        contradiction,
    )


# Where the packet is seen


def _interface_of(asked: Question) -> tuple[str, int]:
    """The name and index of the interface that is named, or that the routes say."""
    if asked.interface is not None:
        name = primary_name(asked.interface)
        return name, index_of(name)
    is_ingress = asked.direction == "ingress"
    towards = asked.source if is_ingress else asked.destination
    found = lookups.route_of(asked.family, towards)
    if found.ifindex is None:
        text = asked.source_text if is_ingress else asked.destination_text
        raise UsageError(f"-i: no route leads to {text}: name the interface")
    return if_indextoname(found.ifindex), found.ifindex


def _came_by(asked: Question) -> int:
    """The index of the interface that a leaving packet arrived by; 0 if this host sends it."""
    if asked.direction == "ingress":
        return 0
    found = lookups.route_of(asked.family, asked.source)
    return 0 if found.kind == "local" else found.ifindex or 0


# The rule


def _search(
    maps: Maps, interfaces: Interfaces, place: tried.Place, asked: Question, decision: Decision
) -> tuple[Search | None, str | None]:
    """The search for the rule, and where it and the program differ, what it found instead."""
    if asked.icmp is not None or decision.reason not in (*_WITH_RULE, *_WITHOUT_RULE):
        return None, None
    source, destination = asked.mapped
    sought = tried.Sought(
        *(asked.direction, asked.family, asked.protocol),
        *(source, destination, asked.destination_port),
    )
    found = tried.search(maps, interfaces, place, sought)
    slot = found.rule.slot if found.rule else None
    if slot == decision.slot:
        return found, None
    other = "no rule"
    if found.key is not None and found.rule is not None:
        other = f"rule {read_rule(maps, interfaces, found.key, found.rule)}"
    return None, other


def _rule_of(maps: Maps, interfaces: Interfaces, found: Search | None, slot: int) -> Rule | None:
    if found is not None and found.key is not None and found.rule is not None:
        return read_rule(maps, interfaces, found.key, found.rule)
    return rule_at(maps, interfaces, slot)


def rule_at(maps: Maps, interfaces: Interfaces, slot: int) -> Rule | None:
    """The rule of a slot, found among all rules; None if no rule has it."""
    from zfw_py.firewall.rules.find import port_rules

    for key, _, rules in port_rules(maps):
        for rule in rules:
            if rule.slot == slot:
                return read_rule(maps, interfaces, key, rule)
    return None


# The socket


def _listener(
    asked: Question, verdict: str, reason: str, rule: Rule | None, *, is_local: bool
) -> Listener | None:
    """The socket that gets the packet, or that the rule's port has."""
    if asked.icmp is not None or asked.direction == "egress":
        return None
    if reason in _INTERCEPTING and rule is not None:
        address, port = _LOOPBACK[asked.family], rule.tproxy_port
    elif verdict == "pass" and is_local:
        address, port = asked.destination, asked.destination_port
    else:
        return None
    found = _best(lookups.sockets_on(asked.protocol, port) or [], asked.family, address)
    if found is None:
        return None
    pids = sorted(holders([found.inode])[found.inode])
    return Listener(
        asked.protocol,
        address_text(mapped_address(found.family, found.address)),
        port,
        _user(found.uid),
        [(pid, name) for pid in pids if (name := _command(pid))],
        found.is_transparent,
    )


def _best(sockets: list[PortSocket], family: int, address: bytes) -> PortSocket | None:
    """The socket that takes packets to an address: one bound to it before one bound to any."""
    exact, wild = [], []
    for each in sockets:
        bound = each.address
        if family == 4 and each.family == 6 and bound.startswith(IPV4_MAPPED):
            bound = bound[12:]
        if bound == address:
            exact.append(each)
        elif not any(each.address) and (
            each.family == family or (family == 4 and not each.is_v6only)
        ):
            wild.append(each)
    return next(iter(exact + wild), None)


def _command(pid: int) -> str | None:
    try:
        return command_name(pid)
    except OSError:
        return None


def _user(uid: int) -> str:
    import pwd

    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


# The route


def _named(route: PacketRoute) -> RouteFound:
    name = None
    if route.ifindex is not None:
        try:
            name = if_indextoname(route.ifindex)
        except OSError:
            name = str(route.ifindex)
    return RouteFound(route.kind, name, route.gateway)


def _route_advice(
    asked: Question, reason: str, rule: Rule | None, route: PacketRoute, name: str
) -> list[tuple[str, str]]:
    """What else is in the packet's way: commands for a route that does not fit the decision."""
    if asked.direction == "egress":
        return []
    if route.kind == "source":
        if asked.family == 6:
            return []
        return [
            (
                "accept sources that other interfaces lead to",
                f"sysctl net.ipv4.conf.{name}.rp_filter=2",
            )
        ]
    if reason in _INTERCEPTING and rule is not None and route.kind not in ("local", "broadcast"):
        key = rule.key
        words = f"-c {key.destination} -p {key.protocol} -l {key.low_port} -h {rule.high_port}"
        if key.source.length:
            words += f" -o {key.source}"
        return [
            (
                "make the destination local, or the kernel drops what the rule intercepts",
                f"zfw insert {words} -t {rule.tproxy_port} --route",
            )
        ]
    return []


# What a test run cannot show


def _unknown(
    asked: Question,
    verdict: str,
    reason: str,
    found: Search | None,
    came_by: int,
) -> list[str]:
    lines: list[str] = []
    if reason == reasons.NOT_ATTACHED:
        return lines
    if found is not None and not found.is_complete:
        lines.append(
            f"Rules of other sources were not looked for: there are more than"
            f" {tried.MOST_READ} prefixes."
        )
    if asked.is_made_up and asked.icmp is None:
        lines.append(
            "The TCP numbers of the asked packet are 0. Whether real ones fit a tracked flow"
            " shows a capture: --pcap."
        )
    elif asked.is_made_up:
        lines.append(
            f"The error is taken to quote a {asked.protocol.upper()} packet from"
            f" {_quoted(asked, asked.destination, asked.destination_port)} to"
            f" {_quoted(asked, asked.source, asked.source_port)}."
        )
    if verdict == "intercept":
        lines.append(
            "A test run cannot assign the socket: bpf_sk_assign() may still fail (assign_failed)."
            " Where a packet socket has a clone, the kernel asks the firewall for the listener"
            " again (deliver_intercept, deliver_no_listener). A frame for another MAC address,"
            " and a device above the interface, such as a bridge, may be in the way (other_host,"
            " misrouted)."
        )
    elif verdict == "pass" and asked.direction == "ingress":
        lines.append("Filters after the firewall's (TC, nftables) may drop the packet.")
    if asked.direction == "egress" and came_by:
        lines.append(
            "A forwarded packet that belongs to a socket of this host is dropped (misrouted):"
            " only the wire shows that."
        )
    if asked.direction == "ingress" and reason in ("established", "flow", "flow_invalid"):
        lines.append("Sockets and flows change: this is the answer of now.")
    return lines


def _quoted(asked: Question, address: bytes, port: int) -> str:
    return str(Endpoint(address_text(mapped_address(asked.family, address)), port))


def _ahead(attachment: programs.Attachment) -> list[str]:
    numbers = programs.in_front(attachment)
    if not numbers:
        return []
    shown = ", ".join(map(str, numbers))
    return [f"Programs before the firewall's may decide first (TCX, program ids {shown})."]
