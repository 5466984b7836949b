# SPDX-License-Identifier: GPL-2.0-only
"""What a way out is, where it may lead, and sockets to go by."""

from __future__ import annotations

import ctypes
import os
import socket
import struct
from typing import TYPE_CHECKING, Any, NamedTuple

from tests.support.guarded import UPSTREAM, UPSTREAM6

if TYPE_CHECKING:
    from collections.abc import Callable

# IPv4, IPv4 by a socket of IPv6, and IPv6.
FAMILIES = (4, "mapped", 6)
FAMILY = {4: socket.AF_INET, "mapped": socket.AF_INET6, 6: socket.AF_INET6}
OPEN = {4: "10.9.0.15", "mapped": "::ffff:10.9.0.15", 6: "fd09::15"}
PORTED = {4: "10.9.0.13", "mapped": "::ffff:10.9.0.13", 6: "fd09::13"}
DENIED = {4: "10.9.0.20", "mapped": "::ffff:10.9.0.20", 6: "fd09::20"}
OWN = {4: "10.9.0.2", "mapped": "::ffff:10.9.0.2", 6: "fd09::2"}
LOOPBACK = {4: "127.0.0.1", "mapped": "::ffff:127.0.0.1", 6: "::1"}
NAME_SERVER = {4: UPSTREAM, "mapped": f"::ffff:{UPSTREAM}", 6: UPSTREAM6}
INTERFACE = "eth0"
MSG_FASTOPEN = 0x20000000
# What makes them so. Ours may be reached as well: whoever opens a network opens himself.
POLICY = [
    *("--allow", OPEN[4], "--allow", OPEN[6]),
    *("--allow", f"{PORTED[4]}:80", "--allow", f"[{PORTED[6]}]:80"),
    *("--allow", OWN[4], "--allow", OWN[6]),
]

_libc = ctypes.CDLL(None, use_errno=True)


class Way(NamedTuple):
    """A way out, gone with a payload. ``is_open``: it leads where one may go.

    A packet that has gone it has ``sign`` within.
    """

    go: Callable[[bytes], None]
    is_open: bool
    sign: bytes


WAYS: dict[str, Way] = {}


def way(*families: int | str, is_open: bool = False, sign: bytes = b"") -> Callable[[Any], Any]:
    """Register a function of a payload, or one of payload and family for each of these.

    ``sign`` is for one whose payload does not get far.
    """

    def register(function: Any) -> Any:
        name = function.__name__
        if not families:
            WAYS[name] = Way(function, is_open, sign or payload(name))
        for family in families:
            WAYS[f"{name}_{family}"] = Way(
                lambda data, family=family: function(data, family),
                is_open,
                sign or payload(f"{name}_{family}"),
            )
        return function

    return register


def payload(name: str) -> bytes:
    """What a way sends: told from all others wherever it is found."""
    return f"<{name}>".encode()


# Sockets


def udp_socket(family: int | str = 4) -> socket.socket:
    """A UDP socket that does not wait for ever."""
    made = socket.socket(FAMILY[family], socket.SOCK_DGRAM)
    made.settimeout(5)
    return made


def tcp_socket(family: int | str = 4, protocol: int = 0) -> socket.socket:
    """Likewise of TCP, or of what else has streams."""
    made = socket.socket(FAMILY[family], socket.SOCK_STREAM, protocol)
    made.settimeout(5)
    return made


def stream(made: socket.socket, data: bytes, address: str, port: int = 80) -> None:
    """Connect, send, and wait for the answer."""
    made.connect((address, port))
    made.sendall(data)
    made.recv(1)


# What Python has no words for


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
    """As a socket of this family has it."""
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
    """To AF_UNSPEC, see connect(2): the socket is as if it never was connected."""
    connect(made, struct.pack("=H14x", socket.AF_UNSPEC))


def sendto(made: socket.socket, data: bytes, address: bytes) -> None:
    """sendto(2) a struct sockaddr of any family."""
    _checked(_libc.sendto(made.fileno(), data, len(data), 0, address, len(address)))


def sendmmsg(made: socket.socket, messages: list[tuple[bytes, bytes]]) -> None:
    """sendmmsg(2): data and a struct sockaddr each. Raises OSError unless all are sent."""
    kept = []
    # struct mmsghdr: a struct msghdr, of seven words, and the length.
    vector = (ctypes.c_size_t * (8 * len(messages)))()
    for place, (data, address) in enumerate(messages):
        to = ctypes.create_string_buffer(address, len(address))
        content = ctypes.create_string_buffer(data, len(data))
        part = (ctypes.c_size_t * 2)(ctypes.addressof(content), len(data))
        kept += [to, content, part]
        vector[8 * place : 8 * place + 4] = [
            ctypes.addressof(to),
            len(address),
            ctypes.addressof(part),
            1,
        ]
    sent = _libc.sendmmsg(made.fileno(), vector, len(messages), 0)
    _checked(sent)
    if sent < len(messages):
        # What stopped it is told with the next call.
        to = messages[sent]
        sendto(made, *to)
