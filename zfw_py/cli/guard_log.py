# SPDX-License-Identifier: GPL-2.0-only
"""What a guard tells: JSON lines into a file, lines for people onto a terminal."""

from __future__ import annotations

import os
import stat
from datetime import UTC, datetime
from json import dumps
from typing import TYPE_CHECKING

from zfw_py.cli import output
from zfw_py.errors import KernelError, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import TextIO

    from zfw_py.guard.records import End, Record

_DONE = {"allow": "allowed", "deny": "denied", "redirect": "redirected"}
# Everybody who can write into the directory could lead us to another file by a link.
_APPEND = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


class Log:
    """A file that records are appended to. Each is one write, so lines of several stay whole."""

    def __init__(self, path: str) -> None:
        """Raises UsageError for what is no file, KernelError."""
        self._path = path
        try:
            self._fd = os.open(path, _APPEND, 0o600)
        except OSError as error:
            raise KernelError(f"--log {path}", error.errno or 0) from None
        if not stat.S_ISREG(os.fstat(self._fd).st_mode):
            os.close(self._fd)
            raise UsageError(f"--log {path}: not a file")
        self._is_failing = False

    def write(self, record: Record) -> None:
        """Append a record. A file that takes no more is told of once, and tried again."""
        line = dumps(as_object(record)) + "\n"
        try:
            os.write(self._fd, line.encode())
        except OSError as error:
            if not self._is_failing:
                output.warning(f"{self._path}: {error.strerror}; records are missing")
            self._is_failing = True
        else:
            self._is_failing = False


def as_object(record: Record) -> dict[str, object]:
    """A record as JSON has it."""
    return {
        "time": datetime.fromtimestamp(record.time, UTC).isoformat(timespec="milliseconds"),
        "pid": record.pid,
        "command": record.command,
        "cgroup": record.cgroup,
        "hook": record.hook,
        "protocol": record.protocol,
        "original": _end_object(record.original),
        "redirected": _end_object(record.redirected),
        "name": record.name,
        "type": record.rdtype,
        "verdict": record.verdict,
        "reason": record.reason,
        "enforced": record.is_enforced,
    }


def _end_object(end: End | None) -> dict[str, object] | None:
    return None if end is None else {"address": end.address, "port": end.port}


def line(record: Record) -> str:
    """A record for people, without its time."""
    who = "somebody" if record.pid is None else f"{record.command}[{record.pid}]"
    done = _DONE[record.verdict]
    if not record.is_enforced:
        done = "would be denied"
    if record.hook == "dns":
        what = f"DNS {record.rdtype} {record.name}"
    else:
        what = f"{record.protocol} {_end_text(record.original)}"
        if record.name:
            what += f" ({record.name})"
    if record.redirected:
        what += f" to {_end_text(record.redirected)}"
    return f"{who} {done}: {what}: {record.reason.replace('_', ' ')}"


def _end_text(end: End | None) -> str:
    if end is None:
        return "-"
    address = f"[{end.address}]" if ":" in end.address and end.port else end.address
    return f"{address}:{end.port}" if end.port else address


def teller(
    log: str | None, stream: TextIO | None, *, has_all: bool, has_time: bool
) -> Callable[[Record], None]:
    """A function that tells records: to the file, and to the stream all or denials alone."""
    file = None if log is None else Log(log)

    def tell(record: Record) -> None:
        if file is not None:
            file.write(record)
        if stream is not None and (has_all or record.verdict == "deny"):
            output.event(_with_time(record) if has_time else f"zfw guard: {line(record)}", stream)

    return tell


def _with_time(record: Record) -> str:
    when = datetime.fromtimestamp(record.time).astimezone()
    return f"{when.isoformat(sep=' ', timespec='milliseconds')[11:23]} {line(record)}"
