# SPDX-License-Identifier: GPL-2.0-only
"""Write what an edit has collected: all of it, or on an error nothing. Hot.

Order, so that the programs read whole rules at any moment:
1. the state, marked as in progress: slots and stamps are taken;
2. records and counters of new slots, which no rule refers to yet;
3. length counts and lists with the lengths that appear;
4. prefix by prefix, its port index and its element: here the rules change. ``order`` says which
   prefix comes first, and when each is written twice;
5. port indexes that no element refers to, and lengths that vanish;
6. what the transaction does last, which can still be undone;
7. the slots that are free now. The transaction writes the state and ends the mark.
"""

from __future__ import annotations

from zfw_py.errors import KernelError, MapFull
from zfw_py.firewall import codec, layout
from zfw_py.firewall.codec import PortRule

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from zfw_py.firewall.codec import Interval, State
    from zfw_py.firewall.maps import Maps
    from zfw_py.firewall.rules.edit import EditedPrefix, RuleEdit
    from zfw_py.kernel.bpf_maps import Map

    # The element of a prefix with this key and stamp; None where there is none.
    Elements = Callable[[bytes, int], bytes | None]

# The inner map of prefixes grows by this factor, up to this many elements.
_GROWTH = 4
_MOST_PREFIXES = 4 * 1024 * 1024
_ENOENT, _E2BIG = 2, 7
# Elements that are made before they are written: a million would take 160 MB.
_CHUNK = 8192
_ALL_PORTS = (0, 0xFFFF)


class Commit:
    """The writes of one edit, and their undoing."""

    def __init__(self, maps: Maps, edit: RuleEdit, last: Callable[[], None] | None) -> None:
        """Nothing is written yet.

        ``last`` is called when the new rules are in force and can still be undone, counters
        and all.
        """
        self._maps = maps
        self._edit = edit
        self._last = last
        self._stamp = edit.state.stamp
        self._keys = [*edit.prefixes, *edit.single]
        # In which order step 4 writes; ``_passes`` counts how often it has begun to.
        self._only_adds = self._only_removes = len(self._keys) == 1 and not edit.settings
        self._passes = 0
        self._is_begun = False

    def run(self) -> State:
        """Write; the state that then holds, which the caller has to write.

        Raises MapFull, KernelError or what ``last`` raises; then the caller has to ``undo``.
        """
        maps, edit, state = self._maps, self._edit, self._edit.state
        lengths_added: dict[bytes, int] = {}
        lengths_removed: dict[bytes, int] = {}
        self._resolve(lengths_added, lengths_removed)
        _check_lengths(maps, lengths_added)
        # At most three passes, of which the third undoes the second.
        state.stamp = (self._stamp + 3 * len(self._keys)) & 0xFFFFFFFF
        self._is_begun = True
        self._mark(layout.PROGRESS_BACK)
        try:
            _write_records(maps, edit)
            _change_lengths(maps, lengths_added, 1)
            if lengths_added:
                _make_room(maps, sum(lengths_added.values()))
            if any(map(codec.is_own_key, self._keys)):
                # Before a rule for them, so that no packet meets neither the rules of before nor
                # those of after.
                edit.interfaces.refresh()
            self._write_prefixes()
            self._remove_indexes()
            _change_lengths(maps, lengths_removed, -1)
            if self._last is None:
                _free_slots(maps, edit.freed, state)
        except OSError as error:
            if isinstance(error, KernelError):
                raise
            raise _explained(edit, error) from error
        if self._last is not None:
            self._last()
            try:
                _free_slots(maps, edit.freed, state)
            except OSError:
                # All is in force, and ``last`` is not undone for a list that can be derived.
                from zfw_py.firewall.rules.rebuild import rebuild

                return rebuild(maps)
        return state

    def undo(self) -> None:
        """Put every prefix back as it was, then rebuild what follows from them."""
        if not self._is_begun:
            return
        from zfw_py.firewall.rules.rebuild import rebuild

        if self._passes == 1:
            self._write(self._old, most_specific_first=self._only_removes and not self._only_adds)
        elif self._passes == 2:
            self._write(self._union, most_specific_first=True)
            self._bar()
            self._mark(layout.PROGRESS_BACK)
            self._write(self._old, most_specific_first=False)
        rebuild(self._maps)

    def _mark(self, progress: int) -> None:
        self._edit.state.in_progress = progress
        self._maps.write_state(self._edit.state)

    def _resolve(self, added: dict[bytes, int], removed: dict[bytes, int]) -> None:
        """Make the port indexes; find lengths that come and go, and the order of the writes."""
        edit = self._edit
        members_of = edit.interfaces.members_of
        shadowed: set[int] = set()
        # With settings, a killed edit has to be completed or undone as a whole.
        adds = not edit.settings
        removes = adds and not edit.single
        for prefix in edit.prefixes.values():
            if prefix.rules:
                _resolve(prefix, members_of, shadowed)
                if prefix.old is None:
                    _count(added, prefix.key)
            elif prefix.old is not None:
                _count(removed, prefix.key)
            if len(self._keys) > 1 and (adds or removes):
                from zfw_py.firewall.rules.order import covers

                old = self._old_rules(prefix)
                adds = adds and covers(prefix.rules, old, members_of)
                removes = removes and covers(old, prefix.rules, members_of)
        for key in edit.single:
            _count(added, key)
        if len(self._keys) > 1:
            self._only_adds, self._only_removes = adds, removes
        if shadowed:
            for inserted in edit.inserted:
                inserted.is_shadowed = inserted.slot in shadowed

    def _write_prefixes(self) -> None:
        if self._only_adds or self._only_removes:
            self._passes = 1
            self._write(self._new, most_specific_first=self._only_adds)
            return
        self._passes = 1
        self._write(self._union, most_specific_first=True)
        self._bar()
        self._mark(layout.PROGRESS_FORWARD)
        self._passes = 2
        self._write(self._new, most_specific_first=False)

    def _write(self, elements: Elements, *, most_specific_first: bool) -> None:
        """Write each prefix that the edit changes, level by level.

        Most specific first needs more than the order: a packet whose search began before a
        level was written may come to a later level after that was. So it is dropped.
        """
        if len(self._keys) == 1:
            self._write_level(self._keys, elements)
            return
        from zfw_py.firewall.rules.order import levels

        for number, level in enumerate(levels(self._keys, most_specific_first=most_specific_first)):
            if number and most_specific_first:
                self._bar()
            self._write_level(level, elements)

    def _bar(self) -> None:
        for table in {codec.table_number_of(key) for key in self._keys}:
            self._maps.bar(table)

    def _write_level(self, keys: list[bytes], elements: Elements) -> None:
        maps = self._maps
        for start in range(0, len(keys), _CHUNK):
            some: list[bytes] = []
            values: list[bytes] = []
            gone: list[bytes] = []
            for key in keys[start : start + _CHUNK]:
                element = elements(key, self._stamp & 0xFFFFFFFF)
                self._stamp += 1
                if element is None:
                    gone.append(key)
                else:
                    some.append(key)
                    values.append(element)
            _delete(maps, gone)
            try:
                maps.prefixes.update_many(some, values)
            except OSError as error:
                if error.errno != _E2BIG:
                    raise
                # The kernel counts elements roughly; ask for room once more.
                _make_room(maps, maps.prefixes.max_entries)
                maps.prefixes.update_many(some, values)

    # The three elements of a prefix

    def _new(self, key: bytes, stamp: int) -> bytes | None:
        single = self._edit.single.get(key)
        if single is not None:
            return codec.encode_single_prefix(key, stamp, single)
        prefix = self._edit.prefixes[key]
        if not prefix.rules:
            return None
        return self._element(prefix, stamp, prefix.size_class, prefix.rules, prefix.intervals)

    def _old(self, key: bytes, stamp: int) -> bytes | None:
        prefix = self._edit.prefixes.get(key)
        if prefix is None or prefix.old is None:
            return None
        if prefix.old_ports is not None:
            self._maps.ports(prefix.old_class).update(key, prefix.old_ports)
        return prefix.old

    def _union(self, key: bytes, stamp: int) -> bytes | None:
        from zfw_py.firewall.port_index import resolve
        from zfw_py.firewall.rules.order import union

        single = self._edit.single.get(key)
        if single is not None:
            rule = codec.decode_port_rule(single).marked(layout.RULE_COMING, 0)
            return codec.encode_single_prefix(key, stamp, codec.encode_port_rule(rule))
        prefix = self._edit.prefixes[key]
        old = self._old_rules(prefix)
        rules = union(old, prefix.rules)
        if not rules:
            return None  # an edit that inserts a rule and deletes it
        intervals, most = resolve(rules, self._edit.interfaces.members_of)
        size_class = codec.size_class_of(len(rules), len(intervals))
        if size_class is None or most > layout.MAX_CANDIDATES:
            # Together they are too many: the prefix drops all until its new rules are there. On
            # interfaces that look at names the deny has to name all that the rules name.
            interfaces = self._edit.interfaces
            members = 0
            for rule in rules:
                members |= interfaces.members_of(rule.interface_set)
            number = interfaces.number_with(members)
            deny = (number, old[0].slot, layout.ACTION_DENY, 0, 0)
            rules, size_class, intervals = [PortRule((*_ALL_PORTS, 0, *deny))], 0, []
        prefix.union_class = size_class
        return self._element(prefix, stamp, size_class, rules, intervals)

    def _old_rules(self, prefix: EditedPrefix) -> list[PortRule]:
        if prefix.old is None:
            return []
        if prefix.old_ports is not None:
            return codec.decode_ports(prefix.old_ports, prefix.old_class)
        return codec.decode_prefix(prefix.old)[2]

    def _element(
        self,
        prefix: EditedPrefix,
        stamp: int,
        size_class: int,
        rules: Sequence[PortRule],
        intervals: Sequence[Interval],
    ) -> bytes:
        """The prefix's element; its port index is written first if it has one."""
        if size_class != layout.SIZE_INLINE:
            self._maps.ports(size_class).update(
                prefix.key, codec.encode_ports(prefix.key, stamp, size_class, rules, intervals)
            )
        return codec.encode_prefix(prefix.key, stamp, size_class, rules)

    def _remove_indexes(self) -> None:
        """Remove the port indexes of size classes that a prefix had before."""
        for prefix in self._edit.prefixes.values():
            for size_class in {prefix.old_class, prefix.union_class}:
                if size_class != layout.SIZE_INLINE and not (
                    prefix.rules and size_class == prefix.size_class
                ):
                    self._maps.ports(size_class).delete(prefix.key)


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


def _delete(maps: Maps, keys: list[bytes]) -> None:
    try:
        maps.prefixes.delete_many(keys)
    except OSError as error:
        if error.errno != _ENOENT:
            raise
        # A batch ends at the first key that is not there.
        for key in keys:
            maps.prefixes.delete(key)


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
