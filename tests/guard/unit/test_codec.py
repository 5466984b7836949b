# SPDX-License-Identifier: GPL-2.0-only
"""The guard's values to bytes and back, byte for byte: what its BPF programs read and write."""

from __future__ import annotations

import sys
from socket import AF_INET6, inet_pton

import pytest

from zfw_py.guard import layout
from zfw_py.guard.codec import (
    DENIALS,
    Client,
    Config,
    Event,
    Proxy,
    client_key,
    decision_counts,
    decode_supervisor,
    encode_supervisor,
    netns_key,
    prefix_key,
    prefix_value,
    resolved_key,
    resolved_key_parts,
    time_of,
    time_value,
    total,
)
from zfw_py.kernel.process import Process

pytestmark = pytest.mark.skipif(sys.byteorder == "big", reason="the bytes here are little-endian")

IPV4 = inet_pton(AF_INET6, "::ffff:192.0.2.1")
IPV6 = inet_pton(AF_INET6, "2001:db8::1")
IPV4_HEX = "00000000000000000000ffffc0000201"
IPV6_HEX = "20010db8000000000000000000000001"


def packed(text: str) -> bytes:
    return bytes.fromhex(text.replace(" ", ""))


def test_config() -> None:
    config = Config(1, layout.LOG_ONLY | layout.REDIRECT_ONLY)
    assert config.encode() == packed("01000000 05000000")
    assert Config.decode(config.encode()) == config


def test_supervisor() -> None:
    supervisor = Process(pid=4242, start_time=0x0102030405)
    assert encode_supervisor(supervisor) == packed("0504030201000000 92100000 00000000")
    assert decode_supervisor(encode_supervisor(supervisor)) == supervisor
    assert decode_supervisor(bytes(layout.KEEPER_SIZE)).pid == 0


def test_prefix() -> None:
    assert prefix_key(IPV4, 120) == packed(f"78000000 {IPV4_HEX}")
    assert prefix_value((), "none") == bytes(layout.PREFIX_SIZE)
    assert prefix_value((443, 53), "block") == packed("02 00 0200 bb01 3500") + bytes(60 * 2)
    full = prefix_value(range(1, layout.PREFIX_PORTS + 1), "allow")
    assert len(full) == layout.PREFIX_SIZE
    assert full[:4] == packed("01 00 3e00")
    assert full[-2:] == packed("3e00")


def test_resolved() -> None:
    assert resolved_key(IPV6, 443) == packed(f"{IPV6_HEX} bb01 0000")
    assert resolved_key_parts(resolved_key(IPV6, 0)) == (IPV6, 0)
    assert time_value(10**12) == packed("0010a5d4e8000000")
    assert time_of(time_value(2**63)) == 2**63


def test_proxy() -> None:
    assert Proxy().encode() == bytes(layout.PROXY_SIZE)
    proxy = Proxy(ipv4=IPV4, ipv4_ports=(53,), ipv6=IPV6, ipv6_ports=(1, 2, 3, 4))
    assert proxy.encode() == packed(
        f"{IPV4_HEX} {IPV6_HEX} 3500 0000 0000 0000 0100 0200 0300 0400"
    )
    assert netns_key(7) == packed("0700000000000000")


def test_client() -> None:
    assert client_key(7, 40000, 17, is_ipv6=True) == packed("0700000000000000 409c 11 01 00000000")
    data = packed("0900000000000000 92100000 00000000") + b"curl\0stale\0\0\0\0\0\0"
    assert Client.decode(data) == Client(cgroup=9, pid=4242, command="curl")


def test_event() -> None:
    data = packed(
        f"0100000000000000 0200000000000000 0300000000000000 {IPV4_HEX} {IPV6_HEX}"
        " 3500 bb01 92100000 1100 00 02 00 00 0000"
    )
    event = Event.decode(data + b"\xff\x1b[2J".ljust(16, b"\0"))
    assert event == Event(
        time=1,
        cgroup=2,
        netns_cookie=3,
        destination=IPV4,
        redirected=IPV6,
        port=53,
        redirected_port=443,
        pid=4242,
        protocol=17,
        hook="connect4",
        verdict="redirect",
        reason="dns",
        is_log_only=False,
        command="\\xff\x1b[2J",
    )
    assert len(data) + 16 == layout.EVENT_SIZE
    # A ring buffer's record is rounded up.
    assert Event.decode(data + bytes(24)).command == ""


def test_counters() -> None:
    zero, one = bytes(16), time_value(1) + time_value(0)
    places = [zero] * layout.MAPS["decisions"][3]
    added = [zero] * layout.MAPS["added_decisions"][3]
    assert decision_counts(places) == decision_counts(places, added) == {}
    places[0] = one
    places[-1] = time_value(2) + time_value(3)
    assert decision_counts(places) == {"connect4": {"dns": 1}, "setsockopt": {"foreign_source": 5}}
    expired = layout.REASONS.index("expired")
    added[4 * layout.MOST_REASONS + expired] = one
    assert decision_counts(places, added)["egress"] == {"expired": 1}
    assert total(time_value(2) + time_value(3)) == 5
    assert total(b"") == 0


def test_the_reasons_that_deny_are_as_the_programs_have_them() -> None:
    """guard_verdict_of() of guard/policy.h: from not_allowed on."""
    assert DENIALS == (
        "not_allowed",
        "blocked",
        "no_proxy",
        "dns_direct",
        "source_route",
        "martian",
        "malformed",
        "foreign_source",
        "expired",
        # Of the DNS proxy alone, which counts them itself.
        "chain_blocked",
        "unsupported",
        "internal_error",
    )
