# SPDX-License-Identifier: GPL-2.0-only
"""A process ``zfw docker-dns watch``, and the lines that it prints."""

from __future__ import annotations

import signal
import subprocess
import threading
from contextlib import contextmanager
from queue import Queue
from typing import TYPE_CHECKING

from tests.docker_dns.support.world import PATIENCE, SERVER
from tests.support.command import ZFW

if TYPE_CHECKING:
    from collections.abc import Iterator


class Watching:
    """A running ``zfw docker-dns watch``, and the lines that it prints, without their times."""

    def __init__(self, *arguments: str) -> None:
        command = [str(ZFW), "docker-dns", "watch", "--docker", "web", "--to", SERVER, *arguments]
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        self.lines: Queue[str] = Queue()
        self._thread = threading.Thread(target=self._read)
        self._thread.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.put(line.partition(" ")[2].rstrip("\n"))
        self.lines.put("")

    def next(self) -> str:
        """The next line that is not about a query."""
        while "from 1" in (line := self.lines.get(timeout=PATIENCE)):
            pass
        assert line, self.errors()
        return line

    def next_query(self) -> str:
        """The next line that is about a query."""
        while "from 1" not in (line := self.lines.get(timeout=PATIENCE)):
            assert line, self.errors()
        return line

    def end(self, number: int = signal.SIGINT) -> int:
        """Send a signal, and wait; the exit code."""
        self.process.send_signal(number)
        return self.process.wait(PATIENCE)

    def errors(self) -> str:
        """Wait for the end, and return what was written to stderr."""
        assert self.process.stderr is not None
        self.process.wait(PATIENCE)
        return self.process.stderr.read()

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        self._thread.join()
        for stream in (self.process.stdout, self.process.stderr):
            assert stream is not None
            stream.close()


@contextmanager
def watching(*arguments: str) -> Iterator[Watching]:
    made = Watching(*arguments)
    try:
        yield made
    finally:
        made.close()
