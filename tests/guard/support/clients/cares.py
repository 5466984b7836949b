# SPDX-License-Identifier: GPL-2.0-only
"""cares.py HOST: its addresses, a line each, by c-ares, with the search list of resolv.conf."""

from __future__ import annotations

import ctypes
import select
import socket
import sys
from typing import Any

cares = ctypes.CDLL("libcares.so.2")
_SOCKETS = 16


class Hostent(ctypes.Structure):
    """struct hostent, netdb.h."""

    _fields_ = (
        ("name", ctypes.c_char_p),
        ("aliases", ctypes.c_void_p),
        ("family", ctypes.c_int),
        ("length", ctypes.c_int),
        ("addresses", ctypes.POINTER(ctypes.c_void_p)),
    )


Callback = ctypes.CFUNCTYPE(
    None, ctypes.c_void_p, ctypes.c_int, ctypes.c_int, ctypes.POINTER(Hostent)
)


def main() -> int:
    """Ask for both families; 1 if neither has an address."""
    found: list[str] = []
    channel = ctypes.c_void_p()
    assert cares.ares_library_init(1) == 0
    assert cares.ares_init(ctypes.byref(channel)) == 0

    def on_host(_: object, status: int, _timeouts: int, host: Any) -> None:
        if status != 0:
            print(sys.argv[1], status, file=sys.stderr)
            return
        entry = host.contents
        at = 0
        while entry.addresses[at]:
            data = ctypes.string_at(entry.addresses[at], entry.length)
            found.append(socket.inet_ntop(entry.family, data))
            at += 1

    callback = Callback(on_host)
    for family in (socket.AF_INET, socket.AF_INET6):
        cares.ares_gethostbyname(channel, sys.argv[1].encode(), int(family), callback, None)
    sockets = (ctypes.c_int * _SOCKETS)()
    while bits := cares.ares_getsock(channel, sockets, _SOCKETS):
        reading = [sockets[n] for n in range(_SOCKETS) if bits >> n & 1]
        writing = [sockets[n] for n in range(_SOCKETS) if bits >> (n + _SOCKETS) & 1]
        readable, writable, _ = select.select(reading, writing, [], 0.1)
        for each in {*readable, *writable} or {-1}:
            cares.ares_process_fd(
                channel, each if each in readable else -1, each if each in writable else -1
            )
    print("\n".join(found))
    return 0 if found else 1


if __name__ == "__main__":
    sys.exit(main())
