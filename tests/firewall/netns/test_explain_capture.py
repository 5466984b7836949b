# SPDX-License-Identifier: GPL-2.0-only
"""zfw explain --pcap: what it says of a capture is what the wire counts when it is replayed."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from functools import partial
from ipaddress import ip_address
from random import Random
from typing import TYPE_CHECKING

import pytest

from tests.firewall.support import packets
from tests.firewall.support.all_maps import changed_by
from tests.firewall.support.frames import CLIENT, GATEWAY, SERVICE, Gateway, listening
from tests.firewall.support.reference import Interface, rule
from tests.firewall.unit.test_capture import described, enhanced, pcap, section
from tests.support.waiting import wait_until
from zfw_py.cli.app import main

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.kernel

PACKETS = 10_000
# What the gateway's kernel itself makes the client's kernel send.
OTHERS = {"multicast_listener", "neighbour_discovery"}


def explained(capsys: pytest.CaptureFixture[str], *words: str) -> list[dict[str, object]]:
    capsys.readouterr()
    assert main(["explain", "--json", *words]) == 0
    return [json.loads(each) for each in capsys.readouterr().out.splitlines()]


def random_capture(gateway: Gateway, rng: Random, count: int) -> list[bytes]:
    """Frames around the gateway's rules: fragments, ICMP, extension headers, damage."""
    own = frozenset(ip_address(each[family]) for each in (GATEWAY,) for family in (4, 6))
    rules = [
        rule("100.72.0.0/16", "tcp", 80, 90, action="deny"),
        rule("100.72.0.4/32", "udp", 53, tproxy_port=5353),
        rule("100.72.0.0/16", "udp", 1000, 2000),
        rule("fd72::/16", "tcp", 443),
    ]
    for each in rules:
        gateway.insert(
            str(each.destination),
            each.protocol,
            *(each.low, each.high),
            to=each.tproxy_port,
            deny=each.action == "deny",
        )
    scene = packets.Scene(Interface("gw0", own), rules)
    header = bytes.fromhex((gateway.mac + gateway.client_mac).replace(":", ""))
    made: list[bytes] = []
    while len(made) < count:
        frame = packets.random_frame(rng, scene)
        # A frame on the wire is not longer than the MTU, and has no outer VLAN tag as the
        # program sees it.
        is_tagged = frame[12:14] in (b"\x81\x00", b"\x88\xa8")
        seen = frame[:12] + frame[16:] if is_tagged else frame
        if packets.is_testable(frame) and packets.is_testable(seen) and len(frame) <= 1500:
            made.append(header + frame[12:])
    return made


def test_a_replayed_capture_is_counted_as_explained(
    gateway: Gateway, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # Nothing is answered, so that no answer is counted: the gateway has no way back.
    frames = random_capture(gateway, Random(1), PACKETS)
    path = tmp_path / "capture.pcap"
    path.write_bytes(pcap(*frames))
    answers = explained(capsys, "--pcap", str(path), "-i", "gw0")
    assert len(answers) == PACKETS
    expected = Counter(str(each["reason"]) for each in answers)
    assert len(expected) > 12, expected

    before = gateway.firewall.status().reasons
    gateway.send(*frames)

    def counted() -> Counter[str]:
        after = gateway.firewall.status().reasons
        return Counter({name: after[name][0] - before[name][0] for name in after})

    wait_until(lambda: sum(counted().values()) >= PACKETS, 10)
    found = counted()
    # Both numbers of each reason that differs.
    assert {
        name: (found[name], expected[name])
        for name in {*found, *expected} - OTHERS
        if found[name] != expected[name]
    } == {}


def test_it_changes_no_map(
    gateway: Gateway, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "capture.pcap"
    path.write_bytes(pcap(*random_capture(gateway, Random(2), 500)))
    assert changed_by(lambda: explained(capsys, "--pcap", str(path), "-i", "gw0")) == []


def datagram(port: int) -> bytes:
    source, to = ip_address(CLIENT[4]), ip_address(SERVICE[4])
    return packets.ethernet(packets.ipv4(source, to, 17, packets.udp(40000, port)), 0x0800)


def test_lines_counts_and_expectations(
    gateway: Gateway, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with listening("udp", 4) as listener:
        gateway.insert(SERVICE[4], "udp", 53, to=listener.port)
        path = tmp_path / "capture.pcapng"
        path.write_bytes(
            section() + described() + b"".join(map(enhanced, map(datagram, (53, 54, 53))))
        )
        capsys.readouterr()
        assert main(["explain", "--pcap", str(path)]) == 0
        assert capsys.readouterr().out == (
            "     1 intercept rule_intercept  udp 10.9.0.2:40000 > 100.72.0.4:53\n"
            "     2 drop      no_rule  udp 10.9.0.2:40000 > 100.72.0.4:54\n"
            "     3 intercept rule_intercept  udp 10.9.0.2:40000 > 100.72.0.4:53\n"
            "3 packets  intercept rule_intercept 2, drop no_rule 1\n"
        )
        assert main(["explain", "--pcap", str(path), "--expect", "intercept"]) == 11
        assert capsys.readouterr().err == ("zfw: expected intercept, which 1 packet did not have\n")
        first, second, _ = explained(capsys, "--pcap", str(path))
    assert first["rule"]["low_port"] == 53  # type: ignore[index]
    assert second == {
        "number": 2,
        "time": 0.0,
        "verdict": "drop",
        "reason": "no_rule",
        "rule": None,
        "protocol": "udp",
        "from": "10.9.0.2:40000",
        "to": "100.72.0.4:54",
        "fragment": None,
        "bytes": len(datagram(54)),
        "captured": len(datagram(54)),
    }


def test_what_is_wrong_is_one_line(
    gateway: Gateway, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "capture"
    run = partial(main, ["explain", "--pcap", str(path), "-i", "gw0"])
    capsys.readouterr()
    assert run() == 5
    assert capsys.readouterr().err == f"zfw: {path}: no such file\n"
    path.write_bytes(b"text")
    assert run() == 2
    assert capsys.readouterr().err == f"zfw: {path}: neither a pcap nor a pcapng file\n"
    path.write_bytes(pcap(datagram(53), datagram(54))[:-1])
    assert run() == 2
    lines = capsys.readouterr()
    assert lines.err == f"zfw: {path}: it ends within packet 2\n"
    assert len(lines.out.splitlines()) == 1
    path.write_bytes(pcap(datagram(53)))
    assert main(["explain", "--pcap", str(path)]) == 2
    assert "-i: missing: the capture does not name" in capsys.readouterr().err
    assert main(["explain", "--pcap", str(tmp_path), "-i", "gw0"]) == 2
    assert main(["explain", "--pcap", str(path), "-p", "tcp"]) == 2


def test_a_packet_cut_by_the_capture(
    gateway: Gateway, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The rest of it is taken for zeros: the decision needs the headers alone."""
    gateway.insert(SERVICE[4], "udp", 53)
    source, to = ip_address(CLIENT[4]), ip_address(SERVICE[4])
    whole = packets.ethernet(
        packets.ipv4(source, to, 17, packets.udp(40000, 53, bytes(1000))), 0x0800
    )
    data = pcap(whole[:60])
    # The record's original length.
    data = data[:36] + len(whole).to_bytes(4, "little") + data[40:]
    path = tmp_path / "capture.pcap"
    path.write_bytes(data)
    (one,) = explained(capsys, "--pcap", str(path), "-i", "gw0")
    assert (one["reason"], one["bytes"], one["captured"]) == ("rule_pass", len(whole), 60)


def test_memory_does_not_grow_with_the_capture(gateway: Gateway, tmp_path: Path) -> None:
    """As a process of its own: its peak for 40,000 packets is that for 400."""
    peaks = []
    for count in (400, 40_000):
        path = tmp_path / f"{count}.pcap"
        path.write_bytes(pcap(*[datagram(53)] * count))
        code = (
            "import resource, sys\nfrom zfw_py.cli.app import main\n"
            f"assert main(['explain', '--pcap', {str(path)!r}, '-i', 'gw0']) == 0\n"
            "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, file=sys.stderr)\n"
        )
        done = subprocess.run(
            [sys.executable, "-c", code], check=True, capture_output=True, text=True
        )
        peaks.append(int(done.stderr))
    assert peaks[1] < peaks[0] * 1.2
