# SPDX-License-Identifier: GPL-2.0-only
"""Frames of every shape: options, extension headers, tags, headers in fragments, lies."""

from __future__ import annotations

import os
import select
import socket
import struct
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest
from scapy.layers.inet import (
    IP,
    TCP,
    UDP,
    IPOption,
    IPOption_NOP,
    IPOption_Router_Alert,
    IPOption_RR,
)
from scapy.layers.inet6 import (
    HBHOptUnknown,
    IPv6,
    IPv6ExtHdrDestOpt,
    IPv6ExtHdrHopByHop,
    IPv6ExtHdrRouting,
    PadN,
    RouterAlert,
)
from scapy.layers.ipsec import AH
from scapy.layers.l2 import ARP, Dot1AD, Dot1Q, Ether
from scapy.packet import Packet, Raw

from tests.firewall.support import frames
from tests.firewall.support.frames import (
    CLIENT,
    FAMILIES,
    GATEWAY,
    PROTOCOLS,
    SERVICE,
    Gateway,
    datagram,
    families,
    ip,
    is_silent,
    listening,
    syn,
    transparent_socket,
)
from tests.support.waiting import PATIENCE

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.kernel

protocols = pytest.mark.parametrize("protocol", PROTOCOLS)

PORTS = {"tcp": TCP(sport=40000, dport=5000, flags="S"), "udp": UDP(sport=40000, dport=5000)}


def is_intercepted(gateway: Gateway, protocol: str, header: Packet, *, tags: Packet | None) -> None:
    """A packet with this header gets to the listener, and its answer to the client."""
    family = 6 if isinstance(header, IPv6) else 4
    packet = header / PORTS[protocol]
    if protocol == "udp":
        packet /= Raw(b"data")
    if tags is not None:
        packet = Ether(src=gateway.client_mac, dst=gateway.mac) / tags / packet
    # The client's stack refuses the answer to a SYN that it knows nothing of.
    expected = {"udp": {}, "tcp": {"established": 1}}[protocol]
    with listening(protocol, family) as listener, gateway.capture() as heard:
        rule = gateway.insert(SERVICE[family], protocol, 5000, to=listener.port)
        with gateway.counts(rule_intercept=1, **expected):
            gateway.send(packet)
            if protocol == "tcp":
                assert str(heard(TCP).flags) == "SA"
            else:
                assert listener.receive() == (
                    b"data",
                    (CLIENT[family], 40000),
                    (SERVICE[family], 5000),
                )
        assert gateway.hits(rule) == 1


# IPv4 options, IPv6 extension headers


OPTIONS = {
    "one word": [IPOption_NOP()] * 4,
    "ten words": [IPOption_NOP()] * 40,
    "router alert": [IPOption_Router_Alert()],
    "record route": [IPOption_RR(routers=["0.0.0.0"] * 4)],
    "timestamp": [IPOption(b"\x44\x0c\x05\x00" + bytes(8))],
}


@protocols
@pytest.mark.parametrize("options", OPTIONS.values(), ids=list(OPTIONS))
def test_ipv4_options_are_stepped_over(
    gateway: Gateway, options: list[Packet], protocol: str
) -> None:
    is_intercepted(gateway, protocol, ip(SERVICE[4], options=options), tags=None)


HOP_BY_HOP = IPv6ExtHdrHopByHop(options=[RouterAlert()])
DESTINATION = IPv6ExtHdrDestOpt(options=[PadN(optdata=bytes(4))])
LONG_DESTINATION = IPv6ExtHdrDestOpt(options=[HBHOptUnknown(otype=30, optdata=bytes(200))])
ROUTING = IPv6ExtHdrRouting(type=253, segleft=0, addresses=["fd09::99"])

EXTENSIONS = {
    "hop by hop": HOP_BY_HOP,
    "destination options": DESTINATION,
    "long destination options": LONG_DESTINATION,
    "routing": ROUTING,
    "all of them": HOP_BY_HOP / DESTINATION / ROUTING / DESTINATION,
}


@protocols
@pytest.mark.parametrize("headers", EXTENSIONS.values(), ids=list(EXTENSIONS))
def test_ipv6_extension_headers_are_walked(
    gateway: Gateway, headers: Packet, protocol: str
) -> None:
    is_intercepted(gateway, protocol, ip(SERVICE[6]) / headers.copy(), tags=None)


def chain(length: int) -> Packet:
    header = ip(SERVICE[6])
    for _ in range(length):
        header /= DESTINATION.copy()
    return header


def test_a_chain_of_eight_headers_is_followed_and_no_longer_one(gateway: Gateway) -> None:
    gateway.insert(SERVICE[6], "udp", 5000)
    with gateway.counts(rule_pass=1):
        gateway.send(chain(8) / PORTS["udp"])
    with gateway.counts(header_chain=2):
        gateway.send(chain(9) / PORTS["udp"], chain(12) / PORTS["tcp"])


def test_an_authentication_header_is_stepped_over(gateway: Gateway) -> None:
    """Its length counts otherwise than that of the others (RFC 4302)."""
    gateway.insert(SERVICE[6], "udp", 5000)
    with gateway.counts(rule_pass=2):
        for check in (12, 20):
            header = AH(nh=17, payloadlen=(12 + check) // 4 - 2, spi=1, seq=1, icv=bytes(check))
            gateway.send(ip(SERVICE[6], nh=51) / header / PORTS["udp"])


@pytest.mark.parametrize("cut", [1, 7, 8, 100])
def test_an_extension_header_that_goes_past_the_packet_is_malformed(
    gateway: Gateway, cut: int
) -> None:
    whole = bytes(ip(SERVICE[6]) / LONG_DESTINATION / PORTS["udp"])
    short = IPv6(whole[: len(whole) - 8 - cut])
    short.plen = len(short) - 40
    with gateway.counts(malformed=1):
        gateway.send(short)


# VLAN tags


def tags_of(*tags: tuple[type[Packet], int]) -> Packet:
    """VLAN tags, the outermost first."""
    stack = tags[0][0](vlan=tags[0][1])
    for kind, number in tags[1:]:
        stack /= kind(vlan=number)
    return stack


# The kernel takes the outermost tag into the skb's metadata; the second one stays in the
# frame. Number 0 is priority alone: the stack delivers it without a VLAN device.
PRIORITY_TAGS = {
    "one": ((Dot1Q, 0),),
    "one, 802.1ad": ((Dot1AD, 0),),
    "two": ((Dot1Q, 0), (Dot1Q, 0)),
    "QinQ": ((Dot1AD, 0), (Dot1Q, 0)),
}


@families
@protocols
@pytest.mark.parametrize("tags", PRIORITY_TAGS.values(), ids=list(PRIORITY_TAGS))
def test_tagged_frames_are_intercepted(
    gateway: Gateway, tags: tuple[tuple[type[Packet], int], ...], protocol: str, family: int
) -> None:
    is_intercepted(gateway, protocol, ip(SERVICE[family]), tags=tags_of(*tags))


VLAN_TAGS = {
    "one": ((Dot1Q, 100),),
    "two": ((Dot1Q, 100), (Dot1Q, 200)),
    "QinQ": ((Dot1AD, 100), (Dot1Q, 200)),
    "three": ((Dot1AD, 100), (Dot1AD, 200), (Dot1Q, 300)),
}


@families
@pytest.mark.parametrize("tags", VLAN_TAGS.values(), ids=list(VLAN_TAGS))
def test_rules_are_looked_up_whatever_the_vlan(
    gateway: Gateway, tags: tuple[tuple[type[Packet], int], ...], family: int
) -> None:
    """A tag is no way around the rules, and none in."""
    gateway.insert(SERVICE[family], "udp", 5000, deny=True)
    header = Ether(src=gateway.client_mac, dst=gateway.mac) / tags_of(*tags) / ip(SERVICE[family])
    with gateway.counts(rule_deny=1, no_rule=1):
        gateway.send(header / UDP(dport=5000), header / UDP(dport=5001))


def test_arp_behind_a_tag_passes(gateway: Gateway) -> None:
    header = Ether(src=gateway.client_mac, dst="ff:ff:ff:ff:ff:ff")
    request = ARP(psrc=CLIENT[4], pdst=GATEWAY[4])
    with gateway.counts(arp=2):
        gateway.send(
            header / tags_of((Dot1Q, 100)) / request,
            header / tags_of((Dot1Q, 0), (Dot1Q, 100)) / request,
        )


def test_more_tags_than_two_in_the_frame_are_no_ip(gateway: Gateway) -> None:
    header = Ether(src=gateway.client_mac, dst=gateway.mac)
    tags = tags_of((Dot1Q, 1), (Dot1Q, 2), (Dot1Q, 3), (Dot1Q, 4))
    with gateway.counts(non_ip=1):
        gateway.send(header / tags / datagram(SERVICE[4], 5000))


# Headers that do not lie in the linear part


# struct virtio_net_hdr: flags, gso_type, hdr_len, gso_size, csum_start, csum_offset
VIRTIO_HEADER = struct.pack("=BBHHHH", 0, 0, 0, 0, 0, 0)
SOL_PACKET, PACKET_VNET_HDR = 263, 15


@contextmanager
def short_linear_wire(gateway: Gateway) -> Iterator[socket.socket]:
    """A raw socket whose frames have 14 linear bytes, if they are longer than a page.

    packet_snd() keeps linear what the virtio header says, at least the Ethernet header,
    and puts the rest into page fragments.
    """
    ends = ((gateway.client, "eth0"), (gateway.gateway, "gw0"))
    for namespace, name in ends:
        namespace.run("ip", "link", "set", name, "mtu", "9000")
    with gateway.client.entered():
        wire = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
        wire.setsockopt(SOL_PACKET, PACKET_VNET_HDR, 1)
        wire.bind(("eth0", 0))
    try:
        with wire:
            yield wire
    finally:
        for namespace, name in ends:
            namespace.run("ip", "link", "set", name, "mtu", "1500")


SHORT_LINEAR = {
    "ipv4": ip(SERVICE[4]),
    "ipv4 with options": ip(SERVICE[4], options=[IPOption_NOP()] * 40),
    "ipv6": ip(SERVICE[6]),
    "ipv6 with extension headers": ip(SERVICE[6]) / HOP_BY_HOP / DESTINATION,
}


@pytest.mark.parametrize("header", SHORT_LINEAR.values(), ids=list(SHORT_LINEAR))
def test_headers_in_a_page_fragment_are_read(gateway: Gateway, header: Packet) -> None:
    family = 6 if IPv6 in header else 4
    data = bytes(range(256)) * 32
    with listening("udp", family) as listener, short_linear_wire(gateway) as wire:
        gateway.insert(SERVICE[family], "udp", 5000, to=listener.port)
        with gateway.counts(rule_intercept=1, no_rule=1):
            for port in (5000, 5001):
                packet = header / UDP(sport=40000, dport=port) / Raw(data)
                wire.send(VIRTIO_HEADER + bytes(gateway.framed(packet)))
        assert listener.receive() == (data, (CLIENT[family], 40000), (SERVICE[family], 5000))


# Lies and stumps


@families
@protocols
def test_what_is_cut_off_is_malformed(gateway: Gateway, protocol: str, family: int) -> None:
    """Wherever it is cut, and though what is there would match a rule."""
    gateway.insert(SERVICE[family], protocol, 0, 65535)
    whole = bytes(gateway.framed(ip(SERVICE[family]) / PORTS[protocol]))
    stumps = [whole[:length] for length in range(14, len(whole))]
    with gateway.counts(malformed=len(stumps)):
        gateway.send(*stumps)
    with gateway.counts(rule_pass=2):
        gateway.send(whole, whole + bytes(18))  # Ethernet pads what is short


@families
@protocols
def test_what_the_ip_length_leaves_out_is_not_believed(
    gateway: Gateway, protocol: str, family: int
) -> None:
    """The ports are in the frame, but not in the packet."""
    gateway.insert(SERVICE[family], protocol, 0, 65535)
    header = {"tcp": 20, "udp": 8}[protocol]
    lies = []
    for length in (0, 1, header - 1, 2000):
        packet = (ip(SERVICE[family]) / PORTS[protocol]).copy()
        if family == 4:
            packet.len = 20 + length
        else:
            packet.plen = length
        lies.append(packet)
    with gateway.counts(malformed=len(lies)):
        gateway.send(*lies)


LIES = {
    "version 6 as IPv4": IP(src=CLIENT[4], dst=SERVICE[4], version=6) / PORTS["udp"],
    "version 0": IP(src=CLIENT[4], dst=SERVICE[4], version=0) / PORTS["udp"],
    "a header of 16 bytes": IP(src=CLIENT[4], dst=SERVICE[4], ihl=4) / PORTS["udp"],
    "a header longer than the packet": IP(src=CLIENT[4], dst=SERVICE[4], ihl=15) / PORTS["udp"],
    "a length of 0": IP(src=CLIENT[4], dst=SERVICE[4], len=0) / PORTS["udp"],
    "a length less than the header": IP(src=CLIENT[4], dst=SERVICE[4], len=19) / PORTS["udp"],
    "version 4 as IPv6": IPv6(src=CLIENT[6], dst=SERVICE[6], version=4) / PORTS["udp"],
}


@pytest.mark.parametrize("packet", LIES.values(), ids=list(LIES))
def test_a_header_that_contradicts_itself_is_malformed(gateway: Gateway, packet: Packet) -> None:
    for family in FAMILIES:
        gateway.insert(frames.EVERYWHERE[family], "udp", 0, 65535)
    with gateway.counts(malformed=1):
        gateway.send(packet)


# What is neither TCP nor UDP


OTHER_ETHERTYPES = [0x88CC, 0x8863, 0x8864, 0x8847, 0x888E, 0x9100, 0x0026]


@pytest.mark.parametrize("ethertype", OTHER_ETHERTYPES, ids=hex)
@pytest.mark.parametrize("passes", [False, True], ids=["drop", "pass"])
def test_other_than_ip_follows_the_setting(gateway: Gateway, ethertype: int, passes: bool) -> None:
    gateway.firewall.set(["gw0"], "pass_non_tuple", passes)
    with gateway.counts(**{"non_tuple" if passes else "non_ip": 1}):
        gateway.send(gateway.framed(Raw(bytes(60)), ethertype))


@families
@pytest.mark.parametrize("number", [2, 4, 41, 47, 50, 59, 89, 112, 132, 136, 253])
@pytest.mark.parametrize("passes", [False, True], ids=["drop", "pass"])
def test_other_protocols_follow_the_setting(
    gateway: Gateway, number: int, passes: bool, family: int
) -> None:
    """Although all of TCP and UDP is let in."""
    for protocol in PROTOCOLS:
        gateway.insert(GATEWAY[family], protocol, 0, 65535)
    gateway.firewall.set(["gw0"], "pass_non_tuple", passes)
    field = {4: "proto", 6: "nh"}[family]
    with gateway.counts(**{"non_tuple" if passes else "protocol": 1}):
        gateway.send(ip(GATEWAY[family], **{field: number}) / Raw(bytes(40)))


@families
def test_pass_non_tuple_lets_icmp_pass_and_still_no_tcp_and_udp(
    gateway: Gateway, family: int
) -> None:
    gateway.firewall.set(["gw0"], "pass_non_tuple", True)
    for protocol in PROTOCOLS:
        gateway.is_dropped(protocol, SERVICE[family], 80, "no_rule")
    field = {4: {"proto": 1}, 6: {"nh": 58}}[family]
    with gateway.counts(non_tuple=1):
        gateway.send(ip(GATEWAY[family], **field) / Raw(bytes((13,) + (0,) * 19)))


@families
def test_a_tunnels_packets_are_datagrams_like_others(gateway: Gateway, family: int) -> None:
    """Nobody outside says what is in a tunnel: Geneve, VXLAN, GTP, Teredo."""
    inner = bytes(Ether(dst=gateway.mac) / datagram(SERVICE[family], 80))
    gateway.insert(SERVICE[family], "udp", 80)
    with gateway.counts(no_rule=4):
        for port in (6081, 4789, 2152, 3544):
            gateway.send(datagram(GATEWAY[family], port, bytes(8) + inner))


# Interfaces without an Ethernet header


@contextmanager
def tunnel(gateway: Gateway) -> Iterator[int]:
    """A layer 3 device of the gateway, attached: what is written to it comes in."""
    fd = gateway.gateway.open_tun("tun0")
    try:
        gateway.gateway.set_up("tun0", "10.8.0.1/24", "fd08::1/64")
        gateway.firewall.attach("tun0", "ingress")
        gateway.firewall.set(["tun0"], "ipv6", True)
        yield fd
    finally:
        os.close(fd)
        gateway.firewall.refresh()


TUNNELLED = {4: ("10.8.0.1", "10.8.0.2"), 6: ("fd08::1", "fd08::2")}


def _read_packet(fd: int, kind: type[Packet]) -> Packet:
    """What the gateway sends by the tunnel, the next packet of a kind."""
    while select.select([fd], [], [], PATIENCE)[0]:
        data = os.read(fd, 65535)
        packet = (IP, IPv6)[data[0] >> 4 == 6](data)
        if kind in packet:
            return packet
    raise TimeoutError(f"no {kind.__name__} came out of the tunnel")


@families
@protocols
def test_an_interface_without_etherdeliver_intercepts(
    gateway: Gateway, protocol: str, family: int
) -> None:
    _, peer = TUNNELLED[family]
    packet = ip(SERVICE[family], peer) / PORTS[protocol]
    if protocol == "udp":
        packet /= Raw(b"data")
    with listening(protocol, family) as listener, tunnel(gateway) as fd:
        rule = gateway.insert(SERVICE[family], protocol, 5000, to=listener.port)
        with gateway.counts(rule_intercept=1):
            os.write(fd, bytes(packet))
        assert gateway.hits(rule) == 1
        if protocol == "tcp":
            answer = _read_packet(fd, TCP)
            assert (answer.src, str(answer[TCP].flags)) == (SERVICE[family], "SA")
        else:
            assert listener.receive() == (b"data", (peer, 40000), (SERVICE[family], 5000))


@families
def test_an_interface_without_ethernet_has_the_same_exceptions(
    gateway: Gateway, family: int
) -> None:
    own, peer = TUNNELLED[family]
    with tunnel(gateway) as fd, transparent_socket((own, 5000)) as service:
        with gateway.counts(ssh=1):
            os.write(fd, bytes(ip(own, peer) / TCP(dport=22, flags="S")))
        with gateway.counts(no_rule=2, malformed=1):
            os.write(fd, bytes(ip(own, peer) / UDP(dport=5000)))
            os.write(fd, bytes(ip(GATEWAY[family], peer) / TCP(dport=22, flags="S")))
            os.write(fd, bytes(ip(own, peer) / UDP(dport=5000))[:-1])
        assert is_silent(service)


@families
def test_a_bare_syn_is_answered_like_a_stacks(gateway: Gateway, family: int) -> None:
    """The counterpart of all crafted SYNs above."""
    with listening("tcp", family) as listener, gateway.capture() as heard:
        gateway.insert(SERVICE[family], "tcp", 5000, to=listener.port)
        gateway.send(syn(SERVICE[family], 5000))
        assert str(heard(TCP).flags) == "SA"
