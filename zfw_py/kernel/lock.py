# SPDX-License-Identifier: GPL-2.0-only
"""Advisory locks, by flock(2) and /proc/locks. Hot.

The directories that zfw locks lie on bpffs, and only root can open them. So no other user
can hold a lock and keep zfw out.
"""

from __future__ import annotations

import posix
from fcntl import LOCK_EX, LOCK_NB, LOCK_SH, flock
from time import monotonic, sleep

from zfw_py.errors import Busy

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import TracebackType

_PATIENCE = 30.0  # seconds
_FIRST_PAUSE, _LAST_PAUSE = 0.0002, 0.005


class Lock:
    """A context manager that holds the lock on a directory, shared or exclusive.

    Raises FileNotFoundError if there is no such directory, Busy after 30 s.
    """

    __slots__ = ("_fd", "_is_exclusive", "_path")

    def __init__(self, path: str, *, is_exclusive: bool) -> None:
        self._path = path
        self._is_exclusive = is_exclusive
        self._fd = -1

    def fileno(self) -> int:
        """The descriptor that holds the lock. A forked process also holds it until it closes it."""
        return self._fd

    def __enter__(self) -> Lock:
        self._fd = posix.open(
            self._path, posix.O_RDONLY | posix.O_DIRECTORY | posix.O_NOFOLLOW | posix.O_CLOEXEC
        )
        operation = (LOCK_EX if self._is_exclusive else LOCK_SH) | LOCK_NB
        deadline = monotonic() + _PATIENCE
        pause = _FIRST_PAUSE
        while True:
            try:
                flock(self._fd, operation)
                return self
            except BlockingIOError:
                if monotonic() > deadline:
                    self.__exit__(None, None, None)
                    raise Busy(
                        f"another zfw has held {self._path} for more than {_PATIENCE:.0f} s"
                    ) from None
            sleep(pause)
            pause = min(pause * 2, _LAST_PAUSE)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        posix.close(self._fd)
        self._fd = -1


def try_exclusive(fd: int) -> bool:
    """Take the exclusive lock on an open file; False if another process holds a lock on it."""
    try:
        flock(fd, LOCK_EX | LOCK_NB)
    except BlockingIOError:
        return False
    return True


def wait_for(fd: int) -> None:
    """Block until the caller holds the exclusive lock on an open file. Raises OSError."""
    flock(fd, LOCK_EX)


def holder_of(path: str) -> int | None:
    """The id of a process that holds a lock on a file, of /proc/locks (proc(5)), or None."""
    wanted = posix.stat(path)
    place = f"{posix.major(wanted.st_dev):02x}:{posix.minor(wanted.st_dev):02x}:{wanted.st_ino}"
    with open("/proc/locks", encoding="ascii") as file:
        for line in file:
            fields = line.split()
            if fields[1] == "FLOCK" and fields[5] == place:
                return int(fields[4])
    return None
