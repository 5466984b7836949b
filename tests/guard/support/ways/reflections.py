# SPDX-License-Identifier: GPL-2.0-only
"""Ways by a host that answers: it sends the answer to a source that the program has forged.

This host answers packets to itself: with errors that quote them, echoes and resets. Those
answers come from the kernel, and not from a guarded socket.
"""

from __future__ import annotations

import socket
import struct
from contextlib import closing

from tests.guard.support.uring import Ring
from tests.guard.support.ways.packets import checksum, echo, ipv4, ipv6, send_whole, udp_header
from tests.guard.support.ways.way import DENIED, LOOPBACK, OWN, way

_IPV6 = socket.IPPROTO_IPV6
_IP_FREEBIND, _IP_TRANSPARENT = 15, 19
_IPV6_FREEBIND, _IPV6_TRANSPARENT = 78, 75
_NOBODY = 9  # no service has this port
_SOMEBODY = 0x7A66


def _socket(kind: socket.SocketKind, protocol: int = 0, port: int = 0) -> socket.socket:
    """A socket bound to an address of another host; for IPv6 no privilege is needed."""
    made = socket.socket(socket.AF_INET6, kind, protocol)
    made.settimeout(1)
    made.setsockopt(_IPV6, _IPV6_FREEBIND, 1)
    made.bind((DENIED[6], port))
    return made


@way()
def quoted_by_loopback(data: bytes) -> None:
    _socket(socket.SOCK_DGRAM).sendto(data, (LOOPBACK[6], _NOBODY))


@way()
def quoted_by_ourselves(data: bytes) -> None:
    _socket(socket.SOCK_DGRAM).sendto(data, (OWN[6], _NOBODY))


@way()
def quoted_by_loopback_for_a_transparent_socket(data: bytes) -> None:
    s = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
    s.setsockopt(_IPV6, _IPV6_TRANSPARENT, 1)
    s.bind((DENIED[6], 0))
    s.sendto(data, (LOOPBACK[6], _NOBODY))


@way()
def quoted_by_loopback_for_one_message(data: bytes) -> None:
    """A source for one datagram, which IP_FREEBIND allows for IPv6 too."""
    s = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
    s.setsockopt(socket.SOL_IP, _IP_FREEBIND, 1)
    info = socket.inet_pton(socket.AF_INET6, DENIED[6]) + struct.pack("=i", 0)
    s.sendmsg([data], [(_IPV6, socket.IPV6_PKTINFO, info)], 0, (LOOPBACK[6], _NOBODY))


@way()
def quoted_by_loopback_for_what_a_ring_has_set(data: bytes) -> None:
    s = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
    with closing(Ring()) as ring:
        ring.setsockopt(s, _IPV6, _IPV6_FREEBIND, 1)
    s.bind((DENIED[6], 0))
    s.sendto(data, (LOOPBACK[6], _NOBODY))


@way(sign=struct.pack("!HH", _NOBODY, _SOMEBODY))
def reset_by_loopback(_: bytes) -> None:
    """The RST reaches the forged source, on a port that the program chooses."""
    _socket(socket.SOCK_STREAM, port=_SOMEBODY).connect((LOOPBACK[6], _NOBODY))


@way()
def echoed_by_loopback(data: bytes) -> None:
    s = _socket(socket.SOCK_DGRAM, socket.IPPROTO_ICMPV6)
    s.sendto(echo(data, 6), (LOOPBACK[6], 0))


def _raw_echo(data: bytes, family: int, own: str, source: str = DENIED[6]) -> None:
    message = bytearray(echo(data, family))
    if family == 4:
        send_whole(ipv4(own, socket.IPPROTO_ICMP, bytes(message), source=DENIED[4]))
        return
    ends = b"".join(socket.inet_pton(socket.AF_INET6, each) for each in (source, own))
    pseudo = ends + struct.pack("!IxxxB", len(message), socket.IPPROTO_ICMPV6)
    message[2:4] = struct.pack("!H", checksum(pseudo + bytes(message)))
    send_whole(ipv6(own, socket.IPPROTO_ICMPV6, bytes(message), source=source))


@way(sign=socket.inet_pton(socket.AF_INET6, LOOPBACK["mapped"]))
def raw_echoed_by_loopback_to_what_is_none(data: bytes) -> None:
    """IPv4's loopback address in an IPv6 packet is not this host."""
    _raw_echo(data, 6, LOOPBACK[6], source=LOOPBACK["mapped"])


@way(6)
def raw_echoed_by_loopback(data: bytes, family: int) -> None:
    _raw_echo(data, family, LOOPBACK[family])


@way(4, 6)
def raw_echoed_by_ourselves(data: bytes, family: int) -> None:
    _raw_echo(data, family, OWN[family])


@way()
def raw_quoted_by_ourselves(data: bytes) -> None:
    send_whole(ipv4(OWN[4], 17, udp_header(_NOBODY, data) + data, source=DENIED[4]))
