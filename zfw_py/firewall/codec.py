# SPDX-License-Identifier: GPL-2.0-only
"""The model to bytes and back, by the formats of the generated layout. Pure.

Hot: imported for every rule that a router inserts.
"""

from __future__ import annotations

from struct import Struct

from zfw_py.firewall import layout
from zfw_py.firewall.model import ACTIONS, DIRECTIONS, PROTOCOLS, RuleKey
from zfw_py.values.prefix import Prefix

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from zfw_py.firewall.port_index import Interval, PortRule

_prefix_key = Struct(layout.PREFIX_KEY)
_port_rule = Struct(layout.PORT_RULE)
_prefix = Struct(layout.PREFIX)
_interval = Struct(layout.INTERVAL)
_length_key = Struct(layout.LENGTH_KEY)
_lengths = Struct(layout.LENGTHS)
_state = Struct(layout.STATE)
_u32 = Struct("=I")

PORTS = {
    layout.SIZE_MEDIUM: (
        Struct(layout.PORTS_MEDIUM),
        layout.MEDIUM_RULES,
        layout.MEDIUM_INTERVALS,
    ),
    layout.SIZE_LARGE: (Struct(layout.PORTS_LARGE), layout.LARGE_RULES, layout.LARGE_INTERVALS),
}


def u32(value: int) -> bytes:
    """A key or value that is one number in host order."""
    return _u32.pack(value)


def from_u32(data: bytes) -> int:
    """The inverse of ``u32``."""
    value: int = _u32.unpack(data)[0]
    return value


# Prefixes


_TABLES = {
    (direction, family, protocol): DIRECTIONS.index(direction) * layout.TABLE_EGRESS
    + (layout.TABLE_IPV6 if family == 6 else layout.TABLE_IPV4)
    + PROTOCOLS.index(protocol)
    for direction in DIRECTIONS
    for family in (4, 6)
    for protocol in PROTOCOLS
}


def table_of(direction: str, family: int, protocol: str) -> int:
    """The number of a table (enum zfw_table)."""
    return _TABLES[direction, family, protocol]


def table_parts(table: int) -> tuple[str, int, str]:
    """The inverse of ``table_of``: direction, family, protocol."""
    return (
        DIRECTIONS[table // layout.TABLE_EGRESS],
        6 if table & layout.TABLE_IPV6 else 4,
        PROTOCOLS[table & layout.TABLE_UDP],
    )


def encode_prefix_key(key: RuleKey) -> bytes:
    """struct zfw_prefix_key of a rule."""
    destination, destination_length = key.destination.mapped
    source, source_length = key.source.mapped
    return _prefix_key.pack(
        destination,
        source,
        destination_length,
        source_length,
        table_of(key.direction, key.destination.family, key.protocol),
    )


def decode_prefix_key(data: bytes) -> tuple[str, str, Prefix, Prefix]:
    """Direction, protocol, destination and source of a struct zfw_prefix_key."""
    destination, source, destination_length, source_length, table = _prefix_key.unpack(data)
    direction, family, protocol = table_parts(table)
    return (
        direction,
        protocol,
        Prefix.from_mapped(family, destination, destination_length),
        Prefix.from_mapped(family, source, source_length),
    )


def length_key_of(prefix_key: bytes) -> bytes:
    """struct zfw_length_key of a struct zfw_prefix_key."""
    return prefix_key[34:35] + prefix_key[32:34] + b"\0"


def decode_length_key(data: bytes) -> tuple[int, int, int]:
    """Table, destination length, source length."""
    table, destination_length, source_length = _length_key.unpack(data)
    return table, destination_length, source_length


# Port rules


def action_number(action: str) -> int:
    """The number of an action (enum zfw_action)."""
    return ACTIONS.index(action)


def size_class_of(rule_count: int, interval_count: int) -> int | None:
    """The smallest size class that holds so many, or None if none does."""
    if rule_count <= layout.INLINE_RULES:
        return layout.SIZE_INLINE
    for size_class, (_, max_rules, max_intervals) in PORTS.items():
        if rule_count <= max_rules and interval_count <= max_intervals:
            return size_class
    return None


def encode_port_rule(rule: PortRule) -> bytes:
    """struct zfw_port_rule."""
    return _port_rule.pack(*rule)


def decode_port_rule(data: bytes) -> PortRule:
    """The inverse of ``encode_port_rule``."""
    rule: PortRule = _port_rule.unpack(data)
    return rule


def encode_sole_prefix(key: bytes, stamp: int, rule: bytes) -> bytes:
    """struct zfw_prefix with one rule, a struct zfw_port_rule."""
    return _prefix.pack(key, stamp, 1, layout.SIZE_INLINE, rule)


def encode_prefix(key: bytes, stamp: int, size_class: int, rules: Sequence[PortRule]) -> bytes:
    """struct zfw_prefix; the rules stand inside only in the inline class."""
    inline = rules if size_class == layout.SIZE_INLINE else ()
    return _prefix.pack(
        key, stamp, len(rules), size_class, b"".join([_port_rule.pack(*rule) for rule in inline])
    )


def decode_prefix(data: bytes) -> tuple[int, int, list[PortRule]]:
    """Size class, number of rules, and the rules if they stand inside."""
    _, _, count, size_class, inline = _prefix.unpack(data)
    if size_class != layout.SIZE_INLINE:
        return size_class, count, []
    size = layout.PORT_RULE_SIZE
    return size_class, count, list(_port_rule.iter_unpack(inline[: count * size]))


def encode_ports(
    key: bytes,
    stamp: int,
    size_class: int,
    rules: Sequence[PortRule],
    intervals: Sequence[Interval],
) -> bytes:
    """struct zfw_ports_medium or zfw_ports_large."""
    return PORTS[size_class][0].pack(
        key,
        stamp,
        len(rules),
        len(intervals),
        b"".join([_port_rule.pack(*rule) for rule in rules]),
        b"".join([_interval.pack(*interval) for interval in intervals]),
    )


def decode_ports(data: bytes, size_class: int) -> list[PortRule]:
    """The rules of a struct zfw_ports_medium or zfw_ports_large, in order of entry."""
    _, _, count, _, rules, _ = PORTS[size_class][0].unpack(data)
    return list(_port_rule.iter_unpack(rules[: count * layout.PORT_RULE_SIZE]))


# Lengths


def encode_lengths(old: bytes, pairs: Sequence[tuple[int, int]]) -> tuple[bytes, bytes]:
    """Two values to write one after the other: the idle list filled, then the flip."""
    active, changes, lists = _lengths.unpack(old)
    idle = 1 - (active & 1)
    size = layout.LENGTH_LIST_SIZE
    new = u32(len(pairs)) + bytes([part for pair in pairs for part in pair])
    new = new.ljust(size, b"\0")
    lists = lists[:size] + new if idle else new + lists[size:]
    return (
        _lengths.pack(active, changes, lists),
        _lengths.pack(idle, changes + 1 & 0xFFFFFFFF, lists),
    )


def decode_lengths(data: bytes) -> list[tuple[int, int]]:
    """The active list's pairs of (destination length, source length)."""
    active, _, lists = _lengths.unpack(data)
    start = (active & 1) * layout.LENGTH_LIST_SIZE
    count = from_u32(lists[start : start + 4])
    flat = lists[start + 4 : start + 4 + 2 * count]
    return list(zip(flat[::2], flat[1::2], strict=True))


# State


class State:
    """struct zfw_state."""

    __slots__ = ("abi_version", "free_slot", "in_progress", "next_slot", "object_digest", "stamp")

    abi_version: int
    in_progress: int
    stamp: int
    next_slot: int
    free_slot: int
    object_digest: bytes

    @classmethod
    def new(cls, object_digest: bytes) -> State:
        """What an empty firewall starts from."""
        return cls._of(layout.ABI_VERSION, 0, 1, 0, layout.NO_SLOT, object_digest)

    @classmethod
    def decode(cls, data: bytes) -> State:
        """From the map's bytes."""
        return cls._of(*_state.unpack(data))

    @classmethod
    def _of(cls, *values: object) -> State:
        self = cls.__new__(cls)
        (
            self.abi_version,
            self.in_progress,
            self.stamp,
            self.next_slot,
            self.free_slot,
            self.object_digest,
        ) = values  # type: ignore[assignment]
        return self

    def encode(self) -> bytes:
        """To the map's bytes."""
        return _state.pack(
            self.abi_version,
            self.in_progress,
            self.stamp,
            self.next_slot,
            self.free_slot,
            self.object_digest,
        )
