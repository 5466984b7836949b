# SPDX-License-Identifier: GPL-2.0-only
"""Daemons and clients of a steered gateway, and ``zfw steer run`` in a process."""

from __future__ import annotations

import os
import selectors
import signal
import socket
import traceback
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple

from tests.support.waiting import PATIENCE
from zfw_py.steer.manager import run
from zfw_py.steer.model import AddressTarget, Mapping, MappingKey
from zfw_py.steer.service import Steering

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from tests.support.netns import Namespace


def mapping(protocol: str, address: str, port: str, to: str, **options: object) -> Mapping:
    """A mapping to an address."""
    key = MappingKey.parse(protocol, address, port)
    return Mapping.make(key, AddressTarget.parse(to), **options)  # type: ignore[arg-type]


def listen(address: str, port: int, *, is_shared: bool = False) -> socket.socket:
    """A TCP listener."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    made = socket.socket(family, socket.SOCK_STREAM)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if is_shared:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    made.bind((address, port))
    made.listen(64)
    made.settimeout(PATIENCE)
    return made


def datagrams(address: str, port: int) -> socket.socket:
    """An unconnected UDP socket."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    made = socket.socket(family, socket.SOCK_DGRAM)
    made.bind((address, port))
    made.settimeout(PATIENCE)
    return made


def is_refused(client: Namespace, address: str, port: int) -> bool:
    """Whether a connection is refused; raises an error if it fails in another way."""
    with client.entered():
        try:
            socket.create_connection((address, port), timeout=PATIENCE).close()
        except ConnectionRefusedError:
            return True
    return False


@contextmanager
def connected(client: Namespace, address: str, port: int) -> Iterator[socket.socket]:
    """A connection from a client."""
    with client.entered():
        made = socket.create_connection((address, port), timeout=PATIENCE)
    with made:
        yield made


def lands_on(client: Namespace, address: str, port: int, listener: socket.socket) -> bool:
    """Whether a listener accepts a connection that shows both ends their real addresses."""
    with connected(client, address, port) as ours:
        theirs, source = listener.accept()
        with theirs:
            ends = theirs.getsockname()[:2], source[:2]
            here = ours.getpeername()[:2], ours.getsockname()[:2]
            return tuple(map(_plain, ends)) == tuple(map(_plain, here)) and here[0][1] == port


def _plain(end: tuple[str, int]) -> tuple[str, int]:
    return end[0].removeprefix("::ffff:"), end[1]


class Managed(NamedTuple):
    """A ``zfw steer run`` in a process, and the lines that it logs."""

    pid: int
    lines: Iterator[str]

    def wait_for(self, text: str) -> str:
        """Wait for the next line that contains a text."""
        seen = []
        for line in self.lines:
            seen.append(line)
            if text in line:
                return line
        raise AssertionError(f"{text!r} was not logged, but {seen}")


@contextmanager
def managed(
    mappings: Sequence[Mapping] = (), *, is_first: bool = True, netns: str | None = None
) -> Iterator[Managed]:
    """A manager of the caller's network namespace, for the length of a with block."""
    read_end, write_end = os.pipe()
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            os.close(read_end)
            run(
                Steering(netns),
                mappings,
                lambda text: _write(write_end, text),
                [signal.SIGTERM],
            )
            code = 0
        except BaseException:  # noqa: BLE001
            os.write(write_end, traceback.format_exc().encode())
        finally:
            os._exit(code)
    os.close(write_end)
    status = 0
    try:
        made = Managed(pid, _lines(read_end))
        if is_first:
            made.wait_for("managing")
        yield made
    finally:
        try:
            os.kill(pid, signal.SIGTERM)
        except ProcessLookupError:
            pass
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        os.close(read_end)
    assert status in (0, -signal.SIGKILL), status


def _write(fd: int, text: str) -> None:
    os.write(fd, f"{text}\n".encode())


def _lines(fd: int) -> Iterator[str]:
    rest = b""
    with selectors.DefaultSelector() as selector:
        selector.register(fd, selectors.EVENT_READ)
        while True:
            line, newline, after = rest.partition(b"\n")
            if newline:
                rest = after
                yield line.decode()
                continue
            if not selector.select(PATIENCE):
                return
            data = os.read(fd, 4096)
            if not data:
                return
            rest += data
