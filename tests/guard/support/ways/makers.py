# SPDX-License-Identifier: GPL-2.0-only
"""Ways by others than the program's main thread: threads, children, io_uring."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
from contextlib import closing
from typing import TYPE_CHECKING

from tests.guard.support.uring import Ring
from tests.guard.support.ways.sockets import udp_sendto
from tests.guard.support.ways.way import DENIED, way
from tests.support.sockets import FAMILY, sockaddr, tcp_socket, udp_socket

if TYPE_CHECKING:
    from collections.abc import Callable


@way(4, 6)
def thread(data: bytes, family: int) -> None:
    failures: list[OSError] = []

    def run() -> None:
        try:
            udp_sendto(data, family)
        except OSError as error:
            failures.append(error)

    made = threading.Thread(target=run)
    made.start()
    made.join()
    if failures:
        raise failures[0]


def _in_child(action: Callable[[], None]) -> None:
    """Call a function in a child, and raise its error here."""
    read_end, write_end = os.pipe()
    pid = os.fork()
    if pid == 0:
        number = 255
        try:
            action()
            number = 0
        except OSError as error:
            number = error.errno or 255
        finally:
            os.write(write_end, bytes([number]))
            os._exit(0)
    os.close(write_end)
    with os.fdopen(read_end, "rb") as pipe:
        told = pipe.read()
    os.waitpid(pid, 0)
    if told != b"\0":
        raise OSError(told[0], os.strerror(told[0]))


@way(4, 6)
def child(data: bytes, family: int) -> None:
    _in_child(lambda: udp_sendto(data, family))


@way(4, 6)
def daemon(data: bytes, family: int) -> None:
    """Fork twice, in a new session."""

    def first() -> None:
        os.setsid()
        _in_child(lambda: udp_sendto(data, family))

    _in_child(first)


@way(4, 6)
def another_program(data: bytes, family: int) -> None:
    text = (
        "import socket, sys\n"
        f"s = socket.socket({int(FAMILY[family])}, socket.SOCK_DGRAM)\n"
        f"try: s.sendto({data!r}, ({DENIED[family]!r}, 80))\n"
        "except OSError as error: sys.exit(error.errno)"
    )
    code = subprocess.run([sys.executable, "-c", text], check=False).returncode
    if code:
        raise OSError(code, os.strerror(code))


@way(4, 6)
def ring_sendmsg(data: bytes, family: int) -> None:
    with closing(Ring()) as ring:
        ring.sendmsg(udp_socket(family), data, sockaddr(family, DENIED[family], 80))


@way(4, 6)
def ring_that_is_polled(data: bytes, family: int) -> None:
    with closing(Ring(is_polled=True)) as ring:
        ring.sendmsg(udp_socket(family), data, sockaddr(family, DENIED[family], 80))


@way(4, 6)
def ring_connect(data: bytes, family: int) -> None:
    made = tcp_socket(family)
    made.setblocking(True)
    with closing(Ring()) as ring:
        ring.connect(made, sockaddr(family, DENIED[family], 80))
    made.sendall(data)


@way(4, 6)
def ring_socket(data: bytes, family: int) -> None:
    """A socket that a ring creates belongs to the cgroup as well."""
    with closing(Ring(is_polled=True)) as ring:
        made = socket.socket(fileno=ring.socket(FAMILY[family], socket.SOCK_DGRAM))
    made.sendto(data, (DENIED[family], 80))
