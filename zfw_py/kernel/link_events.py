# SPDX-License-Identifier: GPL-2.0-only
"""Notifications of rtnetlink(7): that links, addresses or qdiscs have changed.

Without pyroute2, which takes 15 MB: the reader of these events runs for as long as the machine.
"""

from __future__ import annotations

import errno
import select
import socket
from time import monotonic
from typing import Self

# Bits of the groups in include/uapi/linux/rtnetlink.h: RTNLGRP_LINK, _TC, _IPV4_IFADDR and
# _IPV6_IFADDR. A link that is renamed, or moved to or from the namespace, is one of RTNLGRP_LINK.
_GROUPS = 1 << 0 | 1 << 3 | 1 << 4 | 1 << 8
_SO_RCVBUFFORCE = 33
_BUFFER = 1 << 20
_LARGEST = 1 << 16


class LinkEvents:
    """The changes in the network namespace that the object was made in. A context manager.

    What has changed is not read from the messages: a reader looks at the system instead, and so
    nothing is lost where the kernel drops messages.
    """

    def __init__(self) -> None:
        """Changes from now on are noted. Raises OSError."""
        self._socket = socket.socket(
            socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_NONBLOCK, socket.NETLINK_ROUTE
        )
        self._socket.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _BUFFER)
        self._socket.bind((0, _GROUPS))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def fileno(self) -> int:
        """It is readable where something has changed."""
        return self._socket.fileno()

    def consume(self, quiet: float, most: float) -> None:
        """Read messages until none came for ``quiet`` seconds, for ``most`` seconds at most."""
        deadline = monotonic() + most
        poll = select.poll()
        poll.register(self, select.POLLIN)
        while (left := deadline - monotonic()) > 0 and poll.poll(1000 * min(quiet, left)):
            self._read_all()

    def _read_all(self) -> None:
        while True:
            try:
                self._socket.recv(_LARGEST)
            except BlockingIOError:
                return
            except OSError as error:
                # ENOBUFS: the kernel has dropped messages.
                if error.errno != errno.ENOBUFS:
                    raise
