# SPDX-License-Identifier: GPL-2.0-only
"""zfw delete."""

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
    """Delete a rule; with -N only take these interfaces off it.

    It takes all options of insert, so that the line of an insert deletes what it
    added, but only direction, destination, source, protocol and low port name
    the rule. A local route that --route made goes with the last rule that needs it.

    zfw delete -c 100.72.0.4/32 -p tcp -l 22
    """
    delete = option.inverse(
        option.read_insert(
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
    )
    deleted = Firewall().delete(delete.key, delete.interfaces)
    if deleted.is_gone:
        output.line(f"deleted {delete.key}")
    else:
        output.line(f"took {', '.join(delete.interfaces)} off {delete.key}")
