# SPDX-License-Identifier: GPL-2.0-only
"""Processes, by /proc/PID, pidfd_open(2) and prctl(2).

The kernel reuses the id of a process that has ended. The id and the start time
together are never reused while the machine runs, so they identify a process for good.
"""

from __future__ import annotations

import ctypes
import errno
import os
import select
import signal
import sys
from contextlib import suppress
from typing import TYPE_CHECKING, NamedTuple

from zfw_py.errors import ZfwError
from zfw_py.kernel.libc import last_error, libc

if TYPE_CHECKING:
    from collections.abc import Iterable

_PATIENCE = 5.0  # seconds, for each of the two signals
# include/uapi/linux/prctl.h
_PR_SET_DUMPABLE = 4
_PR_SET_NO_NEW_PRIVS = 38
# include/uapi/linux/keyctl.h; the number of the system call: arch/*/entry/syscalls.
_KEYCTL_JOIN_SESSION_KEYRING = 1
_KEYCTL = {
    "x86_64": 250,
    "aarch64": 219,
    "riscv64": 219,
    "loongarch64": 219,
    "armv7l": 311,
    "ppc64le": 271,
    "ppc64": 271,
    "s390x": 280,
}
_SIGSET_BYTES = 128  # sigset_t of the C library


class Process(NamedTuple):
    """A process, alive or not. ``start_time`` is in clock ticks since boot; pid 0 is no process."""

    pid: int
    start_time: int

    @classmethod
    def current(cls) -> Process:
        """The caller."""
        return cls(os.getpid(), start_time(os.getpid()) or 0)

    def is_alive(self) -> bool:
        """Whether this very process runs; a zombie does not."""
        return self.pid != 0 and start_time(self.pid) == self.start_time

    def end(self) -> None:
        """Send SIGTERM, then SIGKILL, and wait for the end; not to the caller itself.

        Returns at once if the process does not run. Raises ZfwError if it does not end
        within 5 s of SIGKILL, OSError if the caller may not send it signals.
        """
        if self.pid in (0, os.getpid()):
            return
        try:
            process = os.pidfd_open(self.pid)
        except ProcessLookupError:
            return
        try:
            # The kernel may have reused the id before pidfd_open(2). From here on it cannot.
            if not self.is_alive():
                return
            for number in (signal.SIGTERM, signal.SIGKILL):
                signal.pidfd_send_signal(process, number)
                # A descriptor of a process is readable when the process has ended.
                if select.select([process], [], [], _PATIENCE)[0]:
                    self._reap()
                    return
        except OSError as error:
            if error.errno != errno.ESRCH:
                raise
            return
        finally:
            os.close(process)
        raise ZfwError(f"process {self.pid} does not end")

    def _reap(self) -> None:
        with suppress(ChildProcessError):  # not a child of the caller
            os.waitpid(self.pid, os.WNOHANG)


def start_time(pid: int) -> int | None:
    """Clock ticks from boot to the start of a process; None if none of this id runs.

    This is field 22 of /proc/PID/stat (proc(5)).
    """
    found = _stat_of(pid)
    return None if found is None else found[1]


def _stat_of(pid: int) -> tuple[int, int] | None:
    """The parent's id and the start time of a process that is no zombie."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            text = file.read(4096)
    except (FileNotFoundError, ProcessLookupError):
        return None
    # The command, in parentheses, may have any character.
    fields = text.rpartition(b")")[2].split()
    return None if fields[0] in (b"Z", b"X") else (int(fields[1]), int(fields[19]))


def tree_of(pid: int, without: int = 0) -> list[Process]:
    """A process and its descendants, each after its parent; zombies are left out.

    ``without`` is a process that is left out with its descendants. A child whose parent has ended
    is no descendant any more.
    """
    children: dict[int, list[Process]] = {}
    for name in os.listdir("/proc"):
        if name.isdigit() and (found := _stat_of(int(name))) is not None:
            parent, started = found
            children.setdefault(parent, []).append(Process(int(name), started))
    started_at = start_time(pid)
    tree = [] if started_at is None or pid == without else [Process(pid, started_at)]
    for process in tree:
        tree += [each for each in children.get(process.pid, ()) if each.pid != without]
    return tree


def open_pidfd(pid: int) -> int:
    """A descriptor of a process, which never names another one; the caller closes it.

    Raises ProcessLookupError.
    """
    return os.pidfd_open(pid)


def send_signal(pidfd: int, number: signal.Signals) -> None:
    """Send a signal to a process, if it has not ended. Raises OSError."""
    with suppress(ProcessLookupError):
        signal.pidfd_send_signal(pidfd, number)


def ignores(pid: int, numbers: Iterable[signal.Signals]) -> bool:
    """Whether a process ignores all of these signals. Raises OSError."""
    ignored = int(_status(pid)["SigIgn"], 16)
    return all(ignored >> (number - 1) & 1 for number in numbers)


def _status(pid: int) -> dict[str, str]:
    with open(f"/proc/{pid}/status", encoding="utf-8", errors="replace") as file:
        return dict(line.rstrip("\n").split(":\t", 1) for line in file if ":\t" in line)


def identity_of(pid: int) -> tuple[int, set[int]]:
    """The user id and all group ids of a process, as the file system checks them.

    Raises FileNotFoundError or ProcessLookupError if there is no such process.
    """
    status = _status(pid)
    groups = {*status["Gid"].split()[3:], *status["Groups"].split()}
    return int(status["Uid"].split()[3]), {int(each) for each in groups}


def files_of(pid: int) -> dict[int, str]:
    """The path, or what the kernel shows instead, of each descriptor of a process.

    Raises OSError.
    """
    directory = f"/proc/{pid}/fd"
    found = {}
    for name in os.listdir(directory):
        with suppress(FileNotFoundError):  # closed since
            found[int(name)] = os.readlink(f"{directory}/{name}")
    return found


def root_of(pid: int) -> str:
    """The path of a process's root directory, with the mounts that it sees."""
    return f"/proc/{pid}/root"


def has_same_files(pid: int) -> bool:
    """Whether a process has the caller's mount namespace and root. Raises OSError."""
    return all(
        os.path.samefile(f"/proc/{pid}/{each}", f"/proc/self/{each}") for each in ("ns/mnt", "root")
    )


def open_flags(pid: int, number: int) -> int:
    """The O_* flags of a process's descriptor (proc(5), fdinfo). Raises OSError."""
    with open(f"/proc/{pid}/fdinfo/{number}", encoding="ascii") as file:
        return int(next(line for line in file if line.startswith("flags:")).split()[1], 8)


def is_visible(pid: int) -> bool:
    """Whether the caller's PID namespace and its mount of /proc show this process."""
    return os.path.exists(f"/proc/{pid}")


def command_name(pid: int) -> str:
    """The command of a process, /proc/PID/comm; unprintable characters are shown as "?".

    Raises FileNotFoundError or ProcessLookupError if there is no such process.
    """
    with open(f"/proc/{pid}/comm", encoding="utf-8", errors="replace", newline="\n") as file:
        # Any process can choose its own, and the caller prints it on terminals.
        name = file.read().removesuffix("\n")
    return "".join(each if each.isprintable() else "?" for each in name)


# The caller itself


def descriptor_path(fd: int) -> str:
    """A path that opens the file of one of the caller's descriptors, wherever it lies."""
    return f"/proc/self/fd/{fd}"


def inheritable_descriptors() -> list[int]:
    """The caller's descriptors that stay open across execve(2)."""
    found = []
    for name in os.listdir("/proc/self/fd"):
        with suppress(OSError):  # the descriptor of the listing itself, closed by now
            if os.get_inheritable(int(name)):
                found.append(int(name))
    return found


def prevent_core_dump() -> None:
    """Let the kernel write no core file of the caller when a signal ends it.

    RLIMIT_CORE alone is not enough: a limit of 0 has no effect where core(5) pipes the core
    to a program.
    """
    libc.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)


def forbid_new_privileges() -> None:
    """The caller and its descendants gain no privilege by execve(2) (PR_SET_NO_NEW_PRIVS).

    Raises OSError.
    """
    if libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0:
        raise OSError(last_error(), "PR_SET_NO_NEW_PRIVS")


def join_new_session_keyring() -> None:
    """Replace the caller's session keyring by an empty one (keyctl(2)).

    Raises OSError, but not where the kernel has no keys.
    """
    number = ctypes.c_long(_KEYCTL.get(os.uname().machine, -1))
    if libc.syscall(number, _KEYCTL_JOIN_SESSION_KEYRING, None) < 0:
        error = last_error()
        if error != errno.ENOSYS:
            raise OSError(error, "KEYCTL_JOIN_SESSION_KEYRING")


def open_signals(numbers: Iterable[signal.Signals]) -> int:
    """A descriptor that is readable while one of these signals, which are blocked, is pending.

    The caller closes it. See signalfd(2). Raises OSError.
    """
    mask = sum(1 << (number - 1) for number in numbers).to_bytes(_SIGSET_BYTES, sys.byteorder)
    fd: int = libc.signalfd(-1, mask, os.O_CLOEXEC | os.O_NONBLOCK)
    if fd < 0:
        raise OSError(last_error(), "signalfd")
    return fd
