# SPDX-License-Identifier: GPL-2.0-only
"""Write what an edit has collected: all of it, or on an error nothing. Hot.

Order, so that the programs read whole rules at any moment:
1. the state, marked as in progress: slots and stamps are taken;
2. records and counters of new slots, which no rule refers to yet;
3. length counts and lists with the lengths that appear;
4. port indexes, then the elements of prefixes: here the rules change;
5. elements and port indexes that go, and lengths that vanish;
6. what the transaction does last, which can still be undone;
7. the slots that are free now. The transaction writes the state and ends the mark.
An error up to 6 puts the old elements back and rebuilds all that follows from them.
"""

from __future__ import annotations

from zfw_py.errors import KernelError, MapFull
from zfw_py.firewall import codec, layout

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from zfw_py.firewall.codec import State
    from zfw_py.firewall.maps import Maps
    from zfw_py.firewall.rules.edit import EditedPrefix, RuleEdit
    from zfw_py.kernel.bpf_maps import Map

# The inner map of prefixes grows by this factor, up to this many elements.
_GROWTH = 4
_MOST_PREFIXES = 4 * 1024 * 1024
_E2BIG = 7
# Elements that are made before they are written: a million would take 160 MB.
_CHUNK = 8192


def commit(maps: Maps, edit: RuleEdit, last: Callable[[], None] | None) -> State:
    """Write an edit; the state that then holds, which the caller has to write.

    ``last`` is called when the new rules are in force and can still be undone, counters and
    all: an error of its own undoes them. Raises MapFull or KernelError.
    """
    state = edit.state
    stamp = state.stamp
    lengths_added: dict[bytes, int] = {}
    lengths_removed: dict[bytes, int] = {}
    shadowed: set[int] = set()
    written: list[EditedPrefix] = []
    removed: list[EditedPrefix] = []
    for prefix in edit.prefixes.values():
        if prefix.rules:
            _resolve(prefix, edit.interfaces.members_of, shadowed)
            written.append(prefix)
            if prefix.old is None:
                _count(lengths_added, prefix.key)
        elif prefix.old is not None:
            removed.append(prefix)
            _count(lengths_removed, prefix.key)
    for key in edit.single:
        _count(lengths_added, key)
    _check_lengths(maps, lengths_added)
    if shadowed:
        for inserted in edit.inserted:
            inserted.is_shadowed = inserted.slot in shadowed

    state.stamp = (stamp + len(written) + len(edit.single)) & 0xFFFFFFFF
    state.in_progress = 1
    maps.write_state(state)
    try:
        _write_records(maps, edit)
        _change_lengths(maps, lengths_added, 1)
        if lengths_added:
            _make_room(maps, sum(lengths_added.values()))
        _write_elements(
            maps,
            [prefix.key for prefix in written],
            lambda keys, stamp: [
                _element(maps, edit.prefixes[key], number & 0xFFFFFFFF)
                for number, key in enumerate(keys, stamp)
            ],
            stamp,
        )
        _write_elements(
            maps,
            list(edit.single),
            lambda keys, stamp: [
                codec.encode_single_prefix(key, number & 0xFFFFFFFF, edit.single[key])
                for number, key in enumerate(keys, stamp)
            ],
            stamp + len(written),
        )
        _remove_elements(maps, removed, written)
        _change_lengths(maps, lengths_removed, -1)
        if last is None:
            _free_slots(maps, edit.freed, state)
        else:
            last()
    except BaseException as error:
        _undo(maps, edit.single, written + removed)
        if isinstance(error, OSError) and not isinstance(error, KernelError):
            raise _explained(edit, error) from error
        raise
    if last is not None:
        try:
            _free_slots(maps, edit.freed, state)
        except OSError:
            # All is in force, and ``last`` is not undone for a list that can be derived.
            from zfw_py.firewall.rules.rebuild import rebuild

            return rebuild(maps)
    return state


def _explained(edit: RuleEdit, error: OSError) -> MapFull | KernelError:
    what = "write the rules"
    for key in edit.prefixes or edit.single:
        _, protocol, destination, _ = codec.decode_prefix_key(key)
        what = f"write the rules of {destination} {protocol}"
        break
    if error.errno == _E2BIG:
        return MapFull(f"{what}: a map is full (E2BIG)")
    return KernelError(what, error.errno or 0)


def _resolve(
    prefix: EditedPrefix, members_of: Callable[[int], int], shadowed_slots: set[int]
) -> None:
    """Choose the size class and make the port index; add the slots of shadowed rules."""
    if len(prefix.rules) == 1:
        return  # nothing overlaps, and the class is the inline one
    from zfw_py.firewall.port_index import resolve, shadowed

    intervals, most = resolve(prefix.rules, members_of)
    size_class = codec.size_class_of(len(prefix.rules), len(intervals))
    if size_class is None or most > layout.MAX_CANDIDATES:
        _, protocol, destination, _ = codec.decode_prefix_key(prefix.key)
        raise MapFull(
            f"{destination} {protocol}: {len(prefix.rules)} port ranges are too many for one"
            f" prefix (at most {layout.LARGE_RULES}, fewer where they overlap and name"
            " different interfaces)"
        )
    prefix.intervals, prefix.size_class = intervals, size_class
    shadowed_slots.update(prefix.rules[i].slot for i in shadowed(prefix.rules, intervals))


# Records and counters


def _write_records(maps: Maps, edit: RuleEdit) -> None:
    slots_of: dict[int, list[int]] = {}
    for slot in edit.records:
        slots_of.setdefault(slot // layout.SEGMENT_SLOTS, []).append(slot)
    _make_segments(maps, "rule_records", slots_of)
    zeroed = _make_segments(maps, "rule_counters", slots_of)
    for segment, slots in slots_of.items():
        _open_segment(maps, "rule_records", segment).update_many(
            [codec.u32(slot % layout.SEGMENT_SLOTS) for slot in slots],
            [codec.encode_record(edit.records[slot]) for slot in slots],
        )
        if segment in zeroed:
            slots = [slot for slot in slots if slot in edit.counters]
        counters = _open_segment(maps, "rule_counters", segment)
        zero = bytes(counters.value_size)
        counters.update_many(
            [codec.u32(slot % layout.SEGMENT_SLOTS) for slot in slots],
            [edit.counters.get(slot, zero) for slot in slots],
        )


def _make_segments(maps: Maps, name: str, wanted: Iterable[int]) -> set[int]:
    """Make those of the segments that are missing; which these were.

    In one step: the kernel waits until no program uses what was there, about 10 ms.
    """
    outer = maps.map(name)
    missing = [segment for segment in wanted if outer.lookup(codec.u32(segment)) is None]
    created = [maps.create_inner(name) for _ in missing]
    outer.update_many(
        [codec.u32(segment) for segment in missing], [codec.u32(inner.fd) for inner in created]
    )
    return set(missing)


def _open_segment(maps: Maps, name: str, segment: int) -> Map:
    opened = maps.open_inner(name, segment)
    if opened is None:
        raise maps.mismatch(name, f"segment {segment} is missing")
    return opened


def _free_slots(maps: Maps, freed: list[int], state: State) -> None:
    by_segment: dict[int, tuple[list[bytes], list[bytes]]] = {}
    for slot in freed:
        segment, position = divmod(slot, layout.SEGMENT_SLOTS)
        keys, values = by_segment.setdefault(segment, ([], []))
        keys.append(codec.u32(position))
        values.append(codec.encode_record("", state.free_slot))
        state.free_slot = slot
    # A rule that was inserted and deleted in this edit may have been the first of its segment.
    _make_segments(maps, "rule_records", by_segment)
    for segment, (keys, values) in by_segment.items():
        _open_segment(maps, "rule_records", segment).update_many(keys, values)


# Lengths


def _count(counts: dict[bytes, int], prefix_key: bytes) -> None:
    key = codec.length_key_of(prefix_key)
    counts[key] = counts.get(key, 0) + 1


def _check_lengths(maps: Maps, added: dict[bytes, int]) -> None:
    """Refuse a pair of lengths too many before anything is written. Raises MapFull."""
    new_of: dict[int, int] = {}
    for key in added:
        if maps.map("length_counts").lookup(key) is None:
            table, _ = codec.decode_length_key(key)
            new_of[table] = new_of.get(table, 0) + 1
    for table, count in new_of.items():
        data = maps.map("lengths").lookup(codec.u32(table)) or b""
        if len(codec.decode_lengths(data)) + count > layout.MAX_LENGTHS:
            raise MapFull(
                f"{layout.MAX_LENGTHS} different pairs of destination and source lengths"
                " are in use already"
            )


def _change_lengths(maps: Maps, changes: dict[bytes, int], sign: int) -> None:
    counts = maps.map("length_counts")
    changed: dict[int, tuple[set[tuple[int, int]], set[tuple[int, int]]]] = {}
    for key, change in changes.items():
        old = counts.lookup(key)
        count = (codec.from_u32(old) if old is not None else 0) + sign * change
        table, pair = codec.decode_length_key(key)
        appearing, vanishing = changed.setdefault(table, (set(), set()))
        if old is None:
            appearing.add(pair)
        if count > 0:
            counts.update(key, codec.u32(count))
        else:
            counts.delete(key)
            vanishing.add(pair)
    for table, (appearing, vanishing) in changed.items():
        if appearing or vanishing:
            present = set(codec.decode_lengths(maps.map("lengths").lookup(codec.u32(table)) or b""))
            maps.write_lengths(table, (present | appearing) - vanishing)


# Prefixes


def _write_elements(
    maps: Maps,
    keys: list[bytes],
    elements_of: Callable[[list[bytes], int], list[bytes]],
    stamp: int,
) -> None:
    """Write an element for each key; the first has this stamp, the others those that follow."""
    for start in range(0, len(keys), _CHUNK):
        some = keys[start : start + _CHUNK]
        elements = elements_of(some, stamp + start)
        try:
            maps.prefixes.update_many(some, elements)
        except OSError as error:
            if error.errno != _E2BIG:
                raise
            # The kernel counts elements roughly; ask for room once more.
            _make_room(maps, maps.prefixes.max_entries)
            maps.prefixes.update_many(some, elements)


def _element(maps: Maps, prefix: EditedPrefix, stamp: int) -> bytes:
    """The prefix's element; its port index is written first if it has one."""
    if prefix.size_class != layout.SIZE_INLINE:
        maps.ports(prefix.size_class).update(
            prefix.key,
            codec.encode_ports(
                prefix.key, stamp, prefix.size_class, prefix.rules, prefix.intervals
            ),
        )
    return codec.encode_prefix(prefix.key, stamp, prefix.size_class, prefix.rules)


def _make_room(maps: Maps, new: int) -> None:
    """Put a larger map in the place of ``prefixes`` if it may not hold so many more."""
    old = maps.prefixes
    # length_counts has the new ones already.
    total = sum(codec.from_u32(value) for _, value in maps.map("length_counts").items())
    size = old.max_entries
    while size < max(total, new) and size < _MOST_PREFIXES:
        size *= _GROWTH
    if size == old.max_entries:
        return
    larger = maps.create_inner("prefixes", size)
    pairs = list(old.items())
    larger.update_many([key for key, _ in pairs], [value for _, value in pairs])
    maps.put_inner("prefixes", 0, larger)


def _remove_elements(maps: Maps, removed: list[EditedPrefix], written: list[EditedPrefix]) -> None:
    """Remove the elements of prefixes without rules, and port indexes of another size class."""
    if removed:
        maps.prefixes.delete_many([prefix.key for prefix in removed])
    for prefix in removed + written:
        if prefix.old_class not in (layout.SIZE_INLINE, prefix.size_class):
            maps.ports(prefix.old_class).delete(prefix.key)


def _undo(maps: Maps, single: Iterable[bytes], touched: list[EditedPrefix]) -> None:
    """Put every prefix back as it was, then rebuild what follows from them."""
    from zfw_py.firewall.rules.rebuild import rebuild

    for key in single:
        maps.prefixes.delete(key)
    for prefix in touched:
        if prefix.old is None:
            maps.prefixes.delete(prefix.key)
            continue
        if prefix.old_ports is not None:
            maps.ports(prefix.old_class).update(prefix.key, prefix.old_ports)
        maps.prefixes.update(prefix.key, prefix.old)
    rebuild(maps)
