# SPDX-License-Identifier: GPL-2.0-only
"""Two ends of a socket by which a supervisor hands duplicates of its sockets to its watcher.

A message is the cookie of a network namespace. With descriptors (SCM_RIGHTS, unix(7)) the watcher
holds these in the place of earlier ones of the namespace; without, it closes what it holds.
"""

from __future__ import annotations

import socket
from array import array
from contextlib import suppress
from sys import byteorder
from typing import TYPE_CHECKING

from zfw_py.guard import listeners
from zfw_py.guard.layout import SERVERS

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from zfw_py.guard.codec import Proxy
    from zfw_py.guard.listeners import Listeners

_COOKIE_BYTES = 8
_MOST = 2 * (SERVERS + 1)  # sockets of a namespace


def pair() -> tuple[socket.socket, socket.socket]:
    """Both ends. Messages are kept whole and in order, and the end of a process is seen."""
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)


class Sender:
    """The supervisor's end. A message that finds no room or no watcher is lost."""

    def __init__(self, end: socket.socket) -> None:
        """``end`` is one of ``pair``."""
        self._end = end

    def hold(self, opened: Listeners) -> None:
        """Have the watcher hold these sockets."""
        fds = [each.fileno() for each in (*opened.udp, *opened.tcp)]
        self._send(opened.cookie, fds)

    def let_go(self, cookie: int) -> None:
        """Have the watcher close its sockets of a network namespace."""
        self._send(cookie, [])

    def _send(self, cookie: int, fds: list[int]) -> None:
        data = cookie.to_bytes(_COOKIE_BYTES, byteorder)
        # The supervisor waits for nothing: a watcher that was stopped reads nothing.
        with suppress(OSError):
            socket.send_fds(self._end, [data], fds, socket.MSG_DONTWAIT)


class HeldSockets:
    """The watcher's duplicates of its supervisor's sockets, by network namespace."""

    def __init__(self, opened: Iterable[Listeners] = ()) -> None:
        """``opened``: sockets that are held from the beginning."""
        self._by_cookie = {each.cookie: [*each.udp, *each.tcp] for each in opened}

    def receive(self, end: socket.socket) -> bool:
        """Read one message; False if there is none, now or any more."""
        room = socket.CMSG_SPACE(_MOST * array("i").itemsize)
        flags = socket.MSG_DONTWAIT | socket.MSG_CMSG_CLOEXEC
        try:
            data, ancillary, _, _ = end.recvmsg(_COOKIE_BYTES, room, flags)
        except OSError:
            return False
        if not data:
            return False
        cookie = int.from_bytes(data, byteorder)
        for each in self._by_cookie.pop(cookie, []):
            each.close()
        fds = array("i")
        for level, kind, content in ancillary:
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                fds.frombytes(content[: len(content) - len(content) % fds.itemsize])
        if fds:
            self._by_cookie[cookie] = [socket.socket(fileno=fd) for fd in fds]
        return True

    def listeners(self, proxies: Mapping[int, Proxy]) -> list[Listeners]:
        """The sockets of each network namespace where all that the map ``proxies`` names are held.

        They stay held: a process that is forked next has descriptors of its own. Others are closed.
        """
        found = []
        for cookie, sockets in self._by_cookie.items():
            proxy = proxies.get(cookie)
            one = None if proxy is None else listeners.recognised(sockets, cookie, proxy)
            if one is None:
                for each in sockets:
                    each.close()
            else:
                found.append(one)
        self._by_cookie = {each.cookie: [*each.udp, *each.tcp] for each in found}
        return found
