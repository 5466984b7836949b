# SPDX-License-Identifier: GPL-2.0-only
"""The bytes of the docker_dns maps, against bpf/include/docker_dns/abi.h as a person reads it."""

from __future__ import annotations

import sys
from struct import pack

import pytest

from zfw_py.docker_dns import layout
from zfw_py.docker_dns.codec import Config, DaemonPorts, Event, counts, domain_key, total
from zfw_py.docker_dns.events import Reader
from zfw_py.values.endpoint import Endpoint

pytestmark = pytest.mark.skipif(sys.byteorder == "big", reason="written for little endian")

CONFIG = Config(
    abi_version=1,
    resolver=bytes([127, 0, 0, 11]),
    server=bytes([10, 0, 0, 1]),
    source=bytes([172, 18, 0, 2]),
    uplink_ifindex=7,
    resolver_port=53,
    server_port=5353,
    first_port=1024,
    port_count=31744,
    has_ethernet=True,
    has_domains=False,
    redirects_tcp=True,
    is_watched=False,
)


def test_config() -> None:
    data = b"\1\0\0\0\x7f\0\0\x0b\x0a\0\0\1\xac\x12\0\2\7\0\0\0\x35\0\xe9\x14\0\4\0\x7c\1\0\1\0"
    assert CONFIG.encode() == data
    assert len(data) == layout.CONFIG_SIZE
    assert Config.decode(data) == CONFIG


def test_daemon() -> None:
    assert DaemonPorts(41552, 39211).encode() == b"\x50\xa2\x2b\x99"
    assert DaemonPorts.decode(b"\x50\xa2\x2b\x99") == (41552, 39211)


@pytest.mark.parametrize("name", ["example.com", "a", "x" * 63, ".".join(["a" * 61] * 4)])
def test_domain_key(name: str) -> None:
    key = domain_key(name)
    bits, text = int.from_bytes(key[:4], "little"), key[4:]
    assert len(text) == layout.KEY_BYTES
    assert bits == 8 * (len(name) + 1)
    assert text[: bits // 8].decode()[::-1] == f".{name}"
    assert not any(text[bits // 8 :])


def test_a_name_s_key_is_the_beginning_of_those_below_it() -> None:
    def start(name: str) -> bytes:
        key = domain_key(name)
        return key[4 : 4 + int.from_bytes(key[:4], "little") // 8]

    assert start("www.example.com").startswith(start("example.com"))
    assert not start("myexample.com").startswith(start("example.com"))
    assert not start("example.com.org").startswith(start("example.com"))


def test_counters() -> None:
    assert counts(pack("=QQQQ", 1, 100, 2, 200)) == (3, 300)
    assert total(pack("=QQ", 3, 4)) == 7
    assert total(b"") == 0


def event(outcome: str, port: int, name: bytes | None, *, protocol: int = 17) -> bytes:
    query = b"\x7f\0\0\1\x7f\0\0\x0b" + pack("=HHB3x", 40000, 41552, protocol)
    rest = pack(
        "=HBBHHI",
        53,
        layout.OUTCOMES.index(outcome),
        name is not None,
        port,
        len(name or b""),
        4711 if name is not None else 0,
    )
    return (
        pack("=Q", 5_000_000_000) + query + b"\x0a\0\0\1" + rest + (name or b"").ljust(256, b"\0")
    )


def test_event() -> None:
    data = event("query", 2011, b"\3www\7example")
    assert len(data) == layout.EVENT_SIZE
    assert Event.decode(data) == Event(
        time=5_000_000_000,
        source=(bytes([127, 0, 0, 1]), 40000),
        destination=(bytes([127, 0, 0, 11]), 41552),
        protocol=17,
        server=(bytes([10, 0, 0, 1]), 53),
        outcome="query",
        port=2011,
        message_id=4711,
        wire_name=b"\3www\7example",
    )


def test_what_is_told_of_an_event() -> None:
    reader = Reader("web", "17")
    sent = reader.of_event(Event.decode(event("query", 2011, b"\3www\x08ex.m\x1bple")))
    assert (sent.container, sent.id, sent.protocol) == ("web", "17", "udp")
    assert (str(sent.source), str(sent.resolver)) == ("127.0.0.1:40000", "127.0.0.11:41552")
    assert (sent.server, sent.port) == (Endpoint("10.0.0.1", 53), 2011)
    assert (sent.name, sent.message_id) == ("www.ex\\.m\\027ple", 4711)
    root = reader.of_event(Event.decode(event("builtin_name", 0, b"")))
    assert (root.name, root.server, root.port) == (".", None, None)
    connection = reader.of_event(Event.decode(event("builtin_tcp", 0, None, protocol=6)))
    assert (connection.protocol, connection.name, connection.message_id) == ("tcp", None, None)
