# SPDX-License-Identifier: GPL-2.0-only
"""A command in a cgroup: started there, given signals and terminal, and waited for.

It stays in our process group, so that a terminal signals it, and lets it read, as it
does us, and a pipeline stays one job. What comes from the terminal it has got already;
what another process sent to us is passed on. (What is sent to the whole group comes
twice: a signal does not say whom else it was for.)
"""

from __future__ import annotations

import errno
import os
import pwd
import signal
import traceback
from contextlib import contextmanager
from struct import Struct
from typing import TYPE_CHECKING, NamedTuple, NoReturn

from zfw_py.errors import NotFound, UsageError, ZfwError
from zfw_py.kernel.process import prevent_core_dump

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

# siginfo_t.si_code of what the kernel itself sent, such as Ctrl-C.
_SI_KERNEL = 0x80
_PASSED_ON = (
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
_WAITED_FOR = (*_PASSED_ON, signal.SIGCHLD)
# That kind of the kernel's signals is no terminal's: whoever executed us had set the clock.
_OF_CLOCKS = (signal.SIGALRM,)

# What a command that did not start tells: which step it was, and its errno.
_FAILURE = Struct("=BI")
_ENTER, _USER, _EXECUTE, _BUG = range(4)


class User(NamedTuple):
    """Who a command runs as."""

    name: str
    uid: int
    gid: int
    home: str


def find_user(name: str) -> User:
    """A user by name or number. Raises NotFound."""
    try:
        found = pwd.getpwuid(int(name)) if name.isascii() and name.isdigit() else pwd.getpwnam(name)
    except (KeyError, OverflowError):
        raise NotFound(f"no such user: {name}") from None
    return User(found.pw_name, found.pw_uid, found.pw_gid, found.pw_dir)


class NotStarted(ZfwError):
    """The command cannot be run: 127 there is none, 126 there is, as shells have it."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


@contextmanager
def run(
    arguments: Sequence[str], cgroup: str, user: User | None, on_child: Callable[[], None]
) -> Iterator[int]:
    """Run a command in a cgroup to its end; what waitpid(2) says of it.

    Its first instruction is within the cgroup. ``on_child`` is called when it may be
    that another child of this process has ended. To be called in the only thread there
    is: signals are taken by it, also during the with block, which nothing interrupts:
    they are for the command. Raises NotStarted.
    """
    if not arguments or not arguments[0]:
        raise UsageError("no command")
    if any("\0" in argument for argument in arguments):
        raise UsageError("a NUL character in the command")
    told, tell = os.pipe()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _WAITED_FOR)
    # Ignored by who executed us, it would hide that the command has ended.
    is_child_ignored = signal.getsignal(signal.SIGCHLD) == signal.SIG_IGN
    if is_child_ignored:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    try:
        pid = os.fork()
        if pid == 0:
            _become(arguments, cgroup, user, tell, before, is_child_ignored=is_child_ignored)
        os.close(tell)
        with open(told, "rb") as file:
            failure = file.read(_FAILURE.size)
        if failure:
            os.waitpid(pid, 0)
            raise _not_started(arguments[0], cgroup, user, *_FAILURE.unpack(failure))
        yield _wait(pid, on_child)
    finally:
        while signal.sigtimedwait(_WAITED_FOR, 0) is not None:
            pass
        if is_child_ignored:
            signal.signal(signal.SIGCHLD, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _become(
    arguments: Sequence[str],
    cgroup: str,
    user: User | None,
    tell: int,
    mask: set[signal.Signals | int],
    *,
    is_child_ignored: bool,
) -> NoReturn:
    """In the new process: turn into the command, or tell why not."""
    step = _BUG
    number = 0
    try:
        # Python ignores these; the command shall not.
        for each in (signal.SIGPIPE, signal.SIGXFSZ):
            signal.signal(each, signal.SIG_DFL)
        # Ctrl-C before it is executed ends it as it would afterwards.
        if signal.getsignal(signal.SIGINT) != signal.SIG_IGN:
            signal.signal(signal.SIGINT, signal.SIG_DFL)
        if is_child_ignored:
            signal.signal(signal.SIGCHLD, signal.SIG_IGN)
        step = _ENTER
        with open(f"{cgroup}/cgroup.procs", "w") as procs:
            procs.write("0")
        if user is not None:
            step = _USER
            os.initgroups(user.name, user.gid)
            os.setgid(user.gid)
            os.setuid(user.uid)
            os.environ.update(HOME=user.home, USER=user.name, LOGNAME=user.name)
        step = _EXECUTE
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        os.execvp(arguments[0], list(arguments))  # noqa: S606 - no shell, and as the caller's would
    except OSError as error:
        number = error.errno or errno.EIO
    except BaseException:  # noqa: BLE001 - a bug, and nobody above who could tell of it
        step = _BUG
        traceback.print_exc()
    finally:
        os.write(tell, _FAILURE.pack(step, number))
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


def _wait(pid: int, on_child: Callable[[], None]) -> int:
    # Other children are others' to wait for; but as init, as in a container, we have orphans.
    whom = -1 if os.getpid() == 1 else pid
    while True:
        info = signal.sigwaitinfo(_WAITED_FOR)
        if info.si_signo != signal.SIGCHLD:
            if info.si_code != _SI_KERNEL or info.si_signo in _OF_CLOCKS:
                os.kill(pid, info.si_signo)
            continue
        on_child()
        # One signal may stand for several children.
        while (ended := os.waitpid(whom, os.WNOHANG | os.WUNTRACED))[0]:
            child, status = ended
            if child == pid and os.WIFSTOPPED(status):
                _stop_too(pid)
            elif child == pid:
                return status


def _stop_too(pid: int) -> None:
    """Ctrl-Z, or the like: a shell gives the terminal to another job when we have stopped as well.

    Not without a terminal: whoever stopped the command alone would continue it alone.
    """
    # If we have been continued since, so will be the command.
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
        # A shell that stops itself wants to find the terminal as it left it, and whoever
        # continues us gives it to our group.
        if is_in_front and os.tcgetpgrp(terminal) == os.getpgrp():
            os.tcsetpgrp(terminal, group)
    except OSError:
        pass  # it was hung up, or the command killed
    finally:
        os.close(terminal)


def exit_as(status: int) -> int:
    """The exit code of what waitpid(2) said; of a command that a signal ended, end likewise."""
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
