# SPDX-License-Identifier: GPL-2.0-only
"""zfw steer list."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from zfw_py.cli import output, tables
from zfw_py.cli.commands.steer import options
from zfw_py.cli.options import Wide

if TYPE_CHECKING:
    from zfw_py.steer.listing import MappingStatus

COLUMNS = (
    tables.Column("PROTOCOL"),
    tables.Column("ADDRESS"),
    tables.Column("PORT"),
    tables.Column("TO"),
    tables.Column("LABEL", is_detail=True),
    tables.Column("FLAGS", is_list=True, is_detail=True),
    tables.Column("STATE"),
    tables.Column("SOCKETS", is_list=True, is_detail=True),
    tables.Column("LOOKUPS", is_number=True),
    tables.Column("EXACT", is_number=True, defaults=("0",)),
    tables.Column("NO SOCKET", is_number=True, defaults=("0",)),
)


def command(
    as_json: Annotated[
        bool, typer.Option("--json", help="Print an array of objects, which zfw steer apply reads.")
    ] = False,
    netns: options.Netns = None,
    wide: Wide = False,
) -> None:
    """List the mappings with their sockets and counters.

    LOOKUPS counts how often the mapping was the best match, EXACT how often another
    socket that listens on exactly that address kept the packet, and NO SOCKET how
    often the target had no socket.
    """
    from zfw_py.steer.service import Steering

    found = Steering(netns).mappings()
    tables.listing(
        found, as_object, COLUMNS, _cells, as_json=as_json, none="no mappings", wide=wide
    )
    for listed in found:
        if listed.problem and not as_json:
            output.warning(f"{listed.mapping}: {listed.problem}")


def as_object(listed: MappingStatus) -> dict[str, object]:
    """A mapping as JSON has it."""
    from zfw_py.steer.model import entry_of

    return entry_of(listed.mapping) | {
        "run_pid": listed.run_pid,
        "state": listed.state,
        "problem": listed.problem or None,
        "sockets": [
            {
                "address": str(each.listener),
                "pids": each.pids,
                "cookie": each.listener.cookie,
                "current": each.is_current,
            }
            for each in listed.sockets
        ],
        "counters": dict(zip(("lookups", "kept", "no_socket"), listed.counters, strict=True)),
    }


def _cells(listed: MappingStatus) -> tuple[str | int, ...]:
    mapping = listed.mapping
    flags = [
        name
        for name, is_set in (
            ("override", mapping.is_override),
            ("fallthrough", mapping.is_fallthrough),
            ("run", listed.run_pid is not None),
        )
        if is_set
    ]
    return (
        mapping.key.protocol,
        mapping.key.address_text,
        str(mapping.key.ports),
        str(mapping.target),
        mapping.label,
        ",".join(flags),
        listed.state,
        ",".join(_socket_text(each.pids, each.is_current) for each in listed.sockets),
        *listed.counters,
    )


def _socket_text(pids: list[int], is_current: bool) -> str:
    text = "+".join(map(str, pids)) or "?"
    return text if is_current else f"({text})"
