# SPDX-License-Identifier: GPL-2.0-only
"""A file that objects are appended to, as JSON lines."""

from __future__ import annotations

import errno
import os
import stat
import syslog
import time
from datetime import UTC, datetime
from json import dumps
from typing import TYPE_CHECKING

from zfw_py.cli import output
from zfw_py.errors import KernelError, NotFound, PermissionDenied, UsageError, ZfwError
from zfw_py.kernel.files import open_directory

if TYPE_CHECKING:
    from collections.abc import Mapping

    from zfw_py.values.endpoint import Endpoint

# How often the name of the file is looked at, in seconds.
_LOOK_INTERVAL = 1.0
# O_NOFOLLOW: users who can write to the directory could link the name to another file.
_APPEND = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


def endpoint_object(end: Endpoint | None) -> dict[str, object] | None:
    """An endpoint as a JSON value."""
    return None if end is None else {"address": end.address, "port": end.port}


def time_text(time: float) -> str:
    """Seconds since the epoch as a JSON value: ISO 8601 in UTC, with milliseconds."""
    return datetime.fromtimestamp(time, UTC).isoformat(timespec="milliseconds")


def clock_text(time: float) -> str:
    """Seconds since the epoch as local time for people: 15:04:05.678."""
    return datetime.fromtimestamp(time).astimezone().strftime("%H:%M:%S.%f")[:-3]


class JsonLog:
    """The file of an option ``--log``. One write a line: lines of several processes stay whole.

    Where the file was renamed or removed, as by logrotate(8), a new one is created within a second,
    in the directory of the first: a link that is put in its path later leads nowhere.
    """

    def __init__(self, path: str, command: str) -> None:
        """``command`` is the command's name for syslog.

        Raises UsageError if the path is not a file, NotFound, PermissionDenied, KernelError.
        """
        directory = -1
        try:
            directory = open_directory(os.path.dirname(path))
            fd = os.open(os.path.basename(path) or ".", _APPEND, 0o600, dir_fd=directory)
        except OSError as error:
            if directory >= 0:
                os.close(directory)
            raise _not_opened(path, error) from None
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            os.close(fd)
            os.close(directory)
            raise UsageError(f"--log {path}: not a file")
        self._begin(fd, directory, path, command)

    @classmethod
    def of(cls, fd: int, path: str, command: str) -> JsonLog:
        """One that another process has opened, by a descriptor of it."""
        made = cls.__new__(cls)
        try:
            directory = open_directory(os.path.dirname(path))
        except OSError:
            directory = -1  # removed since: the file is kept as it is
        made._begin(os.dup(fd), directory, path, command)
        return made

    def _begin(self, fd: int, directory: int, path: str, command: str) -> None:
        self._fd = fd
        self._directory = directory
        self._next_look = 0.0
        self._path = path
        self._command = command
        self._is_failing = False
        self._is_torn = False

    def write(self, record: Mapping[str, object]) -> None:
        """Append an object. A failure is reported once, and the next object is tried again."""
        self._follow()
        data = f"{dumps(record)}\n".encode()
        if self._is_torn:
            data = b"\n" + data
        try:
            written = os.write(self._fd, data)
        except OSError as error:
            self._complain(error.errno or 0)
            return
        # On a nearly full file system, a write may be partial.
        self._is_torn = written < len(data) and (self._is_torn or written > 0)
        if written < len(data):
            self._complain(errno.ENOSPC)
        else:
            self._is_failing = False

    def _follow(self) -> None:
        """Open the file again where its name is another file's, or no file's any more."""
        now = time.monotonic()
        if now < self._next_look or self._directory < 0:
            return
        self._next_look = now + _LOOK_INTERVAL
        name = os.path.basename(self._path)
        try:
            if os.path.samestat(
                os.stat(name, dir_fd=self._directory, follow_symlinks=False), os.fstat(self._fd)
            ):
                return
        except FileNotFoundError:
            pass
        except OSError as error:
            self._complain(error.errno or 0)
            return
        try:
            fd = os.open(name, _APPEND, 0o600, dir_fd=self._directory)
        except OSError as error:
            # No file can be created in a directory that was removed: the old file stays.
            if error.errno != errno.ENOENT:
                self._complain(error.errno or 0)
            return
        if stat.S_ISREG(os.fstat(fd).st_mode):
            fd, self._fd = self._fd, fd
            self._is_torn = False
        os.close(fd)

    def _complain(self, number: int) -> None:
        if self._is_failing:
            return
        self._is_failing = True
        text = f"--log {self._path}: {os.strerror(number)}; records are missing"
        # A background process has no terminal.
        syslog.syslog(syslog.LOG_WARNING, f"{self._command}: {output.safe(text)}")
        output.warning(text)


def _not_opened(path: str, error: OSError) -> ZfwError:
    number = error.errno or 0
    if number == errno.ELOOP:
        return UsageError(f"--log {path}: a symbolic link, which zfw does not follow")
    if number == errno.ENOENT:
        return NotFound(f"--log {path}: no such directory")
    why = f"--log {path}: {os.strerror(number)}"
    # ENXIO: a FIFO without a reader.
    if number in (errno.EISDIR, errno.ENOTDIR, errno.ENXIO, errno.ENAMETOOLONG):
        return UsageError(why)
    if number in (errno.EACCES, errno.EPERM):
        return PermissionDenied(why)
    return KernelError(f"--log {path}", number)
