# SPDX-License-Identifier: GPL-2.0-only
"""Sockets of all families, and system calls that the module socket lacks."""

from __future__ import annotations

import ctypes
import errno
import os
import socket
import struct
import sys
from typing import TYPE_CHECKING

from tests.support.waiting import PATIENCE

if TYPE_CHECKING:
    from collections.abc import Callable

# IPv4, IPv4-mapped addresses on a socket of IPv6, and IPv6.
FAMILIES = (4, "mapped", 6)
FAMILY = {4: socket.AF_INET, "mapped": socket.AF_INET6, 6: socket.AF_INET6}

_SOCKADDR_STORAGE = 128

_libc = ctypes.CDLL(None, use_errno=True)


def error_of(action: Callable[[], object]) -> str:
    """Call an action; the name of its error, such as "EPERM", or "" without one."""
    try:
        action()
    except TimeoutError:
        return "ETIMEDOUT"
    except OSError as error:
        return errno.errorcode[error.errno or 0]
    return ""


def udp_socket(family: int | str = 4) -> socket.socket:
    """A UDP socket with a time-out for a busy machine."""
    made = socket.socket(FAMILY[family], socket.SOCK_DGRAM)
    made.settimeout(PATIENCE)
    return made


def tcp_socket(family: int | str = 4, protocol: int = 0) -> socket.socket:
    """A TCP socket, or one of another protocol with streams, with a time-out for a busy machine."""
    made = socket.socket(FAMILY[family], socket.SOCK_STREAM, protocol)
    made.settimeout(PATIENCE)
    return made


def retransmissions(made: socket.socket) -> int:
    """How many segments a TCP socket has sent again, SYNs too: struct tcp_info, since 4.2."""
    info = made.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 104)
    return int.from_bytes(info[100:104], sys.byteorder)


def stream(made: socket.socket, data: bytes, address: str, port: int = 80) -> None:
    """Connect, send, and wait for an answer."""
    made.connect((address, port))
    made.sendall(data)
    made.recv(1)


# System calls


def ipv4_sockaddr(address: str, port: int) -> bytes:
    """struct sockaddr_in."""
    return (
        struct.pack("=H", socket.AF_INET)
        + struct.pack("!H4s", port, socket.inet_aton(address))
        + bytes(8)
    )


def ipv6_sockaddr(address: str, port: int) -> bytes:
    """struct sockaddr_in6."""
    return (
        struct.pack("=H", socket.AF_INET6)
        + struct.pack("!HI16s", port, 0, socket.inet_pton(socket.AF_INET6, address))
        + bytes(4)
    )


def sockaddr(family: int | str, address: str, port: int) -> bytes:
    """The struct sockaddr for a socket of this family."""
    return ipv4_sockaddr(address, port) if family == 4 else ipv6_sockaddr(address, port)


def _checked(result: int) -> None:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def connect(made: socket.socket, address: bytes) -> None:
    """connect(2) to a struct sockaddr of any family."""
    made.setblocking(True)
    _checked(_libc.connect(made.fileno(), address, len(address)))


def disconnect(made: socket.socket) -> None:
    """Dissolve the connection of a UDP socket: connect(2) to AF_UNSPEC."""
    connect(made, struct.pack("=H14x", socket.AF_UNSPEC))


def sendto(made: socket.socket, data: bytes, address: bytes) -> None:
    """sendto(2) a struct sockaddr of any family."""
    _checked(_libc.sendto(made.fileno(), data, len(data), 0, address, len(address)))


def sendmmsg(made: socket.socket, messages: list[tuple[bytes, bytes]]) -> None:
    """sendmmsg(2): data and a struct sockaddr each. Raises OSError unless all are sent."""
    vector = _Messages(messages)
    sent = _libc.sendmmsg(made.fileno(), vector.headers, len(messages), 0)
    _checked(sent)
    if sent < len(messages):
        # Only the next call returns the error that stopped this one.
        sendto(made, *messages[sent])


def recvmmsg(made: socket.socket, count: int) -> list[tuple[bytes, str, int]]:
    """recvmmsg(2) of ``count`` datagrams: data, address and port of each."""
    made.setblocking(True)
    vector = _Messages([(bytes(4096), bytes(_SOCKADDR_STORAGE))] * count)
    _checked(_libc.recvmmsg(made.fileno(), vector.headers, count, 0, None))
    received = []
    for place in range(count):
        data, sender = vector.contents(place)
        (family,) = struct.unpack_from("=H", sender)
        (port,) = struct.unpack_from("!H", sender, 2)
        raw = sender[4:8] if family == socket.AF_INET else sender[8:24]
        received.append((data, socket.inet_ntop(family, raw), port))
    return received


class _Messages:
    """An array of struct mmsghdr: each a struct msghdr, of seven words, and a length."""

    def __init__(self, messages: list[tuple[bytes, bytes]]) -> None:
        self.headers = (ctypes.c_size_t * (8 * len(messages)))()
        self._kept = []
        for place, (data, address) in enumerate(messages):
            to = ctypes.create_string_buffer(address, len(address))
            content = ctypes.create_string_buffer(data, len(data))
            part = (ctypes.c_size_t * 2)(ctypes.addressof(content), len(data))
            header = [ctypes.addressof(to), len(address), ctypes.addressof(part), 1]
            for word, value in enumerate(header, 8 * place):
                self.headers[word] = value
            self._kept.append((to, content, part))

    def contents(self, place: int) -> tuple[bytes, bytes]:
        """The data and the struct sockaddr of a received message."""
        to, content, _ = self._kept[place]
        return content.raw[: self.headers[8 * place + 7] & 0xFFFFFFFF], to.raw
