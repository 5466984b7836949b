# SPDX-License-Identifier: GPL-2.0-only
"""What a guard tells: JSON lines into a file, lines for people onto a terminal."""

from __future__ import annotations

import errno
import os
import stat
import syslog
from datetime import UTC, datetime
from json import dumps
from typing import TYPE_CHECKING

from zfw_py.cli import output
from zfw_py.errors import KernelError, NotFound, PermissionDenied, UsageError, ZfwError

if TYPE_CHECKING:
    from collections.abc import Callable

    from zfw_py.guard.records import End, Record

_DONE = {"allow": "allowed", "deny": "denied", "redirect": "redirected"}
# Everybody who can write into the directory could lead us to another file by a link.
_APPEND = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


class Log:
    """A file that records are appended to. Each is one write, so lines of several stay whole."""

    def __init__(self, path: str) -> None:
        """Raises UsageError for what is no file, NotFound, PermissionDenied, KernelError."""
        self._path = path
        try:
            self._fd = os.open(path, _APPEND, 0o600)
        except OSError as error:
            raise _not_opened(path, error) from None
        if not stat.S_ISREG(os.fstat(self._fd).st_mode):
            os.close(self._fd)
            raise UsageError(f"--log {path}: not a file")
        self._is_failing = False
        self._is_torn = False

    def write(self, record: Record) -> None:
        """Append a record. A file that takes no more is told of once, and tried again."""
        data = f"{dumps(as_object(record))}\n".encode()
        if self._is_torn:
            data = b"\n" + data
        try:
            written = os.write(self._fd, data)
        except OSError as error:
            self._complain(error.errno or 0)
            return
        # A file system that is about to be full takes the beginning.
        self._is_torn = written < len(data) and (self._is_torn or written > 0)
        if written < len(data):
            self._complain(errno.ENOSPC)
        else:
            self._is_failing = False

    def _complain(self, number: int) -> None:
        if self._is_failing:
            return
        self._is_failing = True
        text = f"--log {self._path}: {os.strerror(number)}; records are missing"
        # In the background there is nobody to see it.
        syslog.syslog(syslog.LOG_WARNING, f"zfw guard: {output.safe(text)}")
        output.warning(text)


def _not_opened(path: str, error: OSError) -> ZfwError:
    number = error.errno or 0
    if number == errno.ELOOP:
        return UsageError(f"--log {path}: a link, which is not followed")
    if number == errno.ENOENT:
        return NotFound(f"--log {path}: no such directory")
    why = f"--log {path}: {os.strerror(number)}"
    # ENXIO: a FIFO that nobody reads.
    if number in (errno.EISDIR, errno.ENOTDIR, errno.ENXIO, errno.ENAMETOOLONG):
        return UsageError(why)
    if number in (errno.EACCES, errno.EPERM):
        return PermissionDenied(why)
    return KernelError(f"--log {path}", number)


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
    log: str | None, events: output.Events | None, *, has_all: bool, has_time: bool
) -> Callable[[Record], None]:
    """A function that tells records: to the file, and as lines all or denials alone."""
    file = None if log is None else Log(log)

    def tell(record: Record) -> None:
        if file is not None:
            file.write(record)
        if events is not None and (has_all or record.verdict == "deny"):
            events.write(_with_time(record) if has_time else f"zfw guard: {line(record)}")

    return tell


def _with_time(record: Record) -> str:
    when = datetime.fromtimestamp(record.time).astimezone()
    return f"{when.isoformat(sep=' ', timespec='milliseconds')[11:23]} {line(record)}"
