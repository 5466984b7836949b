# SPDX-License-Identifier: GPL-2.0-only
"""A process of our own that goes on when its maker has returned."""

from __future__ import annotations

import os
import signal
import syslog
import traceback
from typing import TYPE_CHECKING

from zfw_py.errors import ZfwError

if TYPE_CHECKING:
    from collections.abc import Callable

_READY = b"+"
_MOST_TEXT = 4096


class Background:
    """The process. ``let_go`` makes it stop writing to its maker's stderr."""

    def __init__(self, pid: int, terminal: int) -> None:
        self.pid = pid
        self._terminal = terminal

    def let_go(self) -> None:
        """The maker is about to return: what it called has an end of its output then."""
        os.close(self._terminal)


def start(body: Callable[[Callable[[], None], int], None], *, has_stderr: bool) -> Background:
    """Fork a process that calls ``body(ready, terminal)``, and return when it is ready.

    It has a session of its own, nothing on stdin and stdout, and the maker's stderr
    if ``has_stderr``. ``ready`` is to be called once; ``terminal`` is a descriptor
    at whose end the maker has let go, as ``release_stderr`` wants it. Raises the
    ZfwError that the body raised before; any other failure of the body goes to syslog.
    """
    told, tell = os.pipe()
    terminal, held = os.pipe()
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            os.close(told)
            os.close(held)
            os.setsid()
            _leave_stdio(has_stderr=has_stderr)
            code = _run(body, tell, terminal)
        finally:
            # Whatever the maker would still do at its own end is not for this process.
            os._exit(code)
    os.close(tell)
    os.close(terminal)
    with open(told, "rb") as file:
        text = file.read(_MOST_TEXT)
    if text.startswith(_READY):
        return Background(pid, held)
    os.close(held)
    os.waitpid(pid, 0)
    raise ZfwError(text.decode("utf-8", "replace") or "the guard's process ended at once")


def _leave_stdio(*, has_stderr: bool) -> None:
    null = os.open(os.devnull, os.O_RDWR)
    for number in (0, 1) if has_stderr else (0, 1, 2):
        os.dup2(null, number)
    os.close(null)
    os.chdir("/")
    for number in (signal.SIGINT, signal.SIGQUIT, signal.SIGHUP, signal.SIGTSTP):
        signal.signal(number, signal.SIG_IGN)


def _run(body: Callable[[Callable[[], None], int], None], tell: int, terminal: int) -> int:
    is_ready = False

    def ready() -> None:
        nonlocal is_ready
        is_ready = True
        os.write(tell, _READY)
        os.close(tell)

    try:
        body(ready, terminal)
    except ZfwError as error:
        if is_ready:
            syslog.syslog(syslog.LOG_ERR, f"zfw guard: {error}")
        else:
            os.write(tell, str(error).encode()[:_MOST_TEXT])
        return error.exit_code
    except BaseException:  # noqa: BLE001 - nobody is there to see it raised
        syslog.syslog(syslog.LOG_CRIT, f"zfw guard: {traceback.format_exc()}")
        return 1
    return 0


def release_stderr() -> None:
    """Let the maker's stderr go, from within the process."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 2)
    os.close(null)
