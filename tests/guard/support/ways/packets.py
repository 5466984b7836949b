# SPDX-License-Identifier: GPL-2.0-only
"""Ways by ping sockets and raw sockets.

The payload of raw sockets is built from the RFCs by hand: a library or the kernel would correct
its errors.
"""

from __future__ import annotations

import socket
import struct

from tests.guard.support.ways.way import DENIED, LOOPBACK, MSG_FASTOPEN, OPEN, OWN, PORTED, way
from tests.support.sockets import FAMILY, tcp_socket, udp_socket

_IPV6, _IP = socket.IPPROTO_IPV6, socket.SOL_IP
_IP_RETOPTS, _IPV6_HDRINCL = 7, 36

# ICMP


def echo(data: bytes, family: int) -> bytes:
    """An echo request. The kernel fills in the checksum for raw ICMPv6 and ping sockets."""
    kind = 8 if family == 4 else 128
    message = struct.pack("!BBHHH", kind, 0, 0, 0x1234, 1) + data
    if family == 4:
        message = message[:2] + struct.pack("!H", checksum(message)) + message[4:]
    return message


def _ping(kind: int, data: bytes, family: int, address: str) -> None:
    protocol = socket.IPPROTO_ICMP if family == 4 else socket.IPPROTO_ICMPV6
    with socket.socket(FAMILY[family], kind, protocol) as s:
        s.sendto(echo(data, family), (address, 0))


@way(4, 6)
def ping(data: bytes, family: int) -> None:
    _ping(socket.SOCK_DGRAM, data, family, DENIED[family])


@way(4, 6)
def ping_ported(data: bytes, family: int) -> None:
    _ping(socket.SOCK_DGRAM, data, family, PORTED[family])


@way(4, 6, is_open=True)
def ping_open(data: bytes, family: int) -> None:
    _ping(socket.SOCK_DGRAM, data, family, OPEN[family])


@way(4, 6)
def ping_connected(data: bytes, family: int) -> None:
    protocol = socket.IPPROTO_ICMP if family == 4 else socket.IPPROTO_ICMPV6
    with socket.socket(FAMILY[family], socket.SOCK_DGRAM, protocol) as s:
        s.connect((DENIED[family], 53))
        s.send(echo(data, family))


@way(4, 6)
def raw_icmp(data: bytes, family: int) -> None:
    _ping(socket.SOCK_RAW, data, family, DENIED[family])


@way(4, 6)
def raw_icmp_ported(data: bytes, family: int) -> None:
    _ping(socket.SOCK_RAW, data, family, PORTED[family])


@way(4, 6, is_open=True)
def raw_icmp_open(data: bytes, family: int) -> None:
    _ping(socket.SOCK_RAW, data, family, OPEN[family])


# Raw sockets


def checksum(data: bytes) -> int:
    data += b"\0" * (len(data) % 2)
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total > 0xFFFF:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def udp_header(port: int, data: bytes) -> bytes:
    return struct.pack("!HHHH", 4711, port, 8 + len(data), 0)


def ipv4(
    address: str,
    protocol: int,
    content: bytes,
    *,
    options: bytes = b"",
    fragment: int = 0,
    version: int = 4,
    source: str = OWN[4],
) -> bytes:
    """``fragment`` is flags and offset, as the header has them."""
    options += bytes(-len(options) % 4)
    words = 5 + len(options) // 4
    header = struct.pack(
        "!BBHHHBBH4s4s",
        version << 4 | words,
        0,
        words * 4 + len(content),
        0x4242,
        fragment,
        64,
        protocol,
        0,
        socket.inet_aton(source),
        socket.inet_aton(address),
    )
    header += options
    return header[:10] + struct.pack("!H", checksum(header)) + header[12:] + content


def ipv6(
    address: str, protocol: int, content: bytes, *, version: int = 6, source: str = OWN[6]
) -> bytes:
    return (
        struct.pack("!IHBB", version << 28, len(content), protocol, 64)
        + socket.inet_pton(socket.AF_INET6, source)
        + socket.inet_pton(socket.AF_INET6, address)
        + content
    )


def _packet(family: int, address: str, protocol: int, content: bytes) -> bytes:
    return (ipv4 if family == 4 else ipv6)(address, protocol, content)


def _datagram(family: int, address: str, port: int, data: bytes) -> bytes:
    return _packet(family, address, 17, udp_header(port, data) + data)


def send_whole(packet: bytes, to: str = "") -> None:
    """Send a packet with its IP header; it is routed to ``to``, by default its destination."""
    if packet[0] >> 4 == 6 or ":" in to:
        to = to or socket.inet_ntop(socket.AF_INET6, packet[24:40])
        with socket.socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_RAW) as s:
            s.sendto(packet, (to, 0))
    else:
        to = to or socket.inet_ntoa(packet[16:20])
        with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW) as s:
            s.sendto(packet, (to, 0))


@way(4, 6)
def raw_udp(data: bytes, family: int) -> None:
    with socket.socket(FAMILY[family], socket.SOCK_RAW, socket.IPPROTO_UDP) as s:
        s.sendto(udp_header(80, data) + data, (DENIED[family], 0))


@way(4, 6, is_open=True)
def raw_udp_ported(data: bytes, family: int) -> None:
    with socket.socket(FAMILY[family], socket.SOCK_RAW, socket.IPPROTO_UDP) as s:
        s.sendto(udp_header(80, data) + data, (PORTED[family], 0))


@way(4, 6)
def raw_udp_ported_elsewhere(data: bytes, family: int) -> None:
    with socket.socket(FAMILY[family], socket.SOCK_RAW, socket.IPPROTO_UDP) as s:
        s.sendto(udp_header(81, data) + data, (PORTED[family], 0))


@way(4, 6)
def raw_udp_53(data: bytes, family: int) -> None:
    """Denied even if all ports are open: only the guard's own servers may be asked."""
    with socket.socket(FAMILY[family], socket.SOCK_RAW, socket.IPPROTO_UDP) as s:
        s.sendto(udp_header(53, data) + data, (OPEN[family], 0))


@way(4, 6)
def raw_udp_53_connected(data: bytes, family: int) -> None:
    with socket.socket(FAMILY[family], socket.SOCK_RAW, socket.IPPROTO_UDP) as s:
        s.connect((OPEN[family], 0))
        s.send(udp_header(53, data) + data)


@way(4, 6)
def raw_tcp_53(data: bytes, family: int) -> None:
    segment = struct.pack("!HHIIBBHHH", 4711, 53, 1, 0, 5 << 4, 2, 512, 0, 0) + data
    with socket.socket(FAMILY[family], socket.SOCK_RAW, socket.IPPROTO_TCP) as s:
        s.sendto(segment, (OPEN[family], 0))


@way(4, 6)
def raw_udp_without_a_port(data: bytes, family: int) -> None:
    with socket.socket(FAMILY[family], socket.SOCK_RAW, socket.IPPROTO_UDP) as s:
        s.sendto(udp_header(0, data) + data, (PORTED[family], 0))


@way(4, 6)
def raw_by_an_unknown_protocol(data: bytes, family: int) -> None:
    with socket.socket(FAMILY[family], socket.SOCK_RAW, 253) as s:
        s.sendto(data, (PORTED[family], 0))


@way(4, 6)
def whole_packet(data: bytes, family: int) -> None:
    send_whole(_datagram(family, DENIED[family], 80, data))


@way(4, 6)
def whole_packet_53(data: bytes, family: int) -> None:
    send_whole(_datagram(family, OPEN[family], 53, data))


@way(4, 6, is_open=True)
def whole_packet_open(data: bytes, family: int) -> None:
    send_whole(_datagram(family, PORTED[family], 80, data))


@way(4, 6)
def whole_packet_by_an_open_route(data: bytes, family: int) -> None:
    send_whole(_datagram(family, DENIED[family], 80, data), to=OPEN[family])


@way(4, 6)
def loopback_by_another_interface(data: bytes, family: int) -> None:
    send_whole(_datagram(family, LOOPBACK[family], 80, data), to=OPEN[family])


@way(4)
def whole_packet_by_hdrincl(data: bytes, _: int) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_UDP) as s:
        s.setsockopt(_IP, socket.IP_HDRINCL, 1)
        s.sendto(_datagram(4, DENIED[4], 80, data), (OPEN[4], 0))


@way(6)
def whole_packet_by_hdrincl_of_ipv6(data: bytes, _: int) -> None:
    with socket.socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_UDP) as s:
        s.setsockopt(_IPV6, _IPV6_HDRINCL, 1)
        s.sendto(_datagram(6, DENIED[6], 80, data), (OPEN[6], 0))


@way()
def version_6_as_ipv4(data: bytes) -> None:
    packet = ipv4(OPEN[4], 17, udp_header(80, data) + data, version=6)
    with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW) as s:
        s.sendto(packet, (OPEN[4], 0))


@way()
def version_5_as_ipv4(data: bytes) -> None:
    packet = ipv4(OPEN[4], 17, udp_header(80, data) + data, version=5)
    with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW) as s:
        s.sendto(packet, (OPEN[4], 0))


@way()
def version_4_as_ipv6(data: bytes) -> None:
    packet = ipv6(OPEN[6], 17, udp_header(80, data) + data, version=4)
    send_whole(packet, to=OPEN[6])


@way()
def ipv4_as_ipv6(data: bytes) -> None:
    """An IPv4 packet on an IPv6 socket: its bytes are no valid IPv6 packet."""
    send_whole(_datagram(4, OPEN[4], 80, data.ljust(40, b".")), to=OPEN[6])


@way()
def mapped_address_in_an_ipv6_packet(data: bytes) -> None:
    """In a packet it does not stand for the IPv4 address: RFC 4942, section 2.2."""
    send_whole(_datagram(6, OPEN["mapped"], 80, data))


@way()
def length_beyond_the_packet(data: bytes) -> None:
    packet = bytearray(_datagram(6, OPEN[6], 80, data))
    packet[4:6] = struct.pack("!H", len(packet))
    send_whole(bytes(packet))


# Options of IPv4: RFC 791, section 3.1

_NOP, _END = b"\x01", b"\x00"


def _route_option(kind: int, *addresses: str) -> bytes:
    option = struct.pack("!BBB", kind, 3 + 4 * len(addresses), 4)
    option += b"".join(map(socket.inet_aton, addresses))
    return option + _NOP * (-len(option) % 4)


_LOOSE, _STRICT, _RECORD = 131, 137, 7


def _by_option(data: bytes, options: bytes, address: str) -> None:
    s = udp_socket(4)
    s.setsockopt(_IP, socket.IP_OPTIONS, options)
    s.sendto(data, (address, 80))


@way()
def loose_source_route(data: bytes) -> None:
    _by_option(data, _route_option(_LOOSE, OPEN[4]), DENIED[4])


@way()
def strict_source_route(data: bytes) -> None:
    _by_option(data, _route_option(_STRICT, OPEN[4]), DENIED[4])


@way()
def source_route_of_one_message(data: bytes) -> None:
    options = (_IP, _IP_RETOPTS, _route_option(_LOOSE, OPEN[4]))
    udp_socket(4).sendmsg([data], [options], 0, (DENIED[4], 80))


@way()
def source_route_of_an_ipv6_socket(data: bytes) -> None:
    s = udp_socket(6)
    s.setsockopt(_IP, socket.IP_OPTIONS, _route_option(_LOOSE, OPEN[4]))
    s.sendto(data, (DENIED["mapped"], 80))


@way()
def source_route_of_a_stream(data: bytes) -> None:
    s = tcp_socket(4)
    s.setsockopt(_IP, socket.IP_OPTIONS, _route_option(_LOOSE, OPEN[4]))
    # No host answers: only the first segment is sent.
    s.sendto(data, MSG_FASTOPEN, (DENIED[4], 80))


@way()
def source_route_to_where_one_may_go(data: bytes) -> None:
    """A program may not choose the hops either."""
    _by_option(data, _route_option(_LOOSE, DENIED[4]), OPEN[4])


def _with_options(data: bytes, options: bytes, address: str = OPEN[4]) -> None:
    send_whole(ipv4(address, 17, udp_header(80, data) + data, options=options))


@way()
def loose_source_route_by_hand(data: bytes) -> None:
    _with_options(data, _route_option(_LOOSE, DENIED[4]))


@way()
def source_route_behind_others(data: bytes) -> None:
    _with_options(
        data, _NOP * 3 + _route_option(_RECORD, OWN[4]) + _route_option(_STRICT, "0.0.0.1")
    )


@way()
def source_route_that_is_used_up(data: bytes) -> None:
    option = bytearray(_route_option(_LOOSE, DENIED[4]))
    option[2] = 8
    _with_options(data, bytes(option))


@way()
def option_longer_than_the_header(data: bytes) -> None:
    """Some hosts skip an option whose length leads past the header, others do not."""
    _with_options(data, b"\x44\x28\x05\x00" + _route_option(_LOOSE, DENIED[4]), DENIED[4])


@way()
def option_without_a_length(data: bytes) -> None:
    _with_options(data, b"\x44\x00" + _route_option(_LOOSE, DENIED[4])[:-2] + b"\0\0\0\0")


@way()
def option_of_one_byte_length(data: bytes) -> None:
    _with_options(data, b"\x44\x01" + _route_option(_LOOSE, DENIED[4])[:-2] + b"\0\0\0\0")


@way()
def options_to_where_nobody_may_go(data: bytes) -> None:
    _with_options(data, _NOP * 4, DENIED[4])


@way()
def options_before_port_53(data: bytes) -> None:
    send_whole(ipv4(OPEN[4], 17, udp_header(53, data) + data, options=_NOP * 40))


@way(is_open=True)
def options_of_no_effect_open(data: bytes) -> None:
    send_whole(ipv4(PORTED[4], 17, udp_header(80, data) + data, options=_NOP * 40))


@way(is_open=True)
def record_route_open(data: bytes) -> None:
    _by_option(data, _route_option(_RECORD, "0.0.0.0", "0.0.0.0"), PORTED[4])


@way(is_open=True)
def options_that_end_open(data: bytes) -> None:
    """Bytes after End of Option List are no option, though they look like one."""
    _with_options(data, _END + _route_option(_LOOSE, DENIED[4])[:-1])


# Extension headers of IPv6: RFC 8200, section 4

_HOP_BY_HOP, _ROUTING, _FRAGMENT, _AUTHENTICATION, _DESTINATION = 0, 43, 44, 51, 60


def _padding(next_header: int, words: int = 0) -> bytes:
    """Hop-by-hop or destination options that are only padding."""
    body = 6 + 8 * words
    return struct.pack("!BBBB", next_header, words, 1, body - 2) + bytes(body - 2)


def _routing(next_header: int, kind: int, left: int, *addresses: str) -> bytes:
    header = struct.pack("!BBBB", next_header, 2 * len(addresses), kind, left)
    # Type 4, the segment routing header (RFC 8754), has the number of its last entry.
    header += struct.pack("!BBH", len(addresses) - 1, 0, 0) if kind == 4 else bytes(4)
    return header + b"".join(socket.inet_pton(socket.AF_INET6, each) for each in addresses)


def _fragment(next_header: int, offset: int, *, is_more: bool) -> bytes:
    return struct.pack("!BBHI", next_header, 0, offset | is_more, 0x42424242)


def _extended(data: bytes, first: int, headers: bytes, address: str, port: int) -> None:
    send_whole(ipv6(address, first, headers + udp_header(port, data) + data))


def _routed(data: bytes, kind: int) -> None:
    _extended(data, _ROUTING, _routing(17, kind, 1, DENIED[6]), OPEN[6], 80)


@way()
def routing_header_type_0(data: bytes) -> None:
    _routed(data, 0)


@way()
def routing_header_type_2(data: bytes) -> None:
    _routed(data, 2)


@way()
def routing_header_type_3(data: bytes) -> None:
    _routed(data, 3)


@way()
def routing_header_type_4(data: bytes) -> None:
    _routed(data, 4)


@way()
def routing_header_of_an_unknown_type(data: bytes) -> None:
    _routed(data, 200)


@way()
def routing_header_behind_others(data: bytes) -> None:
    headers = _padding(_DESTINATION, 1) + _padding(_ROUTING) + _routing(17, 4, 1, DENIED[6])
    _extended(data, _HOP_BY_HOP, headers, OPEN[6], 80)


@way()
def routing_header_in_a_fragment(data: bytes) -> None:
    headers = _fragment(_ROUTING, 0, is_more=False) + _routing(17, 4, 1, DENIED[6])
    _extended(data, _FRAGMENT, headers, OPEN[6], 80)


@way(is_open=True)
def routing_header_that_is_used_up_open(data: bytes) -> None:
    _extended(data, _ROUTING, _routing(17, 4, 0, PORTED[6]), PORTED[6], 80)


def _segments(*addresses: str) -> bytes:
    """A segment routing header as setsockopt() takes it; the first segment is the last entry."""
    return struct.pack(
        "!BBBBBBH", 0, 2 * len(addresses), 4, len(addresses) - 1, len(addresses) - 1, 0, 0
    ) + b"".join(socket.inet_pton(socket.AF_INET6, each) for each in addresses)


@way()
def segment_routing_of_a_socket(data: bytes) -> None:
    """It needs no capability. The kernel sends to the first segment."""
    s = udp_socket(6)
    s.setsockopt(_IPV6, socket.IPV6_RTHDR, _segments("::", OPEN[6]))
    s.sendto(data, (DENIED[6], 80))


@way()
def segment_routing_of_a_stream(data: bytes) -> None:
    s = tcp_socket(6)
    s.setsockopt(_IPV6, socket.IPV6_RTHDR, _segments("::", OPEN[6]))
    s.sendto(data, MSG_FASTOPEN, (DENIED[6], 80))


@way()
def segment_routing_to_where_one_may_go(data: bytes) -> None:
    s = udp_socket(6)
    s.setsockopt(_IPV6, socket.IPV6_RTHDR, _segments("::", DENIED[6]))
    s.sendto(data, (OPEN[6], 80))


@way()
def hop_by_hop_before_port_53(data: bytes) -> None:
    _extended(data, _HOP_BY_HOP, _padding(17), OPEN[6], 53)


@way()
def destination_options_before_port_53(data: bytes) -> None:
    _extended(data, _DESTINATION, _padding(17, 4), OPEN[6], 53)


@way()
def authentication_before_port_53(data: bytes) -> None:
    header = struct.pack("!BBHIII", 17, 4, 0, 0, 0, 0) + bytes(8)
    _extended(data, _AUTHENTICATION, header, OPEN[6], 53)


@way()
def options_of_a_raw_socket_before_port_53(data: bytes) -> None:
    with socket.socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_UDP) as s:
        s.setsockopt(_IPV6, socket.IPV6_HOPOPTS, _padding(0))
        s.setsockopt(_IPV6, socket.IPV6_DSTOPTS, _padding(0))
        s.sendto(udp_header(53, data) + data, (OPEN[6], 0))


@way()
def more_headers_than_anybody_reads(data: bytes) -> None:
    headers = b"".join(_padding(_DESTINATION) for _ in range(11)) + _padding(17)
    _extended(data, _DESTINATION, headers, OPEN[6], 53)


@way()
def headers_to_where_nobody_may_go(data: bytes) -> None:
    _extended(data, _DESTINATION, _padding(17), DENIED[6], 80)


@way()
def headers_to_another_port(data: bytes) -> None:
    _extended(data, _DESTINATION, _padding(17), PORTED[6], 81)


@way(is_open=True)
def headers_to_an_open_port(data: bytes) -> None:
    _extended(data, _HOP_BY_HOP, _padding(_DESTINATION) + _padding(17), PORTED[6], 80)


# Fragments that the program builds

_MORE = 0x2000


def _ipv4_fragment(data: bytes, address: str, port: int | None, fragment: int) -> None:
    header = b"" if port is None else udp_header(port, data)
    send_whole(ipv4(address, 17, header + data, fragment=fragment))


@way()
def first_fragment_4(data: bytes) -> None:
    _ipv4_fragment(data, DENIED[4], 80, _MORE)


@way()
def first_fragment_to_another_port_4(data: bytes) -> None:
    _ipv4_fragment(data, PORTED[4], 81, _MORE)


@way()
def first_fragment_to_port_53_4(data: bytes) -> None:
    _ipv4_fragment(data, OPEN[4], 53, _MORE)


@way(is_open=True)
def first_fragment_to_an_open_port_4(data: bytes) -> None:
    _ipv4_fragment(data, PORTED[4], 80, _MORE)


@way()
def later_fragment_4(data: bytes) -> None:
    """A later fragment has no port, so that no rule for a port matches."""
    _ipv4_fragment(data, PORTED[4], None, 1 | _MORE)


@way()
def later_fragment_like_an_open_port_4(data: bytes) -> None:
    _ipv4_fragment(data, PORTED[4], 80, 1)


@way(is_open=True)
def later_fragment_open_4(data: bytes) -> None:
    _ipv4_fragment(data, OPEN[4], None, 1)


@way()
def later_fragment_by_a_socket_that_was_let_4(data: bytes) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW) as s:
        s.sendto(_datagram(4, PORTED[4], 80, b"let"), (PORTED[4], 0))
        s.sendto(ipv4(PORTED[4], 17, data, fragment=1), (PORTED[4], 0))


@way()
def fragment_without_a_whole_header_4(data: bytes) -> None:
    """The port in one fragment, the rest of the header in the next: RFC 1858."""
    for fragment, part in ((_MORE, struct.pack("!HH", 4711, 80)), (1, data)):
        send_whole(ipv4(PORTED[4], 6, part, fragment=fragment))


def _ipv6_fragment(
    data: bytes, address: str, port: int | None, offset: int, *, is_more: bool = True
) -> None:
    header = b"" if port is None else udp_header(port, data)
    fragment = _fragment(17, offset, is_more=is_more)
    send_whole(ipv6(address, _FRAGMENT, fragment + header + data))


@way()
def first_fragment_6(data: bytes) -> None:
    _ipv6_fragment(data, DENIED[6], 80, 0)


@way()
def first_fragment_to_another_port_6(data: bytes) -> None:
    _ipv6_fragment(data, PORTED[6], 81, 0)


@way()
def first_fragment_to_port_53_6(data: bytes) -> None:
    _ipv6_fragment(data, OPEN[6], 53, 0)


@way(is_open=True)
def first_fragment_to_an_open_port_6(data: bytes) -> None:
    _ipv6_fragment(data, PORTED[6], 80, 0)


@way()
def later_fragment_6(data: bytes) -> None:
    _ipv6_fragment(data, PORTED[6], None, 8)


@way(is_open=True)
def later_fragment_open_6(data: bytes) -> None:
    _ipv6_fragment(data, OPEN[6], None, 8)


@way()
def atomic_fragment_to_another_port(data: bytes) -> None:
    """A fragment that is the whole packet (RFC 6946)."""
    _ipv6_fragment(data, PORTED[6], 81, 0, is_more=False)


@way()
def atomic_fragment_to_port_53(data: bytes) -> None:
    _ipv6_fragment(data, OPEN[6], 53, 0, is_more=False)


@way(is_open=True)
def atomic_fragment_to_an_open_port(data: bytes) -> None:
    _ipv6_fragment(data, PORTED[6], 80, 0, is_more=False)


@way()
def headers_in_the_first_fragment_and_the_port_in_the_next(data: bytes) -> None:
    """Forbidden by RFC 7112, since no host on the path could read the port."""
    first = _fragment(_DESTINATION, 0, is_more=True) + _padding(17)
    send_whole(ipv6(OPEN[6], _FRAGMENT, first))
    later = _fragment(_DESTINATION, 8, is_more=False) + udp_header(53, data) + data
    send_whole(ipv6(PORTED[6], _FRAGMENT, later))


@way()
def fragment_within_a_fragment(data: bytes) -> None:
    headers = _fragment(_FRAGMENT, 0, is_more=False) + _fragment(17, 0, is_more=False)
    _extended(data, _FRAGMENT, headers, OPEN[6], 80)
