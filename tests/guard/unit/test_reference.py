# SPDX-License-Identifier: GPL-2.0-only
"""The reference model of the guard, checked by hand: without this, two wrongs could agree.

Packets are made by scapy here, by the generator's own builders where the two are compared.
"""

from __future__ import annotations

import logging
from collections import Counter
from ipaddress import ip_address, ip_network
from random import Random

import pytest

from tests.firewall.support.reference import ETHERTYPE_ARP, ETHERTYPE_IPV4, ETHERTYPE_IPV6
from tests.guard.support.packets import random_packet
from tests.guard.support.reference import (
    Decision,
    End,
    Rules,
    Socket,
    decide_named,
    decide_packet,
    end,
)
from tests.guard.support.rules import random_rules

logging.getLogger("scapy.runtime").setLevel(logging.ERROR)

from scapy.layers.inet import (  # noqa: E402
    ICMP,
    IP,
    TCP,
    UDP,
    IPOption_EOL,
    IPOption_LSRR,
    IPOption_NOP,
    IPOption_Router_Alert,
    IPOption_RR,
    IPOption_SSRR,
)
from scapy.layers.inet6 import (  # noqa: E402
    ICMPv6EchoRequest,
    IPv6,
    IPv6ExtHdrDestOpt,
    IPv6ExtHdrFragment,
    IPv6ExtHdrHopByHop,
    IPv6ExtHdrRouting,
    IPv6ExtHdrSegmentRouting,
)
from scapy.layers.ipsec import AH  # noqa: E402
from scapy.packet import Packet, Raw  # noqa: E402

TO4, TO6 = "10.0.0.1", "fd00::1"
IPV4, IPV6 = IP(src="10.9.0.2", dst=TO4), IPv6(src="fd09::2", dst=TO6)
SYN = TCP(sport=40000, dport=443)
DATAGRAM = UDP(sport=40000, dport=443)


def rules(*allow: str, block: tuple[str, ...] = (), **settings: object) -> Rules:
    """Entries are a prefix, or a prefix, a blank and a port."""
    entries = [text.partition(" ") for text in allow]
    return Rules(
        [(ip_network(prefix), int(port) if port else None) for prefix, _, port in entries],
        [ip_network(text) for text in block],
        **settings,  # type: ignore[arg-type]
    )


EVERYWHERE = rules("0.0.0.0/0", "::/0")
PORT_443 = rules(f"{TO4}/32 443", f"{TO6}/128 443")


def decided(
    packet: Packet | bytes,
    by: Rules = EVERYWHERE,
    used: Socket | None = None,
    *,
    is_by_loopback: bool = False,
    ethertype: int | None = None,
) -> Decision:
    if ethertype is None:
        ethertype = ETHERTYPE_IPV6 if isinstance(packet, IPv6) else ETHERTYPE_IPV4
    used = used or Socket()
    return decide_packet(bytes(packet), ethertype, by, used, is_by_loopback=is_by_loopback)


def reason(packet: Packet | bytes, by: Rules = EVERYWHERE, **options: object) -> str:
    return decided(packet, by, **options).reason  # type: ignore[arg-type]


def at(address: str, port: int | None = None) -> End:
    return end(ip_address(address), port)


# Destinations


@pytest.mark.parametrize(
    ("address", "port", "wanted"),
    [
        ("10.0.0.1", 443, "prefix"),
        ("10.0.0.1", 80, "not_allowed"),
        ("10.0.0.1", None, "not_allowed"),
        ("10.0.0.2", 443, "not_allowed"),
        ("10.1.0.1", 80, "prefix"),  # what the longer one does not say, the shorter one does
        ("10.1.0.1", 443, "prefix"),
        ("10.1.2.1", 443, "blocked"),
        ("10.1.2.3", 22, "prefix"),
        ("10.1.2.3", 443, "blocked"),
        ("fd00::1", 1, "prefix"),
        ("::ffff:10.0.0.1", 443, "prefix"),
        ("::ffff:10.0.0.1", 80, "not_allowed"),
        ("192.0.2.1", 80, "not_allowed"),  # IPv6 prefixes around the mapped ones do not count
        ("::1", None, "prefix"),
        ("127.3.2.1", 80, "prefix"),
    ],
)
def test_the_longest_prefix_that_says_anything_of_the_port_decides(
    address: str, port: int | None, wanted: str
) -> None:
    given = rules(
        *("10.0.0.1/32 443", "10.1.0.0/16", "10.1.0.1/32 443", "10.1.2.3/32 22", "::/0"),
        block=("10.1.2.0/24",),
    )
    assert given.judge(at(address, port)) == wanted


def test_a_block_counts_before_an_allow_and_loopback_is_one() -> None:
    blocked = rules("127.0.0.0/8", "::1/128", block=("127.0.0.0/8", "::/127"))
    assert blocked.judge(at("127.0.0.1", 80)) == "blocked"
    assert blocked.judge(at("::1", 80)) == "prefix"
    judged = rules(has_loopback=False, is_allowed_by_default=True)
    assert judged.judge(at("127.0.0.1", 80)) == "default"


def test_names_count_where_no_prefix_says_anything() -> None:
    given = rules("10.0.0.1/32 443", block=("10.0.1.0/24",))
    given.resolved = {
        (ip_address("10.0.0.1"), 80): True,
        (ip_address("10.0.0.2"), None): True,
        (ip_address("10.0.0.3"), None): False,
        (ip_address("10.0.1.1"), None): True,
    }
    found = {
        to: given.judge(at(*to))
        for to in (
            *(("10.0.0.1", 443), ("10.0.0.1", 80), ("10.0.0.1", None), ("10.0.0.2", None)),
            *(("10.0.0.2", 22), ("10.0.0.3", 80), ("10.0.1.1", 80)),
        )
    }
    assert list(found.values()) == [
        *("prefix", "name", "not_allowed", "name"),
        *("name", "expired", "blocked"),
    ]


def test_what_a_program_names_is_redirected_judged_or_left_to_the_packet() -> None:
    given = rules("10.0.0.0/8 443", has_loopback=False)
    given.proxy = {4: (ip_address("127.0.0.1"), (4053, 4054))}

    def named(address: str, port: int, protocol: int, *, is_connect: bool = True) -> str | None:
        return decide_named(at(address, port), protocol, given, is_connect=is_connect)[0]

    tcp, udp = 6, 17
    assert named("192.0.2.1", 53, udp) == named("::ffff:192.0.2.1", 53, tcp) == "dns"
    assert named("0.0.0.0", 53, udp, is_connect=False) == "dns"
    assert named("127.0.0.1", 4054, udp) == named("0.0.0.0", 4053, tcp) == "proxy"
    assert named("2001:db8::1", 53, udp) == "no_proxy"
    # One datagram socket may ask several servers; TCP asks one.
    assert named("127.0.0.1", 4054, tcp) == "not_allowed"
    assert decide_named(at("192.0.2.1", 53), tcp, given, is_connect=True, is_bound=True) == (
        "no_proxy",
        at("192.0.2.1", 53),
    )
    assert named("192.0.2.1", 53, 136, is_connect=False) == "not_allowed"
    assert named("10.0.0.1", 443, tcp) == "prefix"
    assert named("10.0.0.1", 80, tcp) == "not_allowed"
    assert named("10.0.0.1", 80, udp, is_connect=False) == "not_allowed"
    assert named("10.0.0.1", 80, udp) is None
    given.has_loopback = True
    assert named("::", 80, tcp) == named("0.0.0.0", 80, tcp) == "prefix"


# Packets


@pytest.mark.parametrize("ip", [IPV4, IPV6])
def test_ports_are_of_tcp_and_udp(ip: Packet) -> None:
    assert reason(ip / SYN, PORT_443) == reason(ip / DATAGRAM, PORT_443) == "prefix"
    assert reason(ip / TCP(dport=80), PORT_443) == "not_allowed"
    sctp = ip.copy() / Raw(bytes(DATAGRAM))
    sctp.fields["proto" if ip is IPV4 else "nh"] = 132
    assert reason(sctp, PORT_443) == "not_allowed"
    assert reason(sctp) == "prefix"
    echo = ICMP() if ip is IPV4 else ICMPv6EchoRequest()
    assert reason(ip / echo, PORT_443) == "not_allowed"
    assert reason(ip / echo) == "prefix"
    assert reason(ip / UDP(dport=53)) == reason(ip / TCP(dport=53)) == "dns_direct"
    assert decided(ip / UDP(sport=1, dport=2)) == Decision(
        "prefix", at(TO4 if ip is IPV4 else TO6, 2), 17, 1
    )


def test_a_later_fragment_has_no_port_and_a_first_one_its_whole_header() -> None:
    first, later = {"flags": "MF"}, {"frag": 3}
    assert reason(IP(dst=TO4, **first) / SYN, PORT_443) == "prefix"
    assert reason(IP(dst=TO4, **first) / Raw(bytes(SYN)[:19]), PORT_443) == "not_allowed"
    cut = IP(dst=TO4, proto=6, **first) / Raw(bytes(SYN)[:19])
    assert reason(cut, PORT_443) == "malformed"
    assert reason(IP(dst=TO4, proto=17) / Raw(bytes(7))) == "malformed"
    assert reason(IP(dst=TO4, proto=6, **later) / Raw(bytes(SYN)), PORT_443) == "not_allowed"
    # Within a TCP header, which it would overwrite (RFC 3128).
    assert reason(IP(dst=TO4, proto=6, frag=2) / Raw(bytes(SYN)), PORT_443) == "malformed"
    assert reason(IP(dst=TO4, proto=17, **later) / Raw(bytes(UDP(dport=53)))) == "prefix"
    assert reason(IPV6 / IPv6ExtHdrFragment(m=1) / SYN, PORT_443) == "prefix"
    assert reason(IPV6 / IPv6ExtHdrFragment(offset=3) / SYN, PORT_443) == "not_allowed"


@pytest.mark.parametrize(
    ("packet", "ethertype"),
    [
        (bytes(IPV4 / SYN)[:39], ETHERTYPE_IPV4),
        (IP(dst=TO4, ihl=4) / SYN, ETHERTYPE_IPV4),
        (IP(dst=TO4, ihl=15) / SYN, ETHERTYPE_IPV4),
        (IP(dst=TO4, version=6) / SYN, ETHERTYPE_IPV4),
        (IP(dst=TO4, len=41) / SYN, ETHERTYPE_IPV4),
        (IP(dst=TO4, len=0) / SYN, ETHERTYPE_IPV4),
        (IPV4 / SYN, ETHERTYPE_IPV6),
        (IPV4 / SYN, ETHERTYPE_ARP),
        (bytes(IPV6 / SYN)[:59], ETHERTYPE_IPV6),
        (IPv6(dst=TO6, plen=0) / SYN, ETHERTYPE_IPV6),
        (IPV6 / IPv6ExtHdrDestOpt(len=9) / SYN, ETHERTYPE_IPV6),
        (IPV6 / IPv6ExtHdrFragment() / IPv6ExtHdrFragment() / SYN, ETHERTYPE_IPV6),
        (IPv6(dst=f"::ffff:{TO4}") / SYN, ETHERTYPE_IPV6),
        (IPv6(src=f"::ffff:{TO4}", dst=TO6) / SYN, ETHERTYPE_IPV6),
    ],
)
def test_what_is_no_whole_packet_is_malformed(packet: Packet | bytes, ethertype: int) -> None:
    assert decided(packet, ethertype=ethertype) == Decision("malformed")


def test_eight_extension_headers_are_followed_and_no_more() -> None:
    packet = IPV6
    for _ in range(8):
        packet = packet / IPv6ExtHdrDestOpt()
    assert reason(packet / SYN, PORT_443) == "prefix"
    assert reason(packet / IPv6ExtHdrDestOpt() / SYN, PORT_443) == "malformed"
    assert reason(IPV6 / AH(nh=17, payloadlen=4, icv=bytes(12)) / UDP(dport=53)) == "dns_direct"


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        ([IPOption_LSRR(routers=["10.0.0.9"])], "source_route"),
        ([IPOption_SSRR(routers=["10.0.0.9"])], "source_route"),
        ([IPOption_NOP(), IPOption_RR(), IPOption_LSRR(routers=["10.0.0.9"])], "source_route"),
        ([IPOption_EOL(), IPOption_LSRR(routers=["10.0.0.9"])], "prefix"),
        ([IPOption_NOP()] * 40, "prefix"),
        ([IPOption_Router_Alert(), IPOption_RR()], "prefix"),
        ([Raw(b"\x44\x01\x01\x01")], "source_route"),
        ([Raw(b"\x44\x05\x01\x01")], "source_route"),
        ([Raw(b"\x01\x01\x01\x44")], "source_route"),
    ],
)
def test_an_option_that_routes_or_hides_a_route_is_told_from_others(
    options: list[Packet], wanted: str
) -> None:
    assert reason(IP(dst=TO4, options=options) / SYN) == wanted


def test_a_routing_header_counts_while_it_has_segments_left() -> None:
    for kind in (0, 2, 253):
        done = IPv6ExtHdrRouting(type=kind, segleft=0, addresses=["fd00::9"])
        left = IPv6ExtHdrRouting(type=kind, segleft=1, addresses=["fd00::9"])
        assert reason(IPV6 / done / SYN) == "prefix"
        assert reason(IPV6 / left / SYN) == "source_route"
        assert reason(IPV6 / IPv6ExtHdrHopByHop() / done / left / SYN) == "source_route"
        assert reason(IPV6 / IPv6ExtHdrFragment(m=1) / left / SYN) == "source_route"
    segments = IPv6ExtHdrSegmentRouting(addresses=["fd00::9", "fd00::8"], segleft=1, lastentry=1)
    assert reason(IPV6 / segments / SYN) == "source_route"
    # In a later fragment it is the middle of something.
    fragment = IPv6ExtHdrFragment(offset=1, nh=43)
    assert reason(IPV6 / fragment / Raw(b"\x06\0\0\x01" + bytes(40))) == "prefix"


def test_loopback_is_left_by_loopback_alone() -> None:
    given = rules("127.0.0.0/8", "::1/128", "0.0.0.0/0")
    given.proxy = {4: (ip_address("127.0.0.1"), (4053,))}
    to_proxy = IP(dst="127.0.0.1") / UDP(dport=4053)
    for packet in (to_proxy, IP(dst="127.9.9.9") / SYN, IPv6(dst="::1") / SYN):
        assert reason(packet, given) == "martian"
    assert reason(to_proxy, given, is_by_loopback=True) == "proxy"
    assert reason(IP(dst="127.9.9.9") / SYN, given, is_by_loopback=True) == "prefix"
    assert reason(IP(dst="127.0.0.1") / UDP(dport=53), given, is_by_loopback=True) == "dns_direct"
    assert reason(IPV4 / SYN, given, is_by_loopback=True) == "prefix"


def test_by_loopback_a_source_that_may_not_be_reached_is_foreign() -> None:
    given = rules(f"{TO4}/32 443", f"{TO6}/128")

    def sent(kind: str, source: str, to: str, *, is_by_loopback: bool = True) -> str:
        packet = (IPv6 if ":" in to else IP)(src=source, dst=to) / SYN
        return reason(packet, given, used=Socket(kind), is_by_loopback=is_by_loopback)

    for kind in ("raw", "older"):
        assert sent(kind, "fd00::2", "::1") == "foreign_source"
        assert sent(kind, TO6, "::1") == "prefix"
        assert sent(kind, "::1", "::1") == "prefix"
        assert sent(kind, "fd00::2", "fd00::2") == "not_allowed"
        assert sent(kind, "fd00::2", TO6, is_by_loopback=False) == "prefix"
    # On a port of it alone is not enough: whoever answers does so from where it was asked.
    assert sent("raw", TO4, "127.0.0.1") == "foreign_source"
    assert sent("older", TO4, "127.0.0.1") == "prefix"
    assert sent("guarded", "fd00::2", "::1") == "prefix"
    given.is_log_only = True
    assert sent("raw", "fd00::2", "::1") == "foreign_source"


def test_a_socket_goes_on_to_where_it_was_let_to_last() -> None:
    given = rules()
    given.resolved = {(ip_address(TO4), 443): True, (ip_address("10.0.0.2"), None): True}
    used = Socket()
    assert reason(IPV4 / SYN, given, used=used) == "name"
    given.resolved[ip_address(TO4), 443] = False
    assert reason(IPV4 / SYN, given, used=used) == "socket"
    assert reason(IPV4 / TCP(dport=80), given, used=used) == "not_allowed"
    assert reason(IPV4 / SYN, given, used=used) == "socket"
    assert reason(IP(dst=TO4, proto=6, frag=3) / SYN, given, used=used) == "not_allowed"
    assert reason(IP(dst="10.0.0.2") / SYN, given, used=used) == "name"
    assert reason(IPV4 / SYN, given, used=used) == "expired"


def test_log_only_lets_pass_and_admits_nothing() -> None:
    given = rules(is_log_only=True)
    used = Socket()
    assert reason(IPV4 / SYN, given, used=used) == "not_allowed"
    assert given.lets("not_allowed")
    assert not rules().lets("not_allowed")
    assert rules().lets("prefix")
    assert used.admitted is None


def test_the_generator_meets_every_reason_and_every_part_of_a_packet() -> None:
    rng = Random(1)
    reasons: Counter[str] = Counter()
    for _ in range(40):
        given = random_rules(rng)
        for _ in range(50):
            leaving = random_packet(rng, given)
            found = decided(leaving.packet, given, ethertype=leaving.ethertype, is_by_loopback=True)
            reasons[found.reason] += 1
    assert set(reasons) == {
        *("proxy", "prefix", "name", "default", "not_allowed", "expired", "blocked"),
        *("dns_direct", "source_route", "malformed"),
    }
    assert all(count > 10 for count in reasons.values()), reasons
