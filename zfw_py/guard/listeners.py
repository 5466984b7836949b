# SPDX-License-Identifier: GPL-2.0-only
"""Opens the DNS proxy's sockets in the network namespaces of its clients."""

from __future__ import annotations

import errno
import os
import socket
from contextlib import ExitStack, suppress
from sys import byteorder
from typing import TYPE_CHECKING, NamedTuple

from zfw_py.errors import KernelError, NotFound, ZfwError
from zfw_py.guard.codec import Proxy
from zfw_py.guard.layout import SERVERS
from zfw_py.kernel.namespaces import call_in, path_of
from zfw_py.kernel.own_netns import netns_cookie
from zfw_py.values.prefix import IPV4_MAPPED

if TYPE_CHECKING:
    from collections.abc import Iterable

_LOOPBACK4 = ("127.0.0.1", IPV4_MAPPED + b"\x7f\0\0\1")
_LOOPBACK6 = ("::1", b"\0" * 15 + b"\1")
_BACKLOG = 128
_SO_NETNS_COOKIE = 71  # asm-generic/socket.h
# Attempts to find a port that is free for both TCP and UDP.
_ATTEMPTS = 64


class Listeners(NamedTuple):
    """The sockets in one network namespace: for each family SERVERS for UDP, one for TCP.

    The TCP socket has the port of the first UDP socket. A family without a loopback address in the
    namespace has no sockets. ``cookie``: the namespace's. ``proxy``: their addresses and ports, for
    the map ``proxies``.
    """

    cookie: int
    udp: list[socket.socket]
    tcp: list[socket.socket]
    proxy: Proxy

    def close(self) -> None:
        """Close the sockets."""
        for each in (*self.udp, *self.tcp):
            each.close()

    def addresses(self) -> Iterable[tuple[str, int]]:
        """Address and port of each socket."""
        return [each.getsockname()[:2] for each in (*self.udp, *self.tcp)]


def open_here() -> Listeners:
    """Open the sockets in the caller's network namespace. Raises KernelError, ZfwError."""
    with ExitStack() as undo:
        udp4, tcp4 = _open(socket.AF_INET, _LOOPBACK4[0], undo)
        udp6, tcp6 = _open(socket.AF_INET6, _LOOPBACK6[0], undo)
        if not udp4 and not udp6:
            raise ZfwError("there is no loopback address in the network namespace to answer on")
        proxy = Proxy(
            ipv4=_LOOPBACK4[1],
            ipv4_ports=tuple(each.getsockname()[1] for each in udp4),
            ipv6=_LOOPBACK6[1],
            ipv6_ports=tuple(each.getsockname()[1] for each in udp6),
        )
        undo.pop_all()
        return Listeners(netns_cookie(), udp4 + udp6, tcp4 + tcp6, proxy)


def recognised(sockets: Iterable[socket.socket], cookie: int, proxy: Proxy) -> Listeners | None:
    """Find the proxy's sockets in one network namespace among ``sockets``.

    None if not all of them are there. Needs SO_NETNS_COOKIE, Linux 5.14 (e8b9eab99232).
    """
    by_end: dict[tuple[int, str, int], socket.socket] = {}
    for each in sockets:
        try:
            netns = int.from_bytes(
                each.getsockopt(socket.SOL_SOCKET, _SO_NETNS_COOKIE, 8), byteorder
            )
            is_tcp = each.type == socket.SOCK_STREAM
            is_server = each.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN) if is_tcp else 1
        except OSError:
            continue
        if netns == cookie and is_server:
            by_end[each.type, *each.getsockname()[:2]] = each
    udp, tcp = [], []
    for address, ports in ((_LOOPBACK4[0], proxy.ipv4_ports), (_LOOPBACK6[0], proxy.ipv6_ports)):
        udp += [by_end.get((socket.SOCK_DGRAM, address, port)) for port in ports]
        tcp += [by_end.get((socket.SOCK_STREAM, address, port)) for port in ports[:1]]
    if None in udp or None in tcp or not udp:
        return None
    return Listeners(cookie, udp, tcp, proxy)  # type: ignore[arg-type]


def open_in(path: str) -> Listeners:
    """Open the sockets in a network namespace, given by a path such as /proc/PID/ns/net."""
    return call_in(path, open_here)


def namespace_of(cookie: int, pids: Iterable[int]) -> str | None:
    """The path of the network namespace with this cookie, if one of these processes is in it."""
    others = set()
    for pid in pids:
        path = path_of(pid)
        # The process may have ended, or may not be inspected.
        with suppress(ZfwError, OSError):
            name = os.readlink(path)
            if name in others:
                continue
            if call_in(path, netns_cookie) == cookie:
                return path
            others.add(name)
    return None


def open_for(pids: Iterable[int]) -> list[Listeners]:
    """Open the sockets in each network namespace of these processes."""
    opened: dict[str, Listeners] = {}
    with ExitStack() as undo:
        for pid in pids:
            path = path_of(pid)
            try:
                name = os.readlink(path)
                if name not in opened:
                    opened[name] = open_in(path)
                    undo.callback(opened[name].close)
            except (FileNotFoundError, ProcessLookupError, NotFound):
                continue  # the process has ended
        undo.pop_all()
    return list(opened.values())


def _open(
    family: socket.AddressFamily, address: str, undo: ExitStack
) -> tuple[list[socket.socket], list[socket.socket]]:
    try:
        tcp, first = _pair(family, address, undo)
        rest = [
            undo.enter_context(_bound(family, socket.SOCK_DGRAM, address, 0))
            for _ in range(1, SERVERS)
        ]
    except OSError as error:
        if error.errno in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
            return [], []
        raise KernelError(f"listen on {address}", error.errno or 0) from error
    return [first, *rest], [tcp]


def _pair(
    family: socket.AddressFamily, address: str, undo: ExitStack
) -> tuple[socket.socket, socket.socket]:
    """A TCP listener and a UDP socket on one port."""
    for attempt in range(_ATTEMPTS):
        tcp = _bound(family, socket.SOCK_STREAM, address, 0)
        try:
            udp = _bound(family, socket.SOCK_DGRAM, address, tcp.getsockname()[1])
        except OSError as error:
            tcp.close()
            if error.errno != errno.EADDRINUSE or attempt == _ATTEMPTS - 1:
                raise
            continue
        undo.enter_context(tcp)
        undo.enter_context(udp)
        tcp.listen(_BACKLOG)
        return tcp, udp
    raise AssertionError("the last attempt raises")


def _bound(
    family: socket.AddressFamily, kind: socket.SocketKind, address: str, port: int
) -> socket.socket:
    made = socket.socket(family, kind)
    try:
        made.bind((address, port))
    except OSError:
        made.close()
        raise
    made.setblocking(False)
    return made
