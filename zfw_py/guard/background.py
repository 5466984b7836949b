# SPDX-License-Identifier: GPL-2.0-only
"""A process of our own that goes on when its maker has returned."""

from __future__ import annotations

import os
import signal
import syslog
import traceback
from json import dumps, loads
from typing import TYPE_CHECKING

from zfw_py.errors import Busy, Conflict, NotFound, PermissionDenied, UsageError, ZfwError
from zfw_py.kernel.process import inheritable_descriptors

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    Body = Callable[[Callable[[], None], int], None]

_MOST_TEXT = 65_536
# What is raised there is raised here.
_KINDS = {each.exit_code: each for each in (UsageError, NotFound, Conflict, Busy, PermissionDenied)}


class Background:
    """The process."""

    def __init__(self, pid: int, held: int) -> None:
        self.pid = pid
        self._held = held
        self._has_ended = False

    def let_go(self) -> None:
        """The maker is done with it."""
        if self._held >= 0:
            os.close(self._held)
            self._held = -1

    def __del__(self) -> None:
        self.let_go()

    def has_just_ended(self) -> bool:
        """Whether it has ended since this was asked last."""
        if self._has_ended:
            return False
        try:
            self._has_ended = os.waitpid(self.pid, os.WNOHANG)[0] == self.pid
        except ChildProcessError:
            self._has_ended = True  # SIGCHLD was ignored for a while
        return self._has_ended


def start(body: Body, *, has_stderr: bool, closes: Iterable[int]) -> Background:
    """Fork a process that calls ``body(ready, maker)``, and return when it is ready.

    It has a session of its own, nothing on stdin and stdout, and the maker's stderr
    if ``has_stderr``; of other descriptors neither what the maker would hand on to a
    command nor those to be closed. ``ready`` is to be called once; ``maker`` is a
    descriptor at whose end the maker has let go of it, or has ended. Raises the
    ZfwError that the body raised before; any other failure of the body goes to syslog.
    """
    told, tell = os.pipe()
    maker, held = os.pipe()
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            for each in (told, held, *closes):
                os.close(each)
            os.setsid()
            _close_inherited()
            _leave_stdio(has_stderr=has_stderr)
            code = _run(body, tell, maker)
        finally:
            # Whatever the maker would still do at its own end is not for this process.
            os._exit(code)
    os.close(tell)
    os.close(maker)
    with open(told, "rb") as file:
        text = file.read(_MOST_TEXT)
    if not text:
        _reap(pid, held)
        raise ZfwError("the guard's process ended at once", hint="the system's log may say why")
    failure = loads(text)
    if failure is None:
        return Background(pid, held)
    _reap(pid, held)
    kind = _KINDS.get(failure["exit_code"], ZfwError)
    raise kind(failure["message"], hint=failure["hint"])


def _reap(pid: int, held: int) -> None:
    os.close(held)
    try:
        os.waitpid(pid, 0)
    except ChildProcessError:
        pass  # SIGCHLD is ignored


def fill_stdio() -> None:
    """Have something at 0, 1 and 2, as what is opened next must not be there.

    What is executed finds them as they were.
    """
    while (fd := os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)) <= 2:
        pass
    os.close(fd)


def _close_inherited() -> None:
    """What the maker's caller left open for it: a reader of such a pipe waits for us as well."""
    for fd in inheritable_descriptors():
        if fd > 2:
            os.close(fd)


def _leave_stdio(*, has_stderr: bool) -> None:
    null = os.open(os.devnull, os.O_RDWR)
    for number in (0, 1) if has_stderr else (0, 1, 2):
        os.dup2(null, number)
    os.close(null)
    os.chdir("/")
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    for number in (signal.SIGINT, signal.SIGQUIT, signal.SIGHUP, signal.SIGTSTP):
        signal.signal(number, signal.SIG_IGN)


def _run(body: Body, tell: int, maker: int) -> int:
    is_ready = False

    def ready() -> None:
        nonlocal is_ready
        is_ready = True
        _tell(tell, None)

    try:
        body(ready, maker)
    except ZfwError as error:
        if is_ready:
            syslog.syslog(syslog.LOG_ERR, f"zfw guard: {error}")
        else:
            _tell(
                tell,
                {"message": str(error), "hint": error.hint, "exit_code": error.exit_code},
            )
        return error.exit_code
    except BaseException:  # noqa: BLE001 - nobody is there to see it raised
        syslog.syslog(syslog.LOG_CRIT, f"zfw guard: {traceback.format_exc()}")
        return 1
    return 0


def _tell(tell: int, what: object) -> None:
    try:
        os.write(tell, dumps(what).encode())
    except BrokenPipeError:
        pass  # the maker was killed
    os.close(tell)


def release_stderr() -> None:
    """Let the maker's stderr go, from within the process."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 2)
    os.close(null)
