# SPDX-License-Identifier: GPL-2.0-only
"""The reference model of what leaves and of tracked flows, checked by hand.

Without this, two wrongs could agree. Frames are made by scapy.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from ipaddress import ip_address

import pytest

from tests.firewall.support.reference import (
    Fragments,
    Interface,
    RuleSet,
    addresses,
    carry_out,
    decide,
    decide_egress,
    remember,
    rule,
)
from tests.firewall.support.tracked import (
    NEAR,
    Segment,
    TrackedFlow,
    TrackedFlows,
    distance,
    is_near,
)

logging.getLogger("scapy.runtime").setLevel(logging.ERROR)

from scapy.layers.eap import EAPOL  # noqa: E402
from scapy.layers.inet import ICMP, IP, TCP, UDP  # noqa: E402
from scapy.layers.inet6 import ICMPv6EchoRequest, ICMPv6ND_NS, IPv6  # noqa: E402
from scapy.layers.l2 import ARP, Ether  # noqa: E402
from scapy.layers.vrrp import VRRP  # noqa: E402
from scapy.packet import Packet, Raw  # noqa: E402

ETHER = Ether(src="02:00:00:00:00:02", dst="02:00:00:00:00:01")
OUT = Interface("eth0", addresses("10.0.0.254", "fd00:2::fe"), ipv6=True, outbound_filter=True)
ASK = IP(src="10.0.0.254", dst="8.8.8.8")
ANSWER = IP(src="8.8.8.8", dst="10.0.0.254")


class Gateway:
    """An interface, rules and flows; each packet has its effect."""

    def __init__(self, interface: Interface = OUT, *rules: object) -> None:
        self.interface = interface
        self.rules = RuleSet(rules)  # type: ignore[arg-type]
        self.flows = TrackedFlows()
        self.fragments: Fragments = {}

    def leaves(self, packet: Packet, *, is_forwarded: bool = False) -> str:
        frame = bytes(ETHER / packet)
        answer = decide_egress(
            frame,
            self.interface,
            self.rules,
            self.fragments,
            self.flows,
            is_forwarded=is_forwarded,
        )
        carry_out(frame, answer, "egress", self.flows, self.rules, self.interface)
        remember(frame, self.interface, answer, self.fragments, "egress")
        return f"{answer.verdict} {answer.reason}"

    def arrives(self, packet: Packet) -> str:
        frame = bytes(ETHER / packet)
        answer = decide(
            *(frame, self.interface, self.rules, None, self.fragments, self.flows),
            is_tracking=self.interface.outbound_filter,
        )
        carry_out(frame, answer, "ingress", self.flows, self.rules, self.interface)
        return f"{answer.verdict} {answer.reason}"

    def states(self) -> list[str]:
        return [flow.state for flow in self.flows.listed()]


WEB = rule("8.8.8.8/32", "tcp", 443, direction="egress")


def ask(flags: str, seq: int, ack: int = 0, data: bytes = b"") -> Packet:
    return ASK / TCP(sport=40000, dport=443, flags=flags, seq=seq, ack=ack) / Raw(data)


def answer(flags: str, seq: int, ack: int = 0, data: bytes = b"") -> Packet:
    return ANSWER / TCP(sport=443, dport=40000, flags=flags, seq=seq, ack=ack) / Raw(data)


def opened(*, is_forwarded: bool = True) -> Gateway:
    gateway = Gateway(OUT, WEB)
    assert gateway.leaves(ask("S", 1000), is_forwarded=is_forwarded) == "pass rule_pass"
    assert gateway.arrives(answer("SA", 3 << 30, 1001)) == "pass flow"
    assert gateway.leaves(ask("A", 1001, (3 << 30) + 1), is_forwarded=is_forwarded) == "pass flow"
    return gateway


@pytest.mark.parametrize(
    ("packet", "expected"),
    [
        (ARP(), "pass arp"),
        (EAPOL(), "drop non_ip"),
        (IP() / VRRP(), "drop protocol"),
        (IP(proto=89) / Raw(bytes(20)), "drop protocol"),
        (IP(src="10.0.0.254") / ICMP(type=3) / Raw(bytes(28)), "pass icmp_error"),
        (IP(src="10.0.0.254") / ICMP(), "drop icmp_echo_off"),
        (IPv6(src="fe80::1", hlim=255) / ICMPv6ND_NS(), "pass neighbour_discovery"),
        (ASK / UDP(sport=40000, dport=53), "drop egress_no_rule"),
        (IP(src="0.0.0.0", dst="255.255.255.255") / UDP(sport=68, dport=67), "pass dhcp"),
        (ASK / UDP(sport=68, dport=67), "pass dhcp"),
        (IP(src="10.0.0.1") / UDP(sport=68, dport=67), "drop egress_no_rule"),
        (ASK / UDP(sport=67, dport=68), "pass dhcp"),
        (IP(src="10.0.0.254", dst="255.255.255.255") / UDP(sport=67, dport=68), "pass dhcp"),
        (IP(src="10.0.0.1") / UDP(sport=67, dport=68), "drop egress_no_rule"),
        (IPv6(src="fe80::1", dst="fe80::2") / UDP(sport=547, dport=546), "pass dhcp"),
        (IPv6(src="fd00::1", dst="fe80::2") / UDP(sport=547, dport=546), "drop egress_no_rule"),
        (IPv6(src="fe80::1", dst="ff02::1:2") / UDP(sport=546, dport=547), "pass dhcp"),
        (IPv6(src="fe80::1", dst="ff02::1:3") / UDP(sport=546, dport=547), "drop egress_no_rule"),
        (IPv6(src="fd00::1", dst="ff02::1:2") / UDP(sport=546, dport=547), "drop egress_no_rule"),
        (ASK / TCP(sport=22, dport=50000, flags="SA"), "pass ssh"),
        (ASK / TCP(sport=22, dport=50000, flags="S"), "drop egress_no_rule"),
        (IP(src="10.0.0.1") / TCP(sport=22, dport=50000, flags="SA"), "drop egress_no_rule"),
    ],
)
def test_what_leaves_without_a_rule(packet: Packet, expected: str) -> None:
    assert Gateway().leaves(packet) == expected
    assert Gateway(replace(OUT, outbound_filter=False)).leaves(packet) == "pass egress"


def test_settings_let_other_protocols_leave_and_arrive() -> None:
    for setting, packet in (("vrrp", IP() / VRRP()), ("eapol", EAPOL())):
        gateway = Gateway(replace(OUT, **{setting: True}))
        assert gateway.leaves(packet) == gateway.arrives(packet) == f"pass {setting}"
        gateway = Gateway(replace(OUT, pass_non_tuple=True))
        assert gateway.leaves(packet) == gateway.arrives(packet) == "pass non_tuple"


def test_loopback_and_ipv6() -> None:
    echo = IPv6() / ICMPv6EchoRequest()
    assert Gateway(replace(OUT, ipv6=False)).leaves(echo) == "drop ipv6_off"
    assert Gateway(replace(OUT, is_loopback=True)).leaves(echo) == "pass loopback"


def test_fragments_have_the_fate_of_the_first_that_left() -> None:
    gateway = Gateway(OUT, rule("8.8.8.8/32", "udp", 53, direction="egress"))
    later = IP(src="10.0.0.254", dst="8.8.8.8", id=7, frag=3, proto=17) / Raw(bytes(8))
    assert gateway.leaves(later) == "drop fragment_orphan"
    first = IP(src="10.0.0.254", dst="8.8.8.8", id=7, flags="MF") / UDP(sport=1, dport=53)
    assert gateway.leaves(first) == "pass rule_pass"
    assert gateway.leaves(later) == "pass fragment_passed"
    assert gateway.arrives(later) == "drop fragment_orphan"


def test_a_connection_from_its_beginning_to_its_end() -> None:
    gateway = opened()
    assert gateway.states() == ["open"]
    assert gateway.arrives(answer("A", (3 << 30) + 1, 1001, b"data")) == "pass flow"
    assert gateway.leaves(ask("FA", 1001, (3 << 30) + 5), is_forwarded=True) == "pass flow"
    assert gateway.states() == ["open"]
    assert gateway.arrives(answer("FA", (3 << 30) + 5, 1002)) == "pass flow"
    assert gateway.states() == ["closing"]
    gateway.flows.now += 121
    assert gateway.states() == []
    assert gateway.arrives(answer("A", (3 << 30) + 6, 1002)) == "drop no_rule"


def test_a_new_syn_begins_anew_after_the_end() -> None:
    gateway = opened()
    assert gateway.arrives(answer("R", (3 << 30) + 1)) == "pass flow"
    assert gateway.states() == ["reset"]
    assert gateway.leaves(ask("S", 5000)) == "pass rule_pass"
    assert gateway.states() == ["started"]
    assert gateway.leaves(ask("S", 6000)) == "pass rule_pass"
    gateway.rules = RuleSet()
    assert gateway.leaves(ask("S", 7000)) == "drop egress_no_rule"
    assert gateway.arrives(answer("SA", 9, 5001)) == "drop flow_invalid"
    assert gateway.arrives(answer("SA", 9, 6001)) == "pass flow"


def test_a_new_syn_on_an_open_flow_counts_once_it_is_answered() -> None:
    gateway = opened()
    assert gateway.leaves(ask("S", 5000)) == "pass rule_pass"
    assert gateway.states() == ["open"]
    assert gateway.arrives(answer("SA", 9, 5000)) == "pass flow"
    assert gateway.states() == ["open"]
    assert gateway.arrives(answer("SA", 9, 5001)) == "pass flow"
    assert gateway.states() == ["answered"]
    assert gateway.leaves(ask("A", 5001, 10)) == "pass flow"
    assert gateway.states() == ["open"]
    assert gateway.arrives(answer("R", 10)) == "pass flow"
    assert gateway.states() == ["reset"]


@pytest.mark.parametrize(
    ("segment", "expected"),
    [
        (answer("SA", 9, 1001), "pass flow"),
        (answer("SA", 9, 1000), "drop flow_invalid"),
        (answer("SA", 9, 1002), "drop flow_invalid"),
        (answer("S", 9), "pass flow"),
        (answer("RA", 0, 1001), "pass flow"),
        (answer("R", 1001), "drop flow_invalid"),
        (answer("A", 77, 88), "pass flow"),
        (answer("A", 77, 88, b"data"), "drop flow_invalid"),
        (answer("FA", 77, 1001), "drop flow_invalid"),
    ],
)
def test_what_answers_a_syn(segment: Packet, expected: str) -> None:
    gateway = Gateway(OUT, WEB)
    gateway.leaves(ask("S", 1000))
    assert gateway.arrives(segment) == expected


@pytest.mark.parametrize(
    ("seq", "flags", "ack", "verdict", "state"),
    [
        (1, "R", 0, "pass flow", "reset"),
        (2, "R", 0, "pass flow", "open"),
        (1 + NEAR, "R", 0, "pass flow", "open"),
        (2 + NEAR, "R", 0, "drop flow_invalid", "open"),
        # After four bytes that nobody has acknowledged.
        (5, "R", 0, "pass flow", "open"),
        (5, "RA", 1001, "pass flow", "reset"),
        (5, "RA", 1002, "pass flow", "open"),
    ],
)
def test_which_resets_are_believed(
    seq: int, flags: str, ack: int, verdict: str, state: str
) -> None:
    gateway = opened()
    gateway.arrives(answer("A", (3 << 30) + 1, 1001, b"data"))
    assert gateway.arrives(answer(flags, (3 << 30) + seq, ack)) == verdict
    assert gateway.states() == [state]


def test_what_was_let_in_may_be_answered() -> None:
    gateway = Gateway(OUT, rule("10.0.0.254/32", "udp", 53))
    reply = ASK / UDP(sport=53, dport=9)
    assert gateway.leaves(reply) == "drop egress_no_rule"
    assert gateway.arrives(ANSWER / UDP(sport=9, dport=53)) == "pass rule_pass"
    assert gateway.leaves(reply) == "pass flow"
    assert gateway.arrives(ANSWER / UDP(sport=9, dport=53)) == "pass rule_pass"
    assert gateway.states() == ["open"]
    gateway.flows.now += 31
    assert gateway.leaves(reply) == "drop egress_no_rule"


def test_an_initiator_that_was_let_in_needs_a_rule_to_leave_again() -> None:
    gateway = Gateway(OUT, rule("8.8.8.8/32", "udp", 53))
    question = ASK / UDP(sport=9, dport=53)
    assert gateway.arrives(question) == "pass rule_pass"
    assert gateway.leaves(question, is_forwarded=True) == "drop egress_no_rule"


def test_echo_and_errors_of_tracked_flows() -> None:
    gateway = Gateway(replace(OUT, icmp_echo=True))
    ping, pong = ASK / ICMP(type=8, id=7), ANSWER / ICMP(type=0, id=7)
    gateway.leaves(ping)
    gateway.interface = OUT
    assert gateway.arrives(pong) == "pass flow"
    assert gateway.arrives(ANSWER / ICMP(type=0, id=8)) == "drop icmp_echo_off"
    assert gateway.arrives(ANSWER / ICMP(type=8, id=7)) == "drop icmp_echo_off"
    router = IP(src="192.0.2.1", dst="10.0.0.254") / ICMP(type=11)
    assert gateway.arrives(router / ping) == "pass icmp_error"
    # The sender of what it quotes is another host: RFC 5927 section 4.
    assert gateway.arrives(router / pong) == "drop icmp_error_unrelated"
    reflected = IP(src="192.0.2.1", dst="8.8.8.8") / ICMP(type=11)
    assert gateway.arrives(reflected / pong) == "pass icmp_error"
    assert gateway.arrives(router / ASK / ICMP(type=8, id=9)) == "drop icmp_error_unrelated"
    gateway.flows.now += 31
    assert gateway.arrives(router / ping) == "drop icmp_error_unrelated"


def test_what_makes_a_flow() -> None:
    source, destination = (ip_address("10.0.0.1"), 1), (ip_address("10.0.0.2"), 2)
    for how, flags, expected in (
        ("open", 2, 1),
        ("open", 16, 0),
        ("adopt", 16, 1),
        ("adopt", 18, 0),
        ("adopt", 4, 0),
        ("adopt", 17, 0),
        ("renew", 2, 0),
    ):
        flows = TrackedFlows()
        flows.track(Segment(6, source, destination, flags), how, "out")
        assert len(flows.flows) == expected, (how, flags)


@pytest.mark.parametrize(
    ("changes", "idle"),
    [
        ({}, 120),
        ({"stage": "answered"}, 120),
        ({"stage": "confirmed"}, 3600),
        ({"stage": "confirmed", "fins": {1}}, 3600),
        ({"stage": "confirmed", "fins": {0, 1}}, 120),
        ({"stage": "confirmed", "is_reset": True}, 10),
        ({"protocol": 17, "stage": "confirmed"}, 30),
        ({"protocol": 1}, 30),
    ],
)
def test_how_long_a_flow_is_remembered(changes: dict[str, object], idle: int) -> None:
    ends = (ip_address("10.0.0.1"), 1), (ip_address("10.0.0.2"), 2)
    flow = TrackedFlow(
        **{"protocol": 6, "initiator": ends[0], "responder": ends[1], "seen": 0} | changes
    )  # type: ignore[arg-type]
    assert not TrackedFlows(now=idle).is_forgotten(flow)
    assert TrackedFlows(now=idle + 1).is_forgotten(flow)


def test_numbers_wrap() -> None:
    assert distance(5, 2**32 - 5) == 10
    assert distance(2**32 - 5, 5) == -10
    assert is_near(NEAR - 5, 2**32 - 5)
    assert not is_near(NEAR - 4, 2**32 - 5)
