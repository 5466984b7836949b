# SPDX-License-Identifier: GPL-2.0-only
"""The model to bytes, byte for byte: what the BPF programs read."""

from __future__ import annotations

import sys

import pytest

from zfw_py.firewall import layout
from zfw_py.firewall.codec import (
    PortRule,
    State,
    decode_length_key,
    decode_lengths,
    decode_port_rule,
    decode_ports,
    decode_prefix,
    decode_prefix_key,
    encode_barrier,
    encode_lengths,
    encode_port_rule,
    encode_ports,
    encode_prefix,
    encode_prefix_key,
    encode_single_prefix,
    from_u32,
    has_own_length,
    is_own_key,
    length_key_of,
    precedence_of,
    size_class_of,
    table_of,
    table_parts,
    u32,
)
from zfw_py.firewall.model import OWN4, OWN6, Rule, RuleKey
from zfw_py.values.prefix import Prefix

pytestmark = pytest.mark.skipif(sys.byteorder == "big", reason="the bytes here are little-endian")

KEY = RuleKey(
    Prefix.parse("10.1.2.0/24"),
    "udp",
    53,
    source=Prefix.parse("192.168.0.0/16"),
    direction="egress",
)
KEY_BYTES = bytes.fromhex(
    "00000000 00000000 0000ffff 0a010200"  # destination, network order
    "00000000 00000000 0000ffff c0a80000"  # source
    "78 70 05 00"  # 96 + 24, 96 + 16, egress + ipv4 + udp
)
KEY_IPV6 = RuleKey(Prefix.parse("fd72::/16"), "tcp", 22)
KEY_IPV6_BYTES = bytes.fromhex(
    "fd720000 00000000 00000000 00000000 00000000 00000000 00000000 00000000 10 00 02 00"
)

# low_port, high_port, tproxy_port, interface_set, slot, action, flags
RULE = PortRule((22, 0x1234, 43321, 7, 0x01020304, layout.ACTION_INTERCEPT, layout.RULE_ROUTED, 0))
RULE_BYTES = bytes.fromhex("1600 3412 39a9 0700 04030201 00 01 0000")
DENY = PortRule((80, 80, 0, 0, 5, layout.ACTION_DENY, 0, 0))
DENY_BYTES = bytes.fromhex("5000 5000 0000 0000 05000000 02 00 0000")


OWN4_BYTES = bytes.fromhex(
    "00000000 00000000 0000ffff 00000000 00000000 00000000 0000ffff 00000000 ff 60 01 00"
)
OWN6_BYTES = bytes.fromhex("00000000 00000000 00000000 00000000") * 2 + b"\xff\0\3\0"


@pytest.mark.parametrize(
    ("key", "data"),
    [
        (KEY, KEY_BYTES),
        (KEY_IPV6, KEY_IPV6_BYTES),
        (RuleKey(OWN4, "udp", 53), OWN4_BYTES),
        (RuleKey(OWN6, "udp", 53), OWN6_BYTES),
    ],
    ids=["IPv4", "IPv6", "own4", "own6"],
)
def test_prefix_key(key: RuleKey, data: bytes) -> None:
    assert encode_prefix_key(key) == data
    assert decode_prefix_key(data) == (key.direction, key.protocol, key.destination, key.source)


def test_own_addresses_come_behind_single_ones() -> None:
    lengths = [(128, 96), (128, 0), (layout.OWN_LENGTH, 128), (layout.OWN_LENGTH, 0), (127, 128)]
    assert sorted(lengths, key=precedence_of, reverse=True) == lengths
    assert [is_own_key(data) for data in (KEY_BYTES, KEY_IPV6_BYTES, OWN4_BYTES, OWN6_BYTES)] == [
        False,
        False,
        True,
        True,
    ]
    for some in (lengths, lengths[:2], lengths[3:], []):
        _, new = encode_lengths(bytes(layout.LENGTHS_SIZE), some)
        assert has_own_length(new) == any(pair[0] == layout.OWN_LENGTH for pair in some)


def test_a_mapped_address_and_the_ipv4_one_have_different_keys() -> None:
    mapped = encode_prefix_key(RuleKey(Prefix.parse("::ffff:192.0.2.1"), "tcp", 1))
    plain = encode_prefix_key(RuleKey(Prefix.parse("192.0.2.1"), "tcp", 1))
    assert mapped[:16] == plain[:16]
    assert mapped != plain


@pytest.mark.parametrize(
    ("table", "parts"),
    [
        (0, ("ingress", 4, "tcp")),
        (1, ("ingress", 4, "udp")),
        (2, ("ingress", 6, "tcp")),
        (3, ("ingress", 6, "udp")),
        (4, ("egress", 4, "tcp")),
        (5, ("egress", 4, "udp")),
        (6, ("egress", 6, "tcp")),
        (7, ("egress", 6, "udp")),
    ],
)
def test_table(table: int, parts: tuple[str, int, str]) -> None:
    assert table_of(*parts) == table
    assert table_parts(table) == parts


def test_length_key() -> None:
    data = length_key_of(KEY_BYTES)
    assert data == bytes.fromhex("05 78 70 00")
    assert decode_length_key(data) == (5, (120, 112))


def test_prefix_with_its_rules_inside() -> None:
    data = encode_prefix(KEY_BYTES, 0x0A0B0C0D, layout.SIZE_INLINE, [RULE, DENY])
    assert data == (
        KEY_BYTES
        + bytes.fromhex("0d0c0b0a 0200 00 0000000000")  # stamp, rule_count, size_class
        + (RULE_BYTES + DENY_BYTES).ljust(64, b"\0")
    )
    assert decode_prefix(data) == (KEY_BYTES, layout.SIZE_INLINE, [RULE, DENY])


def test_prefix_of_one_rule() -> None:
    assert encode_port_rule(RULE) == RULE_BYTES
    assert decode_port_rule(RULE_BYTES) == RULE
    data = encode_single_prefix(KEY_BYTES, 9, RULE_BYTES)
    assert data == encode_prefix(KEY_BYTES, 9, layout.SIZE_INLINE, [RULE])


@pytest.mark.parametrize("size_class", [layout.SIZE_MEDIUM, layout.SIZE_LARGE])
def test_prefix_with_its_rules_elsewhere(size_class: int) -> None:
    data = encode_prefix(KEY_BYTES, 1, size_class, [RULE] * 300)
    assert data == (
        KEY_BYTES + bytes.fromhex("01000000 2c01") + bytes([size_class]) + bytes(5 + 64)
    )
    assert decode_prefix(data) == (KEY_BYTES, size_class, [])


@pytest.mark.parametrize(
    ("size_class", "rules", "intervals", "size"),
    [
        (layout.SIZE_MEDIUM, layout.MEDIUM_RULES, layout.MEDIUM_INTERVALS, 3952),
        (layout.SIZE_LARGE, layout.LARGE_RULES, layout.LARGE_INTERVALS, 65328),
    ],
)
def test_port_index(size_class: int, rules: int, intervals: int, size: int) -> None:
    data = encode_ports(KEY_BYTES, 9, size_class, [RULE, DENY], [(22, 79, 0), (80, 80, 1)])
    assert data == (
        KEY_BYTES
        + bytes.fromhex("09000000 0200 0200 00000000")  # stamp, rule_count, interval_count
        + (RULE_BYTES + DENY_BYTES).ljust(16 * rules, b"\0")
        + bytes.fromhex("1600 4f00 0000 0000 5000 5000 0100 0000").ljust(8 * intervals, b"\0")
    )
    assert len(data) == size
    assert decode_ports(data, size_class) == [RULE, DENY]


@pytest.mark.parametrize(
    ("rules", "intervals", "size_class"),
    [
        (1, 1, layout.SIZE_INLINE),
        # Inside, the rules are gone through in order: there are no intervals.
        (layout.INLINE_RULES, 1000, layout.SIZE_INLINE),
        (layout.INLINE_RULES + 1, 5, layout.SIZE_MEDIUM),
        (layout.MEDIUM_RULES, layout.MEDIUM_INTERVALS, layout.SIZE_MEDIUM),
        (layout.MEDIUM_RULES + 1, 5, layout.SIZE_LARGE),
        (5, layout.MEDIUM_INTERVALS + 1, layout.SIZE_LARGE),
        (layout.LARGE_RULES, layout.LARGE_INTERVALS, layout.SIZE_LARGE),
        (layout.LARGE_RULES + 1, 5, None),
        (5, layout.LARGE_INTERVALS + 1, None),
    ],
)
def test_size_class_is_the_smallest_that_holds_both(
    rules: int, intervals: int, size_class: int | None
) -> None:
    assert size_class_of(rules, intervals) == size_class


@pytest.mark.parametrize("size_class", [layout.SIZE_MEDIUM, layout.SIZE_LARGE])
def test_every_size_class_has_room_for_the_intervals_of_its_rules(size_class: int) -> None:
    """N overlapping ranges make up to 2N - 1 where no interface is named."""
    rules, intervals = {
        layout.SIZE_MEDIUM: (layout.MEDIUM_RULES, layout.MEDIUM_INTERVALS),
        layout.SIZE_LARGE: (layout.LARGE_RULES, layout.LARGE_INTERVALS),
    }[size_class]
    assert intervals >= 2 * rules - 1


class TestLengths:
    PAIRS = ((128, 128), (120, 96))
    LIST = bytes.fromhex("02000000 8080 7860").ljust(layout.LENGTH_LIST_SIZE, b"\0")
    NONE = bytes(layout.LENGTH_LIST_SIZE)

    def test_the_idle_list_is_filled_then_they_change_places(self) -> None:
        filled, flipped = encode_lengths(bytes(layout.LENGTHS_SIZE), self.PAIRS)
        assert filled == u32(0) + u32(0) + self.NONE + self.LIST
        assert flipped == u32(1) + u32(1) + self.NONE + self.LIST
        assert decode_lengths(filled) == []
        assert decode_lengths(flipped) == list(self.PAIRS)

    def test_and_back(self) -> None:
        _, first = encode_lengths(bytes(layout.LENGTHS_SIZE), self.PAIRS)
        filled, flipped = encode_lengths(first, self.PAIRS[:1])
        assert decode_lengths(filled) == list(self.PAIRS)
        assert decode_lengths(flipped) == list(self.PAIRS[:1])
        assert flipped[:8] == u32(0) + u32(2)
        assert flipped[8 + layout.LENGTH_LIST_SIZE :] == self.LIST

    def test_as_many_as_there_can_be(self) -> None:
        pairs = [(d, s) for d in range(128, 95, -1) for s in range(128, 95, -1)]
        assert len(pairs) == layout.MAX_LENGTHS
        _, flipped = encode_lengths(bytes(layout.LENGTHS_SIZE), pairs)
        assert len(flipped) == layout.LENGTHS_SIZE
        assert decode_lengths(flipped) == pairs

    def test_the_count_of_changes_starts_again_after_the_largest(self) -> None:
        old = u32(0) + u32(0xFFFFFFFF) + 2 * self.NONE
        assert encode_lengths(old, ())[1][:8] == u32(1) + u32(0)


def test_state() -> None:
    state = State.new(bytes(range(32)))
    data = state.encode()
    assert data == bytes.fromhex("01000000 00000000 01000000 00000000 ffffffff 00000000") + bytes(
        range(32)
    )
    assert State.decode(data).encode() == data


@pytest.mark.parametrize(
    ("rule", "action"),
    [
        (Rule(KEY_IPV6, 30, tproxy_port=9), layout.ACTION_INTERCEPT),
        (Rule(KEY_IPV6, 30), layout.ACTION_PASS),
        (Rule(KEY_IPV6, 30, deny=True), layout.ACTION_DENY),
    ],
    ids=["intercept", "pass", "deny"],
)
def test_a_port_rule_of_a_rule(rule: Rule, action: int) -> None:
    expected = (22, 30, rule.tproxy_port, 7, 5, action)
    assert PortRule.of(rule, 7, 5, is_routed=False) == (*expected, 0, 0)
    assert PortRule.of(rule, 7, 5, is_routed=True) == (*expected, layout.RULE_ROUTED, 0)
    assert PortRule.of(rule, 7, 5, is_routed=True).is_routed
    assert not PortRule.of(rule, 7, 5, is_routed=False).is_routed


def test_u32() -> None:
    assert u32(0x01020304) == b"\4\3\2\1"
    assert from_u32(b"\4\3\2\1") == 0x01020304


def test_a_barrier_counts_as_two_flips_and_leaves_the_lists_alone() -> None:
    for written in encode_lengths(bytes(layout.LENGTHS_SIZE), [(128, 96), (120, 96)]):
        barred = encode_barrier(written)
        assert decode_lengths(barred) == decode_lengths(written)
        assert barred[:4] + barred[8:] == written[:4] + written[8:]
        before, after = from_u32(written[4:8]), from_u32(barred[4:8])
        assert after - before == 2
