# SPDX-License-Identifier: GPL-2.0-only
"""zfw insert."""

from __future__ import annotations

from typing import Annotated

from zfw_py.cli import output
from zfw_py.cli.commands import rule_options as option
from zfw_py.firewall.service import Firewall


def command(
    *,
    destination: Annotated[str, option.DESTINATION.typer],
    prefix_length: Annotated[str | None, option.PREFIX_LENGTH.typer] = None,
    source: Annotated[str | None, option.SOURCE.typer] = None,
    source_length: Annotated[str | None, option.SOURCE_LENGTH.typer] = None,
    protocol: Annotated[str, option.PROTOCOL.typer],
    low_port: Annotated[str, option.LOW_PORT.typer],
    high_port: Annotated[str | None, option.HIGH_PORT.typer] = None,
    tproxy_port: Annotated[str, option.TPROXY_PORT.typer] = "0",
    interfaces: Annotated[list[str] | None, option.INTERFACE.typer] = None,
    service_id: Annotated[str, option.SERVICE_ID.typer] = "",
    direction: Annotated[str, option.DIRECTION.typer] = "ingress",
    deny: Annotated[bool, option.DENY.typer] = False,
    route: Annotated[bool, option.ROUTE.typer] = False,
) -> None:
    """Add a rule, or change the one with the same key in place.

    The key is direction, destination, source, protocol and low port. The
    interfaces of -N join those that the rule has already.

    zfw insert -c 100.72.0.4/32 -p tcp -l 22 -t 43321
    """
    insert = option.read_insert(
        destination=destination,
        prefix_length=prefix_length,
        source=source,
        source_length=source_length,
        protocol=protocol,
        low_port=low_port,
        high_port=high_port,
        tproxy_port=tproxy_port,
        interfaces=interfaces,
        service_id=service_id,
        direction=direction,
        deny=deny,
        route=route,
    )
    inserted = Firewall().insert(insert.rule, route=insert.route)
    output.line(f"{'replaced' if inserted.is_replaced else 'inserted'} {insert.rule}")
    for warning in inserted.warnings():
        output.warning(warning)
