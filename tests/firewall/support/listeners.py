# SPDX-License-Identifier: GPL-2.0-only
"""Transparent listeners as a router opens them, on 127.0.0.1 or ::1."""

from __future__ import annotations

import socket
import struct
from contextlib import contextmanager
from typing import TYPE_CHECKING

from tests.support.waiting import PATIENCE

if TYPE_CHECKING:
    from collections.abc import Iterator

IP_TRANSPARENT, IP_RECVORIGDSTADDR = 19, 20
IPV6_TRANSPARENT, IPV6_RECVORIGDSTADDR = 75, 74
LOOPBACK = {4: "127.0.0.1", 6: "::1"}


class Listener:
    """A bound transparent socket; ``port`` is the tproxy port for a rule."""

    def __init__(
        self, family: int, kind: socket.SocketKind, port: int = 0, address: str = ""
    ) -> None:
        self.family = family
        self.socket = socket.socket(socket.AF_INET if family == 4 else socket.AF_INET6, kind)
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == 4:
            self.socket.setsockopt(socket.SOL_IP, IP_TRANSPARENT, 1)
            self.socket.setsockopt(socket.SOL_IP, IP_RECVORIGDSTADDR, 1)
        else:
            self.socket.setsockopt(socket.IPPROTO_IPV6, IPV6_TRANSPARENT, 1)
            self.socket.setsockopt(socket.IPPROTO_IPV6, IPV6_RECVORIGDSTADDR, 1)
        self.socket.settimeout(PATIENCE)
        self.socket.bind((address or LOOPBACK[family], port))
        if kind == socket.SOCK_STREAM:
            self.socket.listen(64)
        self.port: int = self.socket.getsockname()[1]

    def accept(self) -> socket.socket:
        """Accept a connection; both sockets have a time-out for a busy machine."""
        connection, _ = self.socket.accept()
        connection.settimeout(PATIENCE)
        return connection

    def receive(self) -> tuple[bytes, tuple[str, int], tuple[str, int]]:
        """Receive a datagram: data, source, original destination."""
        data, ancillary, _, source = self.socket.recvmsg(65535, 256)
        for _, _, value in ancillary:
            if self.family == 4:
                port, raw = struct.unpack_from("!2xH4s", value)
                return data, source[:2], (socket.inet_ntop(socket.AF_INET, raw), port)
            port, raw = struct.unpack_from("!2xH4x16s", value)
            return data, source[:2], (socket.inet_ntop(socket.AF_INET6, raw), port)
        raise AssertionError("no original destination came with the datagram")


@contextmanager
def tcp_listener(family: int = 4, port: int = 0, address: str = "") -> Iterator[Listener]:
    """A TCP listener for the length of a with block."""
    listener = Listener(family, socket.SOCK_STREAM, port, address)
    with listener.socket:
        yield listener


@contextmanager
def udp_listener(family: int = 4, port: int = 0, address: str = "") -> Iterator[Listener]:
    """An unconnected UDP socket for the length of a with block."""
    listener = Listener(family, socket.SOCK_DGRAM, port, address)
    with listener.socket:
        yield listener
