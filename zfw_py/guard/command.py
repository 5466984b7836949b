# SPDX-License-Identifier: GPL-2.0-only
"""Runs a command in a cgroup: starts it there, forwards signals, and waits for it.

The command stays in the process group of zfw, so that a terminal signals both and lets both read,
and a pipeline stays one job. The command gets a terminal's signals itself; zfw forwards signals
that another process sends to zfw. A signal to the whole group arrives twice, because a signal
does not say which other processes it was sent to.

A command that runs as another user has a session of its own, and a terminal of its own where zfw
has one (``terminal``). zfw forwards all signals to it.
"""

from __future__ import annotations

import errno
import os
import signal
import traceback
from contextlib import contextmanager, suppress
from stat import S_ISSOCK
from struct import Struct
from typing import TYPE_CHECKING, NoReturn

from zfw_py.errors import UsageError, ZfwError
from zfw_py.guard import terminal as terminals
from zfw_py.guard.terminal import Terminal
from zfw_py.kernel.process import inheritable_descriptors, prevent_core_dump

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from zfw_py.guard.user import User

# siginfo_t.si_code of a signal that the kernel sent, for example for Ctrl-C.
_SI_KERNEL = 0x80
_FORWARDED = (
    signal.SIGINT,
    signal.SIGQUIT,
    signal.SIGTERM,
    signal.SIGHUP,
    signal.SIGUSR1,
    signal.SIGUSR2,
    signal.SIGALRM,
    signal.SIGTSTP,
    signal.SIGCONT,
    signal.SIGWINCH,
)
_WAITED_FOR = (*_FORWARDED, signal.SIGCHLD)
# The kernel sends these too, but not for a terminal: a timer that was set before zfw was executed.
_OF_CLOCKS = (signal.SIGALRM,)

# Report of a command that did not start: the step that failed, and its errno.
_FAILURE = Struct("=BI")
_ENTER, _USER, _EXECUTE, _BUG = range(4)


class NotStarted(ZfwError):
    """The command cannot be run. Exit codes as in a shell: 127 if it does not exist, else 126."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


def inheritable_sockets() -> set[int]:
    """The inode numbers of sockets that a command inherits from this process."""
    opened = map(os.fstat, inheritable_descriptors())
    return {status.st_ino for status in opened if S_ISSOCK(status.st_mode)}


@contextmanager
def run(
    arguments: Sequence[str], cgroup: str, user: User | None, on_child: Callable[[], None]
) -> Iterator[int]:
    """Run a command in a cgroup until it ends; yield its status as waitpid(2) returns it.

    The command is in the cgroup from its first instruction. ``on_child`` is called when another
    child of this process may have ended. Call it in a process with one thread: it blocks signals,
    also during the ``with`` block, and forwards them to the command. Raises NotStarted.
    """
    if not arguments or not arguments[0]:
        raise UsageError("no command")
    if any("\0" in argument for argument in arguments):
        raise UsageError("a NUL character in the command")
    report, report_end = os.pipe()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _WAITED_FOR)
    # If SIGCHLD was ignored when zfw was executed, the end of the command would go unnoticed.
    is_child_ignored = signal.getsignal(signal.SIGCHLD) == signal.SIG_IGN
    if is_child_ignored:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    terminal = None
    try:
        if user is not None and terminals.is_needed():
            terminal = Terminal(_WAITED_FOR)
        pid = os.fork()
        if pid == 0:
            _become(
                arguments,
                cgroup,
                user,
                terminal,
                report_end,
                before,
                is_child_ignored=is_child_ignored,
            )
        os.close(report_end)
        with open(report, "rb") as file:
            failure = file.read(_FAILURE.size)
        if failure:
            os.waitpid(pid, 0)
            raise _not_started(arguments[0], cgroup, user, *_FAILURE.unpack(failure))
        status = _wait(pid, on_child, terminal, has_session=user is not None)
        if terminal is not None:
            terminal.close()
            terminal = None
        yield status
    finally:
        if terminal is not None:
            terminal.close()
        while signal.sigtimedwait(_WAITED_FOR, 0) is not None:
            pass
        if is_child_ignored:
            signal.signal(signal.SIGCHLD, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _become(
    arguments: Sequence[str],
    cgroup: str,
    user: User | None,
    terminal: Terminal | None,
    report_end: int,
    mask: set[signal.Signals | int],
    *,
    is_child_ignored: bool,
) -> NoReturn:
    """In the new process: execute the command, or report why that failed."""
    step = _BUG
    number = 0
    environment: Mapping[str, str] = os.environ
    try:
        # Python ignores these signals; the command must not inherit that.
        for each in (signal.SIGPIPE, signal.SIGXFSZ):
            signal.signal(each, signal.SIG_DFL)
        # Ctrl-C ends this process before the command is executed too.
        if signal.getsignal(signal.SIGINT) != signal.SIG_IGN:
            signal.signal(signal.SIGINT, signal.SIG_DFL)
        if is_child_ignored:
            signal.signal(signal.SIGCHLD, signal.SIG_IGN)
        step = _ENTER
        with open(f"{cgroup}/cgroup.procs", "w") as procs:
            procs.write("0")
        if user is not None:
            step = _USER
            os.setsid()
            if terminal is not None:
                terminal.take(user.uid)
            terminals.close_others()
            user.become()
            environment = user.environment(os.environ)
        step = _EXECUTE
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        os.execvpe(arguments[0], list(arguments), environment)  # noqa: S606 - no shell is wanted
    except OSError as error:
        number = error.errno or errno.EIO
    except BaseException:  # noqa: BLE001 - a bug; no caller above to report it
        step = _BUG
        traceback.print_exc()
    finally:
        os.write(report_end, _FAILURE.pack(step, number))
        os._exit(127)


def _not_started(
    command: str, cgroup: str, user: User | None, step: int, number: int
) -> NotStarted:
    why = os.strerror(number)
    if step == _ENTER:
        return NotStarted(f"cannot run {command!r}: enter {cgroup}: {why}", 126)
    if step == _USER and user is not None:
        return NotStarted(f"cannot run {command!r}: become {user.name}: {why}", 126)
    if step == _BUG:
        return NotStarted(f"cannot run {command!r}", 126)
    is_missing = number in (errno.ENOENT, errno.ENOTDIR)
    return NotStarted(f"cannot run {command!r}: {why}", 127 if is_missing else 126)


def _wait(
    pid: int, on_child: Callable[[], None], terminal: Terminal | None, *, has_session: bool
) -> int:
    # Leave other children to their own waiters; but init of a container has to reap orphans.
    awaited = -1 if os.getpid() == 1 else pid
    if terminal is not None:
        terminal.resume()
    while True:
        if terminal is not None:
            terminal.relay()
        info = signal.sigwaitinfo(_WAITED_FOR)
        if info.si_signo != signal.SIGCHLD:
            if terminal is not None and info.si_signo in (signal.SIGWINCH, signal.SIGCONT):
                terminal.resume()
            if has_session:
                _forward_to_session(pid, info.si_signo, terminal)
            elif info.si_code != _SI_KERNEL or info.si_signo in _OF_CLOCKS:
                os.kill(pid, info.si_signo)
            continue
        on_child()
        # One signal may stand for several children.
        while (ended := os.waitpid(awaited, os.WNOHANG | os.WUNTRACED))[0]:
            child, status = ended
            if child == pid and os.WIFSTOPPED(status):
                if terminal is not None:
                    terminal.pause()
                _stop_too(pid)
                if terminal is not None:
                    terminal.resume()
            elif child == pid:
                return status


def _forward_to_session(pid: int, number: int, terminal: Terminal | None) -> None:
    """Forward a signal to the command's process group that is in the foreground."""
    if number == signal.SIGWINCH and terminal is not None:
        return  # the kernel sends it when the size is set
    # The kernel ignores SIGTSTP for a group whose parent is in another session.
    number = signal.SIGSTOP if number == signal.SIGTSTP else number
    group = terminal.foreground() if terminal is not None else None
    for each in {pid, group or pid}:
        with suppress(ProcessLookupError):
            os.killpg(each, number)


def _stop_too(pid: int) -> None:
    """Stop this process too, so that a shell gives the terminal to another job (Ctrl-Z).

    Does nothing without a terminal: a process that stopped the command alone continues it alone.
    """
    # SIGCONT is pending: it will be forwarded, so the command goes on.
    if signal.SIGCONT in signal.sigpending():
        return
    try:
        terminal = os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC)
    except OSError:
        return
    try:
        group = os.getpgid(pid)
        is_in_front = os.tcgetpgrp(terminal) == group
        os.kill(os.getpid(), signal.SIGSTOP)
        # Continued. If the shell gave the terminal to our group, give it back to the command's, in
        # case the command is a shell, which expects the terminal as it left it.
        if is_in_front and os.tcgetpgrp(terminal) == os.getpgrp():
            os.tcsetpgrp(terminal, group)
    except OSError:
        pass  # the terminal was hung up, or the command killed
    finally:
        os.close(terminal)


def exit_as(status: int) -> int:
    """The exit code for a waitpid(2) status; if a signal ended the command, end by that signal."""
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        # The only core file, if there is one, is the command's.
        prevent_core_dump()
        if number != signal.SIGKILL:
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [number])
        os.kill(os.getpid(), number)
        return 128 + number
    return os.WEXITSTATUS(status)
