# SPDX-License-Identifier: GPL-2.0-only
"""The rules as they stand in the kernel, with their counters."""

from __future__ import annotations

from struct import Struct

from zfw_py.abi import layout
from zfw_py.abi.codec import decode_prefix_key, u32
from zfw_py.firewall.rules import port_rules
from zfw_py.model.rule import ACTIONS, Rule, RuleKey

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from zfw_py.firewall.interfaces import Interfaces
    from zfw_py.firewall.tables import Tables

_record = Struct(layout.RULE_RECORD)
_counter = Struct(layout.COUNTER)


def counter_sum(value: bytes) -> tuple[int, int]:
    """Packets and bytes of all CPUs, of a per-CPU map's value."""
    if not any(value):
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
        self._records: dict[int, list[bytes]] = {}
        self._counters: dict[int, list[bytes]] = {}

    def _read(self, name: str, segment: int, into: dict[int, list[bytes]]) -> list[bytes]:
        if segment not in into:
            inner = self._tables.inner(name, segment)
            into[segment] = [value for _, value in inner.items()] if inner else []
        return into[segment]

    def service_id(self, slot: int) -> str:
        segment, position = divmod(slot, layout.SEGMENT_SLOTS)
        record = self._read("rule_records", segment, self._records)[position]
        text: bytes = _record.unpack(record)[0]
        return text.rstrip(b"\0").decode("utf-8", "surrogateescape")

    def counters(self, slot: int) -> tuple[int, int]:
        segment, position = divmod(slot, layout.SEGMENT_SLOTS)
        return counter_sum(self._read("rule_counters", segment, self._counters)[position])


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
    for prefix_key, _, entries in sorted(port_rules(tables), key=lambda item: _order(item[0])):
        direction, protocol, destination, source = decode_prefix_key(prefix_key)
        for low, high, tproxy_port, interface_set, slot, action, flags in entries:
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
            rule.high_port = high
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
    """Direction and family, destination, source, protocol of a struct zfw_prefix_key."""
    return _GROUPS[key[34]] + key[:16] + key[32:33] + key[16:32] + key[33:35]


def read_reasons(tables: Tables) -> dict[str, tuple[int, int]]:
    """Packets and bytes by reason."""
    reasons = tables.map("reasons")
    return {
        name: counter_sum(reasons.lookup(u32(number)) or b"")
        for number, name in enumerate(layout.REASONS)
    }
