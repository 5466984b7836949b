# SPDX-License-Identifier: GPL-2.0-only
"""A pseudo-terminal: types at it, and reads what a program writes to it."""

from __future__ import annotations

import fcntl
import os
import pty
import select
import struct
import termios
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Callable, Iterator

_PATIENCE = 60.0


class Terminal:
    """A pseudo-terminal; ``seen`` is all that was written to it."""

    def __init__(self, master: int) -> None:
        self.master = master
        self.seen = ""
        self._read_to = 0

    def type(self, text: str) -> None:
        """Write text as the terminal's keyboard."""
        os.write(self.master, text.encode())

    def expect(self, text: str) -> str:
        """Wait for text after what was expected before; the output between the two."""
        deadline = time.monotonic() + _PATIENCE
        while (found := self.seen.find(text, self._read_to)) < 0:
            left = max(deadline - time.monotonic(), 0)
            if not select.select([self.master], [], [], left)[0]:
                raise AssertionError(f"{text!r} does not come after {self.seen!r}")
            try:
                self.seen += os.read(self.master, 65536).decode(errors="replace")
            except OSError:  # no process has the terminal open any longer
                raise AssertionError(f"{text!r} does not come, at the end: {self.seen!r}") from None
        came = self.seen[self._read_to : found]
        self._read_to = found + len(text)
        return came

    def foreground(self) -> int:
        """The process group in the foreground, which the terminal signals."""
        return os.tcgetpgrp(self.master)

    def resize(self, rows: int, columns: int) -> None:
        """Change the size; the kernel sends SIGWINCH to the foreground."""
        fcntl.ioctl(self.master, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def hang_up(self) -> None:
        """Close the master: the kernel sends SIGHUP."""
        os.close(self.master)
        self.master = -1


@contextmanager
def terminal(
    start: Callable[..., subprocess.Popen[str]], *command: str
) -> Iterator[tuple[Terminal, subprocess.Popen[str]]]:
    """A command in a new session with a new terminal; killed at the end.

    ``start`` is like subprocess.Popen, with the command's words as its arguments.
    """
    master, slave = pty.openpty()
    at = Terminal(master)
    try:
        # setsid(1) of util-linux makes stdin the session's terminal.
        process = start(
            "/usr/bin/setsid", "--ctty", *command, stdin=slave, stdout=slave, stderr=slave
        )
    finally:
        os.close(slave)
    try:
        yield at, process
    finally:
        process.kill()
        process.wait()
        if at.master >= 0:
            os.close(at.master)
