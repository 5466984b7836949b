# SPDX-License-Identifier: GPL-2.0-only
"""The contents of the firewall's maps, read and checked without zfw's own reader."""

from __future__ import annotations

from ipaddress import ip_address
from socket import if_nametoindex
from struct import Struct, unpack_from
from typing import TYPE_CHECKING, NamedTuple

from tests.firewall.support import frames
from tests.firewall.support.packets import ethernet, ipv4, udp
from tests.firewall.support.reference import ETHERTYPE_IPV4
from zfw_py import Firewall, Insert, Prefix, Rule, RuleKey
from zfw_py.firewall import layout
from zfw_py.firewall.codec import decode_lengths, decode_prefix_key, u32
from zfw_py.firewall.explain import explain
from zfw_py.firewall.maps import Maps

if TYPE_CHECKING:
    from collections.abc import Iterable


HERE = Prefix.parse("192.0.2.1")
OTHER = Prefix.parse("198.51.100.0/24")
INTERFACE = "gw0"


def key(port: int, destination: Prefix = HERE, **others: str) -> RuleKey:
    return RuleKey(destination, "udp", port, **others)  # type: ignore[arg-type]


def rule(low: int, high: int | None = None, destination: Prefix = HERE, **others: object) -> Rule:
    return Rule(key(low, destination), high, **others)  # type: ignore[arg-type]


def fill(rules: Iterable[Rule]) -> None:
    Firewall().apply([Insert(each) for each in rules])


MARKS = layout.RULE_COMING | layout.RULE_LEAVING


class Entry(NamedTuple):
    """A struct fw_port_rule: one rule among those of its prefix."""

    low: int
    high: int
    tproxy_port: int
    interface_set: int
    slot: int
    action: int
    flags: int
    old_place: int


class Contents:
    """Everything that is in the maps."""

    def __init__(self) -> None:
        with Maps(is_writer=False) as maps:
            self.prefixes = dict(maps.prefixes.items())
            self.ports = {
                layout.SIZE_MEDIUM: dict(maps.map("ports_medium").items(64)),
                layout.SIZE_LARGE: dict(maps.map("ports_large").items(64)),
            }
            self.length_counts = {
                bytes(k[:3]): int.from_bytes(v, "little")
                for k, v in maps.map("length_counts").items()
            }
            self.lengths = [
                decode_lengths(maps.map("lengths").lookup(u32(table)) or b"")
                for table in range(layout.TABLES)
            ]
            self.state = maps.state()
            self.names = dict(maps.map("interface_names").items())
            self.sets = [value for _, value in maps.map("interface_sets").items()]
            self.routes = dict(maps.map("routes").items())
            # The slots that were used since the last flush.
            self.records = [
                value
                for segment in range(-(-self.state.next_slot // layout.SEGMENT_SLOTS))
                for inner in [maps.inner("rule_records", segment)]
                if inner
                for _, value in inner.items()
            ][: self.state.next_slot]

    def rules_of(self, prefix_key: bytes) -> list[Entry]:
        count, size_class = unpack_from("=HB", self.prefixes[prefix_key], 40)
        if size_class == layout.SIZE_INLINE:
            data, start = self.prefixes[prefix_key], 48
        else:
            data, start = self.ports[size_class][prefix_key], 48
            count = unpack_from("=H", data, 40)[0]
        form = Struct(layout.PORT_RULE)
        return [Entry(*form.unpack_from(data, start + 16 * i)) for i in range(count)]

    def settled(self, entries: list[Entry]) -> list[Entry]:
        """The rules of a prefix that the next writer leaves of a killed writer's."""
        if self.state.in_progress == layout.PROGRESS_FORWARD:
            return [each for each in entries if not each.flags & layout.RULE_LEAVING]
        old = [each for each in entries if not each.flags & layout.RULE_COMING]
        return sorted(old, key=lambda each: each.old_place)

    def check(self) -> None:
        """Check that every other map agrees with the prefixes."""
        counts: dict[bytes, int] = {}
        slots: list[int] = []
        expected_ports: dict[int, set[bytes]] = {size_class: set() for size_class in self.ports}
        for prefix_key, value in self.prefixes.items():
            assert value[:36] == prefix_key, "a prefix's element begins with its key"
            lengths = bytes([prefix_key[34], prefix_key[32], prefix_key[33]])
            counts[lengths] = counts.get(lengths, 0) + 1
            rules = self.rules_of(prefix_key)
            slots += [each.slot for each in rules]
            assert rules, "a prefix without a rule"
            assert not any(each.old_place or each.flags & MARKS for each in rules), "an edit's mark"
            assert len({each.low for each in rules}) == len(rules), "a key twice"
            size_class = value[42]
            if size_class != layout.SIZE_INLINE:
                expected_ports[size_class].add(prefix_key)
                self._check_index(prefix_key, size_class, rules)
        assert self.length_counts == counts
        for table, pairs in enumerate(self.lengths):
            expected = {(k[1], k[2]) for k in counts if k[0] == table}
            # Those of own addresses, which have the number 255, behind those of single ones.
            in_order = [
                pair
                for length in (128, 255, *reversed(range(128)))
                for pair in sorted(expected, reverse=True)
                if pair[0] == length
            ]
            assert pairs == in_order, "the lengths in use, in the order of look-ups"
        assert {c: set(index) for c, index in self.ports.items()} == expected_ports
        assert len(set(slots)) == len(slots), "a slot of two rules"
        assert sorted([*slots, *self._free_slots()]) == list(range(self.state.next_slot))
        assert self.state.in_progress == 0

    def _check_index(self, prefix_key: bytes, size_class: int, rules: list[Entry]) -> None:
        data = self.ports[size_class][prefix_key]
        assert data[:36] == prefix_key
        most = {
            layout.SIZE_MEDIUM: layout.MEDIUM_RULES,
            layout.SIZE_LARGE: layout.LARGE_RULES,
        }[size_class]
        (count,) = unpack_from("=H", data, 42)
        form = Struct(layout.INTERVAL)
        intervals = [form.unpack_from(data, 48 + 16 * most + 8 * i) for i in range(count)]
        winners: dict[int, int] = {}
        for index, each in enumerate(rules):
            for port in range(each.low, each.high + 1):
                winners.setdefault(port, index)
        found: dict[int, int] = {}
        for low, high, index in intervals:
            for port in range(low, high + 1):
                found.setdefault(port, index)
        assert found == winners, "the intervals lead to the first rule of each port"

    def _free_slots(self) -> list[int]:
        free, slot = [], self.state.free_slot
        while slot != layout.NO_SLOT:
            free.append(slot)
            assert len(free) <= self.state.next_slot, "the free list goes round"
            slot = unpack_from("=I", self.records[slot], 64)[0]
        return free


def datagram(port: int, destination: Prefix = HERE) -> bytes:
    """A frame from the client to a port of the prefix's first address."""
    source = ip_address(frames.CLIENT[destination.family])
    to = ip_address(destination.address)
    return ethernet(ipv4(source, to, 17, udp(40000, port)), ETHERTYPE_IPV4)


def listing() -> list[tuple[object, ...]]:
    """All fields of each rule but its counters."""
    return [
        (
            str(each.key),
            each.high_port,
            each.action,
            each.tproxy_port,
            each.service_id,
            each.interfaces,
            each.is_routed,
        )
        for each in Firewall().rules()
    ]


def check_datapath() -> None:
    """The program matches the listed rules, provided that no two destinations overlap.

    After a kill in an edit, a prefix may have old and new rules at once; those that the next
    writer leaves are listed.
    """
    contents = Contents()
    by_prefix: dict[Prefix, list[Entry]] = {}
    for prefix_key in contents.prefixes:
        by_prefix[decode_prefix_key(prefix_key)[2]] = contents.rules_of(prefix_key)
    listed: dict[Prefix, list[int]] = {}
    for each in Firewall().rules():
        listed.setdefault(each.key.destination, []).append(each.key.low_port)
    stay = {prefix: contents.settled(entries) for prefix, entries in by_prefix.items()}
    assert listed == {prefix: [e.low for e in some] for prefix, some in stay.items() if some}
    ifindex = if_nametoindex(INTERFACE)
    with Maps(is_writer=False) as maps:
        for prefix in {HERE, OTHER, *by_prefix}:
            entries = by_prefix.get(prefix, [])
            edges = {edge for e in entries for edge in (e.low, e.high, e.high + 1)} | {0, 7, 65535}
            for port in sorted(edge for edge in edges if edge <= 65535)[:40]:
                hit = next((e for e in entries if e.low <= port <= e.high), None)
                decision = explain(maps, datagram(port, prefix), ifindex)
                assert decision.slot == (hit.slot if hit else None), (prefix, port, decision)


def crowd(count: int, start: int = 1000) -> list[Rule]:
    """``count`` rules of one prefix whose port ranges do not touch."""
    return [rule(start + 10 * i, start + 10 * i + 4, service_id=f"crowd-{i}") for i in range(count)]
