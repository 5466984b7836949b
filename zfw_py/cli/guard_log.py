# SPDX-License-Identifier: GPL-2.0-only
"""The decisions of a guard: JSON lines in a file, text lines on a terminal."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from zfw_py.cli import output
from zfw_py.cli.json_log import JsonLog, clock_text, endpoint_object, time_text

if TYPE_CHECKING:
    from zfw_py.guard.events import EventSink, GuardEvent, Lines
    from zfw_py.guard.takeover import Outputs

# Seconds; and how many names are remembered.
_PRINTED_AGAIN = 10.0
_MOST_PRINTED = 4096
_DONE = {"allow": "allowed", "deny": "denied", "redirect": "redirected"}


def as_object(record: GuardEvent) -> dict[str, object]:
    """A record as JSON has it."""
    return {
        "time": time_text(record.time),
        "pid": record.pid,
        "command": record.command,
        "cgroup": record.cgroup,
        "hook": record.hook,
        "protocol": record.protocol,
        "original": endpoint_object(record.original),
        "redirected": endpoint_object(record.redirected),
        "name": record.name,
        "type": record.rdtype,
        "verdict": record.verdict,
        "reason": record.reason,
        "enforced": record.is_enforced,
    }


def line(record: GuardEvent) -> str:
    """A record for people, without its time."""
    who = "unknown process" if record.pid is None else f"{record.command}[{record.pid}]"
    done = _DONE[record.verdict]
    if not record.is_enforced:
        done = "would be denied"
    if record.hook == "dns":
        what = f"DNS {record.rdtype} {record.name}"
    else:
        what = f"{record.protocol} {record.original or '-'}"
        if record.name:
            what += f" ({record.name})"
    if record.redirected:
        what += f" to {record.redirected}"
    why = record.reason.replace("_", " ")
    if record.reason == "expired":
        why += " (--min-ttl keeps addresses for longer)"
    return f"{who} {done}: {what}: {why}"


def event_sink(
    log: str | None, events: output.Events | None, *, has_all: bool, has_time: bool
) -> EventSink:
    """Make the function that logs records: all to the file, and all or only denials as text."""
    file = None if log is None else JsonLog(log, "zfw guard")
    return _sink(file, events, has_all=has_all, has_time=has_time)


def sink_of(outputs: Outputs) -> EventSink:
    """The same for the outputs of a process that is taken over; stderr will be its own."""
    log = outputs.log and JsonLog.of(*outputs.log, "zfw guard")
    events = None if outputs.lines == "none" else output.Events(sys.stderr)
    return _sink(log, events, has_all=outputs.lines == "all", has_time=False)


class _Printed:
    """The denied names of the last seconds, each printed once.

    A resolver asks for the same name by several types, and of several servers.
    """

    def __init__(self) -> None:
        self._until: dict[tuple[object, ...], float] = {}

    def has(self, record: GuardEvent) -> bool:
        """Whether a process's denied name was printed lately; from now on it was."""
        key = (record.pid, record.cgroup, record.name, record.reason)
        was_printed = record.time < self._until.get(key, 0)
        if not was_printed:
            if len(self._until) >= _MOST_PRINTED:
                self._until.clear()
            self._until[key] = record.time + _PRINTED_AGAIN
        return was_printed


def _sink(
    file: JsonLog | None, events: output.Events | None, *, has_all: bool, has_time: bool
) -> EventSink:
    from zfw_py.guard.events import EventSink

    printed = _Printed()

    def emit(record: GuardEvent) -> None:
        if file is not None:
            file.write(as_object(record))
        if record.hook == "dns" and record.verdict == "deny" and printed.has(record):
            return
        if events is not None and (has_all or record.verdict == "deny"):
            prefix = clock_text(record.time) if has_time else "zfw guard:"
            events.write(f"{prefix} {line(record)}")

    lines: Lines = "none" if events is None else "all" if has_all else "denials"
    return EventSink(emit, file is not None or (events is not None and has_all), lines)
