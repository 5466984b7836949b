# SPDX-License-Identifier: GPL-2.0-only
"""The route of one packet, and the sockets that wait for any peer.

By rtnetlink(7) and sock_diag(7) without pyroute2, whose import takes longer than the rest of
such a command. ``routing`` and ``sock_diag`` are for all else. All functions ask in the
caller's network namespace.
"""

from __future__ import annotations

import errno
import socket
import sys
from struct import Struct
from typing import NamedTuple

from zfw_py.errors import KernelError
from zfw_py.kernel import netlink

_u32 = Struct("=I")

# include/uapi/linux/rtnetlink.h
_RTM_GETROUTE = 26
_rtmsg = Struct("=BBBBBBBBI")  # family, dst_len, src_len, tos, table, protocol, scope, type, flags
_RTA_DST, _RTA_SRC, _RTA_IIF, _RTA_OIF, _RTA_GATEWAY, _RTA_VIA = 1, 2, 3, 4, 5, 18
_RTA_IP_PROTO, _RTA_DPORT = 27, 29
_KINDS = {1: "unicast", 2: "local", 3: "broadcast", 4: "anycast", 5: "multicast"}
# What a look-up that finds no way answers with: fib_props in net/ipv4/fib_semantics.c, and
# EXDEV or EINVAL where the source is refused.
_NO_ROUTE = {
    errno.ENETUNREACH: "none",
    errno.EHOSTUNREACH: "none",
    errno.EAGAIN: "none",  # a throw route is the last
    errno.ENODEV: "none",
    errno.EINVAL: "blackhole",
    errno.EACCES: "prohibit",
    errno.EXDEV: "source",
}

# include/uapi/linux/inet_diag.h
_SOCK_DIAG_BY_FAMILY = 20
# struct inet_diag_req_v2 without its socket id, and the id: ports, addresses, interface, cookie
_diag_request = Struct("=BBBxI48s")
# struct inet_diag_msg
_diag_message = Struct("=BBBB2s2s16s16sIIIIIIII")
_INET_DIAG_SKV6ONLY, _INET_DIAG_SOCKOPT = 11, 22
# Bit fields begin at the lowest bit where the lowest byte is first, and else at the highest.
_TRANSPARENT = 1 << 5 if sys.byteorder == "little" else 1 << 2
_STATES = {"tcp": 1 << 10, "udp": 1 << 7}  # LISTEN; CLOSE: not connected
_PROTOCOLS = {"tcp": socket.IPPROTO_TCP, "udp": socket.IPPROTO_UDP}


class PacketRoute(NamedTuple):
    """Where the kernel would send a packet.

    ``kind`` is the route's type: "local", "unicast", "broadcast", ...; or, where there is no way,
    "none", "blackhole", "prohibit", or "source": the kernel accepts no packet with this source
    there, by rp_filter or because no packet may have it. ``ifindex`` is of the outgoing interface.
    """

    kind: str
    ifindex: int | None = None
    gateway: str | None = None


class PortSocket(NamedTuple):
    """A TCP socket that listens, or a UDP socket that is not connected.

    ``address`` is what it is bound to, 4 or 16 bytes by its family. ``is_transparent`` is None
    where the kernel does not report it (before Linux 5.10).
    """

    family: int  # 4 or 6
    address: bytes
    ifindex: int  # of the interface that it is bound to, or 0
    uid: int
    inode: int
    is_transparent: bool | None
    is_v6only: bool
    port: int


def route_of(
    family: int,
    destination: bytes,
    source: bytes | None = None,
    came_by: int = 0,
    to: tuple[str, int] | None = None,
) -> PacketRoute:
    """The route of a packet; addresses are 4 or 16 bytes in network order.

    With ``came_by`` it is that of a packet which arrives by the interface of this index, and
    the kernel checks the source as it does then. ``to`` is "tcp" or "udp" and the destination
    port, for rules that look at them. Raises KernelError.
    """
    number = socket.AF_INET if family == 4 else socket.AF_INET6
    bits = 8 * len(destination)
    body = _rtmsg.pack(number, bits, bits if source else 0, 0, 0, 0, 0, 0, 0)
    body += netlink.attribute(_RTA_DST, destination)
    if source:
        body += netlink.attribute(_RTA_SRC, source)
    if came_by:
        body += netlink.attribute(_RTA_IIF, _u32.pack(came_by))
    if to:
        body += netlink.attribute(_RTA_IP_PROTO, bytes([_PROTOCOLS[to[0]]]))
        body += netlink.attribute(_RTA_DPORT, to[1].to_bytes(2, "big"))
    try:
        answer = netlink.get(netlink.ROUTE, _RTM_GETROUTE, body)
    except OSError as error:
        if error.errno == errno.EINVAL and came_by and _has_route(family, destination):
            return PacketRoute("source")
        if error.errno in _NO_ROUTE:
            return PacketRoute(_NO_ROUTE[error.errno])
        raise KernelError("look for a route", error.errno or 0) from error
    kind = _rtmsg.unpack_from(answer)[7]
    found = netlink.attributes(answer[_rtmsg.size :])
    gateway = found.get(_RTA_GATEWAY)
    via = found.get(_RTA_VIA)  # an IPv6 gateway of an IPv4 route: its family, then its address
    if gateway is None and via is not None:
        gateway = via[2:]
    return PacketRoute(
        _KINDS.get(kind, "other"),
        _u32.unpack(found[_RTA_OIF])[0] if _RTA_OIF in found else None,
        None
        if gateway is None
        else socket.inet_ntop(socket.AF_INET if len(gateway) == 4 else socket.AF_INET6, gateway),
    )


def _has_route(family: int, destination: bytes) -> bool:
    return route_of(family, destination).kind not in _NO_ROUTE.values()


def sockets_on(protocol: str, port: int) -> list[PortSocket] | None:
    """Those of ``sockets_of`` on one port. Raises KernelError."""
    found = sockets_of(protocol)
    # A dump ignores the ports of a request.
    return None if found is None else [each for each in found if each.port == port]


def sockets_of(protocol: str) -> list[PortSocket] | None:
    """The sockets of "tcp" or "udp" that are bound and wait for any peer.

    None if this kernel does not list them. Raises KernelError.
    """
    found: list[PortSocket] = []
    for family in (socket.AF_INET, socket.AF_INET6):
        body = _diag_request.pack(family, _PROTOCOLS[protocol], 0, _STATES[protocol], bytes(48))
        try:
            answers = netlink.dump(netlink.SOCK_DIAG, _SOCK_DIAG_BY_FAMILY, body)
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.EOPNOTSUPP, errno.EPROTONOSUPPORT):
                return None
            raise KernelError("list the sockets", error.errno or 0) from error
        found += map(_port_socket, answers)
    return found


def _port_socket(answer: bytes) -> PortSocket:
    parts = _diag_message.unpack_from(answer)
    kind, port, address, ifindex = parts[0], parts[4], parts[6], parts[8]
    uid, inode = parts[-2:]
    more = netlink.attributes(answer[_diag_message.size :])
    options = more.get(_INET_DIAG_SOCKOPT)
    return PortSocket(
        4 if kind == socket.AF_INET else 6,
        address[:4] if kind == socket.AF_INET else address,
        ifindex,
        uid,
        inode,
        None if options is None else bool(options[0] & _TRANSPARENT),
        bool(more.get(_INET_DIAG_SKV6ONLY, b"\0")[0]),
        int.from_bytes(port, "big"),
    )
