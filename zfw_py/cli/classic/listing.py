# SPDX-License-Identifier: GPL-2.0-only
"""The texts of ``zfw -L`` and ``zfw -L -E``, in the layout of the C program. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

from zfw_py.cli.classic import SETTINGS
from zfw_py.cli.output import safe
from zfw_py.firewall.layout import SEGMENT_SLOTS, SEGMENTS

if TYPE_CHECKING:
    from collections.abc import Iterable

    from zfw_py.cli.classic.grammar import Request
    from zfw_py.firewall.model import Rule
    from zfw_py.firewall.status import InterfaceStatus

# The limit of rules, and so of prefixes: each has a rule at least.
MOST_RULES = SEGMENTS * SEGMENT_SLOTS

_NO_SERVICE = "0" * 22
_HEADINGS = (
    f"type   {'service id':22}\tproto\t{'origin':20}\t{'destination':32}{'mapping:':24}"
    f"\t\t\t\t{'interface list':31}",
    f"------ {'-' * 22}\t-----\t{'-' * 17}\t{'-' * 18}\t\t{'-' * 55}\t{'-' * 17}",
)
_LINE = "-" * 26
_SETTING_ROWS = (
    "icmp echo",
    "pass non tuple",
    "ipv6 enable",
    "verbose",
    "ssh disable",
    "outbound filter",
    "per interface",
    "tc ingress filter",
    "tc egress filter",
    "tun mode intercept",
    "vrrp enable",
    "eapol enable",
    "ddos filtering",
    "masquerade",
)


def rules_text(rules: Iterable[Rule], request: Request) -> str:
    """The listing of those rules that the request asks for."""
    direction = request.direction or "ingress"
    wanted = [rule for rule in rules if _is_wanted(rule, request, direction)]
    prefixes = {(r.key.destination, r.key.source, r.key.protocol) for r in wanted}
    lines = [
        f"{direction.upper()} FILTERS:",
        *_HEADINGS,
        *map(_rule_line, wanted),
        f"Rule Count: {len(wanted)} / {MOST_RULES}",
        f"prefix_tuple_count: {len(prefixes)} / {MOST_RULES}",
    ]
    return "\n".join(lines) + "\n"


def _is_wanted(rule: Rule, request: Request, direction: str) -> bool:
    key = rule.key
    return (
        key.direction == direction
        and key.family == request.family
        and request.destination in (None, key.destination)
        and request.source in (None, key.source)
        and request.protocol in (None, key.protocol)
        and not (request.intercepts_only and not rule.tproxy_port)
        and not (request.passthrough_only and rule.tproxy_port)
    )


def _rule_line(rule: Rule) -> str:
    key = rule.key
    kind = "deny" if rule.action == "deny" else "accept"
    ports = f"dpts={key.low_port}:{rule.high_port}"
    listener = "127.0.0.1" if key.family == 4 else "[::1]"
    mapping = (
        f"TPROXY redirect {listener}:{rule.tproxy_port}"
        if rule.tproxy_port
        else f"PASSTHRU to {key.destination}"
    )
    return (
        f"{kind:6} {safe(rule.service_id or _NO_SERVICE):22}\t{key.protocol}\t{key.source!s:20}"
        f"\t{key.destination!s:32}{ports:17}\t{mapping:32}[{safe(','.join(rule.interfaces))}]"
    )


def settings_text(interfaces: Iterable[InterfaceStatus]) -> str:
    """Each interface with its settings; 0 for those that this version does not have."""
    return "".join(
        f"{safe(interface.name)}: {interface.ifindex}\n{_LINE}\n"
        + "".join(f"{row:24}:{int(row in rows_on)}\n" for row in _SETTING_ROWS)
        + f"{_LINE}\n\n"
        for interface in interfaces
        for rows_on in [_rows_on(interface)]
    )


def _rows_on(interface: InterfaceStatus) -> set[str]:
    """The rows whose value is 1: options that were given, and attached directions."""
    options = {
        flag.row
        for setting, flag in SETTINGS.items()
        if interface.settings[setting] != flag.turns_off
    }
    return options | {f"tc {direction} filter" for direction in interface.attachments}
