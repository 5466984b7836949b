# SPDX-License-Identifier: GPL-2.0-only
"""The rules in the maps with their counters, and the counters by decision reason."""

from __future__ import annotations

from zfw_py.firewall import codec, layout
from zfw_py.firewall.model import ACTIONS, Rule, RuleKey
from zfw_py.firewall.rules.find import rules_of, settled

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from zfw_py.firewall.codec import PortRule
    from zfw_py.firewall.interfaces import Interfaces
    from zfw_py.firewall.maps import Maps
    from zfw_py.values.prefix import Prefix


class _Segments:
    """Service ids and counters by slot; a segment is read whole, once."""

    def __init__(self, maps: Maps) -> None:
        self._maps = maps
        self._service_ids: dict[int, list[str]] = {}
        # By position, and only those that are not zero.
        self._counters: dict[int, dict[int, tuple[int, int]]] = {}
        # Many rules belong to one service.
        self._texts: dict[bytes, str] = {}

    def _values(self, name: str, segment: int) -> Iterator[bytes]:
        inner = self._maps.open_inner(name, segment)
        return (value for _, value in inner.items()) if inner else iter(())

    def _text(self, record: bytes) -> str:
        field, _ = codec.decode_record(record)
        if field not in self._texts:
            self._texts[field] = codec.decode_text(field)
        return self._texts[field]

    def service_id(self, slot: int) -> str:
        segment, position = divmod(slot, layout.SEGMENT_SLOTS)
        if segment not in self._service_ids:
            records = self._values("rule_records", segment)
            self._service_ids[segment] = [self._text(record) for record in records]
        return self._service_ids[segment][position]

    def counters(self, slot: int) -> tuple[int, int]:
        segment, position = divmod(slot, layout.SEGMENT_SLOTS)
        if segment not in self._counters:
            sums = map(codec.counter_sum, self._values("rule_counters", segment))
            self._counters[segment] = {n: some for n, some in enumerate(sums) if some != (0, 0)}
        return self._counters[segment].get(position, (0, 0))


def read_rules(
    maps: Maps, interfaces: Interfaces, wanted: Callable[[RuleKey], bool] = lambda key: True
) -> list[Rule]:
    """Every rule whose key is wanted, with service id, interfaces and counters.

    Sorted by direction, family, destination, source and protocol; rules of one
    prefix stand in their order of entry.
    """
    segments = _Segments(maps)
    progress = maps.state().in_progress
    rules = []
    names_of: dict[int, tuple[str, ...]] = {0: ()}
    # Sorted as bytes, and each dropped once it is decoded: with a million rules that saves
    # half of the memory.
    elements = [value for _, value in maps.prefixes.items()]
    elements.sort(key=codec.sort_key_of, reverse=True)
    sources: dict[Prefix, Prefix] = {}
    while elements:
        prefix_key, rules_of_prefix = rules_of(maps, elements.pop())
        direction, protocol, destination, source = codec.decode_prefix_key(prefix_key)
        source = sources.setdefault(source, source)
        for low, high, tproxy_port, interface_set, slot, action, flags, _ in settled(
            rules_of_prefix, progress
        ):
            key = RuleKey.trusted(direction, destination, source, protocol, low)
            if not wanted(key):
                continue
            if interface_set not in names_of:
                names_of[interface_set] = interfaces.names_of(interface_set)
            rule = Rule.trusted(
                key,
                low if high == low else high,
                ACTIONS[action],
                tproxy_port,
                segments.service_id(slot),
                names_of[interface_set],
                bool(flags & layout.RULE_NAMED),
                bool(flags & layout.RULE_ROUTED),
            )
            rule.packets, rule.bytes = segments.counters(slot)
            rules.append(rule)
    return rules


def read_rule(maps: Maps, interfaces: Interfaces, prefix_key: bytes, rule: PortRule) -> Rule:
    """One rule of a prefix, a struct zfw_prefix_key, with service id, interfaces and counters."""
    direction, protocol, destination, source = codec.decode_prefix_key(prefix_key)
    made = Rule.trusted(
        RuleKey.trusted(direction, destination, source, protocol, rule.low_port),
        rule.high_port,
        ACTIONS[rule.action],
        rule.tproxy_port,
        "",
        interfaces.names_of(rule.interface_set),
        rule.is_routed,
        rule.is_limited,
    )
    segment, position = divmod(rule.slot, layout.SEGMENT_SLOTS)
    records = maps.open_inner("rule_records", segment)
    counters = maps.open_inner("rule_counters", segment)
    record = records and records.lookup(codec.u32(position))
    if record:
        made.service_id = codec.decode_text(codec.decode_record(record)[0])
    counted = counters and counters.lookup(codec.u32(position))
    if counted:
        made.packets, made.bytes = codec.counter_sum(counted)
    return made


def read_reasons(maps: Maps) -> dict[str, tuple[int, int]]:
    """Packets and bytes by reason; zero for those that the running programs do not know yet."""
    first, added = maps.map("reasons"), maps.find("added_reasons")

    def value(number: int) -> bytes | None:
        if number < layout.FIRST_REASONS:
            return first.lookup(codec.u32(number))
        return added.lookup(codec.u32(number - layout.FIRST_REASONS)) if added else None

    return {
        name: codec.counter_sum(value(number) or b"") for number, name in enumerate(layout.REASONS)
    }
