# SPDX-License-Identifier: GPL-2.0-only
"""One writer at a time: an advisory lock on a directory of ours. Hot.

The directory lies on bpffs and is root's alone, so no other user can hold the
lock and keep writers out.
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
    """A context manager: holds the lock on ``path``, shared or exclusive.

    Raises FileNotFoundError if there is no such directory, Busy after 30 s.
    """

    __slots__ = ("_fd", "_is_exclusive", "_path")

    def __init__(self, path: str, *, is_exclusive: bool) -> None:
        self._path = path
        self._is_exclusive = is_exclusive
        self._fd = -1

    def fileno(self) -> int:
        """The descriptor that holds it; a forked process that does not close it holds it too."""
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
