# SPDX-License-Identifier: GPL-2.0-only
"""Settle what a killed writer left, derive anew what follows from the prefixes, remove rules."""

from __future__ import annotations

from zfw_py.firewall import codec, layout
from zfw_py.firewall.port_index import resolve
from zfw_py.firewall.rules.find import port_rules, settled
from zfw_py.firewall.rules.order import is_union, levels

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from zfw_py.firewall.codec import State
    from zfw_py.firewall.maps import Maps
    from zfw_py.values.prefix import Prefix


def settle(maps: Maps, state: State, members_of: Callable[[int], int]) -> None:
    """Complete or undo an edit of several prefixes whose writer was killed.

    ``state`` is the one that the writer left: it says which of the two.
    """
    unions = {key: rules for key, _, rules in port_rules(maps) if is_union(rules)}
    # The writer wrote them the most specific first, or has begun to write new rules.
    for level in levels(unions, most_specific_first=False):
        for key in level:
            rules = settled(unions[key], state.in_progress)
            if not rules:
                maps.prefixes.delete(key)
                continue
            state.stamp = state.stamp + 1 & 0xFFFFFFFF
            maps.write_state(state)
            intervals, _ = resolve(rules, members_of)
            size_class = codec.size_class_of(len(rules), len(intervals))
            if size_class is None:
                continue  # cannot be: a writer has found room for these rules alone
            if size_class != layout.SIZE_INLINE:
                index = codec.encode_ports(key, state.stamp, size_class, rules, intervals)
                maps.ports(size_class).update(key, index)
            maps.prefixes.update(key, codec.encode_prefix(key, state.stamp, size_class, rules))


def rebuild(maps: Maps) -> State:
    """Lengths and their counts, the list of free slots, and port indexes without a prefix.

    Writes the state, marked as in progress, and returns it.
    """
    counts: dict[bytes, int] = {}
    used: set[int] = set()
    indexed: dict[int, set[bytes]] = {size_class: set() for size_class in (0, *codec.PORTS)}
    for key, size_class, rules in port_rules(maps):
        length_key = codec.length_key_of(key)
        counts[length_key] = counts.get(length_key, 0) + 1
        used.update(rule.slot for rule in rules)
        indexed[size_class].add(key)

    pairs: dict[int, set[tuple[int, int]]] = {table: set() for table in range(layout.TABLES)}
    for length_key in counts:
        table, pair = codec.decode_length_key(length_key)
        pairs[table].add(pair)
    for table, wanted in pairs.items():
        maps.write_lengths(table, wanted)
    length_counts = maps.map("length_counts")
    for key in [key for key, _ in length_counts.items()]:
        length_counts.delete(key)
    for key, count in counts.items():
        length_counts.update(key, codec.u32(count))
    for size_class in codec.PORTS:
        ports = maps.ports(size_class)
        for key in [key for key, _ in ports.items(64)]:
            if key not in indexed[size_class]:
                ports.delete(key)

    state = maps.state()
    state.next_slot = max(used, default=-1) + 1
    state.free_slot = layout.NO_SLOT
    for slot in sorted(set(range(state.next_slot)) - used, reverse=True):
        segment, position = divmod(slot, layout.SEGMENT_SLOTS)
        records = maps.inner("rule_records", segment)
        if records is None:
            continue
        records.update(codec.u32(position), codec.encode_record("", state.free_slot))
        state.free_slot = slot
    state.in_progress = layout.PROGRESS_BACK
    maps.write_state(state)
    return state


def clear(maps: Maps, direction: str | None) -> tuple[int, list[Prefix]]:
    """Remove all rules, or those of one direction.

    Returns how many there were, and the destination of each that held a local route.
    """
    doomed = []
    count = 0
    routed = []
    for key, _, rules in port_rules(maps):
        if direction is None or direction == codec.table_parts_of(key)[0]:
            doomed.append(key)
            count += len(rules)
            holders = sum(rule.is_routed for rule in rules)
            if holders:
                _, _, destination, _ = codec.decode_prefix_key(key)
                routed += [destination] * holders
    if direction is None:
        # One pointer: every rule is gone at the same moment.
        maps.new_inner("prefixes")
    else:
        in_order = levels(doomed, most_specific_first=False)
        maps.prefixes.delete_many([key for level in in_order for key in level])
    rebuild(maps)
    return count, routed


def routed_destinations(maps: Maps) -> dict[Prefix, int]:
    """The destinations that rules hold a local route for, each with how many do."""
    found: dict[Prefix, int] = {}
    for key, _, rules in port_rules(maps):
        holders = sum(rule.is_routed for rule in rules)
        if holders:
            _, _, destination, _ = codec.decode_prefix_key(key)
            found[destination] = found.get(destination, 0) + holders
    return found
