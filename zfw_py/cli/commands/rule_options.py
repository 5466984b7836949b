# SPDX-License-Identifier: GPL-2.0-only
"""The options that make up a rule: how they are spelled, and how their values become a rule.

Two doors lead here, the commands insert and delete and the lines of a batch, so
that a rule reads the same in both.
"""

from __future__ import annotations

from typing import Any

import typer

from zfw_py.errors import UsageError
from zfw_py.firewall.model import (
    DIRECTIONS,
    PROTOCOLS,
    Rule,
    RuleKey,
    check_interface_name,
    check_service_id,
    parse_length,
    parse_port,
    parse_protocol,
)
from zfw_py.firewall.service import Delete, Insert
from zfw_py.values.prefix import Prefix


class Option:
    """An option: its spellings, the name that messages give it, and what Typer is told."""

    def __init__(self, *spellings: str, **details: Any) -> None:
        """``details`` are Typer's."""
        self.spellings = spellings
        self.name = ", ".join(spellings)
        self.typer = typer.Option(*spellings, **details)


DESTINATION = Option("-c", "--destination", metavar="ADDR[/LEN]", help="Destination, IPv4 or IPv6.")
PREFIX_LENGTH = Option(
    "-m", "--prefix-length", metavar="LEN", help="Prefix length of the destination."
)
SOURCE = Option("-o", "--source", metavar="ADDR[/LEN]", help="Source; any if not given.")
SOURCE_LENGTH = Option("-n", "--source-length", metavar="LEN", help="Prefix length of the source.")
PROTOCOL = Option(
    "-p",
    "--protocol",
    metavar="tcp|udp",
    help="Protocol.",
    autocompletion=lambda: list(PROTOCOLS),
)
LOW_PORT = Option("-l", "--low-port", metavar="PORT", help="First destination port.")
HIGH_PORT = Option(
    "-h", "--high-port", metavar="PORT", help="Last destination port; the first if not given."
)
TPROXY_PORT = Option(
    "-t",
    "--tproxy-port",
    metavar="PORT",
    help="Port of the listener on 127.0.0.1 or ::1; 0 passes packets to the host.",
)
INTERFACE = Option(
    "-N",
    "--interface",
    metavar="IFACE",
    help="Only on this interface, if it is set to per-interface rules. Repeatable.",
)
SERVICE_ID = Option(
    "-s", "--service-id", metavar="ID", help="Name of the service that the rule belongs to."
)
DIRECTION = Option(
    "-z",
    "--direction",
    metavar="ingress|egress",
    help="Direction of the packets.",
    autocompletion=lambda: list(DIRECTIONS),
)
DENY = Option("--deny", help="Drop the packets.")
ROUTE = Option("--route", help="Make the destination local for as long as the rule stands.")

# By the names that ``read_insert`` has for them.
VALUES = {
    "destination": DESTINATION,
    "prefix_length": PREFIX_LENGTH,
    "source": SOURCE,
    "source_length": SOURCE_LENGTH,
    "protocol": PROTOCOL,
    "low_port": LOW_PORT,
    "high_port": HIGH_PORT,
    "tproxy_port": TPROXY_PORT,
    "service_id": SERVICE_ID,
    "direction": DIRECTION,
}
LISTS = {"interfaces": INTERFACE}
FLAGS = {"deny": DENY, "route": ROUTE}


def read_insert(
    *,
    destination: str | None = None,
    prefix_length: str | None = None,
    source: str | None = None,
    source_length: str | None = None,
    protocol: str | None = None,
    low_port: str | None = None,
    high_port: str | None = None,
    tproxy_port: str = "0",
    interfaces: list[str] | None = None,
    service_id: str = "",
    direction: str = "ingress",
    deny: bool = False,
    route: bool = False,
) -> Insert:
    """The insert that these options ask for. Raises UsageError, naming the option."""
    target = read_prefix(destination, prefix_length)
    low = parse_port(_required(low_port, LOW_PORT), LOW_PORT.name)
    high = low if high_port is None else parse_port(high_port, HIGH_PORT.name)
    if high < low:
        raise UsageError(f"{HIGH_PORT.name}: {high} is below the low port {low}")
    if direction not in DIRECTIONS:
        raise UsageError(f"{DIRECTION.name}: not ingress or egress: {direction!r}")
    tproxy = parse_port(tproxy_port, TPROXY_PORT.name)
    if tproxy and (deny or direction == "egress"):
        kind = "a deny" if deny else "an egress"
        raise UsageError(f"{TPROXY_PORT.name}: 0 is the only value that {kind} rule takes")
    rule = Rule(
        RuleKey(
            target,
            parse_protocol(_required(protocol, PROTOCOL), PROTOCOL.name),
            low,
            source=_read_source(source, source_length, target.family),
            direction=direction,
        ),
        high,
        tproxy_port=tproxy,
        deny=deny,
        service_id=check_service_id(service_id, SERVICE_ID.name),
        interfaces=[check_interface_name(name, INTERFACE.name) for name in interfaces or ()],
    )
    return Insert(rule, route=route)


def inverse(insert: Insert) -> Delete:
    """The delete of what an insert adds: only its key counts, and its interfaces."""
    return Delete(insert.rule.key, insert.rule.interfaces)


def read_prefix(text: str | None, length: str | None = None) -> Prefix:
    """The destination: ADDR/LEN, or an address with its length apart."""
    return _read_prefix(text, DESTINATION, length, PREFIX_LENGTH)


def _read_source(text: str | None, length: str | None, family: int) -> Prefix | None:
    if text is None and (length is None or parse_length(length, SOURCE_LENGTH.name) == 0):
        return None
    source = _read_prefix(text, SOURCE, length, SOURCE_LENGTH)
    # Routers say any as -o 0.0.0.0 -n 0, whatever the family.
    if source.family != family and (source.family == 6 or source.length):
        raise UsageError(f"{SOURCE.name}: {source} is not IPv{family} as the destination is")
    return source


def _read_prefix(
    text: str | None, option: Option, length: str | None, length_option: Option
) -> Prefix:
    bits = None if length is None else parse_length(length, length_option.name)
    return Prefix.parse(_required(text, option), bits, option.name)


def _required(text: str | None, option: Option) -> str:
    if text is None:
        raise UsageError(f"{option.name}: missing")
    return text
