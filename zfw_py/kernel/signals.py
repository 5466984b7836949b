# SPDX-License-Identifier: GPL-2.0-only
"""Signals that end a command, held off while it puts back what it has changed."""

from __future__ import annotations

from signal import (
    SIG_BLOCK,
    SIG_IGN,
    SIG_SETMASK,
    SIGHUP,
    SIGINT,
    SIGQUIT,
    SIGTERM,
    getsignal,
    pthread_sigmask,
    raise_signal,
    signal,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from signal import Signals
    from types import TracebackType

_ENDING = (SIGHUP, SIGINT, SIGQUIT, SIGTERM)


class HeldSignals:
    """A block that SIGHUP, SIGINT, SIGQUIT and SIGTERM do not interrupt; they count at its end.

    The calling thread blocks them. Another thread may take them all the same, and Python then runs
    the handlers in the main thread: if that is the calling one, its handlers only note the signal
    meanwhile. In other threads a signal that ends the process does so. SIGKILL cannot be held off.
    """

    def __enter__(self) -> None:
        self._before = _change(SIG_BLOCK, ())
        _change(SIG_BLOCK, _ENDING)
        self._noted: list[int] = []
        self._handlers = {each: getsignal(each) for each in _ENDING}
        for number, handler in self._handlers.items():
            # None: a handler that is not Python's.
            if handler is not None and handler != SIG_IGN:
                self._set(number, self._note)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Raises KeyboardInterrupt for a Ctrl-C during the block."""
        for number, handler in self._handlers.items():
            if handler is not None and handler != SIG_IGN:
                self._set(number, handler)
        for noted in self._noted:
            raise_signal(noted)  # waits until this thread takes it
        pthread_sigmask(SIG_SETMASK, self._before)

    def _note(self, number: int, _frame: object) -> None:
        self._noted.append(number)

    def _set(self, number: int, handler: object) -> None:
        while True:
            try:
                signal(number, handler)  # type: ignore[arg-type]
                return
            except KeyboardInterrupt:
                self._noted.append(SIGINT)
            except ValueError:
                return  # not the main thread, and Python runs no handler in this one


def _change(how: int, signals: Iterable[Signals]) -> set[int]:
    """As pthread_sigmask(), which first runs the handlers of signals that came before."""
    while True:
        try:
            return set(pthread_sigmask(how, signals))
        except KeyboardInterrupt:
            continue
