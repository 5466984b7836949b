# SPDX-License-Identifier: GPL-2.0-only
"""Advisory locks, by flock(2), fcntl_locking(2) and /proc/locks. Hot.

The directories that zfw locks lie on bpffs. The kernel's default for bpffs lets each user make
directories there, so a lock is taken only on a directory that no other user than root can write
to: what is found in it is root's, and no other user can hold the lock and keep zfw out.
"""

from __future__ import annotations

import posix
from fcntl import (
    F_OFD_GETLK,
    F_OFD_SETLK,
    F_RDLCK,
    F_UNLCK,
    F_WRLCK,
    LOCK_EX,
    LOCK_NB,
    LOCK_SH,
    fcntl,
    flock,
)
from time import monotonic, sleep

from zfw_py.errors import Busy, Conflict

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import TracebackType

_PATIENCE = 30.0  # seconds
_FIRST_PAUSE, _LAST_PAUSE = 0.0002, 0.005
# Of stat.st_mode, include/uapi/linux/stat.h.
_S_IFMT, _S_IFDIR, _S_ISVTX, _WRITABLE_BY_OTHERS = 0o170000, 0o040000, 0o1000, 0o022


class Lock:
    """A context manager that holds the lock on a directory, shared or exclusive.

    Raises FileNotFoundError if there is no such directory, Busy after 30 s, and Conflict where
    another user than root can change the directory, or one of those above it from ``top`` on.
    """

    __slots__ = ("_fd", "_is_exclusive", "_path", "_top")

    def __init__(self, path: str, *, is_exclusive: bool, top: str) -> None:
        self._path = path
        self._top = top
        self._is_exclusive = is_exclusive
        self._fd = -1

    def fileno(self) -> int:
        """The descriptor that holds the lock. A forked process also holds it until it closes it."""
        return self._fd

    def __enter__(self) -> Lock:
        require_own(self._path, self._top)
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


def require_own(path: str, top: str) -> None:
    """Require that root alone can change a directory, and those above it from ``top`` on.

    From the top down: what root alone can change cannot be exchanged after it was looked at.
    Raises Conflict, or FileNotFoundError.
    """
    present = top
    for name in ("", *path[len(top) :].split("/")[1:]):
        if name:
            present += f"/{name}"
        found = posix.lstat(present)
        # In a directory with the sticky bit other users cannot rename what is root's.
        is_sticky = present == top and found.st_mode & _S_ISVTX
        if found.st_mode & _S_IFMT != _S_IFDIR:
            what = "it is not a directory"
        elif found.st_uid != 0:
            what = f"it belongs to the user with the id {found.st_uid}"
        elif found.st_mode & _WRITABLE_BY_OTHERS and not is_sticky:
            what = f"other users can write to it (mode {found.st_mode & 0o7777:o})"
        else:
            continue
        raise Conflict(
            f"{present} is not root's alone: {what}",
            hint=f"zfw keeps its state there; see what it is, then: mv -T {present} {present}_old"
            if present != top
            else f"chown 0 {present}; chmod 700 {present}",
        )


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


def open_numbers(path: str) -> int:
    """A descriptor of a directory, for ``hold_number`` and ``is_number_held``. Raises OSError."""
    return posix.open(path, posix.O_RDONLY | posix.O_DIRECTORY | posix.O_CLOEXEC)


def hold_number(fd: int, number: int) -> None:
    """Hold a shared lock on one number of a directory until all copies of ``fd`` are closed.

    These locks are for callers that show that they run: there is no exclusive one.
    """
    fcntl(fd, F_OFD_SETLK, _number(F_RDLCK, number))


def is_number_held(fd: int, number: int) -> bool:
    """Whether a process holds a lock on this number of a directory. Takes none itself."""
    from struct import unpack_from

    (kind,) = unpack_from("h", fcntl(fd, F_OFD_GETLK, _number(F_WRLCK, number)))
    return bool(kind != F_UNLCK)


def _number(kind: int, number: int) -> bytes:
    """A struct flock (include/uapi/asm-generic/fcntl.h) of one byte, from the file's start."""
    from struct import pack

    return pack("hhqqi4x", kind, 0, number, 1, 0)


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
