# SPDX-License-Identifier: GPL-2.0-only
"""Signals that end a command, held off while it puts back what it has changed."""

from __future__ import annotations

from signal import SIG_BLOCK, SIG_SETMASK, SIGHUP, SIGINT, SIGQUIT, SIGTERM, pthread_sigmask

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from signal import Signals
    from types import TracebackType

_ENDING = (SIGHUP, SIGINT, SIGQUIT, SIGTERM)


class HeldSignals:
    """A block that SIGHUP, SIGINT, SIGQUIT and SIGTERM do not interrupt; they count at its end.

    In the calling thread. SIGKILL cannot be held off.
    """

    def __enter__(self) -> None:
        self._before = _change(SIG_BLOCK, ())
        _change(SIG_BLOCK, _ENDING)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Raises KeyboardInterrupt for a Ctrl-C during the block."""
        pthread_sigmask(SIG_SETMASK, self._before)


def _change(how: int, signals: Iterable[Signals]) -> set[int]:
    """As pthread_sigmask(), which first runs the handlers of signals that came before."""
    while True:
        try:
            return set(pthread_sigmask(how, signals))
        except KeyboardInterrupt:
            continue
