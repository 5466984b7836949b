# SPDX-License-Identifier: GPL-2.0-only
"""Steer's values to bytes and back, byte for byte: what its BPF programs read and write."""

from __future__ import annotations

import sys
from socket import AF_INET6, inet_pton

import pytest

from tests.steer.support.elements import (
    flow_key,
    flow_parts,
    flow_value,
    listener_count,
    mapping_key_of,
    mapping_of,
    segments_of,
)
from zfw_py.steer import layout
from zfw_py.steer.codec import (
    IPPROTO_TCP,
    IPPROTO_UDP,
    PROTOCOLS,
    Active,
    Address,
    Config,
    Counter,
    Event,
    Listener,
    Mapping,
    MappingKey,
    class_bit,
    cookie_key,
    cookie_of,
    error_counts,
    number_key,
    number_of,
    segment_elements,
    slot_of,
    slot_request,
    slots_newest_first,
    socket_key,
)

pytestmark = pytest.mark.skipif(sys.byteorder == "big", reason="the bytes here are little-endian")

IPV4 = inet_pton(AF_INET6, "::ffff:192.0.2.1")
IPV6 = inet_pton(AF_INET6, "2001:db8::1")
IPV4_HEX = "00000000000000000000ffffc0000201"
IPV6_HEX = "20010db8000000000000000000000001"


def packed(text: str) -> bytes:
    return bytes.fromhex(text.replace(" ", ""))


def test_numbers_and_cookies() -> None:
    assert number_key(258) == packed("02010000")
    assert number_of(number_key(258)) == 258
    assert cookie_key(258) == packed("0201000000000000")
    assert cookie_of(cookie_key(1 << 40)) == 1 << 40


def test_config() -> None:
    config = Config(0x0102030405, 1, layout.TELL_ALL)
    assert config.encode() == packed("0504030201000000 01000000 01000000")
    assert Config.decode(config.encode()) == config


def test_each_look_up_has_a_bit_of_its_own() -> None:
    bits = [
        class_bit(mapping_class, family, protocol)
        for protocol in PROTOCOLS
        for family in (4, 6)
        for mapping_class in range(layout.CLASSES)
    ]
    assert bits == [1 << number for number in range(12)]


def test_active() -> None:
    active = Active(1, class_bit(layout.CLASS_ANY, 6, IPPROTO_UDP))
    assert active.encode() == packed("01000000 00080000")
    assert Active.decode(active.encode()) == active
    assert Active.decode(bytes(8)) == Active(0, 0)


@pytest.mark.parametrize(
    ("key", "data"),
    [
        (
            MappingKey(IPPROTO_TCP, 4, layout.CLASS_PORT, 80, IPV4, 32),
            f"c0000000 06 04 5000 00000000 {IPV4_HEX}",
        ),
        (
            MappingKey(IPPROTO_UDP, 6, layout.CLASS_RANGE, 258, IPV6, 128),
            f"c0000000 11 06 0201 01000000 {IPV6_HEX}",
        ),
        (
            MappingKey(IPPROTO_TCP, 4, layout.CLASS_ANY, 0, bytes(10) + b"\xff\xff" + bytes(4), 0),
            "a0000000 06 04 0000 02000000 00000000000000000000ffff00000000",
        ),
        (
            MappingKey(IPPROTO_TCP, 6, layout.CLASS_ANY, 0, bytes(16), 0),
            "40000000 06 06 0000 02000000 00000000000000000000000000000000",
        ),
    ],
)
def test_mapping_key(key: MappingKey, data: str) -> None:
    assert key.encode() == packed(data)
    assert mapping_key_of(packed(data)) == key
    assert len(packed(data)) == layout.INNER_MAPS["tables"][1]


def test_mapping() -> None:
    mapping = Mapping(id=258, target=7, flags=layout.OVERRIDE | layout.FALLTHROUGH)
    assert mapping.encode() == packed("02010000 07000000 03000000 00000000")
    assert mapping_of(mapping.encode()) == mapping


@pytest.mark.parametrize(
    ("table", "protocol", "first"),
    [(0, IPPROTO_TCP, 0), (0, IPPROTO_UDP, 1024), (1, IPPROTO_TCP, 2048), (1, IPPROTO_UDP, 3072)],
)
def test_segments_of_all_ports(table: int, protocol: int, first: int) -> None:
    segments = [port % 60_000 for port in range(1 << 16)]
    keys, values = segment_elements(table, protocol, segments)
    assert [number_of(key) for key in keys] == list(range(first, first + 1024))
    assert values[1][:4] == packed("4000 4100")
    assert [one for value in values for one in segments_of(value)] == segments
    assert first + 1024 <= layout.MAPS["segments"][3]


def test_address() -> None:
    address = Address(IPV4, ifindex=3, port=258, protocol=IPPROTO_UDP)
    assert address.encode() == packed(f"{IPV4_HEX} 03000000 0201 11 00")
    assert Address.decode(address.encode()) == address


def test_how_many_listen_is_the_lower_half() -> None:
    assert listener_count(packed("02000000 ffffffff")) == 2


def test_sockets() -> None:
    assert socket_key(258, 7) == packed("02010000 07000000")
    assert slot_request(258) == packed("02010000 00000000")
    assert slot_of(packed("02010000 07000000")) == 7
    assert slots_newest_first(0) == [7, 6, 5, 4, 3, 2, 1, 0]
    assert slots_newest_first(11) == [2, 1, 0, 7, 6, 5, 4, 3]


def test_listener_and_event() -> None:
    listener = Listener(
        Address(IPV6, 0, 22, IPPROTO_TCP), 4242, 6, is_exact=True, is_mptcp=True, command="sshd"
    )
    data = packed(f"{IPV6_HEX} 00000000 1600 06 00 92100000 06 01 01 00") + b"sshd".ljust(16, b"\0")
    assert Listener.decode(data) == listener
    times = packed("0100000000000000 0200000000000000")
    came = Event.decode(times + data + packed("03000000 00 01 0000"))
    assert came == Event(1, 2, listener, 3, "came", is_adopted=True)
    left = Event.decode(times + data + packed("ffffff7f 01 00 0000"))
    assert left == Event(1, 2, listener, None, "left", is_adopted=False)


def test_flow() -> None:
    assert flow_value(IPV4, 258) == packed(f"{IPV4_HEX} 0201000000000000")
    assert flow_parts(flow_value(IPV6, 1 << 40)) == (IPV6, 1 << 40)
    assert flow_key(IPV4, 258, IPV6, 53) == packed(f"{IPV4_HEX} {IPV6_HEX} 0201 3500")


def test_counts_are_of_all_cpus() -> None:
    per_cpu = b"".join(n.to_bytes(8, "little") for n in (5, 1, 2, 10, 2, 3))
    assert Counter.total(per_cpu) == Counter(lookups=15, kept_by_listener=3, no_socket=5)
    troubles = [cookie_key(0) * 2] * (len(layout.TROUBLES) - 1) + [cookie_key(3) + cookie_key(4)]
    assert error_counts(troubles) == {layout.TROUBLES[-1]: 7}
