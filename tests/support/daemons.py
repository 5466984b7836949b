# SPDX-License-Identifier: GPL-2.0-only
"""Daemons of the distribution that run in a namespace."""

from __future__ import annotations

import signal
import subprocess
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.support.netns import Namespace


@contextmanager
def running(namespace: Namespace, log: Path, *command: str) -> Iterator[subprocess.Popen[str]]:
    """A daemon in the foreground, for the length of a with block; fails if it ends earlier."""
    with log.open("w") as output:
        daemon = namespace.start(
            *command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT
        )
    try:
        yield daemon
        assert daemon.poll() is None, f"{command[0]} ended: {log.read_text()}"
    finally:
        if daemon.poll() is None:
            daemon.send_signal(signal.SIGTERM)
        try:
            daemon.wait(5)
        except subprocess.TimeoutExpired:
            daemon.kill()
            daemon.wait()
