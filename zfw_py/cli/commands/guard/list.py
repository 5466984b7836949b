# SPDX-License-Identifier: GPL-2.0-only
"""zfw guard list."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from zfw_py.cli import output
from zfw_py.cli.commands.guard import options

if TYPE_CHECKING:
    from zfw_py.guard.listing import Status

COLUMNS = (
    output.Column("ID"),
    output.Column("KIND"),
    output.Column("CGROUP"),
    output.Column("STATE"),
    output.Column("PROCESSES", is_number=True),
    output.Column("ALLOWS", is_number=True),
    output.Column("BLOCKS", is_number=True),
    output.Column("DNS"),
    output.Column("LEARNT", is_number=True),
    output.Column("DENIED", is_number=True),
)


def command(
    as_json: Annotated[
        bool, typer.Option("--json", help="Print an array of objects, with policy and counters.")
    ] = False,
) -> None:
    """List the guards with their state and counters.

    A warning names each guard whose DNS process has died.
    """
    from zfw_py.guard import listing

    found, foreign = listing.guards()
    if as_json:
        output.json_array(map(as_object, found))
    elif found:
        output.table(COLUMNS, found, _cells)
        for status in found:
            if status.problem:
                output.warning(f"guard {status.about.id}: {status.problem}")
    elif not foreign:
        output.line("no guards")
    options.end_with(foreign)


def as_object(status: Status) -> dict[str, object]:
    """A guard as JSON has it."""
    about = status.about
    return {
        "id": about.id,
        "kind": about.kind,
        "cgroup": about.cgroup,
        "cgroup_id": about.cgroup_id,
        "created": about.created,
        "problem": status.problem or None,
        "keeper_pid": status.keeper_pid,
        "processes": status.processes,
        "dns": about.servers,
        "policy": about.policy or None,
        "learnt_addresses": status.learnt,
        "decisions": status.decisions,
        "lost_events": status.lost,
    }


def denied(status: Status) -> int:
    """How often something was denied."""
    from zfw_py.guard.codec import DENIALS

    return sum(
        count
        for reasons in status.decisions.values()
        for reason, count in reasons.items()
        if reason in DENIALS
    )


def _cells(status: Status) -> tuple[str | int, ...]:
    about = status.about
    return (
        about.id,
        about.kind,
        about.cgroup,
        _state(status),
        status.processes,
        _count(about.policy.get("allow")),
        _count(about.policy.get("block")),
        ",".join(about.servers),
        status.learnt,
        denied(status),
    )


def _state(status: Status) -> str:
    if status.is_gone:
        return "gone"
    if status.about.kind == "redirect":
        return "redirecting"
    if status.keeper_pid is None:
        return "not kept"
    return "log only" if status.about.policy.get("log_only") else "guarding"


def _count(entries: object) -> int:
    return len(entries) if isinstance(entries, list) else 0
