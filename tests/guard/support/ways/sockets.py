# SPDX-License-Identifier: GPL-2.0-only
"""Ways by sockets of UDP, TCP and similar protocols."""

from __future__ import annotations

import os
import socket
import struct
from contextlib import suppress

from tests.guard.support.ways.way import (
    DENIED,
    INTERFACE,
    MSG_FASTOPEN,
    NAME_SERVER,
    OPEN,
    OWN,
    PORTED,
    way,
)
from tests.guard.support.world import LINK_LOCAL
from tests.support.sockets import (
    FAMILY,
    connect,
    disconnect,
    ipv4_sockaddr,
    sendmmsg,
    sendto,
    sockaddr,
    stream,
    tcp_socket,
    udp_socket,
)

_IPV6, _IP = socket.IPPROTO_IPV6, socket.SOL_IP
_IP_FREEBIND, _IP_TRANSPARENT = 15, 19
_IPV6_ADDRFORM, _IPV6_FREEBIND, _IPV6_TRANSPARENT = 1, 78, 75
_TCP_FASTOPEN_CONNECT = 30
_IPPROTO_MPTCP, _IPPROTO_DCCP, _IPPROTO_SCTP, _IPPROTO_UDPLITE = 262, 33, 132, 136
_SOCK_DCCP = 6
_UDP_CORK, _UDP_SEGMENT = 1, 103
_SO_ZEROCOPY, _MSG_ZEROCOPY = 60, 0x4000000

# Datagrams


@way(4, "mapped", 6)
def udp_sendto(data: bytes, family: int | str) -> None:
    udp_socket(family).sendto(data, (DENIED[family], 80))


@way(4, "mapped", 6, is_open=True)
def udp_sendto_open(data: bytes, family: int | str) -> None:
    udp_socket(family).sendto(data, (OPEN[family], 4711))


@way(4, "mapped", 6, is_open=True)
def udp_sendto_ported(data: bytes, family: int | str) -> None:
    udp_socket(family).sendto(data, (PORTED[family], 80))


@way(4, "mapped", 6)
def udp_sendto_ported_elsewhere(data: bytes, family: int | str) -> None:
    udp_socket(family).sendto(data, (PORTED[family], 443))


@way(4, "mapped", 6)
def udp_sendmsg(data: bytes, family: int | str) -> None:
    udp_socket(family).sendmsg([data], [], 0, (DENIED[family], 80))


@way(4, "mapped", 6)
def udp_connected(data: bytes, family: int | str) -> None:
    s = udp_socket(family)
    s.connect((DENIED[family], 80))
    s.send(data)


@way(4, "mapped", 6, is_open=True)
def udp_connected_open(data: bytes, family: int | str) -> None:
    s = udp_socket(family)
    s.connect((OPEN[family], 80))
    s.send(data)


@way(4, 6)
def udp_connected_but_sent_elsewhere(data: bytes, family: int) -> None:
    s = udp_socket(family)
    s.connect((OPEN[family], 80))
    s.sendto(data, (DENIED[family], 80))


@way(4, 6)
def udp_after_leave_to_go_elsewhere(data: bytes, family: int) -> None:
    """An allowed destination says nothing about another port or address."""
    s = udp_socket(family)
    s.sendto(b"let", (PORTED[family], 80))
    with suppress(PermissionError):
        s.sendto(data, (PORTED[family], 81))
    s.sendto(data, (DENIED[family], 80))


@way(6)
def udp_ipv4_address_on_an_ipv6_socket(data: bytes, _: int) -> None:
    sendto(udp_socket(6), data, ipv4_sockaddr(DENIED[4], 80))


@way(6)
def udp_connected_to_ipv4_on_an_ipv6_socket(data: bytes, _: int) -> None:
    s = udp_socket(6)
    connect(s, ipv4_sockaddr(DENIED[4], 80))
    s.send(data)


@way(4)
def udp_to_an_address_of_no_family(data: bytes, _: int) -> None:
    """Old programs leave the family 0, and the kernel takes that for IPv4."""
    sendto(
        udp_socket(4), data, struct.pack("=H", socket.AF_UNSPEC) + ipv4_sockaddr(DENIED[4], 80)[2:]
    )


@way(4, "mapped", 6)
def udp_disconnected(data: bytes, family: int | str) -> None:
    s = udp_socket(family)
    s.connect((OPEN[family], 80))
    s.send(b"let")
    disconnect(s)
    s.sendto(data, (DENIED[family], 80))


@way(4, "mapped", 6)
def udp_disconnected_and_connected(data: bytes, family: int | str) -> None:
    s = udp_socket(family)
    s.connect((OPEN[family], 80))
    s.send(b"let")
    disconnect(s)
    s.connect((DENIED[family], 80))
    s.send(data)


@way(4, "mapped", 6)
def udp_from_a_redirected_socket(data: bytes, family: int | str) -> None:
    s = udp_socket(family)
    s.connect((NAME_SERVER[family], 53))
    s.send(b"no question")
    disconnect(s)
    s.sendto(data, (DENIED[family], 80))


@way()
def udp_turned_into_ipv4(data: bytes) -> None:
    """A socket with a mapped address may become one of IPv4: ipv6(7)."""
    s = udp_socket("mapped")
    s.connect((OPEN["mapped"], 80))
    s.setsockopt(_IPV6, _IPV6_ADDRFORM, socket.AF_INET)
    sendto(s, data, ipv4_sockaddr(DENIED[4], 80))


@way(4, 6)
def udp_sendmmsg(data: bytes, family: int) -> None:
    """Two datagrams by one call, the first to an allowed destination."""
    to = [sockaddr(family, each, 80) for each in (OPEN[family], DENIED[family])]
    sendmmsg(udp_socket(family), [(b"let", to[0]), (data, to[1])])


@way(4, 6)
def udp_corked(data: bytes, family: int) -> None:
    s = udp_socket(family)
    s.setsockopt(socket.IPPROTO_UDP, _UDP_CORK, 1)
    s.sendto(data, (DENIED[family], 80))
    s.setsockopt(socket.IPPROTO_UDP, _UDP_CORK, 0)


@way(4, 6)
def udp_more(data: bytes, family: int) -> None:
    s = udp_socket(family)
    s.connect((DENIED[family], 80))
    s.send(data, socket.MSG_MORE)
    s.send(data)


@way(4, 6)
def udp_segments(data: bytes, family: int) -> None:
    s = udp_socket(family)
    s.setsockopt(socket.IPPROTO_UDP, _UDP_SEGMENT, 100)
    s.sendto(data.ljust(450, b"."), (DENIED[family], 80))


@way(4, 6, is_open=True)
def udp_segments_open(data: bytes, family: int) -> None:
    s = udp_socket(family)
    s.setsockopt(socket.IPPROTO_UDP, _UDP_SEGMENT, 100)
    s.sendto(data.ljust(450, b"."), (PORTED[family], 80))


@way(4, 6)
def udp_zerocopy(data: bytes, family: int) -> None:
    s = udp_socket(family)
    s.setsockopt(socket.SOL_SOCKET, _SO_ZEROCOPY, 1)
    s.connect((DENIED[family], 80))
    s.send(data, _MSG_ZEROCOPY)


@way(4, 6)
def udp_spliced(data: bytes, family: int) -> None:
    s = udp_socket(family)
    s.connect((DENIED[family], 80))
    read_end, write_end = os.pipe()
    os.write(write_end, data)
    os.splice(read_end, s.fileno(), len(data))


@way(4, 6)
def udp_large(data: bytes, family: int) -> None:
    """A datagram that the kernel fragments."""
    udp_socket(family).sendto(data.ljust(5000, b"."), (DENIED[family], 80))


@way(4, 6, is_open=True)
def udp_large_open(data: bytes, family: int) -> None:
    udp_socket(family).sendto(data.ljust(5000, b"."), (PORTED[family], 80))


@way(4, 6)
def udp_to_dns_over_tls(data: bytes, family: int) -> None:
    udp_socket(family).sendto(data, (DENIED[family], 853))


@way(4, 6)
def udp_to_multicast_dns_port(data: bytes, family: int) -> None:
    udp_socket(family).sendto(data, (DENIED[family], 5353))


@way()
def multicast_4(data: bytes) -> None:
    s = udp_socket(4)
    s.setsockopt(_IP, socket.IP_MULTICAST_IF, socket.inet_aton(OWN[4]))
    s.sendto(data, ("224.0.0.251", 5353))


@way()
def multicast_6(data: bytes) -> None:
    udp_socket(6).sendto(data, ("ff02::fb", 5353, 0, socket.if_nametoindex(INTERFACE)))


@way()
def broadcast(data: bytes) -> None:
    s = udp_socket(4)
    s.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
    s.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, INTERFACE.encode())
    s.sendto(data, ("255.255.255.255", 80))


@way()
def broadcast_to_the_subnet(data: bytes) -> None:
    s = udp_socket(4)
    s.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
    s.sendto(data, ("10.9.0.255", 80))


@way()
def link_local(data: bytes) -> None:
    udp_socket(6).sendto(data, (LINK_LOCAL, 80, 0, socket.if_nametoindex(INTERFACE)))


# A host cannot know which IPv4 address a network maps these to.


@way()
def ipv4_compatible(data: bytes) -> None:
    udp_socket(6).sendto(data, (f"::{OPEN[4]}", 80))


@way()
def ipv4_translated(data: bytes) -> None:
    udp_socket(6).sendto(data, (f"64:ff9b::{OPEN[4]}", 80))


@way()
def ipv4_by_6to4(data: bytes) -> None:
    a, b, c, d = socket.inet_aton(OPEN[4])
    udp_socket(6).sendto(data, (f"2002:{a:02x}{b:02x}:{c:02x}{d:02x}::1", 80))


# Options of sockets


@way(4, 6)
def udp_by_interface(data: bytes, family: int) -> None:
    s = udp_socket(family)
    s.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, INTERFACE.encode())
    s.sendto(data, (DENIED[family], 80))


@way(4, 6)
def udp_with_a_mark(data: bytes, family: int) -> None:
    s = udp_socket(family)
    s.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, 0x42)
    s.sendto(data, (DENIED[family], 80))


@way(4, 6)
def udp_by_chosen_source(data: bytes, family: int) -> None:
    index = socket.if_nametoindex(INTERFACE)
    if family == 4:
        own = socket.inet_aton(OWN[4])
        info = (_IP, 8, struct.pack("=i4s4s", index, own, own))
    else:
        address = socket.inet_pton(socket.AF_INET6, OWN[6])
        info = (_IPV6, socket.IPV6_PKTINFO, address + struct.pack("=i", index))
    udp_socket(family).sendmsg([data], [info], 0, (DENIED[family], 80))


@way()
def udp_by_chosen_source_of_a_socket(data: bytes) -> None:
    s = udp_socket(6)
    address = socket.inet_pton(socket.AF_INET6, OPEN[6])
    s.setsockopt(_IPV6, socket.IPV6_PKTINFO, address + struct.pack("=i", 0))
    s.sendto(data, (DENIED[6], 80))


@way(4, 6)
def udp_by_a_transparent_socket(data: bytes, family: int) -> None:
    s = udp_socket(family)
    s.setsockopt(*((_IP, _IP_TRANSPARENT) if family == 4 else (_IPV6, _IPV6_TRANSPARENT)), 1)
    s.bind((OPEN[family], 4711))
    s.sendto(data, (DENIED[family], 80))


@way(6)
def udp_from_an_address_of_others(data: bytes, family: int) -> None:
    s = udp_socket(family)
    s.setsockopt(_IPV6, _IPV6_FREEBIND, 1)
    s.bind((OPEN[family], 4711))
    s.sendto(data, (DENIED[family], 80))


# Streams


@way(4, "mapped", 6)
def tcp(data: bytes, family: int | str) -> None:
    stream(tcp_socket(family), data, DENIED[family])


@way(4, "mapped", 6, is_open=True)
def tcp_open(data: bytes, family: int | str) -> None:
    stream(tcp_socket(family), data, OPEN[family], 443)


@way(4, "mapped", 6, is_open=True)
def tcp_ported(data: bytes, family: int | str) -> None:
    stream(tcp_socket(family), data, PORTED[family])


@way(4, "mapped", 6)
def tcp_ported_elsewhere(data: bytes, family: int | str) -> None:
    stream(tcp_socket(family), data, PORTED[family], 443)


@way(4, 6)
def tcp_to_dns_over_tls(data: bytes, family: int) -> None:
    stream(tcp_socket(family), data, DENIED[family], 853)


@way(4, "mapped", 6)
def tcp_disconnected(data: bytes, family: int | str) -> None:
    s = tcp_socket(family)
    s.connect((OPEN[family], 80))
    disconnect(s)
    stream(s, data, DENIED[family])


@way(4, "mapped", 6)
def tcp_at_once(data: bytes, family: int | str) -> None:
    """TCP Fast Open, RFC 7413: the first segment has data."""
    s = tcp_socket(family)
    s.setblocking(True)
    s.sendto(data, MSG_FASTOPEN, (DENIED[family], 80))


@way(4, 6, is_open=True)
def tcp_at_once_open(data: bytes, family: int) -> None:
    s = tcp_socket(family)
    s.setblocking(True)
    s.sendto(data, MSG_FASTOPEN, (PORTED[family], 80))


@way(4, 6)
def tcp_at_once_by_connect(data: bytes, family: int) -> None:
    s = tcp_socket(family)
    s.setsockopt(socket.IPPROTO_TCP, _TCP_FASTOPEN_CONNECT, 1)
    stream(s, data, DENIED[family])


@way(4, "mapped", 6)
def mptcp(data: bytes, family: int | str) -> None:
    stream(tcp_socket(family, _IPPROTO_MPTCP), data, DENIED[family])


@way(4, 6, is_open=True)
def mptcp_open(data: bytes, family: int) -> None:
    stream(tcp_socket(family, _IPPROTO_MPTCP), data, PORTED[family])


@way(4, 6)
def sctp(data: bytes, family: int) -> None:
    stream(tcp_socket(family, _IPPROTO_SCTP), data, DENIED[family])


@way(4, 6)
def dccp(data: bytes, family: int) -> None:
    with socket.socket(FAMILY[family], _SOCK_DCCP, _IPPROTO_DCCP) as s:
        stream(s, data, DENIED[family])


@way(4, 6)
def udplite(data: bytes, family: int) -> None:
    with socket.socket(FAMILY[family], socket.SOCK_DGRAM, _IPPROTO_UDPLITE) as s:
        s.sendto(data, (DENIED[family], 80))
