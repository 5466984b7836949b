# SPDX-License-Identifier: GPL-2.0-only
"""Keys and values of the firewall's maps as Python values, and back. Pure.

The only module of the firewall that knows bytes and offsets. The formats are the generated
layout's: numbers in host byte order, addresses in network byte order, 16 bytes each, IPv4
mapped into IPv6. Hot: imported for every rule that a router inserts.
"""

from __future__ import annotations

from _operator import itemgetter
from struct import Struct

from zfw_py.firewall import layout
from zfw_py.firewall.model import (
    ACTIONS,
    DIRECTIONS,
    OWN4,
    OWN6,
    PROTOCOLS,
    OwnAddresses,
    RuleKey,
)
from zfw_py.values.prefix import IPV4_MAPPED, Prefix

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from zfw_py.firewall.model import Rule

    # Low port, high port, and the position of a rule.
    Interval = tuple[int, int, int]

_prefix_key = Struct(layout.PREFIX_KEY)
_port_rule = Struct(layout.PORT_RULE)
_prefix = Struct(layout.PREFIX)
_interval = Struct(layout.INTERVAL)
_length_key = Struct(layout.LENGTH_KEY)
_lengths = Struct(layout.LENGTHS)
_record = Struct(layout.RULE_RECORD)
_counter = Struct(layout.COUNTER)
_interface_name = Struct(layout.INTERFACE_NAME)
_interface = Struct(layout.INTERFACE)
_interface_set = Struct(f"={layout.INTERFACE_SET_SIZE // 8}Q")
_address = Struct(layout.ADDRESS)
_route = Struct(layout.ROUTE)
_state = Struct(layout.STATE)
_u32 = Struct("=I")

# Offsets within struct zfw_prefix_key, which struct zfw_prefix begins with.
_SOURCE, _DESTINATION_LENGTH, _SOURCE_LENGTH, _TABLE = 16, 32, 33, 34

PORTS = {
    layout.SIZE_MEDIUM: (
        Struct(layout.PORTS_MEDIUM),
        layout.MEDIUM_RULES,
        layout.MEDIUM_INTERVALS,
    ),
    layout.SIZE_LARGE: (Struct(layout.PORTS_LARGE), layout.LARGE_RULES, layout.LARGE_INTERVALS),
}


# A key or value that is one number in host byte order.
u32: Callable[[int], bytes] = _u32.pack


def from_u32(data: bytes) -> int:
    """The inverse of ``u32``."""
    value: int = _u32.unpack(data)[0]
    return value


def encode_text(text: str) -> bytes:
    """Text as the maps have it, before it is padded with NULs."""
    return text.encode("utf-8", "surrogateescape")


def decode_text(data: bytes) -> str:
    """The inverse of ``encode_text``, of bytes that may be padded with NULs."""
    return data.rstrip(b"\0").decode("utf-8", "surrogateescape")


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


_PARTS = {table: parts for parts, table in _TABLES.items()}


def table_parts(table: int) -> tuple[str, int, str]:
    """The inverse of ``table_of``: direction, family, protocol."""
    return _PARTS[table]


def encode_prefix_key(key: RuleKey) -> bytes:
    """struct zfw_prefix_key of a rule."""
    destination, destination_length = key.destination.mapped
    if isinstance(key.destination, OwnAddresses):
        destination_length = layout.OWN_LENGTH
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
    direction, family, protocol = _PARTS[table]
    if destination_length == layout.OWN_LENGTH:
        to: Prefix = OWN4 if family == 4 else OWN6
    else:
        to = Prefix.from_mapped(family, destination, destination_length)
    return direction, protocol, to, Prefix.from_mapped(family, source, source_length)


def encode_covering_key(
    table: int, destination: bytes, source: bytes, lengths: tuple[int, int]
) -> bytes:
    """struct zfw_prefix_key of the prefix of these lengths that covers two addresses.

    With the length of own addresses the destination has to be one.
    """
    destination_length, source_length = lengths
    is_own = destination_length == layout.OWN_LENGTH
    return _prefix_key.pack(
        _own_of(table) if is_own else _masked(destination, destination_length),
        _masked(source, source_length),
        destination_length,
        source_length,
        table,
    )


def _own_of(table: int) -> bytes:
    """The destination in the keys of a table's own addresses."""
    return OWN6.mapped[0] if table & layout.TABLE_IPV6 else OWN4.mapped[0]


def _masked(address: bytes, length: int) -> bytes:
    host = 128 - length
    return (int.from_bytes(address, "big") >> host << host).to_bytes(16, "big")


def lengths_of(key: bytes) -> tuple[int, int]:
    """Destination length and source length of a struct zfw_prefix_key, of 128 bits."""
    return key[_DESTINATION_LENGTH], key[_SOURCE_LENGTH]


def covers_destination(key: bytes, address: bytes) -> bool:
    """Whether the destination of a struct zfw_prefix_key covers an address of 16 bytes.

    The key is not that of own addresses.
    """
    return _masked(address, key[_DESTINATION_LENGTH]) == key[:_SOURCE]


def covers_source(key: bytes, address: bytes) -> bool:
    """Whether the source of a struct zfw_prefix_key covers an address of 16 bytes."""
    return _masked(address, key[_SOURCE_LENGTH]) == key[_SOURCE:_DESTINATION_LENGTH]


def table_parts_of(key: bytes) -> tuple[str, int, str]:
    """Direction, family and protocol of a struct zfw_prefix_key."""
    return _PARTS[key[_TABLE]]


def table_number_of(key: bytes) -> int:
    """The table (enum fw_table) of a struct fw_prefix_key."""
    return key[_TABLE]


# By table: its direction and family, without the protocol.
_GROUPS = [bytes([table & ~layout.TABLE_UDP]) for table in range(layout.TABLES)]


def sort_key_of(key: bytes) -> bytes:
    """What a listing is sorted by: direction, family, destination, source, protocol.

    ``key`` is a struct zfw_prefix_key, or a struct zfw_prefix, which begins with one.
    """
    return (
        _GROUPS[key[_TABLE]]
        + key[:_SOURCE]
        + key[_DESTINATION_LENGTH:_SOURCE_LENGTH]
        + key[_SOURCE:_DESTINATION_LENGTH]
        + key[_SOURCE_LENGTH : _TABLE + 1]
    )


def length_key_of(key: bytes) -> bytes:
    """struct zfw_length_key of a struct zfw_prefix_key."""
    return key[_TABLE : _TABLE + 1] + key[_DESTINATION_LENGTH:_TABLE] + b"\0"


# Both lengths of a struct fw_prefix_key, and its table.
level_of: Callable[[bytes], bytes] = itemgetter(slice(_DESTINATION_LENGTH, _TABLE + 1))


def precedence_of(lengths: Sequence[int]) -> tuple[int, ...]:
    """The order of look-ups, the greatest first; ``lengths`` begins with a destination length.

    Own addresses come behind single addresses.
    """
    longest, *rest = lengths
    return (2 * longest if longest != layout.OWN_LENGTH else 2 * 128 - 1, *rest)


def is_own_key(key: bytes) -> bool:
    """Whether a struct fw_prefix_key is that of own addresses."""
    return key[_DESTINATION_LENGTH] == layout.OWN_LENGTH


def decode_length_key(data: bytes) -> tuple[int, tuple[int, int]]:
    """The table, and the pair of destination length and source length."""
    table, destination_length, source_length = _length_key.unpack(data)
    return table, (destination_length, source_length)


# Port rules


def _field(number: int) -> int:
    return property(itemgetter(number))  # type: ignore[return-value]


class PortRule(tuple[int, int, int, int, int, int, int, int]):
    """struct zfw_port_rule: a rule without its prefix. A tuple, since there may be a million."""

    __slots__ = ()

    low_port = _field(0)
    high_port = _field(1)
    tproxy_port = _field(2)
    interface_set = _field(3)
    slot = _field(4)
    action = _field(5)
    flags = _field(6)
    old_place = _field(7)

    @classmethod
    def of(cls, rule: Rule, interface_set: int, slot: int, *, is_routed: bool) -> PortRule:
        """From a rule of the model, and what the maps have in place of its names."""
        return cls(
            (
                rule.key.low_port,
                rule.high_port,
                rule.tproxy_port,
                interface_set,
                slot,
                ACTIONS.index(rule.action),
                (layout.RULE_ROUTED if is_routed else 0)
                | (layout.RULE_NAMED if rule.is_limited else 0),
                0,
            )
        )

    @property
    def is_routed(self) -> bool:
        """Whether the rule holds a local route for its destination."""
        return bool(self.flags & layout.RULE_ROUTED)

    @property
    def is_limited(self) -> bool:
        """Whether the rule counts on the interfaces of its set alone."""
        return bool(self.flags & layout.RULE_NAMED)

    def with_interface_set(self, number: int) -> PortRule:
        """The same rule with other interfaces."""
        return PortRule((*self[:3], number, *self[4:]))

    def marked(self, mark: int, old_place: int) -> PortRule:
        """The same rule as part of an edit: RULE_COMING, RULE_LEAVING or 0, and its old place."""
        return PortRule((*self[:6], self.flags | mark, old_place))


def size_class_of(rule_count: int, interval_count: int) -> int | None:
    """The smallest size class that holds so many, or None if none does."""
    if rule_count <= layout.INLINE_RULES:
        return layout.SIZE_INLINE
    for size_class, (_, max_rules, max_intervals) in PORTS.items():
        if rule_count <= max_rules and interval_count <= max_intervals:
            return size_class
    return None


low_port_of: Callable[[PortRule], int] = itemgetter(0)


def encode_port_rule(rule: PortRule) -> bytes:
    """struct zfw_port_rule."""
    return _port_rule.pack(*rule)


def decode_port_rule(data: bytes) -> PortRule:
    """The inverse of ``encode_port_rule``."""
    return PortRule(_port_rule.unpack(data))


def _port_rules(data: bytes, count: int) -> list[PortRule]:
    return list(map(PortRule, _port_rule.iter_unpack(data[: count * layout.PORT_RULE_SIZE])))


def encode_single_prefix(key: bytes, stamp: int, rule: bytes) -> bytes:
    """struct zfw_prefix with one rule, a struct zfw_port_rule."""
    return _prefix.pack(key, stamp, 1, layout.SIZE_INLINE, rule)


def encode_prefix(key: bytes, stamp: int, size_class: int, rules: Sequence[PortRule]) -> bytes:
    """struct zfw_prefix; the rules stand inside only in the inline class."""
    inline = rules if size_class == layout.SIZE_INLINE else ()
    return _prefix.pack(
        key, stamp, len(rules), size_class, b"".join([_port_rule.pack(*rule) for rule in inline])
    )


def decode_prefix(data: bytes) -> tuple[bytes, int, list[PortRule]]:
    """Key, size class, and the rules if the size class is the inline one."""
    key, _, count, size_class, inline = _prefix.unpack(data)
    if size_class != layout.SIZE_INLINE:
        return key, size_class, []
    return key, size_class, _port_rules(inline, count)


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
    return _port_rules(rules, count)


# Records and counters


def encode_record(service_id: str, next_free: int = layout.NO_SLOT) -> bytes:
    """struct zfw_rule_record; of a slot without a rule, ``next_free`` is the next such slot."""
    return _record.pack(encode_text(service_id), next_free)


# The padded service id, and the next free slot or NO_SLOT.
decode_record: Callable[[bytes], tuple[bytes, int]] = _record.unpack


def counter_sum(value: bytes) -> tuple[int, int]:
    """Packets and bytes of all CPUs: a per-CPU map's value, a struct zfw_counter a CPU."""
    if not value.strip(b"\0"):
        return 0, 0
    packets = octets = 0
    for some_packets, some_bytes in _counter.iter_unpack(value):
        packets += some_packets
        octets += some_bytes
    return packets, octets


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


def encode_barrier(old: bytes) -> bytes:
    """The same lists, and ``changes`` as after two flips: every search under way is dropped."""
    active, changes, lists = _lengths.unpack(old)
    return _lengths.pack(active, changes + 2 & 0xFFFFFFFF, lists)


def decode_lengths(data: bytes) -> list[tuple[int, int]]:
    """The active list's pairs of (destination length, source length)."""
    flat = _active_lengths(data)
    return list(zip(flat[::2], flat[1::2], strict=True))


def has_own_length(data: bytes) -> bool:
    """Whether the active list has a pair for own addresses."""
    return layout.OWN_LENGTH in _active_lengths(data)[::2]


def _active_lengths(data: bytes) -> bytes:
    active, _, lists = _lengths.unpack(data)
    start = (active & 1) * layout.LENGTH_LIST_SIZE
    count = from_u32(lists[start : start + 4])
    flat: bytes = lists[start + 4 : start + 4 + 2 * count]
    return flat


# Interfaces


def encode_name(name: str) -> bytes:
    """struct zfw_name: an interface's name, padded with NULs."""
    return encode_text(name).ljust(layout.NAME_LENGTH, b"\0")


# struct zfw_interface_name: the name's id, its settings, the interface's index or 0, a byte for
# each direction (how the program shall be attached), and the settings after an edit that is being
# written, or 0.
encode_interface_name: Callable[[int, int, int, bytes, int], bytes] = _interface_name.pack
decode_interface_name: Callable[[bytes], tuple[int, int, int, bytes, int]] = _interface_name.unpack

# The bytes of a name that no program shall be attached to.
NOT_WANTED = bytes(len(DIRECTIONS))
_MODES = {
    layout.WANTED_AUTO: "auto",
    layout.WANTED_TCX: "tcx",
    layout.WANTED_CLSACT: "clsact",
}


def encode_wanted(modes: dict[str, str]) -> bytes:
    """The bytes of a name: a mode for each direction in which a program shall be attached."""
    numbers = {mode: number for number, mode in _MODES.items()}
    return bytes([numbers.get(modes.get(direction, ""), 0) for direction in DIRECTIONS])


def decode_wanted(data: bytes) -> dict[str, str]:
    """The inverse of ``encode_wanted``."""
    return {
        direction: _MODES[number]
        for direction, number in zip(DIRECTIONS, data, strict=True)
        if number in _MODES
    }


# struct zfw_interface: its index, settings, name's id, and bits LINK_*.
encode_interface: Callable[[int, int, int, int], bytes] = _interface.pack
decode_interface: Callable[[bytes], tuple[int, int, int, int]] = _interface.unpack

# struct fw_address: an interface's index and one of its addresses; index 0 for an own address.
encode_address: Callable[[int, bytes], bytes] = _address.pack
decode_address: Callable[[bytes], tuple[int, bytes]] = _address.unpack


def encode_interface_set(members: int) -> bytes:
    """struct zfw_interface_set; bit n of ``members`` stands for the name with the id n."""
    return _interface_set.pack(
        *(members >> start & 0xFFFFFFFFFFFFFFFF for start in range(0, 8 * _interface_set.size, 64))
    )


def decode_interface_set(data: bytes) -> int:
    """The inverse of ``encode_interface_set``."""
    return sum(word << 64 * i for i, word in enumerate(_interface_set.unpack(data)) if word)


# Local routes

# struct zfw_route: how many rules hold it, how often it is bound, its owner (OWNER_*).
encode_route: Callable[[int, int, int], bytes] = _route.pack
decode_route: Callable[[bytes], tuple[int, int, int]] = _route.unpack


def encode_route_key(prefix: Prefix) -> bytes:
    """struct zfw_route_key."""
    return Struct(layout.ROUTE_KEY).pack(*prefix.mapped)


def decode_made_local(item: tuple[bytes, bytes]) -> tuple[bytes, int]:
    """The address of a struct fw_route_key, 16 bytes, and the owner of its struct fw_route."""
    key, value = item
    return key[:16], decode_route(value)[2]


def decode_route_key(data: bytes) -> Prefix:
    """The inverse of ``encode_route_key``."""
    address, length = Struct(layout.ROUTE_KEY).unpack(data)
    family = 4 if length >= 96 and address.startswith(IPV4_MAPPED) else 6
    return Prefix.from_mapped(family, address, length)


# State


class State:
    """struct zfw_state: what writers agree on."""

    # In the order of the struct.
    __slots__ = ("abi_version", "in_progress", "stamp", "next_slot", "free_slot", "object_digest")

    abi_version: int
    in_progress: int
    stamp: int
    next_slot: int
    free_slot: int
    object_digest: bytes

    def __init__(self, *fields: object) -> None:
        for name, field in zip(self.__slots__, fields, strict=True):
            setattr(self, name, field)

    @classmethod
    def new(cls, object_digest: bytes) -> State:
        """The state of an empty firewall."""
        return cls(layout.ABI_VERSION, 0, 1, 0, layout.NO_SLOT, object_digest)

    @classmethod
    def decode(cls, data: bytes) -> State:
        """From the map's bytes."""
        return cls(*_state.unpack(data))

    def encode(self) -> bytes:
        """To the map's bytes."""
        return _state.pack(*(getattr(self, name) for name in self.__slots__))
