# SPDX-License-Identifier: GPL-2.0-only
"""zfw guard list."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from zfw_py.cli import output, tables
from zfw_py.cli.commands.guard import options
from zfw_py.cli.options import Wide

if TYPE_CHECKING:
    from zfw_py.guard.listing import GuardStatus

COLUMNS = (
    tables.Column("ID"),
    tables.Column("KIND"),
    tables.Column("CGROUP", is_detail=True),
    tables.Column("STATE"),
    tables.Column("PROCESSES", is_number=True),
    tables.Column("ALLOWS", is_number=True),
    tables.Column("BLOCKS", is_number=True, defaults=("0",)),
    tables.Column("DNS", is_list=True, is_detail=True),
    tables.Column("LEARNT", is_number=True),
    tables.Column("DENIED", is_number=True),
)


def command(
    as_json: Annotated[
        bool, typer.Option("--json", help="Print an array of objects, with policy and counters.")
    ] = False,
    wide: Wide = False,
) -> None:
    """List the guards with their state and counters.

    A warning names each guard whose DNS process has died, also if it was started again in the
    last ten minutes.
    """
    from zfw_py.guard.listing import guards

    found, foreign = guards()
    if as_json:
        output.json_array(map(as_object, found))
    elif found:
        tables.table(COLUMNS, found, _cells, wide=wide)
        for status in found:
            if status.problem:
                output.warning(f"guard {status.manifest.id}: {status.problem}")
    elif not foreign:
        output.line("no guards")
    options.end_with(foreign)


def as_object(status: GuardStatus) -> dict[str, object]:
    """A guard as JSON has it."""
    manifest = status.manifest
    return {
        "id": manifest.id,
        "kind": manifest.kind,
        "cgroup": manifest.cgroup,
        "cgroup_id": manifest.cgroup_id,
        "created": manifest.created,
        "problem": status.problem or None,
        "keeper_pid": status.supervisor_pid,
        "restarts": manifest.restarts,
        "last_end": manifest.ended or None,
        "processes": status.processes,
        "dns": status.servers,
        "policy": manifest.policy or None,
        "learnt_addresses": status.resolved,
        "decisions": status.decisions,
        "lost_events": status.lost,
    }


def denied(status: GuardStatus) -> int:
    """How often something was denied."""
    from zfw_py.guard.codec import DENIALS

    return sum(
        count
        for reasons in status.decisions.values()
        for reason, count in reasons.items()
        if reason in DENIALS
    )


def _cells(status: GuardStatus) -> tuple[str | int, ...]:
    manifest = status.manifest
    return (
        manifest.id,
        manifest.kind,
        manifest.cgroup,
        _state(status),
        status.processes,
        _count(manifest.policy.get("allow")),
        _count(manifest.policy.get("block")),
        ",".join(status.servers),
        status.resolved,
        denied(status),
    )


def _state(status: GuardStatus) -> str:
    if status.is_gone:
        return "gone"
    if status.manifest.kind == "redirect":
        return "redirecting"
    if status.supervisor_pid is None:
        return "not kept"
    return "log only" if status.manifest.policy.get("log_only") else "guarding"


def _count(entries: object) -> int:
    return len(entries) if isinstance(entries, list) else 0
