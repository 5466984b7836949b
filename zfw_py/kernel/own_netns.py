# SPDX-License-Identifier: GPL-2.0-only
"""The caller's network namespace: its cookie, its interfaces and their addresses. Hot.

By SO_NETNS_COOKIE, ioctl (netdevice(7)) and getifaddrs(3); namespaces.py finds and enters
other namespaces.

Every command that writes also updates the addresses in the kernel's map. Importing a
netlink library for that would take ten times as long as the rest of such a command.
"""

from __future__ import annotations

import ctypes
from _socket import AF_INET, AF_INET6, AF_UNIX, SOCK_DGRAM, SOL_SOCKET, socket
from fcntl import ioctl
from struct import unpack_from

from zfw_py.errors import KernelError
from zfw_py.kernel.libc import last_error, libc
from zfw_py.values.prefix import IPV4_MAPPED

# Link types whose frames begin with an Ethernet header: ARPHRD_ETHER and ARPHRD_LOOPBACK
# of include/uapi/linux/if_arp.h.
ETHERNET_TYPES = (1, 772)
_SIOCGIFHWADDR = 0x8927  # include/uapi/linux/sockios.h
_IFNAMSIZ = 16


# Since 5.14 (e8b9eab99232). The kernel never reuses a cookie while the machine runs. It
# reuses the inode number of a namespace within seconds.
_SO_NETNS_COOKIE = 71


def netns_cookie() -> int:
    """The cookie of the caller's network namespace."""
    probe = socket(AF_UNIX, SOCK_DGRAM)
    try:
        from sys import byteorder

        return int.from_bytes(probe.getsockopt(SOL_SOCKET, _SO_NETNS_COOKIE, 8), byteorder)
    finally:
        probe.close()


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


def link_type(name: str) -> int:
    """The ARPHRD_* number of an interface's link. Raises OSError.

    Not read from /sys/class/net: a mount of sysfs shows the interfaces of the network
    namespace that it was made in.
    """
    probe = socket(AF_INET, SOCK_DGRAM)
    try:
        # struct ifreq: the name, then a sockaddr, whose family is the link type.
        request = name.encode("utf-8", "surrogateescape").ljust(_IFNAMSIZ, b"\0") + bytes(24)
        number: int = unpack_from("=H", ioctl(probe.fileno(), _SIOCGIFHWADDR, request), _IFNAMSIZ)[
            0
        ]
        return number
    finally:
        probe.close()


def interface_addresses() -> dict[str, set[bytes]]:
    """The addresses of each interface by its name: 16 bytes each, IPv4 as ::ffff:a.b.c.d.

    An interface without addresses has an empty set. Raises KernelError.
    """
    first = ctypes.POINTER(_Ifaddrs)()
    if libc.getifaddrs(ctypes.byref(first)) != 0:
        raise KernelError("read the interfaces' addresses", last_error())
    found: dict[str, set[bytes]] = {}
    try:
        entry = first
        while entry:
            item = entry.contents
            # An IPv4 address can have a label such as eth0:1. It is an address of eth0.
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
        libc.freeifaddrs(first)
    return found
