# SPDX-License-Identifier: GPL-2.0-only
"""The rules as they stand in the kernel, with their counters."""

from __future__ import annotations

from struct import Struct

from zfw_py.firewall import layout
from zfw_py.firewall.codec import decode_prefix_key, u32
from zfw_py.firewall.model import ACTIONS, Rule, RuleKey
from zfw_py.firewall.rules import rules_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from zfw_py.firewall.interfaces import Interfaces
    from zfw_py.firewall.maps import Tables
    from zfw_py.values.prefix import Prefix

_record = Struct(layout.RULE_RECORD)
_counter = Struct(layout.COUNTER)


def counter_sum(value: bytes) -> tuple[int, int]:
    """Packets and bytes of all CPUs, of a per-CPU map's value."""
    if not value.strip(b"\0"):
        return 0, 0
    packets = octets = 0
    for some_packets, some_bytes in _counter.iter_unpack(value):
        packets += some_packets
        octets += some_bytes
    return packets, octets


class _Segments:
    """Records and counters by slot; a segment is read whole, once."""

    def __init__(self, tables: Tables) -> None:
        self._tables = tables
        self._records: dict[int, bytes] = {}
        # By position, and only those that are not zero.
        self._counters: dict[int, dict[int, tuple[int, int]]] = {}
        # Many rules belong to one service.
        self._service_ids: dict[bytes, str] = {}

    def _values(self, name: str, segment: int) -> Iterator[bytes]:
        inner = self._tables.open_inner(name, segment)
        return (value for _, value in inner.items()) if inner else iter(())

    def service_id(self, slot: int) -> str:
        segment, position = divmod(slot, layout.SEGMENT_SLOTS)
        if segment not in self._records:
            self._records[segment] = b"".join(self._values("rule_records", segment))
        text = _record.unpack_from(self._records[segment], position * _record.size)[0]
        if text not in self._service_ids:
            self._service_ids[text] = text.rstrip(b"\0").decode("utf-8", "surrogateescape")
        return self._service_ids[text]

    def counters(self, slot: int) -> tuple[int, int]:
        segment, position = divmod(slot, layout.SEGMENT_SLOTS)
        if segment not in self._counters:
            sums = map(counter_sum, self._values("rule_counters", segment))
            self._counters[segment] = {n: some for n, some in enumerate(sums) if some != (0, 0)}
        return self._counters[segment].get(position, (0, 0))


def read_rules(
    tables: Tables, interfaces: Interfaces, wanted: Callable[[RuleKey], bool] = lambda key: True
) -> list[Rule]:
    """Every rule whose key is wanted, with service id, interfaces and counters.

    Sorted by direction, family, destination, source and protocol; rules of one
    prefix stand in their order of entry.
    """
    segments = _Segments(tables)
    rules = []
    names_of: dict[int, tuple[str, ...]] = {0: ()}
    # As bytes while they are sorted, and gone when they are made rules: of a million, that
    # is half of the memory.
    elements = [value for _, value in tables.prefixes.items()]
    elements.sort(key=_order, reverse=True)
    sources: dict[Prefix, Prefix] = {}
    while elements:
        element = elements.pop()
        direction, protocol, destination, source = decode_prefix_key(
            element[: layout.PREFIX_KEY_SIZE]
        )
        source = sources.setdefault(source, source)
        for low, high, tproxy_port, interface_set, slot, action, flags in rules_of(tables, element):
            key = RuleKey.__new__(RuleKey)
            key.direction = direction
            key.destination = destination
            key.source = source
            key.protocol = protocol
            key.low_port = low
            if not wanted(key):
                continue
            if interface_set not in names_of:
                names_of[interface_set] = interfaces.names_of(interface_set)
            rule = Rule.__new__(Rule)
            rule.key = key
            rule.high_port = low if high == low else high
            rule.action = ACTIONS[action]
            rule.tproxy_port = tproxy_port
            rule.service_id = segments.service_id(slot)
            rule.interfaces = names_of[interface_set]
            rule.is_routed = bool(flags & layout.RULE_ROUTED)
            rule.packets, rule.bytes = segments.counters(slot)
            rules.append(rule)
    return rules


# By table: what sorts first, its direction and family without the protocol.
_GROUPS = [bytes([table & ~layout.TABLE_UDP]) for table in range(layout.TABLES)]


def _order(key: bytes) -> bytes:
    """Direction and family, destination, source, protocol of what begins with a prefix's key."""
    return _GROUPS[key[34]] + key[:16] + key[32:33] + key[16:32] + key[33:35]


def read_reasons(tables: Tables) -> dict[str, tuple[int, int]]:
    """Packets and bytes by reason."""
    reasons = tables.map("reasons")
    return {
        name: counter_sum(reasons.lookup(u32(number)) or b"")
        for number, name in enumerate(layout.REASONS)
    }
