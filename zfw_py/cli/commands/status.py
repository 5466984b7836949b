# SPDX-License-Identifier: GPL-2.0-only
"""zfw status."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from zfw_py.cli import output, tables
from zfw_py.cli.options import Wide
from zfw_py.errors import NotInstalled
from zfw_py.firewall.model import DIRECTIONS
from zfw_py.firewall.service import Firewall

if TYPE_CHECKING:
    from zfw_py.firewall.status import InterfaceStatus, Status

INTERFACES = (
    tables.Column("INTERFACE"),
    tables.Column("IFINDEX", is_number=True),
    tables.Column("INGRESS"),
    tables.Column("EGRESS"),
    tables.Column("SETTINGS", is_list=True),
    tables.Column("ADDRESSES", is_list=True),
)
REASONS = (
    tables.Column("REASON"),
    tables.Column("PACKETS", is_number=True),
    tables.Column("BYTES", is_number=True, is_bytes=True),
)


def command(
    as_json: Annotated[
        bool, typer.Option("--json", help="Print an object, with every reason and exact numbers.")
    ] = False,
    wide: Wide = False,
) -> None:
    """Show attachments, settings and decision counters.

    Each counter belongs to a reason for which packets were passed, dropped or
    intercepted. Reasons that have not occurred are shown with --json only.

    A warning names each interface that is not as it was asked for, what differs,
    and the command to type; the command then exits with code 21. An interface that
    shall be attached and does not exist is none of these while zfw follow runs,
    which attaches it when it appears.
    """
    firewall = Firewall()
    try:
        status = firewall.status()
    except NotInstalled:
        output.warnings(map(str, firewall.moved_here()))
        raise
    if as_json:
        output.json_object(as_object(status))
    else:
        _print(status, wide=wide)
        output.warnings(map(str, status.differences))
    if status.differences:
        raise typer.Exit(output.DIFFERS)


def _print(status: Status, *, wide: bool) -> None:
    output.line(f"zfw {status.version}")
    output.line(f"rules: {_rules_text(status)}")
    if status.absent:
        output.line(f"interfaces that do not exist: {', '.join(status.absent)}")
    output.line("")
    tables.table(INTERFACES, status.interfaces, _interface_cells, wide=wide)
    occurred = [(name, *counts) for name, counts in status.reasons.items() if any(counts)]
    if occurred:
        output.line("")
        tables.table(REASONS, occurred, lambda row: row, wide=wide)


def as_object(status: Status) -> dict[str, object]:
    """The status as JSON has it."""
    return {
        "version": status.version,
        "interfaces": [_interface_object(interface) for interface in status.interfaces],
        "rules": {
            direction: {f"ipv{family}": count for family, count in counts.items()}
            for direction, counts in status.rules.items()
        },
        "reasons": {
            name: {"packets": packets, "bytes": octets}
            for name, (packets, octets) in status.reasons.items()
        },
        "differences": [each._asdict() for each in status.differences],
        "absent": status.absent,
        "followed": status.is_followed,
    }


def _interface_object(interface: InterfaceStatus) -> dict[str, object]:
    attachments: dict[str, object] = dict.fromkeys(DIRECTIONS)
    for direction, attachment in interface.attachments.items():
        attachments[direction] = {"mode": attachment.mode, "program_id": attachment.program_id}
    return {
        "name": interface.name,
        "ifindex": interface.ifindex,
        **attachments,
        "settings": interface.settings,
        "addresses": interface.addresses,
    }


def _rules_text(status: Status) -> str:
    return ", ".join(
        f"{count} {direction} IPv{family}"
        for direction, counts in status.rules.items()
        for family, count in counts.items()
    )


def _interface_cells(interface: InterfaceStatus) -> tuple[str | int, ...]:
    modes = dict.fromkeys(DIRECTIONS, "")
    modes.update({name: attachment.mode for name, attachment in interface.attachments.items()})
    settings = [name.replace("_", "-") for name, on in interface.settings.items() if on]
    return (
        interface.name,
        interface.ifindex,
        *modes.values(),
        ",".join(settings),
        ",".join(interface.addresses),
    )
