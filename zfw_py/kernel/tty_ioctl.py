# SPDX-License-Identifier: GPL-2.0-only
"""Terminals, by ioctl_tty(2)."""

from __future__ import annotations

import fcntl
import termios

_WINSIZE_BYTES = 8  # struct winsize


def make_controlling(fd: int) -> None:
    """Make a terminal the controlling one of the caller, a session leader. Raises OSError."""
    fcntl.ioctl(fd, termios.TIOCSCTTY, 0)


def copy_window_size(source: int, target: int) -> None:
    """Give a pseudo-terminal the size of a terminal; a change sends SIGWINCH. Raises OSError."""
    size = fcntl.ioctl(source, termios.TIOCGWINSZ, bytes(_WINSIZE_BYTES))
    fcntl.ioctl(target, termios.TIOCSWINSZ, size)
