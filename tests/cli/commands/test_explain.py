# SPDX-License-Identifier: GPL-2.0-only
"""zfw explain."""

from __future__ import annotations

import json
import os
import socket
from contextlib import contextmanager, redirect_stdout
from typing import TYPE_CHECKING, Any

import pytest

from tests.cli.test_output import Terminal
from tests.firewall.support.all_maps import changed_by
from tests.firewall.support.frames import listening
from zfw_py import Firewall
from zfw_py.cli.app import main
from zfw_py.firewall import tried
from zfw_py.kernel.process import command_name

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.cli.conftest import Zfw
    from tests.support.netns import Network

pytestmark = pytest.mark.kernel

SERVICE = "100.72.0.4"
WEB = ("explain", "-p", "tcp", "--from", "10.9.0.2:40000", "--to", f"{SERVICE}:443")
KEYS = ["verdict", "reason", "rule", "tried", "listener", "route", "advice", "unknown"]


def insert(zfw: Zfw, destination: str, protocol: str, port: int, *more: str) -> None:
    line = ("insert", "-c", destination, "-p", protocol, "-l", str(port), *more)
    assert zfw(*line).code == 0


def explained(zfw: Zfw, *words: str) -> dict[str, Any]:
    result = zfw(*words, "--json")
    assert (result.code, result.err) == (0, "")
    found: dict[str, Any] = json.loads(result.out)
    assert list(found) == KEYS
    return found


@contextmanager
def local(network: Network, prefix: str) -> Iterator[None]:
    network.gateway.ip(f"route add local {prefix} dev lo")
    yield


def test_an_intercepted_packet(zfw: Zfw, firewall: Firewall, network: Network) -> None:
    with listening("tcp", 4) as listener, local(network, f"{SERVICE}/32"):
        to = str(listener.port)
        insert(zfw, "100.72.0.0/16", "tcp", 443, "-t", to, "-s", "web")
        insert(zfw, SERVICE, "tcp", 80, "-h", "90", "-t", to)
        insert(zfw, SERVICE, "tcp", 8080, "-t", to)
        insert(zfw, SERVICE, "tcp", 443, "-o", "10.1.0.0/16")
        insert(zfw, SERVICE, "udp", 443)
        command = f"{command_name(os.getpid())} ({os.getpid()})"
        assert zfw(*WEB) == (
            0,
            f"""\
intercept  rule_intercept
why       The rule intercepts it: the listener gets the packet.
packet    tcp SYN 10.9.0.2:40000 to 100.72.0.4:443, arrives at gw0
rule      ingress tcp 100.72.0.0/16 port 443 intercept to port {to} of
          loopback, service web; 0 packets so far
tried     100.72.0.4/32 from 10.1.0.0/16: the packet's source is another
          100.72.0.4/32: its ports are 80-90, 8080
          100.72.0.4/32: its rule is for udp
listener  tcp 127.0.0.1:{to}, transparent, of root: {command}
route     local
advice    pass it to this host instead:
            zfw insert -c 100.72.0.0/16 -p tcp -l 443 -t 0
          drop it:
            zfw insert -c 100.72.0.0/16 -p tcp -l 443 --deny
          remove the rule:
            zfw delete -c 100.72.0.0/16 -p tcp -l 443
unknown   A test run cannot assign the socket: bpf_sk_assign() may still fail
          (assign_failed). Where a packet socket has a clone, the kernel asks
          the firewall for the listener again (deliver_intercept,
          deliver_no_listener). A frame for another MAC address, and a device
          above the interface, such as a bridge, may be in the way (other_host,
          misrouted).
""",
            "",
        )
        found = explained(zfw, *WEB)
    assert (found["verdict"], found["reason"]) == ("intercept", "rule_intercept")
    assert found["rule"] == json.loads(zfw("list", "--json", "-c", "100.72.0.0/16").out)[0]
    assert found["tried"][0] == {
        "prefix": "100.72.0.4/32",
        "source": "10.1.0.0/16",
        "why": "the packet's source is another",
    }
    assert found["listener"] == {
        "protocol": "tcp",
        "address": "127.0.0.1",
        "port": int(to),
        "user": "root",
        "processes": [{"pid": os.getpid(), "command": command.split(" (")[0]}],
        "is_transparent": True,
    }
    assert found["route"] == {"kind": "local", "interface": "lo", "gateway": None}


def test_own_addresses_are_tried_behind_the_single_one(
    zfw: Zfw, firewall: Firewall, network: Network
) -> None:
    here = network.gateway_ipv4
    insert(zfw, here, "tcp", 80)
    insert(zfw, "own4", "tcp", 81)
    insert(zfw, "own4", "tcp", 443, "-o", "10.1.0.0/16")
    insert(zfw, "0.0.0.0/0", "tcp", 443)
    words = ("explain", "-p", "tcp", "--from", "10.9.0.2:40000", "--to")
    found = explained(zfw, *words, f"{here}:443")
    assert found["rule"]["destination"] == "0.0.0.0/0"
    assert [tuple(each.values()) for each in found["tried"]] == [
        (f"{here}/32", "0.0.0.0/0", "its port is 80"),
        ("own4", "10.1.0.0/16", "the packet's source is another"),
        ("own4", "0.0.0.0/0", "its port is 81"),
    ]
    insert(zfw, "own4", "tcp", 443, "--deny")
    found = explained(zfw, *words, f"{here}:443")
    assert (found["reason"], found["rule"]["destination"]) == ("rule_deny", "own4")
    assert explained(zfw, *words, f"{SERVICE}:443")["tried"] == []


def test_each_verdict_against_each_expectation(zfw: Zfw, firewall: Firewall) -> None:
    words = {
        "drop": (*WEB,),
        "pass": ("explain", "-p", "tcp", "--from", "10.9.0.2", "--to", "10.9.0.1:22"),
        "intercept": (*WEB[:-1], f"{SERVICE}:444"),
    }
    with listening("tcp", 4) as listener:
        insert(zfw, SERVICE, "tcp", 444, "-t", str(listener.port))
        for verdict, line in words.items():
            plain = zfw(*line)
            assert (plain.code, plain.err) == (0, "")
            for expected in words:
                result = zfw(*line, "--expect", expected)
                differs = expected != verdict
                assert result.code == (11 if differs else 0)
                assert result.out == plain.out
                message = f"zfw: expected {expected}, not {verdict}\n"
                assert result.err == (message if differs else "")


def test_its_advice_changes_the_decision(zfw: Zfw, firewall: Firewall) -> None:
    """Each command of the advice for a packet that no rule matches, and back."""
    assert explained(zfw, *WEB)["reason"] == "no_rule"
    purpose, _, command = explained(zfw, *WEB)["advice"][0].partition(": ")
    assert purpose == "pass it on"
    assert zfw(*command.split()[1:]).code == 0
    after = explained(zfw, *WEB)
    assert (after["verdict"], after["reason"]) == ("pass", "rule_pass")
    for line, reason in zip(after["advice"], ("rule_deny", "no_rule"), strict=True):
        assert zfw(*line.partition(": ")[2].split()[1:]).code == 0
        assert explained(zfw, *WEB)["reason"] == reason


def test_an_interface_with_rules_of_its_own(zfw: Zfw, firewall: Firewall) -> None:
    insert(zfw, SERVICE, "tcp", 443, "-N", "lo")
    insert(zfw, "100.72.0.0/24", "tcp", 443)
    firewall.set(["gw0"], "per_interface_rules", True)
    found = explained(zfw, *WEB)
    assert (found["verdict"], found["reason"]) == ("drop", "no_rule")
    assert [each["why"] for each in found["tried"]] == [
        "it is for lo alone",
        "it names no interface, and this one has per-interface-rules",
    ]
    command = found["advice"][0].partition(": ")[2]
    assert zfw(*command.split()[1:]).code == 0
    assert explained(zfw, *WEB)["verdict"] == "pass"


@pytest.mark.parametrize("family", [4, 6])
def test_pings_ssh_and_both_families(zfw: Zfw, firewall: Firewall, family: int) -> None:
    here, peer = {4: ("10.9.0.1", "10.9.0.2"), 6: ("fd09::1", "fd09::2")}[family]
    ends = ("--from", peer, "--to")
    assert explained(zfw, "explain", *ends, here, "-p", "icmp")["reason"] == "icmp_echo_off"
    assert explained(zfw, "explain", *ends, here, "--icmp", "13")["reason"] == "icmp_other"
    to = {4: f"{here}:22", 6: f"[{here}]:22"}[family]
    ssh = explained(zfw, "explain", *ends, to, "-p", "tcp")
    assert (ssh["reason"], ssh["listener"]) == ("ssh", None)
    unreachable = {4: "3/1", 6: "1/0"}[family]
    error = ("explain", *ends, to, "-p", "udp", "--icmp", unreachable)
    assert explained(zfw, *error)["reason"] == "icmp_error_unrelated"
    kind = {4: socket.AF_INET, 6: socket.AF_INET6}[family]
    with socket.socket(kind, socket.SOCK_DGRAM) as asker:
        asker.bind((here, 22))
        asker.connect((peer, 32768))
        assert explained(zfw, *error)["reason"] == "icmp_error"


def test_the_listener_of_a_passed_packet(zfw: Zfw, firewall: Firewall) -> None:
    words = ("explain", "-p", "tcp", "--from", "10.9.0.2", "--to", "10.9.0.1:8000")
    insert(zfw, "10.9.0.1", "tcp", 8000)
    assert "listener  none: this host answers with a RST\n" in zfw(*words).out
    with socket.create_server(("0.0.0.0", 8000)):
        assert "listener  tcp 0.0.0.0:8000, not transparent, of root: " in zfw(*words).out


def test_a_destination_that_is_not_local(zfw: Zfw, firewall: Firewall) -> None:
    """The kernel drops what a rule intercepts and it would forward."""
    with listening("tcp", 4) as listener:
        insert(zfw, SERVICE, "tcp", 443, "-t", str(listener.port))
        found = explained(zfw, *WEB)
        assert found["route"]["kind"] != "local"
        purpose, _, command = found["advice"][0].partition(": ")
        assert purpose == "make the destination local, or the kernel drops what the rule intercepts"
        assert zfw(*command.split()[1:]).code == 0
        assert explained(zfw, *WEB)["route"]["kind"] == "local"


def test_where_no_program_is(zfw: Zfw, firewall: Firewall) -> None:
    found = explained(zfw, *WEB, "-i", "lo")
    assert (found["verdict"], found["reason"]) == ("pass", "not_attached")
    found = explained(zfw, *WEB, "--direction", "egress", "-i", "gw0")
    assert (found["verdict"], found["reason"]) == ("pass", "not_attached")
    assert found["advice"] == ["filter there: zfw attach gw0"]
    firewall.attach("gw0", "egress")
    assert explained(zfw, *WEB, "--direction", "egress", "-i", "gw0")["reason"] == "egress"


def test_attached_by_clsact_counts_as_attached(zfw: Zfw, network: Network) -> None:
    Firewall().attach("gw0", "ingress", "clsact")
    assert explained(zfw, *WEB)["reason"] == "no_rule"


def test_a_packet_that_leaves(zfw: Zfw, firewall: Firewall) -> None:
    firewall.attach("gw0", "both")
    firewall.set(["gw0"], "outbound_filter", True)
    words = ("explain", "-p", "udp", "--to", "10.9.0.2:53", "--direction", "egress", "--from")
    own = explained(zfw, *words, "10.9.0.1")
    assert (own["verdict"], own["reason"]) == ("drop", "egress_no_rule")
    assert own["route"] == {"kind": "unicast", "interface": "gw0", "gateway": None}
    assert own["advice"] == [
        "let it out: zfw insert -c 10.9.0.2 -p udp -l 53 -z egress",
        "let all out: zfw set gw0 --outbound-filter off",
    ]
    insert(zfw, "10.9.0.2", "udp", 53, "-z", "egress")
    assert explained(zfw, *words, "10.9.0.1")["reason"] == "rule_pass"


def test_an_interface_without_ethernet(zfw: Zfw, firewall: Firewall, network: Network) -> None:
    fd = network.gateway.open_tun("tun0")
    try:
        network.gateway.set_up("tun0", "10.8.0.1/24")
        firewall.attach("tun0", "ingress")
        words = ("explain", "-p", "tcp", "--from", "10.8.0.2", "--to")
        assert explained(zfw, *words, "10.8.0.1:22")["reason"] == "ssh"
        assert explained(zfw, *words, "10.8.0.1:23")["reason"] == "no_rule"
    finally:
        os.close(fd)


def test_numbers_that_were_not_given(zfw: Zfw, firewall: Firewall) -> None:
    found = explained(zfw, *WEB, "--tcp-flags", "syn,ack")
    assert any("--pcap" in line for line in found["unknown"])
    assert "tcp SYN,ACK 10.9.0.2:40000" in zfw(*WEB, "--tcp-flags", "ACK+SYN").out


def test_the_program_decides_and_not_the_explanation(
    zfw: Zfw, firewall: Firewall, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A story that contradicts the program is not shown, and that is said."""
    insert(zfw, SERVICE, "tcp", 443)
    real = tried.search
    monkeypatch.setattr(tried, "search", lambda *given: real(*given)._replace(key=None, rule=None))
    result = zfw(*WEB, "--json")
    found = json.loads(result.out)
    assert (found["reason"], found["tried"]) == ("rule_pass", [])
    assert found["rule"]["destination"] == f"{SERVICE}/32"
    assert result.err.startswith(
        "zfw: warning: a fault of zfw: the program decides by rule ingress tcp 100.72.0.4/32 port"
        " 443 pass, the search for an explanation finds no rule; what was tried is not shown."
    )


def test_it_changes_no_map(zfw: Zfw, firewall: Firewall) -> None:
    with listening("udp", 4) as listener:
        insert(zfw, SERVICE, "udp", 443, "-t", str(listener.port))
        asked = ("explain", "-p", "udp", *WEB[3:])
        assert changed_by(lambda: explained(zfw, *asked)) == []


@pytest.mark.parametrize("has_colour", [False, True])
@pytest.mark.parametrize("family", [4, 6])
def test_80_columns(
    zfw: Zfw,
    firewall: Firewall,
    monkeypatch: pytest.MonkeyPatch,
    family: int,
    has_colour: bool,
) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.delenv("NO_COLOR", raising=False)
    if not has_colour:
        monkeypatch.setenv("NO_COLOR", "1")
    service = {4: "100.72.100.104", 6: "2001:db8:1111:2222:3333:4444:5555:6666"}[family]
    peer, bits = {4: ("10.9.0.2", 32), 6: ("fd09::2", 128)}[family]
    for length in range(bits - 20, bits, 2):
        for port in range(2000, 2012, 2):
            insert(zfw, f"{service}/{length}", "tcp", port)
    insert(zfw, f"{service}/{bits - 30}", "tcp", 443, "-t", "43321", "-s", "x" * 64)
    to = {4: f"{service}:443", 6: f"[{service}]:443"}[family]
    with redirect_stdout(Terminal()) as terminal:
        assert main(["explain", "-p", "tcp", "--from", peer, "--to", to]) == 0
    shown = terminal.getvalue()
    assert ("\x1b[31mdrop\x1b[0m" in shown) == has_colour
    lines = shown.replace("\x1b[31m", "").replace("\x1b[0m", "").splitlines()
    assert lines[0] == "drop  no_listener"
    for each in lines:
        assert len(each) <= 80 or "  zfw " in each
    assert sum(": its ports are " in each for each in lines) == 10
