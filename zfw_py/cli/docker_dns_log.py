# SPDX-License-Identifier: GPL-2.0-only
"""What zfw docker-dns watch tells: JSON lines into a file, lines for people onto a stream."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

from zfw_py.cli.json_log import JsonLog, endpoint_object
from zfw_py.docker_dns.events import Query

if TYPE_CHECKING:
    from collections.abc import Callable

    from zfw_py.cli import output
    from zfw_py.docker_dns.events import Change

# What became of a query; the others are told by the server that it went to.
_OUTCOMES = {
    "builtin_name": "left to the built-in resolver, which has all other names",
    "builtin_unreadable": "left to the built-in resolver: no name can be read in it",
    "builtin_tcp": "left to the built-in resolver, as all TCP",
    "builtin_uplink": "left to the built-in resolver: the interface is gone, or too narrow",
    "no_port": "dropped: no port was free",
    "unchanged": "dropped: it could not be changed",
}


def as_object(record: Query | Change) -> dict[str, object]:
    """A record as JSON has it."""
    when = datetime.fromtimestamp(record.time, UTC).isoformat(timespec="milliseconds")
    made: dict[str, object] = {
        "time": when,
        "container": record.container,
        "id": record.id or None,
    }
    if not isinstance(record, Query):
        return made | {"event": record.kind, "text": record.words}
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
        return f"{record.container}: {record.words}"
    what = f"{record.protocol} from {record.source}"
    if record.name is not None:
        what = f"{record.name} ({what})"
    if record.outcome == "query":
        done = f"sent to {record.server} from port {record.port}"
    else:
        done = _OUTCOMES.get(record.outcome, record.outcome)
    return f"{record.container}: {what}: {done}"


def teller(log: str | None, events: output.Events) -> Callable[[Query | Change], None]:
    """A function that tells records as lines, and to the file if there is one."""
    file = None if log is None else JsonLog(log, "zfw docker-dns")

    def tell(record: Query | Change) -> None:
        if file is not None:
            file.write(as_object(record))
        when = datetime.fromtimestamp(record.time).astimezone()
        clock = when.isoformat(sep=" ", timespec="milliseconds")[11:23]
        events.write(f"{clock} {line(record)}")

    return tell
