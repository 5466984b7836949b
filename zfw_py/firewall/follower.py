# SPDX-License-Identifier: GPL-2.0-only
"""The follower: keeps a firewall right while links and addresses change.

The kernel's notifications only wake it. What it does is ``Firewall.follow``: it compares the
whole system with the maps. So neither the order of events matters nor that some are lost, a
storm of events costs one comparison, and a follower that was killed needs only to be started.

It holds a lock as long as it runs, by which the status knows of it.
"""

from __future__ import annotations

import os
import select
import signal
from contextlib import ExitStack
from typing import TYPE_CHECKING

from zfw_py.errors import LayoutMismatch, NotInstalled, PermissionDenied, ZfwError
from zfw_py.firewall.service import Firewall
from zfw_py.firewall.wanted import following
from zfw_py.kernel.link_events import LinkEvents

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

# Seconds without an event that end a storm, the longest wait for that, and the pause before
# what failed is tried again.
_QUIET, _MOST, _RETRY = 0.02, 0.2, 1.0


def follow(
    stops: Iterable[signal.Signals],
    log: Callable[[str], None],
    on_ready: Callable[[], None] = lambda: None,
) -> bool:
    """Follow the caller's network namespace until one of ``stops`` arrives.

    ``log`` gets a line for each attachment that was made and for each new error. ``on_ready`` is
    called once, when all that is wanted was attached. Where there is no firewall, nothing is
    done until there is one. Returns True if the caller shall start anew, because another version
    of zfw has exchanged the programs. Raises LayoutMismatch, PermissionDenied, OSError.
    """
    with ExitStack() as held:
        events = held.enter_context(LinkEvents())
        held.callback(os.close, following())
        stopped = _stopped_by(stops, held)
        follower = _Follower(log)
        poll = select.poll()
        poll.register(events, select.POLLIN)
        poll.register(stopped, select.POLLIN)
        is_done = follower.renew()
        on_ready()
        while not follower.is_outdated:
            ready = {fd for fd, _ in poll.poll(None if is_done else 1000 * _RETRY)}
            if stopped in ready:
                return False
            if ready:
                events.consume(_QUIET, _MOST)
            is_done = follower.renew()
        return True


class _Follower:
    def __init__(self, log: Callable[[str], None]) -> None:
        self._log = log
        self._last_errors: list[str] = []
        self._digest: bytes | None = None
        self.is_outdated = False

    def renew(self) -> bool:
        """Whether all is as it shall be; if not, the caller tries again."""
        try:
            done = Firewall().follow()
        except NotInstalled:
            self._digest = None
            return True
        except (LayoutMismatch, PermissionDenied):
            raise
        except ZfwError as error:
            self._log_errors([error.message])
            return False
        for name, direction, mode in done.attached:
            self._log(f"attached {name} {direction} by {mode}")
        for prefix in done.made_local:
            self._log(f"made {prefix} local again")
        self._log_errors(done.errors)
        self.is_outdated = self._digest not in (None, done.object_digest)
        self._digest = done.object_digest
        return not done.errors

    def _log_errors(self, errors: list[str]) -> None:
        if errors != self._last_errors:
            for error in errors:
                self._log(error)
            self._last_errors = errors


def _stopped_by(stops: Iterable[signal.Signals], held: ExitStack) -> int:
    """A descriptor that is readable once one of these signals has arrived."""
    read_end, write_end = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    held.callback(os.close, read_end)
    held.callback(os.close, write_end)
    held.callback(signal.set_wakeup_fd, signal.set_wakeup_fd(write_end, warn_on_full_buffer=False))
    for number in stops:
        held.callback(signal.signal, number, signal.signal(number, lambda *_: None))
    return read_end
