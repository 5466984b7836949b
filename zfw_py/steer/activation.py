# SPDX-License-Identifier: GPL-2.0-only
"""The sockets that systemd passed to this process, sd_listen_fds(3)."""

from __future__ import annotations

import os
from socket import AF_INET, AF_INET6, SO_PROTOCOL, SOL_SOCKET, inet_pton, socket
from typing import NamedTuple

from zfw_py.errors import UsageError

_FIRST = 3  # SD_LISTEN_FDS_START
_MOST = 1024


class Passed(NamedTuple):
    """A socket of the internet that was passed. ``address`` has 16 bytes, IPv4 as mapped."""

    socket: socket
    protocol: int
    address: bytes
    port: int


def passed_sockets() -> list[Passed]:
    """All of them; each descriptor is the caller's to close.

    Others, such as Unix sockets, are left out. Raises UsageError if none was passed.
    """
    count = os.environ.get("LISTEN_FDS", "")
    is_ours = os.environ.get("LISTEN_PID", "") == str(os.getpid())
    if not is_ours or not count.isascii() or not count.isdigit() or not 0 < int(count) <= _MOST:
        raise UsageError(
            "--register: no socket was passed to this process (LISTEN_FDS)",
            hint="run it as ExecStart= of a service with Sockets=",
        )
    found = []
    for number in range(_FIRST, _FIRST + int(count)):
        try:
            held = socket(fileno=os.dup(number))
        except OSError:
            continue  # a FIFO or another file
        if held.family in (AF_INET, AF_INET6):
            address, port = held.getsockname()[:2]
            found.append(
                Passed(held, held.getsockopt(SOL_SOCKET, SO_PROTOCOL), _mapped(address), port)
            )
        else:
            held.close()
    return found


def _mapped(address: str) -> bytes:
    plain = address.partition("%")[0]
    if ":" in plain:
        return inet_pton(AF_INET6, plain)
    return b"\0" * 10 + b"\xff\xff" + inet_pton(AF_INET, plain)
