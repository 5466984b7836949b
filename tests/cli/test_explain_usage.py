# SPDX-License-Identifier: GPL-2.0-only
"""zfw explain: bad input is one line that names the option, and exit code 2."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import ICMPv6EchoRequest, IPv6
from scapy.layers.l2 import Ether

from zfw_py import Firewall, NotInstalled
from zfw_py.firewall.maps import Maps
from zfw_py.firewall.question import ask, frame

if TYPE_CHECKING:
    from tests.cli.conftest import Zfw


@pytest.fixture(autouse=True)
def _no_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    def entered(self: Maps) -> None:
        pytest.fail("the kernel is entered")

    monkeypatch.setattr(Maps, "__init__", entered)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"-p": ""}, "-p, --protocol: not tcp, udp or icmp: ''"),
        ({"-p": "sctp"}, "-p, --protocol: not tcp, udp or icmp: 'sctp'"),
        ({"-p": None}, "-p, --protocol: missing"),
        ({"--from": None}, "--from: missing"),
        ({"--to": None}, "--to: missing"),
        ({"--from": ""}, "--from: empty"),
        ({"--from": "here"}, "--from: not an IPv4 or IPv6 address: 'here'"),
        ({"--from": "10.0.0.1:0"}, "--from: the port of '10.0.0.1:0' is not within 1 to 65535"),
        ({"--to": "10.0.0.2"}, "--to: 10.0.0.2: a port is missing: 10.0.0.2:443"),
        ({"--to": "10.0.0.2:65536"}, "--to: the port of '10.0.0.2:65536' is not within 1 to 65535"),
        ({"--to": "10.0.0.0/8:80"}, "--to: not an IPv4 or IPv6 address: '10.0.0.0/8'"),
        ({"--to": "[fd00::1]:80"}, "--to: [fd00::1]:80 is not IPv4 as --from is"),
        ({"--to": "[fd00::1:80"}, None),
        ({"-i": "a/b"}, "-i, --interface: not an interface name: 'a/b'"),
        ({"--direction": "both"}, "--direction: not ingress or egress: 'both'"),
        (
            {"--tcp-flags": "SYN,FOO"},
            "--tcp-flags: 'FOO' is none of FIN, SYN, RST, PSH, ACK, URG: 'SYN,FOO'",
        ),
        (
            {"--tcp-flags": ""},
            "--tcp-flags: '' is none of FIN, SYN, RST, PSH, ACK, URG: ''",
        ),
        ({"-p": "udp", "--tcp-flags": "SYN"}, "--tcp-flags: only with -p tcp"),
        ({"--icmp": "256"}, "--icmp: not TYPE or TYPE/CODE, each within 0 to 255: '256'"),
        ({"--icmp": "3/"}, "--icmp: not TYPE or TYPE/CODE, each within 0 to 255: '3/'"),
        ({"--icmp": "a/b/c"}, "--icmp: not TYPE or TYPE/CODE, each within 0 to 255: 'a/b/c'"),
        ({"-p": "icmp"}, "--to: ICMP has no ports: :443"),
        ({"--expect": "allow"}, None),
    ],
)
def test_bad_input(zfw: Zfw, options: dict[str, str | None], message: str | None) -> None:
    given = {"-p": "tcp", "--from": "10.0.0.1", "--to": "10.0.0.2:443"} | options
    words = [word for name, value in given.items() if value is not None for word in (name, value)]
    result = zfw("explain", *words)
    assert (result.code, result.out) == (2, "")
    assert len(result.err.splitlines()) == 1
    if message is not None:
        assert result.err == f"zfw: {message}\n"


@pytest.mark.parametrize("words", [["--icmp"], ["--icmp", "8"], ["--icmp", "8/0"]])
@pytest.mark.parametrize("is_last", [True, False])
def test_icmp_has_an_optional_value(
    zfw: Zfw, monkeypatch: pytest.MonkeyPatch, words: list[str], is_last: bool
) -> None:
    asked = []

    def story(self: Firewall, question: object) -> None:
        asked.append(question)
        raise NotInstalled("none")

    monkeypatch.setattr(Firewall, "story", story)
    others = ["--from", "10.0.0.1", "--to", "10.0.0.2"]
    assert zfw("explain", *(others + words if is_last else words + others)).code == 3
    assert asked == [ask("icmp", "10.0.0.1", "10.0.0.2", icmp="8/0")]


def test_a_frame_has_what_was_asked_for() -> None:
    made = Ether(frame(ask("tcp", "10.0.0.1", "10.0.0.2:443", tcp_flags="SYN,ACK")))
    assert (made[IP].src, made[IP].dst, made[IP].len) == ("10.0.0.1", "10.0.0.2", 40)
    assert (made[TCP].sport, made[TCP].dport, str(made[TCP].flags)) == (32768, 443, "SA")
    made = Ether(frame(ask("udp", "[fd00::1]:53", "[fd00::2]:5353")))
    assert (made[IPv6].src, made[UDP].sport, made[UDP].dport) == ("fd00::1", 53, 5353)
    assert ICMPv6EchoRequest in Ether(frame(ask(None, "fd00::1", "fd00::2", icmp="128")))
    assert ICMPv6EchoRequest in Ether(frame(ask(None, "fd00::1", "fd00::2", icmp="")))
    made = Ether(frame(ask("udp", "10.0.0.1:7", "10.0.0.2:9", icmp="3/3")))
    assert (made[ICMP].type, made[ICMP].code) == (3, 3)
    # It quotes a packet of its receiver.
    quoted = made["IP in ICMP"]
    assert (quoted.src, quoted.dst) == ("10.0.0.2", "10.0.0.1")
    assert (made["UDP in ICMP"].sport, made["UDP in ICMP"].dport) == (9, 7)
