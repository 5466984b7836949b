# SPDX-License-Identifier: GPL-2.0-only
"""A terminal for a command of another user, and the relay between it and the caller's terminal.

On the caller's own terminal the command could type into the caller's shell (TIOCSTI, TIOCLINUX)
and read what is typed there later. So it gets a pseudo-terminal and a session of its own, as by
sudo or ssh. Keys reach it as bytes, and its terminal makes signals of them: a stop by Ctrl-Z is
for the jobs of a shell within, and does not stop zfw.
"""

from __future__ import annotations

import os
import select
import stat
import termios
import time
import tty
from contextlib import suppress
from typing import TYPE_CHECKING

from zfw_py.kernel.process import inheritable_descriptors, open_signals
from zfw_py.kernel.tty_ioctl import copy_window_size, make_controlling

if TYPE_CHECKING:
    import signal
    from collections.abc import Iterable

_STDIO = (0, 1, 2)
_CHUNK = 65_536
# How long to wait, in ms, for more output of a command that has ended, and the longest wait in s.
# The kernel passes output on in another thread. Processes left running may go on writing.
_QUIET = 100
_PATIENCE = 1.0


class Terminal:
    """A new pseudo-terminal. Its creator relays; ``take`` is for the command's process."""

    def __init__(self, signals: Iterable[signal.Signals]) -> None:
        """For a caller that has a terminal on 0, 1 or 2. ``signals`` interrupt the relay.

        Where stdout is a pipe, its reader has the keyboard, and the command's stdin is empty.
        """
        self._master, self._slave = os.openpty()
        os.set_blocking(self._master, False)
        self._signals = open_signals(signals)
        self._output: int | None = next(each for each in (1, 2, 0) if os.isatty(each))
        self._before = termios.tcgetattr(self._output)
        termios.tcsetattr(self._slave, termios.TCSANOW, self._before)
        mode = os.fstat(1).st_mode
        has_reader = stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode)
        self._has_input = os.isatty(0) and not has_reader
        self._is_reading = False
        self._is_open = True
        self._typed = b""
        self._resize()

    def take(self, uid: int) -> None:
        """In the command's process, which leads a new session: use the pseudo-terminal."""
        make_controlling(self._slave)
        os.fchown(self._slave, uid, -1)
        null = os.open(os.devnull, os.O_RDONLY)
        for each in _STDIO:
            if os.isatty(each):
                os.dup2(null if each == 0 and not self._has_input else self._slave, each)

    # Relaying

    def resume(self) -> None:
        """Start to relay, or go on after a stop; read the keyboard if it is this job's."""
        if self._slave >= 0:
            os.close(self._slave)
            self._slave = -1
        self._resize()
        self._is_reading = self._has_input and _is_in_front()
        if self._is_reading:
            tty.setraw(0, termios.TCSADRAIN)

    def pause(self) -> None:
        """Give the caller's terminal its modes back."""
        if self._is_reading:
            self._is_reading = False
            with suppress(termios.error):  # hung up
                termios.tcsetattr(0, termios.TCSADRAIN, self._before)

    def relay(self) -> None:
        """Relay in both directions until one of the signals is pending."""
        while True:
            poll = select.poll()
            poll.register(self._signals, select.POLLIN)
            if self._is_open:
                poll.register(self._master, select.POLLIN | (select.POLLOUT * bool(self._typed)))
            if self._is_reading and not self._typed:
                poll.register(0, select.POLLIN)
            ready = dict(poll.poll())
            if 0 in ready:
                self._read_keys()
            if ready.get(self._master, 0) & select.POLLOUT:
                self._type()
            if ready.get(self._master, 0) & ~select.POLLOUT:
                self._show()
            if self._signals in ready:
                return

    def foreground(self) -> int | None:
        """The process group of the command that has the pseudo-terminal; None without one."""
        try:
            return os.tcgetpgrp(self._master) or None
        except OSError:
            return None

    def close(self) -> None:
        """Show what the command has written before its end, and restore the caller's terminal."""
        poll = select.poll()
        poll.register(self._master, select.POLLIN)
        until = time.monotonic() + _PATIENCE
        while self._is_open and time.monotonic() < until and poll.poll(_QUIET):
            self._show()
        self.pause()
        for each in (self._master, self._slave, self._signals):
            if each >= 0:
                os.close(each)

    def _resize(self) -> None:
        if self._output is not None:
            with suppress(OSError):
                copy_window_size(self._output, self._master)

    def _read_keys(self) -> None:
        try:
            typed = os.read(0, _CHUNK)
        except OSError:
            typed = b""
        if typed:
            self._typed = typed
            self._type()
        else:  # hung up
            self._has_input = self._is_reading = False

    def _type(self) -> None:
        try:
            self._typed = self._typed[os.write(self._master, self._typed) :]
        except BlockingIOError:
            pass  # the command does not read; POLLOUT says when it has
        except OSError:
            self._typed = b""

    def _show(self) -> None:
        try:
            data = os.read(self._master, _CHUNK)
        except BlockingIOError:
            return
        except OSError:  # EIO: no process has the pseudo-terminal open
            self._is_open = False
            return
        if not self._is_reading:
            # Not in raw mode, the caller's terminal adds the carriage returns (ONLCR).
            data = data.replace(b"\r\n", b"\n")
        while data and self._output is not None:
            try:
                data = data[os.write(self._output, data) :]
            except BlockingIOError:
                select.select([], [self._output], [])
            except OSError:
                self._output = None


def is_needed() -> bool:
    """Whether the caller has a terminal on 0, 1 or 2."""
    return any(map(os.isatty, _STDIO))


def close_others() -> None:
    """In the command's process: close terminals that it would inherit beside 0, 1 and 2."""
    for each in inheritable_descriptors():
        if each not in _STDIO and os.isatty(each):
            os.close(each)


def _is_in_front() -> bool:
    """Whether the caller's job may read its terminal; another one's reads would stop it."""
    try:
        return os.tcgetpgrp(0) == os.getpgrp()
    except OSError:
        return True  # not the terminal of this session: no shell controls jobs there
