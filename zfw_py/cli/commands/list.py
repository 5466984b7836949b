# SPDX-License-Identifier: GPL-2.0-only
"""zfw list."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

import typer

from zfw_py.cli import tables
from zfw_py.cli.commands.rule_options import read_destination
from zfw_py.cli.options import Wide
from zfw_py.errors import UsageError
from zfw_py.firewall.service import Firewall

if TYPE_CHECKING:
    from zfw_py.firewall.model import Rule

COLUMNS = (
    tables.Column("DIRECTION", defaults=("ingress",)),
    tables.Column("PROTOCOL"),
    tables.Column("DESTINATION"),
    tables.Column("SOURCE", defaults=("0.0.0.0/0", "::/0")),
    tables.Column("PORTS"),
    tables.Column("ACTION"),
    tables.Column("TPROXY"),
    tables.Column("SERVICE", is_detail=True),
    tables.Column("INTERFACES", is_list=True, is_detail=True),
    tables.Column("PACKETS", is_number=True),
    tables.Column("BYTES", is_number=True, is_bytes=True),
)


def command(
    as_json: Annotated[
        bool, typer.Option("--json", help="Print an array of objects, with exact numbers.")
    ] = False,
    direction: Annotated[
        Literal["ingress", "egress"] | None,
        typer.Option("-z", "--direction", help="Only rules of this direction."),
    ] = None,
    destination: Annotated[
        str | None,
        typer.Option(
            "-c",
            "--destination",
            metavar="ADDR[/LEN]|own4|own6",
            help="Only rules with exactly this destination.",
        ),
    ] = None,
    intercepts: Annotated[
        bool, typer.Option("--intercepts", help="Only rules that intercept.")
    ] = False,
    passthrough: Annotated[
        bool, typer.Option("--passthrough", help="Only rules that pass packets to the host.")
    ] = False,
    wide: Wide = False,
) -> None:
    """List the rules with their counters.

    Rules are sorted by direction, family, destination, source and protocol. Rules
    that agree in all of these are listed in the order in which they were added: the
    first one that matches a packet decides. A rule that names interfaces counts on
    these alone; with ,* behind the names (the classic grammar) it counts on each
    interface without the setting per-interface-rules as well.
    """
    if intercepts and passthrough:
        raise UsageError("--intercepts: not together with --passthrough")
    prefix = None if destination is None else read_destination(destination)
    rules = Firewall().rules(direction, prefix)
    if intercepts or passthrough:
        action = "intercept" if intercepts else "pass"
        rules = [rule for rule in rules if rule.action == action]
    tables.listing(rules, as_object, COLUMNS, cells, as_json=as_json, none="no rules", wide=wide)


def as_object(rule: Rule) -> dict[str, object]:
    """A rule as JSON has it."""
    key = rule.key
    return {
        "direction": key.direction,
        "family": key.family,
        "protocol": key.protocol,
        "destination": str(key.destination),
        "source": str(key.source),
        "low_port": key.low_port,
        "high_port": rule.high_port,
        "action": rule.action,
        "tproxy_port": rule.tproxy_port,
        "service_id": rule.service_id,
        "interfaces": rule.interfaces,
        "limited": rule.is_limited,
        "packets": rule.packets,
        "bytes": rule.bytes,
    }


def cells(rule: Rule) -> tuple[str | int, ...]:
    """A rule as a row of the table."""
    key = rule.key
    low, high = key.low_port, rule.high_port
    return (
        key.direction,
        key.protocol,
        str(key.destination),
        str(key.source),
        str(low) if low == high else f"{low}-{high}",
        rule.action,
        str(rule.tproxy_port) if rule.tproxy_port else "",
        rule.service_id,
        ",".join(rule.interfaces) + ("" if rule.is_limited or not rule.interfaces else ",*"),
        rule.packets,
        rule.bytes,
    )
