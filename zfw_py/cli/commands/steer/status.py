# SPDX-License-Identifier: GPL-2.0-only
"""zfw steer status."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from zfw_py.cli import output
from zfw_py.cli.commands.steer import options

if TYPE_CHECKING:
    from zfw_py.steer.listing import SteeringStatus

_ERRORS = {
    "listeners": "listeners that could not be recorded",
    "adoption": "listeners that could not be adopted",
    "events": "events that no manager received",
    "counters": "look-ups that were not counted",
    "flows": "UDP clients that were not recorded, table full",
}


def command(
    as_json: Annotated[
        bool, typer.Option("--json", help="Print an object, with exact numbers.")
    ] = False,
    netns: options.Netns = None,
) -> None:
    """Show the programs, their order, and errors.

    The kernel runs all sk_lookup programs of a network namespace, also those of
    other software, in this order. If another process has detached the program
    that steers, the command exits with code 21.
    """
    from zfw_py.steer.service import Steering

    status = Steering(netns).status()
    if as_json:
        output.json_object(as_object(status))
    else:
        _print(status)
    if status.is_detached:
        raise typer.Exit(output.DIFFERS)


def _print(status: SteeringStatus) -> None:
    output.line(f"network namespace: {status.cookie}")
    if status.programs:  # only root can read them
        output.line(f"programs: {', '.join(status.programs)}")
        order = ", ".join(
            f"{each} (zfw)" if each == status.program_id else str(each) for each in status.order
        )
        output.line(f"sk_lookup programs, in their order: {order}")
    output.line(
        f"{output.counted(status.mappings, 'mapping')}, {status.pending} pending;"
        f" {output.counted(status.targets, 'target')}"
    )
    output.line(
        f"manager: process {status.manager_pid}" if status.manager_pid else "manager: none runs"
    )
    for name, count in status.errors.items():
        output.line(f"{_ERRORS[name]}: {count}")
    for warning in status.warnings:
        output.warning(warning)


def as_object(status: SteeringStatus) -> dict[str, object]:
    """The status as JSON has it."""
    return {
        "netns_cookie": status.cookie,
        "programs": status.programs,
        "program_id": status.program_id,
        "sk_lookup_order": status.order,
        "mappings": status.mappings,
        "pending": status.pending,
        "targets": status.targets,
        "manager_pid": status.manager_pid,
        "troubles": status.errors,
        "warnings": status.warnings,
    }
