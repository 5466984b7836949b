# SPDX-License-Identifier: GPL-2.0-only
"""The addresses of interfaces, by getifaddrs(3).

Hot: every writing command keeps the addresses in the kernel's table current,
and loading a netlink library would take ten times as long as all the rest.
"""

from __future__ import annotations

import ctypes
from _socket import AF_INET, AF_INET6
from struct import unpack_from

from zfw_py.errors import KernelError
from zfw_py.values.prefix import IPV4_MAPPED


class _Ifaddrs(ctypes.Structure):
    """struct ifaddrs; the C library owns the list until freeifaddrs()."""


_Ifaddrs._fields_ = [
    ("next", ctypes.POINTER(_Ifaddrs)),
    ("name", ctypes.c_char_p),
    ("flags", ctypes.c_uint),
    ("address", ctypes.c_void_p),
    ("netmask", ctypes.c_void_p),
    ("broadcast", ctypes.c_void_p),
    ("data", ctypes.c_void_p),
]

_libc = ctypes.CDLL(None, use_errno=True)


def interface_addresses() -> dict[str, set[bytes]]:
    """By interface name its addresses: 16 bytes each, IPv4 as ::ffff:a.b.c.d."""
    first = ctypes.POINTER(_Ifaddrs)()
    if _libc.getifaddrs(ctypes.byref(first)) != 0:
        raise KernelError("read the interfaces' addresses", ctypes.get_errno())
    found: dict[str, set[bytes]] = {}
    try:
        entry = first
        while entry:
            item = entry.contents
            # A label of an old-style alias, eth0:1, counts for eth0.
            name = item.name.decode("utf-8", "surrogateescape").partition(":")[0]
            addresses = found.setdefault(name, set())
            if item.address:
                raw = ctypes.string_at(item.address, 2)
                (family,) = unpack_from("=H", raw)
                if family == AF_INET:  # sockaddr_in: family, port, address
                    addresses.add(IPV4_MAPPED + ctypes.string_at(item.address + 4, 4))
                elif family == AF_INET6:  # sockaddr_in6: family, port, flowinfo, address
                    addresses.add(ctypes.string_at(item.address + 8, 16))
            entry = item.next
    finally:
        _libc.freeifaddrs(first)
    return found
