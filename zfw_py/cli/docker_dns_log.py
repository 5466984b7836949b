# SPDX-License-Identifier: GPL-2.0-only
"""The log of zfw docker-dns watch: JSON lines in a file, text lines on a stream."""

from __future__ import annotations

from typing import TYPE_CHECKING

from zfw_py.cli.json_log import JsonLog, clock_text, endpoint_object, time_text
from zfw_py.docker_dns.events import Query

if TYPE_CHECKING:
    from collections.abc import Callable

    from zfw_py.cli import output
    from zfw_py.docker_dns.events import Change

# Texts of outcomes; the outcome "query" has one with the server.
_OUTCOMES = {
    "builtin_name": "left to the built-in resolver, which answers all other names",
    "builtin_unreadable": "left to the built-in resolver: no name can be read in it",
    "builtin_tcp": "left to the built-in resolver, as all TCP",
    "builtin_uplink": "left to the built-in resolver: the interface is gone, or too narrow",
    "no_port": "dropped: no port was free",
    "unchanged": "dropped: it could not be changed",
}


def as_object(record: Query | Change) -> dict[str, object]:
    """A record as JSON has it."""
    made: dict[str, object] = {
        "time": time_text(record.time),
        "container": record.container,
        "id": record.id or None,
    }
    if not isinstance(record, Query):
        return made | {"event": record.kind, "text": record.text}
    return made | {
        "event": "query",
        "protocol": record.protocol,
        "source": endpoint_object(record.source),
        "resolver": endpoint_object(record.resolver),
        "server": endpoint_object(record.server),
        "port": record.port,
        "name": record.name,
        "message_id": record.message_id,
        "outcome": record.outcome,
    }


def line(record: Query | Change) -> str:
    """A record for people, without its time."""
    if not isinstance(record, Query):
        return f"{record.container}: {record.text}"
    what = f"{record.protocol} from {record.source}"
    if record.name is not None:
        what = f"{record.name} ({what})"
    if record.outcome == "query":
        done = f"sent to {record.server} from port {record.port}"
    else:
        done = _OUTCOMES.get(record.outcome, record.outcome)
    return f"{record.container}: {what}: {done}"


def emitter(log: str | None, events: output.Events) -> Callable[[Query | Change], None]:
    """Make the function that logs records: as text lines, and to the file if there is one."""
    file = None if log is None else JsonLog(log, "zfw docker-dns")

    def emit(record: Query | Change) -> None:
        if file is not None:
            file.write(as_object(record))
        events.write(f"{clock_text(record.time)} {line(record)}")

    return emit
