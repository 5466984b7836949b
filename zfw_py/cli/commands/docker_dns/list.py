# SPDX-License-Identifier: GPL-2.0-only
"""zfw docker-dns list."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from zfw_py.cli import output, tables
from zfw_py.cli.options import Wide

if TYPE_CHECKING:
    from zfw_py.docker_dns.listing import RedirectStatus

COLUMNS = (
    tables.Column("ID"),
    tables.Column("OF", is_detail=True),
    tables.Column("TO"),
    tables.Column("DOMAINS", is_detail=True),
    tables.Column("STATE"),
    tables.Column("QUERIES", is_number=True),
    tables.Column("ANSWERS", is_number=True),
    tables.Column("BUILTIN", is_number=True, defaults=("0",)),
)
_DROPPED = ("no_port", "unchanged")


def command(
    as_json: Annotated[
        bool, typer.Option("--json", help="Print an array of objects, with all counters.")
    ] = False,
    wide: Wide = False,
) -> None:
    """List the redirects with their counters.

    QUERIES were sent to the server, ANSWERS came back, BUILTIN were left to the
    built-in resolver. A warning names each redirect that does not work; the
    command then exits with code 21.
    """
    from zfw_py.docker_dns.service import DnsRedirect

    found = DnsRedirect.all()
    tables.listing(
        found, as_object, COLUMNS, _cells, as_json=as_json, none="no redirects", wide=wide
    )
    for status in [] if as_json else found:
        if status.problem:
            output.warning(f"redirect {status.manifest.id}: {status.problem}")
        if dropped := sum(status.outcomes[outcome][0] for outcome in _DROPPED):
            output.warning(f"redirect {status.manifest.id}: {dropped} packets were dropped")
    if any(status.problem for status in found):
        raise typer.Exit(output.DIFFERS)


def as_object(status: RedirectStatus) -> dict[str, object]:
    """A redirect as JSON has it."""
    manifest = status.manifest
    return {
        "id": manifest.id,
        "container": manifest.container or None,
        "container_id": manifest.container_id or None,
        "netns": manifest.path,
        "interface": manifest.interface,
        "source": manifest.source,
        "from": manifest.resolver,
        "to": manifest.server,
        "domains": manifest.domains,
        "tcp": manifest.tcp,
        "mode": manifest.mode,
        "created": manifest.created,
        "watcher_pid": manifest.watcher.pid if manifest.watcher else None,
        "problem": status.problem or None,
        "daemon_ports": {"udp": status.daemon.udp_port, "tcp": status.daemon.tcp_port},
        "outcomes": {
            outcome: {"packets": packets, "bytes": size}
            for outcome, (packets, size) in status.outcomes.items()
        },
        "lost_events": status.lost,
    }


def _cells(status: RedirectStatus) -> tuple[str | int, ...]:
    manifest = status.manifest
    packets = {outcome: count for outcome, (count, _) in status.outcomes.items()}
    state = "watched" if manifest.watcher else "active"
    return (
        manifest.id,
        manifest.container or manifest.path,
        manifest.server.removesuffix(":53"),
        _domains(manifest.domains),
        "broken" if status.problem else state,
        packets["query"],
        packets["answer"],
        sum(count for outcome, count in packets.items() if outcome.startswith("builtin")),
    )


def _domains(names: list[str]) -> str:
    """The first one, and how many more there are."""
    return f"{names[0]} +{len(names) - 1}" if len(names) > 1 else "".join(names)
