# SPDX-License-Identifier: GPL-2.0-only
"""A command in a cgroup: started there, given signals and terminal, and waited for.

It stays in our process group, so that the terminal signals it as it signals us.
What comes from the terminal it has got already; what another process sent to us
alone is passed on.
"""

from __future__ import annotations

import errno
import os
import pwd
import signal
from typing import TYPE_CHECKING, NamedTuple, NoReturn

from zfw_py.errors import NotFound, UsageError, ZfwError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

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
    signal.SIGCONT,
    signal.SIGWINCH,
)
_WAITED_FOR = (*_PASSED_ON, signal.SIGCHLD)
_ERRNO = 4  # bytes


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


def run(
    arguments: Sequence[str],
    cgroup: str,
    user: User | None,
    on_other_end: Callable[[int], None],
) -> int:
    """Run a command in a cgroup to its end; what waitpid(2) says of it.

    Its first instruction is within the cgroup. ``on_other_end`` is called with the
    id of any other process of ours that ends meanwhile. Raises NotStarted.
    """
    if not arguments or not arguments[0]:
        raise UsageError("no command")
    told, tell = os.pipe()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _WAITED_FOR)
    try:
        pid = os.fork()
        if pid == 0:
            _become(arguments, cgroup, user, tell, before)
        os.close(tell)
        with open(told, "rb") as file:
            failure = file.read(_ERRNO)
        if failure:
            os.waitpid(pid, 0)
            raise _not_started(arguments[0], int.from_bytes(failure, "little"))
        return _wait(pid, on_other_end)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _become(
    arguments: Sequence[str],
    cgroup: str,
    user: User | None,
    tell: int,
    mask: set[signal.Signals | int],
) -> NoReturn:
    """In the new process: turn into the command, or tell why not."""
    try:
        with open(f"{cgroup}/cgroup.procs", "w") as procs:
            procs.write("0")
        # Python ignores these; the command shall not.
        for number in (signal.SIGPIPE, signal.SIGXFSZ):
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        if user is not None:
            os.initgroups(user.name, user.gid)
            os.setgid(user.gid)
            os.setuid(user.uid)
            os.environ.update(HOME=user.home, USER=user.name, LOGNAME=user.name)
        os.execvp(arguments[0], list(arguments))  # noqa: S606 - no shell, and as the caller's would
    except OSError as error:
        os.write(tell, (error.errno or errno.EIO).to_bytes(_ERRNO, "little"))
    finally:
        os._exit(127)


def _not_started(command: str, number: int) -> NotStarted:
    code = 127 if number in (errno.ENOENT, errno.ENOTDIR) else 126
    return NotStarted(f"cannot run {command!r}: {os.strerror(number)}", code)


def _wait(pid: int, on_other_end: Callable[[int], None]) -> int:
    while True:
        info = signal.sigwaitinfo(_WAITED_FOR)
        if info.si_signo != signal.SIGCHLD:
            if info.si_code != _SI_KERNEL:
                os.kill(pid, info.si_signo)
            continue
        # One signal may stand for several children.
        while (ended := os.waitpid(-1, os.WNOHANG | os.WUNTRACED))[0]:
            child, status = ended
            if child != pid:
                on_other_end(child)
            elif not os.WIFSTOPPED(status):
                return status
            else:
                # Ctrl-Z: the shell waits for us to stop as well.
                os.kill(os.getpid(), signal.SIGSTOP)


def exit_as(status: int) -> int:
    """The exit code of what waitpid(2) said; of a command that a signal ended, end likewise."""
    if os.WIFSIGNALED(status):
        import resource

        number = os.WTERMSIG(status)
        # The core, if any, is the command's.
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        if number not in (signal.SIGKILL, signal.SIGSTOP):
            signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)
        return 128 + number
    return os.WEXITSTATUS(status)
