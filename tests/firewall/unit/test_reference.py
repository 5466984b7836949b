# SPDX-License-Identifier: GPL-2.0-only
"""The reference model, checked by hand: without this, two wrongs could agree.

Frames are made by scapy here, by the generator's own builders where the two are compared.
"""

from __future__ import annotations

import logging
from collections import Counter
from contextlib import suppress
from dataclasses import replace
from ipaddress import ip_address
from random import Random

import pytest

from tests.firewall.support import packets
from tests.firewall.support.reference import (
    Decision,
    Flow,
    Fragments,
    HeaderChain,
    Interface,
    Malformed,
    NotIp,
    RuleSet,
    Sockets,
    addresses,
    decide,
    decide_egress,
    parse_frame,
    remember,
    rule,
)
from tests.firewall.support.tracked import TrackedFlows

logging.getLogger("scapy.runtime").setLevel(logging.ERROR)

from scapy.layers.inet import ICMP, IP, TCP, UDP, IPOption_NOP  # noqa: E402
from scapy.layers.inet6 import (  # noqa: E402
    ICMPv6EchoRequest,
    ICMPv6MLReport,
    ICMPv6ND_NS,
    ICMPv6ND_Redirect,
    ICMPv6PacketTooBig,
    ICMPv6TimeExceeded,
    IPv6,
    IPv6ExtHdrDestOpt,
    IPv6ExtHdrFragment,
    IPv6ExtHdrHopByHop,
    IPv6ExtHdrRouting,
    PadN,
)
from scapy.layers.ipsec import AH  # noqa: E402
from scapy.layers.l2 import ARP, Dot1AD, Dot1Q, Ether  # noqa: E402
from scapy.packet import Packet, Raw  # noqa: E402

ETHER = Ether(src="02:00:00:00:00:02", dst="02:00:00:00:00:01")
IPV4 = IP(src="10.0.0.1", dst="100.72.0.4")
IPV6 = IPv6(src="fd00:2::1", dst="fd00:1::4")
SYN = TCP(sport=50000, dport=22)

OWN = addresses("10.0.0.254", "fd00:2::fe")
PLAIN = Interface("eth0", OWN)
OPEN = Interface("eth0", OWN, ipv6=True)
LO = Interface("lo", addresses("127.0.0.1", "::1"), is_loopback=True)

LISTENERS = Sockets({(4, "tcp", 4000), (6, "tcp", 4000), (4, "udp", 4000)})
FLOWS = Sockets(
    flows={
        Flow("tcp", ip_address("10.0.0.254"), 40000, ip_address("8.8.8.8"), 443),
        Flow("udp", ip_address("fd00:2::fe"), 40000, ip_address("2001:db8::1"), 53),
    }
)

INTERCEPT_4 = rule("100.72.0.0/16", "tcp", 22, tproxy_port=4000)
INTERCEPT_6 = rule("fd00:1::/64", "tcp", 22, tproxy_port=4000)
RULES = RuleSet([INTERCEPT_4, INTERCEPT_6])


def asked(
    packet: Packet | bytes,
    interface: Interface = OPEN,
    rules: RuleSet = RULES,
    sockets: Sockets = LISTENERS,
    fragments: Fragments | None = None,
) -> tuple[str, str]:
    frame = packet if isinstance(packet, bytes) else bytes(ETHER / packet)
    answer = decide(frame, interface, rules, sockets, fragments)
    return answer.verdict, answer.reason


def reason(packet: Packet | bytes, *arguments: object, **options: object) -> str:
    return asked(packet, *arguments, **options)[1]  # type: ignore[arg-type]


# --- what is no packet of ours ---------------------------------------------------------------


def test_arp_passes_everywhere() -> None:
    assert asked(ARP()) == ("pass", "arp")
    assert asked(Dot1Q(vlan=7) / ARP()) == ("pass", "arp")


def test_other_ethertypes_drop_unless_non_tuples_pass() -> None:
    lldp = bytes(Ether(type=0x88CC)) + b"lldp"
    assert asked(lldp) == ("drop", "non_ip")
    assert asked(lldp, replace(PLAIN, pass_non_tuple=True)) == ("pass", "non_tuple")
    assert asked(lldp, LO) == ("pass", "non_tuple")


@pytest.mark.parametrize(
    ("tags", "expected"),
    [
        (Dot1Q(vlan=1), "rule_intercept"),
        (Dot1AD(vlan=1) / Dot1Q(vlan=2), "rule_intercept"),
        (Dot1Q(vlan=1) / Dot1Q(vlan=2), "rule_intercept"),
        (Dot1AD(vlan=1) / Dot1Q(vlan=2) / Dot1Q(vlan=3), "non_ip"),
    ],
)
def test_two_vlan_tags_are_skipped_a_third_is_not(tags: Packet, expected: str) -> None:
    assert reason(tags / IPV4 / SYN) == expected
    assert reason(tags / IPV6 / SYN) == expected


# --- malformed -------------------------------------------------------------------------------


@pytest.mark.parametrize("packet", [IPV4 / SYN, IPV6 / SYN, Dot1Q(vlan=1) / IPV4 / SYN])
def test_a_frame_cut_off_anywhere_is_malformed(packet: Packet) -> None:
    frame = bytes(ETHER / packet)
    assert reason(frame) == "rule_intercept"
    for length in range(14, len(frame)):
        assert asked(frame[:length]) == ("drop", "malformed"), length


def test_padding_beyond_the_ip_length_is_not_seen() -> None:
    assert reason(bytes(ETHER / IPV4 / SYN) + bytes(20)) == "rule_intercept"
    # No TCP header within the IP length, however much follows.
    short = IP(src="10.0.0.1", dst="100.72.0.4", len=39) / SYN
    assert reason(bytes(ETHER / short) + bytes(20)) == "malformed"
    short = IPv6(src="fd00:2::1", dst="fd00:1::4", plen=19) / SYN
    assert reason(bytes(ETHER / short) + bytes(20)) == "malformed"


@pytest.mark.parametrize(
    "packet",
    [
        IP(version=5) / SYN,
        IP(ihl=4) / SYN,
        IP(ihl=15) / SYN,
        IP(len=0) / SYN,
        IP(len=19) / SYN,
        IP(len=41) / SYN,
        IPv6(version=4) / SYN,
        IPv6(plen=21) / SYN,
        IPv6(plen=0) / SYN,
        IP(len=27) / UDP(),
        IPv6(plen=7) / UDP(),
        IP(len=27) / ICMP(),
        IPv6(plen=7) / ICMPv6EchoRequest(),
        IPv6(nh=60, plen=7) / Raw(bytes(7)),
        IPv6() / IPv6ExtHdrDestOpt(len=2, nh=6) / Raw(bytes(8)),
    ],
)
def test_lengths_and_versions_that_do_not_fit_are_malformed(packet: Packet) -> None:
    assert asked(packet) == ("drop", "malformed")


def test_a_version_that_is_not_the_ethertypes_is_malformed() -> None:
    assert reason(bytes(Ether(type=0x86DD)) + bytes(IPV4 / SYN / bytes(40))) == "malformed"
    assert reason(bytes(Ether(type=0x0800)) + bytes(IPV6 / SYN)) == "malformed"


def test_options_do_not_move_the_ports() -> None:
    options = IP(src="10.0.0.1", dst="100.72.0.4", options=[IPOption_NOP()] * 40)
    assert reason(options / SYN) == "rule_intercept"
    assert reason(options / TCP(dport=23)) == "no_rule"


# --- IPv6 extension headers ------------------------------------------------------------------


def chain(count: int) -> Packet:
    packet = IPV6
    for _ in range(count):
        packet = packet / IPv6ExtHdrDestOpt()
    return packet


def test_eight_extension_headers_are_walked_nine_are_not() -> None:
    assert reason(chain(8) / SYN) == "rule_intercept"
    assert asked(chain(9) / SYN) == ("drop", "header_chain")


@pytest.mark.parametrize(
    "header",
    [
        IPv6ExtHdrHopByHop(),
        IPv6ExtHdrRouting(),
        IPv6ExtHdrDestOpt(options=[PadN(optdata=bytes(100))]),
        AH(nh=6, payloadlen=4, spi=1, seq=1, icv=bytes(12)),
        IPv6ExtHdrHopByHop()
        / IPv6ExtHdrRouting()
        / AH(nh=6, payloadlen=6, spi=1, seq=1, icv=bytes(20)),
    ],
)
def test_extension_headers_are_skipped(header: Packet) -> None:
    assert reason(IPV6 / header / SYN) == "rule_intercept"
    assert reason(IPV6 / header / TCP(dport=23)) == "no_rule"


def test_headers_far_into_the_frame_are_not_read() -> None:
    header = IPv6ExtHdrDestOpt(options=[PadN(optdata=bytes(240))] * 3)
    assert len(header) > 700
    assert reason(IPV6 / header / SYN) == "rule_intercept"
    assert asked(IPV6 / header / header / SYN) == ("drop", "header_chain")


# --- fragments -------------------------------------------------------------------------------


def test_a_first_fragment_is_decided_by_its_ports() -> None:
    first = replace_fragment(flags="MF")
    assert asked(first / SYN) == ("assign", "rule_intercept")
    assert asked(first / SYN, rules=RuleSet()) == ("drop", "no_rule")
    passing = RuleSet([rule("100.72.0.4/32", "tcp", 22)])
    assert asked(first / SYN, rules=passing) == ("pass", "rule_pass")
    first6 = IPV6 / IPv6ExtHdrFragment(m=1, offset=0, id=7)
    assert asked(first6 / SYN) == ("assign", "rule_intercept")


def test_a_fragment_within_the_tcp_header_is_malformed() -> None:
    """RFC 3128: it would overwrite the first fragment's flags."""
    for units in (1, 2):
        assert reason(replace_fragment(frag=units) / Raw(b"x" * 16)) == "malformed"
        assert reason(IPV6 / IPv6ExtHdrFragment(offset=units, nh=6) / Raw(b"x" * 16)) == "malformed"


def replace_fragment(flags: str = "", frag: int = 0, id: int = 7) -> Packet:
    return IP(src="10.0.0.1", dst="100.72.0.4", flags=flags, frag=frag, id=id, proto=6)


@pytest.mark.parametrize(
    "later",
    [
        replace_fragment(frag=3),
        replace_fragment(flags="MF", frag=185),
        IPV6 / IPv6ExtHdrFragment(m=0, offset=3, nh=6),
        IPV6 / IPv6ExtHdrDestOpt() / IPv6ExtHdrFragment(m=1, offset=8191, nh=6),
    ],
)
def test_a_later_fragment_never_has_ports(later: Packet) -> None:
    # What it carries looks like a SYN to an intercepted port.
    payload = Raw(bytes(SYN))
    assert asked(later / payload) == ("drop", "fragment_orphan")
    assert asked(later / Raw(b"x")) == ("drop", "fragment_orphan")
    assert asked(later / payload, LO) == ("drop", "fragment_orphan")


def test_atomic_fragments_are_whole_packets() -> None:
    assert reason(IPV6 / IPv6ExtHdrFragment(m=0, offset=0) / SYN) == "rule_intercept"
    # "Don't fragment" and the reserved bit make no fragment.
    assert reason(replace_fragment(flags="DF") / SYN) == "rule_intercept"
    assert reason(replace_fragment(flags="evil") / SYN) == "rule_intercept"


def test_a_fragment_of_a_fragment_is_malformed() -> None:
    atomic, first = IPv6ExtHdrFragment(m=0, offset=0), IPv6ExtHdrFragment(m=1, offset=0)
    later = IPv6ExtHdrFragment(m=0, offset=1, nh=6)
    for outer in (atomic, first):
        for inner in (atomic, first, later):
            assert asked(IPV6 / outer / inner / SYN) == ("drop", "malformed")
    # In a later fragment there are no headers that could be read.
    nested = IPv6ExtHdrFragment(m=0, offset=1, nh=44)
    assert reason(IPV6 / nested / first / SYN) == "fragment_orphan"


def test_a_first_fragment_has_the_whole_transport_header() -> None:
    assert reason(replace_fragment(flags="MF") / Raw(bytes(SYN)[:16])) == "malformed"
    header = IPv6ExtHdrFragment(m=1, offset=0, nh=6)
    assert reason(IPV6 / header / Raw(bytes(SYN)[:19])) == "malformed"


@pytest.mark.parametrize(
    ("first", "later", "other"),
    [
        (
            replace_fragment(flags="MF") / SYN,
            replace_fragment(frag=3),
            replace_fragment(frag=3, id=8),
        ),
        (
            IPV6 / IPv6ExtHdrFragment(m=1, id=7) / SYN,
            IPV6 / IPv6ExtHdrFragment(m=1, offset=3, id=7, nh=6),
            IPV6 / IPv6ExtHdrFragment(m=1, offset=3, id=8, nh=6),
        ),
    ],
)
def test_later_fragments_follow_the_first(first: Packet, later: Packet, other: Packet) -> None:
    destination = "100.72.0.4/32" if IP in first else "fd00:1::4/128"
    for rules, expected in (
        (RuleSet([rule(destination, "tcp", 22)]), ("pass", "fragment_passed")),
        (RULES, ("pass", "rule_intercept")),
        (RuleSet(), ("drop", "fragment_dropped")),
    ):
        seen: Fragments = {}
        frame = bytes(ETHER / first)
        remember(frame, OPEN, decide(frame, OPEN, rules, LISTENERS, seen), seen)
        follower = later / Raw(bytes(24))
        assert asked(follower, fragments=seen) == expected
        # That of another datagram: where one has passed between these hosts, it may come first.
        before = {"pass": "fragment_passed", "drop": "fragment_orphan"}[expected[0]]
        assert reason(other / Raw(bytes(24)), fragments=seen) == before
        elsewhere = replace(OPEN, name="eth1")
        assert reason(follower, elsewhere, fragments=seen) == "fragment_orphan"


def test_only_ipv4_tells_datagrams_apart_by_protocol() -> None:
    rules = RuleSet([rule("100.72.0.4/32", "tcp", 22), rule("fd00:1::4/128", "tcp", 22)])
    seen: Fragments = {}
    for first in (replace_fragment(flags="MF"), IPV6 / IPv6ExtHdrFragment(m=1, id=7)):
        frame = bytes(ETHER / first / SYN)
        remember(frame, OPEN, decide(frame, OPEN, rules), seen)
    later = IP(src="10.0.0.1", dst="100.72.0.4", frag=3, id=7, proto=17)
    assert reason(later / Raw(bytes(8)), fragments=seen) == "fragment_orphan"
    later = IPV6 / IPv6ExtHdrFragment(offset=3, id=7, nh=17)
    assert reason(later / Raw(bytes(8)), fragments=seen) == "fragment_passed"


# --- ICMP ------------------------------------------------------------------------------------


@pytest.mark.parametrize("packet", [IPV4 / ICMP(), IPV6 / ICMPv6EchoRequest()])
def test_echo_goes_by_the_setting(packet: Packet) -> None:
    assert asked(packet) == ("drop", "icmp_echo_off")
    assert asked(packet, replace(OPEN, icmp_echo=True)) == ("pass", "icmp_echo")
    assert asked(packet, replace(OPEN, pass_non_tuple=True)) == ("pass", "non_tuple")
    assert asked(packet, LO) == ("pass", "icmp_echo")


SENT_4 = IP(src="10.0.0.254", dst="8.8.8.8") / TCP(sport=40000, dport=443)
SENT_6 = IPv6(src="fd00:2::fe", dst="2001:db8::1") / UDP(sport=40000, dport=53)


@pytest.mark.parametrize("kind", [3, 11, 12])
def test_icmp_errors_pass_for_what_we_sent(kind: int) -> None:
    router = IP(src="192.0.2.1", dst="10.0.0.254") / ICMP(type=kind)
    assert asked(router / SENT_4, sockets=FLOWS) == ("pass", "icmp_error")
    assert asked(router / SENT_4) == ("drop", "icmp_error_unrelated")
    # The least that RFC 792 asks routers to quote: header and eight bytes.
    quote = bytes(SENT_4)
    assert reason(router / Raw(quote[:28]), sockets=FLOWS) == "icmp_error"
    assert reason(router / Raw(quote[:27]), sockets=FLOWS) == "icmp_error_unrelated"
    assert reason(router / Raw(b""), sockets=FLOWS) == "icmp_error_unrelated"


@pytest.mark.parametrize(
    "quoted",
    [
        IP(src="10.0.0.254", dst="8.8.8.8") / UDP(sport=40000, dport=443),
        IP(src="10.0.0.254", dst="8.8.8.8") / TCP(sport=40001, dport=443),
        IP(src="10.0.0.254", dst="8.8.8.8") / TCP(sport=40000, dport=80),
        IP(src="10.0.0.253", dst="8.8.8.8") / TCP(sport=40000, dport=443),
        # What we were sent, not what we sent.
        IP(src="8.8.8.8", dst="10.0.0.254") / TCP(sport=443, dport=40000),
        IP(src="10.0.0.254", dst="8.8.8.8", frag=1) / TCP(sport=40000, dport=443),
        IP(src="10.0.0.254", dst="8.8.8.8", version=6) / TCP(sport=40000, dport=443),
        IP(src="10.0.0.254", dst="8.8.8.8") / ICMP(),
        SENT_6,
    ],
)
def test_icmp_errors_drop_for_what_we_did_not_send(quoted: Packet) -> None:
    router = IP(src="192.0.2.1", dst="10.0.0.254") / ICMP(type=11)
    assert asked(router / quoted, sockets=FLOWS) == ("drop", "icmp_error_unrelated")


def test_path_mtu_of_ipv6_works_with_extension_headers_in_the_quote() -> None:
    router = IPv6(src="2001:db8::2", dst="fd00:2::fe")
    sent, payload = IPv6(src="fd00:2::fe", dst="2001:db8::1"), UDP(sport=40000, dport=53)
    for error in (ICMPv6PacketTooBig(), ICMPv6TimeExceeded()):
        for quoted in (
            sent / payload,
            sent / IPv6ExtHdrDestOpt() / payload,
            sent / IPv6ExtHdrFragment(m=1, offset=0) / payload,
        ):
            assert asked(router / error / quoted, sockets=FLOWS) == ("pass", "icmp_error")
        later = sent / IPv6ExtHdrFragment(offset=1, nh=17) / Raw(bytes(payload))
        assert reason(router / error / later, sockets=FLOWS) == "icmp_error_unrelated"


def test_an_unconnected_udp_socket_has_sent_what_its_port_sent() -> None:
    error = IP(dst="127.0.0.1") / ICMP(type=3, code=3)
    sent = IP(src="127.0.0.1", dst="1.2.3.4")
    assert reason(error / sent / UDP(sport=4000, dport=9)) == "icmp_error"
    # A listener sends nothing.
    assert reason(error / sent / TCP(sport=4000, dport=9)) == "icmp_error_unrelated"


def test_other_icmp_drops() -> None:
    for kind in (4, 5, 9, 10, 13, 17, 30):
        assert asked(IPV4 / ICMP(type=kind) / SENT_4, sockets=FLOWS) == ("drop", "icmp_other")
    assert asked(IPv6(hlim=255) / ICMPv6ND_Redirect()) == ("drop", "icmp_other")
    assert asked(IPV4 / ICMP(type=5), replace(OPEN, pass_non_tuple=True)) == ("pass", "non_tuple")


def test_icmp_of_the_other_family_is_a_protocol_like_any() -> None:
    assert asked(IP(proto=58) / Raw(bytes(8))) == ("drop", "protocol")
    assert asked(IPv6(nh=1) / Raw(bytes(8))) == ("drop", "protocol")


def test_neighbour_discovery_comes_from_this_link() -> None:
    assert asked(IPv6(hlim=255) / ICMPv6ND_NS()) == ("pass", "neighbour_discovery")
    assert asked(IPv6(hlim=254) / ICMPv6ND_NS()) == ("drop", "icmp_other")
    assert asked(IPv6(hlim=255) / ICMPv6ND_NS(code=1)) == ("drop", "icmp_other")
    for kind in (133, 134, 135, 136):
        message = Raw(bytes([kind]) + bytes(23))
        assert reason(IPv6(hlim=255, nh=58) / message) == "neighbour_discovery"
    assert asked(IPv6(hlim=255) / ICMPv6ND_NS(), PLAIN) == ("drop", "ipv6_off")


def test_multicast_listener_messages_have_hop_limit_1() -> None:
    assert asked(IPv6(hlim=1) / ICMPv6MLReport()) == ("pass", "multicast_listener")
    assert asked(IPv6(hlim=64) / ICMPv6MLReport()) == ("drop", "icmp_other")
    for kind in (130, 131, 132, 143):
        message = Raw(bytes([kind]) + bytes(23))
        assert reason(IPv6(hlim=1, nh=58) / message) == "multicast_listener"


# --- exceptions ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("packet", "expected"),
    [
        (IP(dst="255.255.255.255") / UDP(sport=67, dport=68), "dhcp"),
        (IP(dst="10.0.0.254") / UDP(sport=67, dport=68), "dhcp"),
        (IP(dst="10.0.0.253") / UDP(sport=67, dport=68), "no_rule"),
        (IP(dst="255.255.255.255") / UDP(sport=68, dport=67), "no_rule"),
        (IP(dst="255.255.255.255") / UDP(sport=66, dport=68), "no_rule"),
        (IP(dst="255.255.255.255") / TCP(sport=67, dport=68), "no_rule"),
        (IPv6(dst="fe80::1") / UDP(sport=547, dport=546), "dhcp"),
        (IPv6(dst="febf::1") / UDP(sport=547, dport=546), "dhcp"),
        (IPv6(dst="fec0::1") / UDP(sport=547, dport=546), "no_rule"),
        (IPv6(dst="fe80::1") / UDP(sport=546, dport=547), "no_rule"),
        # No exception is wider than its purpose: not DHCP's ports of the other family.
        (IPv6(dst="fe80::1") / UDP(sport=67, dport=68), "no_rule"),
        (IP(dst="10.0.0.254") / UDP(sport=547, dport=546), "no_rule"),
        (IP(dst="10.0.0.254") / TCP(dport=22), "ssh"),
        (IPv6(dst="fd00:2::fe") / TCP(dport=22), "ssh"),
        (IP(dst="10.0.0.253") / TCP(dport=22), "no_rule"),
        (IP(dst="10.0.0.254") / UDP(dport=22), "no_rule"),
        (IP(dst="10.0.0.254") / TCP(sport=22, dport=23), "no_rule"),
        # An IPv4 address in IPv6's clothes is not the interface's.
        (IPv6(dst="::ffff:10.0.0.254") / TCP(dport=22), "no_rule"),
        (IPv6(dst="::ffff:255.255.255.255") / UDP(sport=67, dport=68), "no_rule"),
    ],
)
def test_exceptions_are_no_wider_than_their_purpose(packet: Packet, expected: str) -> None:
    assert reason(packet) == expected


def test_ssh_can_be_switched_off() -> None:
    packet = IP(dst="10.0.0.254") / TCP(dport=22)
    assert asked(packet) == ("pass", "ssh")
    assert asked(packet, replace(PLAIN, ssh=False)) == ("drop", "no_rule")
    assert asked(packet, replace(PLAIN, addresses=frozenset())) == ("drop", "no_rule")


def test_ipv6_is_off_at_first() -> None:
    assert asked(IPV6 / SYN, PLAIN) == ("drop", "ipv6_off")
    assert asked(IPV6 / SYN, replace(PLAIN, pass_non_tuple=True)) == ("drop", "ipv6_off")
    assert asked(IPv6(nh=47) / Raw(b"gre!"), PLAIN) == ("drop", "ipv6_off")


def test_protocols_without_ports() -> None:
    for packet in (IP(proto=47) / Raw(b"gre!"), IPv6(nh=132) / Raw(b"sctp"), IPv6(nh=59)):
        assert asked(packet) == ("drop", "protocol")
        assert asked(packet, replace(OPEN, pass_non_tuple=True)) == ("pass", "non_tuple")


# --- sockets ---------------------------------------------------------------------------------


def test_established_flows_come_before_rules() -> None:
    answer = IP(src="8.8.8.8", dst="10.0.0.254") / TCP(sport=443, dport=40000, flags="A")
    denied = RuleSet([rule("0.0.0.0/0", "tcp", 0, 65535, action="deny")])
    assert asked(answer, rules=denied, sockets=FLOWS) == ("pass", "established")
    assert asked(answer, rules=denied) == ("drop", "rule_deny")
    other = IP(src="8.8.8.8", dst="10.0.0.254") / TCP(sport=444, dport=40000, flags="A")
    assert asked(other, rules=denied, sockets=FLOWS) == ("drop", "rule_deny")
    answer = IPv6(src="2001:db8::1", dst="fd00:2::fe") / UDP(sport=53, dport=40000)
    assert asked(answer, sockets=FLOWS) == ("pass", "established")


def test_listeners_are_not_flows() -> None:
    to_listener = IP(src="10.0.0.1", dst="127.0.0.1") / TCP(dport=4000)
    assert asked(to_listener) == ("drop", "no_rule")


def test_interception_needs_a_listener_of_family_and_protocol() -> None:
    rules = RuleSet(
        [
            rule("100.72.0.0/16", "udp", 53, tproxy_port=4000),
            rule("fd00:1::/64", "udp", 53, tproxy_port=4000),
            rule("100.72.0.0/16", "tcp", 53, tproxy_port=4001),
        ]
    )
    assert asked(IPV4 / UDP(dport=53), rules=rules) == ("assign", "rule_intercept")
    assert asked(IPV6 / UDP(dport=53), rules=rules) == ("drop", "no_listener")
    assert asked(IPV4 / TCP(dport=53), rules=rules) == ("drop", "no_listener")


# --- rules -----------------------------------------------------------------------------------


def winner(rules: RuleSet, packet: Packet, interface: Interface = OPEN) -> Decision:
    return decide(bytes(ETHER / packet), interface, rules, LISTENERS)


def test_longest_destination_then_longest_source_then_order_of_entry() -> None:
    wide = rule("100.0.0.0/8", "tcp", 0, 65535)
    long_source = rule("100.0.0.0/8", "tcp", 0, 65535, source="10.0.0.1/32")
    first = rule("100.72.0.0/24", "tcp", 20, 30)
    second = rule("100.72.0.0/24", "tcp", 22, action="deny")
    third = rule("100.72.0.0/24", "tcp", 31, action="deny")
    sourced = rule("100.72.0.0/24", "tcp", 25, source="10.0.0.0/24", action="deny")
    rules = RuleSet([wide, long_source, first, second, third, sourced])
    for port, expected in {
        22: first,
        25: sourced,
        31: third,
        32: long_source,
    }.items():
        assert winner(rules, IPV4 / TCP(dport=port)).rule == expected
    elsewhere = IP(src="192.0.2.1", dst="100.72.0.4")
    assert winner(rules, elsewhere / TCP(dport=25)).rule == first
    assert winner(rules, elsewhere / TCP(dport=32)).rule == wide
    assert winner(rules, IP(src="10.0.0.1", dst="101.0.0.1") / TCP(dport=25)).rule is None


def test_an_upsert_keeps_its_place() -> None:
    first = rule("100.72.0.4/32", "tcp", 20, 30)
    second = rule("100.72.0.4/32", "tcp", 22, action="deny")
    rules = RuleSet([first, second])
    assert winner(rules, IPV4 / SYN).reason == "rule_pass"
    rules.insert(replace(first, high=29, action="deny"))
    assert winner(rules, IPV4 / SYN).rule == replace(first, high=29, action="deny")
    assert len(rules) == 2
    assert rules.delete(first.key)
    assert winner(rules, IPV4 / SYN).rule == second
    rules.insert(first)
    assert winner(rules, IPV4 / SYN).rule == second
    assert not rules.delete(rule("100.72.0.4/32", "tcp", 21).key)


def test_the_interface_list_grows_shrinks_and_is_dropped() -> None:
    base = rule("100.72.0.4/32", "tcp", 22)
    rules = RuleSet([replace(base, interfaces=frozenset({"a"}))])
    rules.insert(replace(base, interfaces=frozenset({"b"})))
    assert [each.interfaces for each in rules] == [{"a", "b"}]
    assert not rules.delete(base.key, ["c"])
    assert rules.delete(base.key, ["a"])
    assert [each.interfaces for each in rules] == [{"b"}]
    rules.insert(base)
    assert [each.interfaces for each in rules] == [frozenset()]
    rules.insert(replace(base, interfaces=frozenset({"b"})))
    assert rules.delete(base.key, ["b"])
    assert not len(rules)


def test_interface_lists_count_only_where_they_are_asked_for() -> None:
    others = rule("100.72.0.4/32", "tcp", 20, 30, action="deny", interfaces=["eth1"])
    nobodys = rule("100.72.0.4/32", "tcp", 21, 30, action="deny")
    ours = rule("100.72.0.4/32", "tcp", 22, interfaces=["eth0", "eth1"])
    wide = rule("100.0.0.0/8", "tcp", 0, 65535, interfaces=["eth0"])
    rules = RuleSet([others, nobodys, ours, wide])
    aware = replace(OPEN, per_interface_rules=True)
    assert winner(rules, IPV4 / TCP(dport=22)).rule == others
    assert winner(rules, IPV4 / TCP(dport=22), aware).rule == ours
    assert winner(rules, IPV4 / TCP(dport=23), aware).rule == wide
    assert winner(rules, IPV4 / TCP(dport=22), replace(aware, name="eth1")).rule == others
    assert winner(rules, IPV4 / TCP(dport=22), replace(aware, name="eth2")).rule is None


def test_a_limited_rule_counts_on_its_interfaces_alone() -> None:
    ours = rule("100.72.0.4/32", "tcp", 22, interfaces=["eth0"], is_limited=True)
    others = rule("100.72.0.4/32", "tcp", 21, 22, action="deny", interfaces=["eth1"])
    rules = RuleSet([ours, others])
    aware = replace(OPEN, per_interface_rules=True)
    assert winner(rules, IPV4 / TCP(dport=22)).rule == ours
    assert winner(rules, IPV4 / TCP(dport=22), aware).rule == ours
    assert winner(rules, IPV4 / TCP(dport=22), replace(OPEN, name="eth2")).rule == others
    assert winner(rules, IPV4 / TCP(dport=22), replace(aware, name="eth2")).rule is None


def test_family_protocol_and_direction_are_apart() -> None:
    mapped = rule("::ffff:100.72.0.4/128", "tcp", 22)
    egress = rule("100.72.0.4/32", "tcp", 22, direction="egress")
    udp = rule("100.72.0.4/32", "udp", 22)
    rules = RuleSet([mapped, egress, udp])
    assert winner(rules, IPV4 / SYN).reason == "no_rule"
    assert winner(rules, IPv6(dst="::ffff:100.72.0.4") / SYN).rule == mapped
    assert winner(rules, IPV4 / UDP(dport=22)).rule == udp


def test_the_default_is_to_drop_but_on_loopback() -> None:
    assert asked(IPV4 / SYN, rules=RuleSet()) == ("drop", "no_rule")
    assert asked(IPV4 / SYN, LO, rules=RuleSet()) == ("pass", "loopback")
    assert asked(IPV6 / SYN, LO, rules=RuleSet()) == ("pass", "loopback")
    deny = RuleSet([rule("100.72.0.4/32", "tcp", 22, action="deny")])
    assert asked(IPV4 / SYN, LO, rules=deny) == ("drop", "rule_deny")
    assert asked(IPV4 / SYN, LO, sockets=Sockets()) == ("drop", "no_listener")


# --- the generator ---------------------------------------------------------------------------


def build(seed: int) -> packets.Scene:
    rng = Random(seed)
    rules = packets.random_rules(
        rng, (1, 2, 3, 4, 20, 40), tproxy_ports=(4000, 4001), interfaces=("eth0", "eth1", "lo")
    )
    interface = LO if seed % 5 == 4 else replace(OPEN, icmp_echo=seed % 2 == 0, ipv6=seed % 7 != 6)
    return packets.Scene(interface, rules, Sockets(LISTENERS.listeners, FLOWS.flows))


def test_the_generator_reaches_every_decision() -> None:
    found: Counter[str] = Counter()
    for seed in range(14):
        scene, rng = build(seed), Random(seed)
        if seed % 3 == 2:
            scene.interface = replace(scene.interface, pass_non_tuple=True)
        rules = RuleSet(scene.rules)
        fragments: Fragments = {}
        for _ in range(1500):
            frame = packets.random_frame(rng, scene)
            answer = decide(frame, scene.interface, rules, scene.sockets, fragments)
            found[answer.reason] += 1
            remember(frame, scene.interface, answer, fragments)
            try:
                packet = parse_frame(frame)
            except (Malformed, HeaderChain, NotIp):
                continue
            if packet.fragment == "first":
                scene.first_fragments = [*scene.first_fragments[-9:], packet]
    assert set(found) == {
        *("no_rule", "loopback", "arp", "non_ip", "non_tuple", "protocol", "malformed"),
        "source_route",
        *("header_chain", "ipv6_off", "fragment_passed", "fragment_dropped", "fragment_orphan"),
        *("icmp_echo", "icmp_echo_off", "icmp_error", "icmp_other"),
        *("icmp_error_unrelated", "neighbour_discovery", "multicast_listener", "dhcp", "ssh"),
        *("established", "rule_deny", "rule_pass", "rule_intercept", "no_listener"),
    }
    assert min(found.values()) >= 10, found


def test_the_generator_reaches_every_decision_about_flows_and_what_leaves() -> None:
    found: Counter[tuple[str, str]] = Counter()
    for seed in range(14):
        rng = Random(seed)
        rules = packets.random_rules(rng, (3, 4, 20), tproxy_ports=(4000,), egress=0.8)
        interface = replace(
            OPEN,
            icmp_echo=seed % 2 == 0,
            outbound_filter=seed % 7 != 6,
            pass_non_tuple=seed % 5 == 4,
            vrrp=seed % 3 == 2,
            eapol=seed % 3 == 2,
        )
        scene = packets.Scene(interface, rules, Sockets(LISTENERS.listeners, FLOWS.flows))
        flows, fragments, rule_set = TrackedFlows(now=5000.0), Fragments(), RuleSet(rules)
        for _ in range(40):
            flows.put(packets.random_flow(rng, scene, flows.now, (0, 60, 4000)))
        scene.tracked = list(flows.flows.values())
        for number in range(3000):
            frame = packets.random_frame(rng, scene)
            if number % 3 == 0:
                arguments = (rule_set, scene.sockets, {}, flows)
                answer = decide(frame, interface, *arguments, is_tracking=True)
                found["ingress", answer.reason] += 1
                continue
            answer = decide_egress(
                frame, interface, rule_set, fragments, flows, is_forwarded=number % 3 == 1
            )
            found["egress", answer.reason] += 1
            remember(frame, interface, answer, fragments, "egress")
            with suppress(Malformed, HeaderChain, NotIp):
                packet = parse_frame(frame)
                if packet.fragment == "first":
                    scene.first_fragments = [*scene.first_fragments[-9:], packet]
    leaving = {reason for direction, reason in found if direction == "egress"}
    assert leaving == {
        *("egress", "egress_no_rule", "rule_deny", "rule_pass", "flow", "flow_invalid", "arp"),
        *("non_ip", "non_tuple", "eapol", "vrrp", "protocol", "malformed", "header_chain"),
        *("fragment_passed", "fragment_dropped", "fragment_orphan", "icmp_echo", "icmp_echo_off"),
        *("icmp_error", "icmp_other", "neighbour_discovery", "multicast_listener", "dhcp", "ssh"),
        *("icmp_error_unrelated", "source_route"),
    }
    wanted = {("ingress", each) for each in ("flow", "flow_invalid", "vrrp", "eapol")}
    assert wanted <= set(found)
    assert min(found[each] for each in found if each[0] == "egress" or each in wanted) >= 5, found


def test_the_generator_gives_the_same_frames_for_a_seed() -> None:
    first, second = (
        [packets.random_frame(rng, scene) for _ in range(300)]
        for scene, rng in ((build(3), Random(5)), (build(3), Random(5)))
    )
    assert first == second
    assert all(len(frame) >= packets.MIN_FRAME for frame in first)


def test_scapy_reads_what_the_model_reads() -> None:
    scene, rng = build(1), Random(11)
    compared = 0
    while compared < 400:
        frame = packets.random_frame(rng, scene)
        try:
            ours = parse_frame(frame)
        except (Malformed, HeaderChain, NotIp):
            continue
        theirs = Ether(frame)
        if theirs.haslayer(AH):
            # Scapy wants its length to be a multiple of eight, and reads on behind
            # none; test_extension_headers_are_skipped has some.
            continue
        outer = theirs.getlayer(IP) if ours.family == 4 else theirs.getlayer(IPv6)
        assert outer is not None, frame.hex()
        assert (ip_address(outer.src), ip_address(outer.dst)) == (ours.source, ours.destination)
        assert (outer.ttl if ours.family == 4 else outer.hlim) == ours.hop_limit
        if ours.family == 4:
            assert (outer.proto, outer.id) == (ours.protocol, ours.identification)
            kind = "later" if outer.frag else "first" if outer.flags.MF else "whole"
            assert kind == ours.fragment
            assert outer.ihl * 4 + len(ours.payload) == outer.len
        if ours.fragment == "whole" and len(ours.payload) >= {6: 20, 17: 8}.get(
            ours.protocol, 9999
        ):
            segment = outer.getlayer(TCP if ours.protocol == 6 else UDP)
            if segment is None and ours.offset > 400:
                # Scapy gives up on an extension header with hundreds of padding options.
                continue
            assert segment is not None, frame.hex()
            assert segment.sport == int.from_bytes(ours.payload[:2], "big")
            assert segment.dport == int.from_bytes(ours.payload[2:4], "big")
            compared += 1


def test_builders_make_what_scapy_makes() -> None:
    source, destination = ip_address("10.0.0.1"), ip_address("100.72.0.4")
    segment = packets.tcp(1, 2, 18, b"data")
    assert segment == bytes(
        TCP(sport=1, dport=2, seq=1, flags="SA", window=512, chksum=0) / b"data"
    )
    datagram = packets.udp(1, 2, b"data")
    assert datagram == bytes(UDP(sport=1, dport=2, chksum=0) / b"data")
    assert packets.ipv4(
        source, destination, 17, datagram, options=b"\1" * 8, identification=9, fragment=0x2003
    ) == bytes(
        IP(
            src="10.0.0.1",
            dst="100.72.0.4",
            proto=17,
            id=9,
            flags="MF",
            frag=3,
            chksum=0,
            options=[IPOption_NOP()] * 8,
        )
        / Raw(datagram)
    )
    source, destination = ip_address("fd00:2::1"), ip_address("fd00:1::4")
    inner = packets.fragment_header(6, 185, True, 7) + segment
    assert packets.ipv6(source, destination, 44, inner, hop_limit=3) == bytes(
        IPv6(src="fd00:2::1", dst="fd00:1::4", hlim=3, nh=44)
        / IPv6ExtHdrFragment(nh=6, offset=185, m=1, id=7)
        / Raw(segment)
    )
    options = IPv6ExtHdrDestOpt(packets.extension(60, 6, 2) + segment)
    assert (options.nh, options.len, options[TCP].dport) == (6, 2, 2)
    header = AH(packets.extension(51, 6, 3))
    assert (header.nh, header.payloadlen, len(header.icv)) == (6, 4, 12)
    frame = packets.ethernet(segment, 0x0800, [0x88A8, 0x8100])
    assert Ether(frame)[Dot1AD].type == 0x8100
    assert Ether(frame)[Dot1Q].type == 0x0800
