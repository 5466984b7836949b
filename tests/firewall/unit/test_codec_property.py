# SPDX-License-Identifier: GPL-2.0-only
"""What is encoded comes back as it was, whatever it is."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from zfw_py.firewall import layout
from zfw_py.firewall.codec import (
    PORTS,
    PortRule,
    State,
    decode_interface_set,
    decode_length_key,
    decode_lengths,
    decode_port_rule,
    decode_ports,
    decode_prefix,
    decode_prefix_key,
    decode_record,
    decode_route_key,
    decode_text,
    encode_interface_set,
    encode_lengths,
    encode_port_rule,
    encode_ports,
    encode_prefix,
    encode_prefix_key,
    encode_record,
    encode_route_key,
    length_key_of,
    size_class_of,
    sort_key_of,
)
from zfw_py.firewall.model import RuleKey
from zfw_py.values.prefix import Prefix

ports = st.integers(0, 0xFFFF)
numbers = st.integers(0, 0xFFFFFFFF)
port_rules = st.builds(
    PortRule,
    st.tuples(ports, ports, ports, ports, numbers, st.integers(0, 2), st.integers(0, 255), ports),
)
intervals = st.tuples(ports, ports, ports)
length_pairs = st.tuples(st.integers(0, 128), st.integers(0, 128))


@st.composite
def prefixes(draw: st.DrawFn, family: int) -> Prefix:
    size = 4 if family == 4 else 16
    address = draw(st.binary(min_size=size, max_size=size))
    return Prefix(family, address, draw(st.integers(0, 8 * size)))


@st.composite
def rule_keys(draw: st.DrawFn) -> RuleKey:
    family = draw(st.sampled_from((4, 6)))
    return RuleKey(
        draw(prefixes(family)),
        draw(st.sampled_from(("tcp", "udp"))),
        draw(ports),
        source=draw(prefixes(family)),
        direction=draw(st.sampled_from(("ingress", "egress"))),
    )


@given(rule_keys())
def test_a_prefix_key_round_trips(key: RuleKey) -> None:
    data = encode_prefix_key(key)
    assert len(data) == layout.PREFIX_KEY_SIZE
    assert decode_prefix_key(data) == (key.direction, key.protocol, key.destination, key.source)


@given(rule_keys(), rule_keys())
def test_keys_are_equal_as_bytes_where_their_prefixes_are(one: RuleKey, other: RuleKey) -> None:
    def prefix_of(key: RuleKey) -> tuple[object, ...]:
        return (key.direction, key.protocol, key.destination, key.source)

    same = prefix_of(one) == prefix_of(other)
    assert (encode_prefix_key(one) == encode_prefix_key(other)) == same


@given(rule_keys())
def test_a_length_key_says_what_its_prefix_key_says(key: RuleKey) -> None:
    data = encode_prefix_key(key)
    table, (destination_length, source_length) = decode_length_key(length_key_of(data))
    assert table == data[34]
    assert destination_length == key.destination.mapped[1]
    assert source_length == key.source.mapped[1]


@given(rule_keys(), numbers, st.lists(port_rules, max_size=layout.INLINE_RULES))
def test_a_prefix_round_trips(key: RuleKey, stamp: int, rules: list[PortRule]) -> None:
    prefix_key = encode_prefix_key(key)
    data = encode_prefix(prefix_key, stamp, layout.SIZE_INLINE, rules)
    assert len(data) == layout.PREFIX_SIZE
    assert decode_prefix(data) == (prefix_key, layout.SIZE_INLINE, rules)


@given(
    rule_keys(),
    numbers,
    st.lists(port_rules, min_size=layout.INLINE_RULES + 1, max_size=2 * layout.MEDIUM_RULES),
    st.lists(intervals, max_size=2 * layout.MEDIUM_INTERVALS),
)
def test_a_port_index_round_trips(
    key: RuleKey,
    stamp: int,
    rules: list[PortRule],
    some_intervals: list[tuple[int, int, int]],
) -> None:
    size_class = size_class_of(len(rules), len(some_intervals))
    assert size_class in PORTS
    data = encode_ports(encode_prefix_key(key), stamp, size_class, rules, some_intervals)
    assert len(data) == PORTS[size_class][0].size
    assert decode_ports(data, size_class) == rules


@given(st.lists(st.sets(length_pairs, max_size=layout.MAX_LENGTHS), min_size=1, max_size=4))
def test_lengths_are_those_that_were_written_last(writes: list[set[tuple[int, int]]]) -> None:
    data = bytes(layout.LENGTHS_SIZE)
    for pairs in writes:
        before = decode_lengths(data)
        longest_first = sorted(pairs, reverse=True)
        filled, data = encode_lengths(data, longest_first)
        # A reader between the two writes still sees what was there.
        assert decode_lengths(filled) == before
        assert decode_lengths(data) == longest_first


@given(numbers, numbers, numbers, numbers, st.binary(min_size=32, max_size=32))
def test_state_round_trips(
    in_progress: int, stamp: int, next_slot: int, free_slot: int, digest: bytes
) -> None:
    state = State.new(digest)
    state.in_progress, state.stamp = in_progress, stamp
    state.next_slot, state.free_slot = next_slot, free_slot
    read = State.decode(state.encode())
    assert all(getattr(read, name) == getattr(state, name) for name in State.__slots__)


@given(port_rules, ports)
def test_a_port_rule_has_names_for_its_fields(rule: PortRule, number: int) -> None:
    assert rule == (
        rule.low_port,
        rule.high_port,
        rule.tproxy_port,
        rule.interface_set,
        rule.slot,
        rule.action,
        rule.flags,
        rule.old_place,
    )
    assert decode_port_rule(encode_port_rule(rule)) == rule
    changed = rule.with_interface_set(number)
    assert changed.interface_set == number
    assert changed.with_interface_set(rule.interface_set) == rule


@given(st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=16), numbers)
def test_a_record_round_trips(service_id: str, next_free: int) -> None:
    data = encode_record(service_id, next_free)
    assert len(data) == layout.RULE_RECORD_SIZE
    field, slot = decode_record(data)
    assert (decode_text(field), slot) == (service_id, next_free)


@given(st.integers(0, 2**layout.MAX_INTERFACE_NAMES - 1))
def test_an_interface_set_round_trips(members: int) -> None:
    data = encode_interface_set(members)
    assert len(data) == layout.INTERFACE_SET_SIZE
    assert decode_interface_set(data) == members


@given(st.sampled_from((4, 6)).flatmap(prefixes))
def test_a_route_key_round_trips(prefix: Prefix) -> None:
    data = encode_route_key(prefix)
    assert len(data) == layout.ROUTE_KEY_SIZE
    assert decode_route_key(data) == prefix or (
        # Mapped addresses have one form.
        prefix.family == 6
        and decode_route_key(data).family == 4
        and decode_route_key(data).mapped == prefix.mapped
    )


@given(st.lists(rule_keys(), max_size=5))
def test_keys_sort_by_direction_family_destination_source_and_protocol(
    keys: list[RuleKey],
) -> None:
    def order(key: RuleKey) -> tuple[object, ...]:
        directions = ("ingress", "egress")
        return (
            directions.index(key.direction),
            key.family,
            key.destination.mapped,
            key.source.mapped,
            key.protocol,
        )

    as_bytes = sorted(map(encode_prefix_key, keys), key=sort_key_of)
    assert as_bytes == [encode_prefix_key(key) for key in sorted(keys, key=order)]
