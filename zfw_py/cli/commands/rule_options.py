# SPDX-License-Identifier: GPL-2.0-only
"""The options of a rule, for insert, delete and the lines of a batch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from zfw_py.cli.options import Option, switch
from zfw_py.firewall.model import DIRECTIONS, FIELDS, PROTOCOLS, RuleText
from zfw_py.firewall.service import Delete, Insert

if TYPE_CHECKING:
    from collections.abc import Mapping

    from zfw_py.values.prefix import Prefix

# By the fields of a rule; deny and route are no text.
OPTIONS = {
    "destination": Option(
        "-c",
        "--destination",
        kind=str,
        default=...,
        metavar="ADDR[/LEN]|own4|own6",
        help="Destination, IPv4 or IPv6; own4 and own6 are the addresses of this host.",
    ),
    "prefix_length": Option(
        "-m", "--prefix-length", metavar="LEN", help="Prefix length of the destination."
    ),
    "source": Option(
        "-o", "--source", metavar="ADDR[/LEN]", help="Source; any address if not given."
    ),
    "source_length": Option(
        "-n", "--source-length", metavar="LEN", help="Prefix length of the source."
    ),
    "protocol": Option(
        "-p",
        "--protocol",
        kind=str,
        default=...,
        metavar="tcp|udp",
        help="Protocol.",
        autocompletion=lambda: list(PROTOCOLS),
    ),
    "low_port": Option(
        "-l", "--low-port", kind=str, default=..., metavar="PORT", help="First destination port."
    ),
    "high_port": Option(
        "-h",
        "--high-port",
        metavar="PORT",
        help="Last destination port; the first one if not given.",
    ),
    "tproxy_port": Option(
        "-t",
        "--tproxy-port",
        kind=str,
        default="0",
        metavar="PORT",
        help="Port of the listener on 127.0.0.1 or ::1; 0 passes packets to the host.",
    ),
    "interfaces": Option(
        "-N",
        "--interface",
        kind=list[str] | None,
        metavar="IFACE",
        help="Apply the rule on this interface alone. Repeatable.",
    ),
    "service_id": Option(
        "-s",
        "--service-id",
        kind=str,
        default="",
        metavar="ID",
        help="Name of the service that the rule belongs to.",
    ),
    "direction": Option(
        "-z",
        "--direction",
        kind=str,
        default="ingress",
        metavar="ingress|egress",
        help="Direction of the packets.",
        autocompletion=lambda: list(DIRECTIONS),
    ),
    "deny": switch("--deny", help="Drop the packets."),
    "route": switch(
        "--route", help="Add a local route to the destination; zfw removes it with the rule."
    ),
}
NAMES = {name: option.name for name, option in OPTIONS.items()}


def read_insert(values: Mapping[str, Any]) -> Insert:
    """The insert that the values of ``OPTIONS`` describe. Raises UsageError, naming the option."""
    texts = {field: text for field in FIELDS if (text := values.get(field)) is not None}
    rule = RuleText(texts, NAMES, has_own=True).rule(
        values.get("interfaces") or (), deny=values.get("deny", False)
    )
    return Insert(rule, route=values.get("route", False))


def inverse(insert: Insert) -> Delete:
    """The delete of what an insert adds: its key, and its interfaces."""
    return Delete(insert.rule.key, insert.rule.interfaces)


def read_destination(text: str) -> Prefix:
    """Read a destination, as ``-c`` takes it."""
    return RuleText({"destination": text}, NAMES, has_own=True).destination()
