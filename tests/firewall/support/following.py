# SPDX-License-Identifier: GPL-2.0-only
"""A follower in a process of its own, and what it has to keep right: SSH, rows, programs."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Self

from tests.support.command import ZFW
from tests.support.waiting import PATIENCE

if TYPE_CHECKING:
    from tests.support.netns import Namespace

# What the right state may take on a busy machine. It takes a second on a quiet one.
SOON = PATIENCE
SSH = 22


class Follower:
    """``zfw follow`` in a namespace, until the end of a with block; entered, it is ready."""

    def __init__(self, namespace: Namespace, *before: str) -> None:
        """``before`` are words of a command that starts it."""
        self._namespace = namespace
        self._before = before
        self.output = ""

    def __enter__(self) -> Self:
        self._directory = tempfile.TemporaryDirectory()
        path = f"{self._directory.name}/notify"
        self._log = Path(self._directory.name, "log").open("w+")
        self._notified = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._notified.bind(path)
        self._notified.settimeout(60)
        self.process = self._namespace.start(
            *self._before,
            str(ZFW),
            "follow",
            env=os.environ | {"NOTIFY_SOCKET": path},
            stdout=self._log,
            stderr=subprocess.STDOUT,
        )
        assert self._notified.recv(100) == b"READY=1"
        self._notified.setblocking(False)
        return self

    @property
    def is_ready_again(self) -> bool:
        """Whether it has said once more that it is ready."""
        try:
            return self._notified.recv(100) == b"READY=1"
        except BlockingIOError:
            return False

    def __exit__(self, *_: object) -> None:
        self.end()
        self._notified.close()
        self._log.close()
        self._directory.cleanup()

    def end(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Send a signal; the exit code."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        code = self.process.wait(60)
        self._log.seek(0)
        self.output = self._log.read()
        return code

    @property
    def memory(self) -> int:
        """Its resident memory in KiB."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        (line,) = (line for line in status.splitlines() if line.startswith("VmRSS"))
        return int(line.split()[1])

    @property
    def seconds(self) -> float:
        """The processor time that it has taken."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def connects(client: Namespace, address: str, port: int = SSH, patience: float = SOON) -> bool:
    """Whether a connection is made within some seconds, with a new SYN every 50 ms."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    end = time.monotonic() + patience
    with client.entered():
        while time.monotonic() < end:
            with socket.socket(family) as probe:
                probe.settimeout(0.05)
                try:
                    probe.connect((address, port))
                except OSError:
                    time.sleep(0.01)
                    continue
                return True
    return False


def listener(address: str = "::", port: int = SSH) -> socket.socket:
    """A listening socket of the caller's namespace, for both families."""
    made = socket.socket(socket.AF_INET6)
    made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    made.bind((address, port))
    made.listen(64)
    return made
