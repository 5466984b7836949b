# SPDX-License-Identifier: GPL-2.0-only
"""Reads the sockets that systemd passed to this process (sd_listen_fds(3))."""

from __future__ import annotations

import os
from socket import AF_INET, AF_INET6, SO_PROTOCOL, SOL_SOCKET, socket
from typing import NamedTuple

from zfw_py.errors import UsageError
from zfw_py.values.prefix import mapped_address, parse_address

_FIRST = 3  # SD_LISTEN_FDS_START
_MOST = 1024


class Passed(NamedTuple):
    """An IPv4 or IPv6 socket that was passed. ``address``: 16 bytes, IPv4 as ::ffff:a.b.c.d."""

    socket: socket
    protocol: int
    address: bytes
    port: int


def passed_sockets() -> list[Passed]:
    """Duplicates of all passed IPv4 and IPv6 sockets, which the caller closes.

    Raises UsageError if systemd passed no descriptor.
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
            mapped = mapped_address(*parse_address(address.partition("%")[0], "LISTEN_FDS"))
            found.append(Passed(held, held.getsockopt(SOL_SOCKET, SO_PROTOCOL), mapped, port))
        else:
            held.close()
    return found
