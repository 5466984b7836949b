# SPDX-License-Identifier: GPL-2.0-only
"""The rule set: edits that happen as a whole, and the listing. Hot.

A prefix's element holds all its rules and is replaced in one step, so what is
published is always consistent. Everything else here (length lists, the free
list, port indexes of another size) is derived or private; ``in_progress`` in
the state says that an edit began, and a writer that finds it set rebuilds what
is derived, because the one before it died.
"""

from __future__ import annotations

from struct import Struct

from zfw_py.errors import KernelError, MapFull, NotFound
from zfw_py.firewall import layout
from zfw_py.firewall.codec import (
    action_number,
    decode_length_key,
    decode_lengths,
    decode_port_rule,
    decode_ports,
    decode_prefix,
    decode_prefix_key,
    encode_lengths,
    encode_port_rule,
    encode_ports,
    encode_prefix,
    encode_prefix_key,
    encode_sole_prefix,
    from_u32,
    length_key_of,
    size_class_of,
    u32,
)
from zfw_py.firewall.maps import ZERO
from zfw_py.firewall.port_index import resolve, shadowed
from zfw_py.kernel.bpf_maps import create_map

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from zfw_py.firewall.codec import State
    from zfw_py.firewall.interfaces import Interfaces
    from zfw_py.firewall.maps import Tables
    from zfw_py.firewall.model import Rule, RuleKey
    from zfw_py.firewall.port_index import Interval, PortRule
    from zfw_py.kernel.bpf_maps import Map

_record = Struct(layout.RULE_RECORD)

# The inner map of prefixes grows by this factor, up to this many elements.
_GROWTH = 4
_MOST_PREFIXES = 4 * 1024 * 1024
_PORTS = {layout.SIZE_MEDIUM: "ports_medium", layout.SIZE_LARGE: "ports_large"}
_E2BIG = 7
# Elements that are made before they are written: a million would take 160 MB.
_CHUNK = 8192

# Fields of a port rule.
_LOW, _HIGH, _TPROXY, _SET, _SLOT, _ACTION, _FLAGS = range(7)


class RuleNotFound(NotFound):
    """No such rule. ``is_prefix_known`` tells whether its prefix has others."""

    def __init__(self, key: RuleKey, message: str, *, is_prefix_known: bool) -> None:
        super().__init__(message)
        self.key = key
        self.is_prefix_known = is_prefix_known


class _Prefix:
    """A prefix that is being edited."""

    __slots__ = ("intervals", "key", "old", "old_class", "old_ports", "rules", "size_class")

    key: bytes
    old: bytes | None
    old_class: int
    old_ports: bytes | None
    rules: list[PortRule]
    intervals: list[Interval]
    size_class: int

    @classmethod
    def new(cls, key: bytes, rules: list[PortRule]) -> _Prefix:
        """One that is not there yet."""
        prefix = cls()
        prefix.key, prefix.old, prefix.rules = key, None, rules
        prefix.old_class, prefix.old_ports = layout.SIZE_INLINE, None
        return prefix


class Inserted:
    """What an insert did."""

    __slots__ = ("is_newly_routed", "is_replaced", "is_shadowed", "route_obstacle", "rule")

    def __init__(self, rule: Rule, *, is_replaced: bool, is_newly_routed: bool) -> None:
        self.rule = rule
        self.is_replaced = is_replaced
        # The rule holds a local route from now on and did not before.
        self.is_newly_routed = is_newly_routed
        # Known when the edit is committed: earlier rules cover it wholly.
        self.is_shadowed = False
        # Why no local route was made although one was asked for.
        self.route_obstacle: str | None = None

    def warnings(self) -> list[str]:
        """What whoever asked for the rule should know, a line each."""
        found = []
        if self.is_shadowed:
            found.append(f"rule {self.rule} can never match: earlier rules of its prefix cover it")
        if self.route_obstacle:
            found.append(f"no local route is made: {self.route_obstacle}")
        return found


class Deleted:
    """What a delete did. ``is_gone`` is False where other interfaces are left to the rule."""

    __slots__ = ("is_gone", "key", "was_routed")

    def __init__(self, key: RuleKey, *, is_gone: bool, was_routed: bool) -> None:
        self.key = key
        self.is_gone = is_gone
        self.was_routed = was_routed


class Equated:
    """What ``RuleEdit.equate`` did: rules by kind, and how many more and fewer hold a route."""

    __slots__ = ("changed", "deleted", "held", "inserted", "is_reordered", "released")

    def __init__(self) -> None:
        self.inserted = self.changed = self.deleted = 0
        self.held = self.released = 0
        # Rules that stay stand in another order.
        self.is_reordered = False


class RuleEdit:
    """Inserts and deletes that are collected, then committed together.

    Until ``commit`` nothing is written but names of interfaces; what is refused
    raises a ZfwError and leaves the firewall as it was.
    """

    def __init__(self, tables: Tables, interfaces: Interfaces) -> None:
        """``tables`` is entered as a writer."""
        self._tables = tables
        self._interfaces = interfaces
        self._state = tables.state()
        # A prefix that is new and has one rule is no more than that rule's bytes: a bulk
        # load has little else, and an object with lists for each takes a GB for a million.
        self._sole: dict[bytes, bytes] = {}
        self._prefixes: dict[bytes, _Prefix] = {}
        # All prefixes' elements, once expect() has read them, and then whole segments of records.
        self._present: dict[bytes, bytes] | None = None
        self._read: dict[int, list[bytes]] = {}
        # What inserts did, and the slot of each one's rule.
        self._inserted: list[Inserted] = []
        self._slots: list[int] = []
        # Slots of rules that can never match.
        self._shadowed: set[int] = set()
        # By new slot: the service id to write, and the counter's value to begin with.
        self._records: dict[int, str] = {}
        self._counters: dict[int, bytes] = {}
        self._freed: list[int] = []

    # What is asked for

    def insert(
        self, rule: Rule, interfaces: tuple[str, ...] = (), *, is_routed: bool = False
    ) -> Inserted:
        """Add a rule, or change the one with its key in place.

        ``interfaces`` are those of the rule, by their own names.
        """
        key = encode_prefix_key(rule.key)
        prefix = self._load(key)
        low = rule.key.low_port
        position = None if prefix is None else _position(prefix.rules, low)
        flags = layout.RULE_ROUTED if is_routed else 0
        old_flags = 0
        number = 0
        if prefix is None or position is None:
            slot = self._allocate()
            self._records[slot] = rule.service_id
            if interfaces:
                number = self._interfaces.number_of(interfaces)
        else:
            old = prefix.rules[position]
            slot = self._slot_for(old[_SLOT], rule.service_id)
            if slot in self._records or slot != old[_SLOT]:
                self._records[slot] = rule.service_id
            old_flags = old[_FLAGS]
            if interfaces:
                names = {*interfaces, *self._interfaces.names_of(old[_SET])}
                number = self._interfaces.number_of(names)
        port_rule = (
            low,
            rule.high_port,
            rule.tproxy_port,
            number,
            slot,
            action_number(rule.action),
            flags | old_flags,
        )
        if prefix is None:
            self._sole[key] = encode_port_rule(port_rule)
        elif position is None:
            prefix.rules.append(port_rule)
        else:
            prefix.rules[position] = port_rule
        inserted = Inserted(
            rule,
            is_replaced=position is not None,
            is_newly_routed=bool(flags & ~old_flags & layout.RULE_ROUTED),
        )
        self._inserted.append(inserted)
        self._slots.append(slot)
        return inserted

    def delete(self, key: RuleKey, names: tuple[str, ...] = ()) -> Deleted:
        """Remove a rule; or, with names, only these from its interfaces.

        A rule whose last interface goes is removed. Raises RuleNotFound.
        """
        prefix = self._load(encode_prefix_key(key))
        position = None if prefix is None else _position(prefix.rules, key.low_port)
        if prefix is None or position is None:
            known = prefix is not None and bool(prefix.rules)
            what = f"no rule {key}"
            raise RuleNotFound(
                key, what if known else f"{what}: the prefix has none", is_prefix_known=known
            )
        rule = prefix.rules[position]
        was_routed = bool(rule[_FLAGS] & layout.RULE_ROUTED)
        if names:
            present = self._interfaces.names_of(rule[_SET])
            for name in names:
                if name not in present:
                    raise RuleNotFound(
                        key, f"rule {key} does not name interface {name}", is_prefix_known=True
                    )
            left = [name for name in present if name not in names]
            if left:
                number = self._interfaces.number_of(left)
                prefix.rules[position] = (*rule[:3], number, *rule[4:])
                return Deleted(key, is_gone=False, was_routed=False)
        del prefix.rules[position]
        self._records.pop(rule[_SLOT], None)
        self._freed.append(rule[_SLOT])
        return Deleted(key, is_gone=True, was_routed=was_routed)

    def equate(self, key: bytes, wanted: Sequence[tuple[Rule, tuple[str, ...], bool]]) -> Equated:
        """Make the rules of a prefix exactly these, in this order.

        Each comes with its interfaces, by their own names, and whether it holds a
        local route. Those that stay keep their counters, and a prefix that is so
        already is not written. Once for a prefix in an edit, without other verbs.
        """
        prefix = self._load(key)
        old_rules = [] if prefix is None else prefix.rules
        old = {rule[_LOW]: rule for rule in old_rules}
        equated = Equated()
        rules: list[PortRule] = []
        slots = []
        for rule, names, is_routed in wanted:
            present = old.pop(rule.key.low_port, None)
            if present is None:
                slot, was_routed = self._allocate(), False
                equated.inserted += 1
            else:
                slot = self._slot_for(present[_SLOT], rule.service_id)
                was_routed = bool(present[_FLAGS] & layout.RULE_ROUTED)
            if present is None or slot != present[_SLOT]:
                self._records[slot] = rule.service_id
            equated.held += is_routed and not was_routed
            equated.released += was_routed and not is_routed
            port_rule = (
                rule.key.low_port,
                rule.high_port,
                rule.tproxy_port,
                self._interfaces.number_of(names) if names else 0,
                slot,
                action_number(rule.action),
                layout.RULE_ROUTED if is_routed else 0,
            )
            equated.changed += present is not None and port_rule != present
            rules.append(port_rule)
            slots.append(slot)
        for gone in old.values():
            self._freed.append(gone[_SLOT])
            equated.deleted += 1
            equated.released += bool(gone[_FLAGS] & layout.RULE_ROUTED)
        if rules == old_rules:
            self._prefixes.pop(key, None)
            return equated
        kept = {rule[_LOW] for rule in rules} & {rule[_LOW] for rule in old_rules}
        before, after = ([r[_LOW] for r in some if r[_LOW] in kept] for some in (old_rules, rules))
        equated.is_reordered = before != after
        if prefix is not None:
            prefix.rules = rules
        elif len(rules) == 1:
            self._sole[key] = encode_port_rule(rules[0])
        else:
            self._prefixes[key] = _Prefix.new(key, rules)
        self._inserted += [
            Inserted(rule, is_replaced=rule.key.low_port in kept, is_newly_routed=False)
            for rule, _, _ in wanted
        ]
        self._slots += slots
        return equated

    def is_empty(self) -> bool:
        """Whether a commit would write nothing."""
        return not (self._prefixes or self._sole)

    def shadowed(self) -> list[Inserted]:
        """After ``commit``: the rules of what it wrote that can never match."""
        return [inserted for inserted in self._inserted if inserted.is_shadowed]

    def expect(self, edits: int) -> None:
        """Before many edits: read the whole table at once, if that is the shorter way."""
        counts = self._tables.map("length_counts").items()
        if edits > 16 and sum(from_u32(value) for _, value in counts) <= 4 * edits:
            self.read_all()

    def read_all(self) -> list[bytes]:
        """Read the whole table at once; the keys of its prefixes."""
        self._present = dict(self._tables.prefixes.items())
        return list(self._present)

    def _load(self, key: bytes) -> _Prefix | None:
        """The prefix as it stands so far in this edit; None if there is none."""
        if key in self._prefixes:
            return self._prefixes[key]
        old = None
        sole = self._sole.pop(key, None)
        if sole is None:
            old = (
                self._tables.prefixes.lookup(key)
                if self._present is None
                else self._present.get(key)
            )
            if old is None:
                return None
        prefix = self._prefixes[key] = _Prefix.new(key, [])
        if sole is not None:
            prefix.rules = [decode_port_rule(sole)]
        elif old is not None:
            prefix.old = old
            prefix.old_class, _, prefix.rules = decode_prefix(old)
            if prefix.old_class != layout.SIZE_INLINE:
                prefix.old_ports = self._tables.map(_PORTS[prefix.old_class]).lookup(key)
                if prefix.old_ports is not None:
                    prefix.rules = decode_ports(prefix.old_ports, prefix.old_class)
        return prefix

    def _slot_for(self, old: int, service_id: str) -> int:
        """The slot of a rule that is changed: another one if its service id is another.

        A record is never changed while a rule refers to it: with the slot in the
        prefix's element, the rule and its service id change in the same step.
        """
        if old in self._records:
            return old
        record: bytes = _record.unpack(self._read_record(old))[0]
        if record.rstrip(b"\0") == service_id.encode("utf-8", "surrogateescape"):
            return old
        slot = self._allocate()
        counters = self._tables.inner("rule_counters", old // layout.SEGMENT_SLOTS)
        value = counters.lookup(u32(old % layout.SEGMENT_SLOTS)) if counters else None
        if value is not None:
            self._counters[slot] = value
        self._freed.append(old)
        return slot

    def _allocate(self) -> int:
        state = self._state
        if state.free_slot != layout.NO_SLOT:
            slot = state.free_slot
            record = self._read_record(slot)
            state.free_slot = _record.unpack(record)[1]
        elif state.next_slot < layout.SEGMENTS * layout.SEGMENT_SLOTS:
            slot = state.next_slot
            state.next_slot += 1
        else:
            raise MapFull(f"{layout.SEGMENTS * layout.SEGMENT_SLOTS} rules are in use already")
        return slot

    def _read_record(self, slot: int) -> bytes:
        number, position = divmod(slot, layout.SEGMENT_SLOTS)
        if self._present is None:
            segment = self._tables.inner("rule_records", number)
            record = segment.lookup(u32(position)) if segment else None
            return record if record is not None else bytes(layout.RULE_RECORD_SIZE)
        if number not in self._read:
            segment = self._tables.open_inner("rule_records", number)
            self._read[number] = [value for _, value in segment.items()] if segment else []
        records = self._read[number]
        return records[position] if records else bytes(layout.RULE_RECORD_SIZE)

    # Doing it

    def commit(self, last: Callable[[], None] | None = None) -> None:
        """Write what was collected. All of it is there afterwards, or on an error none.

        ``last`` is called when the new rules are in force and can still be undone,
        counters and all: an error of its own undoes them. The state is marked as in
        progress; the caller ends that when its own part is done.
        """
        stamp = self._state.stamp
        lengths_added: dict[bytes, int] = {}
        lengths_removed: dict[bytes, int] = {}
        written: list[_Prefix] = []
        removed: list[_Prefix] = []
        for prefix in self._prefixes.values():
            if prefix.rules:
                self._resolve(prefix)
                written.append(prefix)
                if prefix.old is None:
                    key = length_key_of(prefix.key)
                    lengths_added[key] = lengths_added.get(key, 0) + 1
            elif prefix.old is not None:
                removed.append(prefix)
                key = length_key_of(prefix.key)
                lengths_removed[key] = lengths_removed.get(key, 0) + 1
        for prefix_key in self._sole:
            key = length_key_of(prefix_key)
            lengths_added[key] = lengths_added.get(key, 0) + 1
        self._check_lengths(lengths_added)
        if self._shadowed:
            for inserted, slot in zip(self._inserted, self._slots, strict=True):
                if slot in self._shadowed:
                    inserted.is_shadowed = True

        state, tables = self._state, self._tables
        state.stamp = (stamp + len(written) + len(self._sole)) & 0xFFFFFFFF
        state.in_progress = 1
        tables.map("state").update(ZERO, state.encode())
        try:
            self._write_records()
            self._count_lengths(lengths_added, 1)
            if lengths_added:
                self._make_room(sum(lengths_added.values()))
            self._write_prefixes(written, stamp)
            self._write_sole_prefixes(stamp + len(written))
            self._remove_prefixes(written, removed)
            self._count_lengths(lengths_removed, -1)
            if last is None:
                self._free_slots()
            else:
                last()
        except BaseException as error:
            self._undo(written + removed)
            if isinstance(error, OSError) and not isinstance(error, KernelError):
                raise self._explain(error) from error
            raise
        if last is not None:
            try:
                self._free_slots()
            except OSError:
                # All is in force, and what came last is not undone for a list that is derived.
                self._state = repair(tables)
        tables.map("state").update(ZERO, self._state.encode())

    def _explain(self, error: OSError) -> MapFull | KernelError:
        what = "write the rules"
        for key in self._prefixes or self._sole:
            _, protocol, destination, _ = decode_prefix_key(key)
            what = f"write the rules of {destination} {protocol}"
            break
        if error.errno == _E2BIG:
            return MapFull(f"{what}: a map is full (E2BIG)")
        return KernelError(what, error.errno or 0)

    def _resolve(self, prefix: _Prefix) -> None:
        if len(prefix.rules) == 1:  # nothing overlaps
            prefix.intervals, prefix.size_class = [], layout.SIZE_INLINE
            return
        intervals, most = resolve(prefix.rules, self._interfaces.members_of)
        size_class = size_class_of(len(prefix.rules), len(intervals))
        if size_class is None or most > layout.MAX_CANDIDATES:
            _, protocol, destination, _ = decode_prefix_key(prefix.key)
            raise MapFull(
                f"{destination} {protocol}: {len(prefix.rules)} port ranges are too many for one"
                f" prefix (at most {layout.LARGE_RULES}, fewer where they overlap and name"
                " different interfaces)"
            )
        prefix.intervals, prefix.size_class = intervals, size_class
        self._shadowed.update(prefix.rules[i][_SLOT] for i in shadowed(prefix.rules, intervals))

    def _check_lengths(self, added: dict[bytes, int]) -> None:
        """Refuse a pair of lengths too many before anything is written."""
        new_of: dict[int, int] = {}
        for key in added:
            if self._tables.map("length_counts").lookup(key) is None:
                table = decode_length_key(key)[0]
                new_of[table] = new_of.get(table, 0) + 1
        for table, count in new_of.items():
            data = self._tables.map("lengths").lookup(u32(table)) or b""
            if len(decode_lengths(data)) + count > layout.MAX_LENGTHS:
                raise MapFull(
                    f"{layout.MAX_LENGTHS} different pairs of destination and source lengths"
                    " are in use already"
                )

    def _write_records(self) -> None:
        slots_of: dict[int, list[int]] = {}
        for slot in self._records:
            slots_of.setdefault(slot // layout.SEGMENT_SLOTS, []).append(slot)
        self._make_segments("rule_records", slots_of)
        zeroed = self._make_segments("rule_counters", slots_of)
        for segment, slots in slots_of.items():
            self._open_segment("rule_records", segment).update_many(
                [u32(slot % layout.SEGMENT_SLOTS) for slot in slots],
                [
                    _record.pack(
                        self._records[slot].encode("utf-8", "surrogateescape"), layout.NO_SLOT
                    )
                    for slot in slots
                ],
            )
            if segment in zeroed:
                slots = [slot for slot in slots if slot in self._counters]
            table = self._open_segment("rule_counters", segment)
            zero = bytes(table.value_size)
            table.update_many(
                [u32(slot % layout.SEGMENT_SLOTS) for slot in slots],
                [self._counters.get(slot, zero) for slot in slots],
            )

    def _make_segments(self, name: str, wanted: Iterable[int]) -> set[int]:
        """Make those of the segments that are not there yet; which these are.

        In one step: the kernel waits until no program uses what was there, about 10 ms.
        """
        outer = self._tables.map(name)
        missing = [segment for segment in wanted if outer.lookup(u32(segment)) is None]
        created = [create_map(layout.INNER_MAPS[name], name) for _ in missing]
        outer.update_many(
            [u32(segment) for segment in missing], [u32(inner.fd) for inner in created]
        )
        return set(missing)

    def _open_segment(self, name: str, segment: int) -> Map:
        opened = self._tables.open_inner(name, segment)
        if opened is None:
            raise self._tables.mismatch(name, f"segment {segment} is missing")
        return opened

    def _count_lengths(self, changes: dict[bytes, int], sign: int) -> None:
        counts = self._tables.map("length_counts")
        changed: dict[int, tuple[set[tuple[int, int]], set[tuple[int, int]]]] = {}
        for key, change in changes.items():
            old = counts.lookup(key)
            count = (from_u32(old) if old is not None else 0) + sign * change
            table, *pair = decode_length_key(key)
            appearing, vanishing = changed.setdefault(table, (set(), set()))
            if old is None:
                appearing.add((pair[0], pair[1]))
            if count > 0:
                counts.update(key, u32(count))
            else:
                counts.delete(key)
                vanishing.add((pair[0], pair[1]))
        for table, (appearing, vanishing) in changed.items():
            if appearing or vanishing:
                lengths = self._tables.map("lengths")
                present = set(decode_lengths(lengths.lookup(u32(table)) or b""))
                write_lengths(self._tables, table, (present | appearing) - vanishing)

    def _write_prefixes(self, written: list[_Prefix], stamp: int) -> None:
        for start in range(0, len(written), _CHUNK):
            some = written[start : start + _CHUNK]
            self._write_elements(
                [prefix.key for prefix in some],
                [
                    self._element(prefix, (stamp + number) & 0xFFFFFFFF)
                    for number, prefix in enumerate(some, start)
                ],
            )

    def _write_sole_prefixes(self, stamp: int) -> None:
        keys = list(self._sole)
        for start in range(0, len(keys), _CHUNK):
            some = keys[start : start + _CHUNK]
            self._write_elements(
                some,
                [
                    encode_sole_prefix(key, number & 0xFFFFFFFF, self._sole[key])
                    for number, key in enumerate(some, stamp + start)
                ],
            )

    def _write_elements(self, keys: list[bytes], values: list[bytes]) -> None:
        try:
            self._tables.prefixes.update_many(keys, values)
        except OSError as error:
            if error.errno != _E2BIG:
                raise
            # The kernel counts elements roughly; ask for room once more.
            self._make_room(self._tables.prefixes.max_entries)
            self._tables.prefixes.update_many(keys, values)

    def _element(self, prefix: _Prefix, stamp: int) -> bytes:
        """The prefix's element; its port index is written first if it has one."""
        if prefix.size_class != layout.SIZE_INLINE:
            self._tables.map(_PORTS[prefix.size_class]).update(
                prefix.key,
                encode_ports(prefix.key, stamp, prefix.size_class, prefix.rules, prefix.intervals),
            )
        return encode_prefix(prefix.key, stamp, prefix.size_class, prefix.rules)

    def _make_room(self, new: int) -> None:
        """Put a larger map in the place of the prefixes' one if it may not hold so many more."""
        old = self._tables.prefixes
        counts = self._tables.map("length_counts")
        total = sum(from_u32(value) for _, value in counts.items())
        size = old.max_entries
        # length_counts has the new ones already.
        while size < max(total, new) and size < _MOST_PREFIXES:
            size *= _GROWTH
        if size == old.max_entries:
            return
        spec = layout.INNER_MAPS["prefixes"]
        larger = create_map((spec[0], spec[1], spec[2], size, spec[4]), "prefixes")
        pairs = list(old.items())
        larger.update_many([key for key, _ in pairs], [value for _, value in pairs])
        self._tables.put_inner("prefixes", 0, larger)

    def _remove_prefixes(self, written: list[_Prefix], removed: list[_Prefix]) -> None:
        if removed:
            self._tables.prefixes.delete_many([prefix.key for prefix in removed])
        for prefix in removed:
            if prefix.old_class != layout.SIZE_INLINE:
                self._tables.map(_PORTS[prefix.old_class]).delete(prefix.key)
        for prefix in written:
            if prefix.old_class not in (layout.SIZE_INLINE, prefix.size_class):
                self._tables.map(_PORTS[prefix.old_class]).delete(prefix.key)

    def _free_slots(self) -> None:
        by_segment: dict[int, tuple[list[bytes], list[bytes]]] = {}
        for slot in self._freed:
            segment, position = divmod(slot, layout.SEGMENT_SLOTS)
            keys, values = by_segment.setdefault(segment, ([], []))
            keys.append(u32(position))
            values.append(_record.pack(b"", self._state.free_slot))
            self._state.free_slot = slot
        # A rule that came and went in this edit may have been the first of its segment.
        self._make_segments("rule_records", by_segment)
        for segment, (keys, values) in by_segment.items():
            self._open_segment("rule_records", segment).update_many(keys, values)

    def _undo(self, touched: list[_Prefix]) -> None:
        """Put every prefix back as it was, then rebuild what is derived."""
        for key in self._sole:
            self._tables.prefixes.delete(key)
        for prefix in touched:
            if prefix.old is None:
                self._tables.prefixes.delete(prefix.key)
                continue
            if prefix.old_ports is not None:
                self._tables.map(_PORTS[prefix.old_class]).update(prefix.key, prefix.old_ports)
            self._tables.prefixes.update(prefix.key, prefix.old)
        self._state = repair(self._tables)


def _position(rules: list[PortRule], low_port: int) -> int | None:
    for position, rule in enumerate(rules):
        if rule[_LOW] == low_port:
            return position
    return None


def write_lengths(tables: Tables, table: int, pairs: set[tuple[int, int]]) -> None:
    """Make these the active pairs of a table, longest first."""
    lengths = tables.map("lengths")
    number = u32(table)
    old = lengths.lookup(number)
    for value in encode_lengths(old or bytes(layout.LENGTHS_SIZE), sorted(pairs, reverse=True)):
        lengths.update(number, value)


def rules_of(tables: Tables, element: bytes) -> list[PortRule]:
    """The rules of a prefix's element, in order of entry."""
    size_class, _, rules = decode_prefix(element)
    if size_class == layout.SIZE_INLINE:
        return rules
    data = tables.map(_PORTS[size_class]).lookup(element[: layout.PREFIX_KEY_SIZE])
    return [] if data is None else decode_ports(data, size_class)


def port_rules(tables: Tables) -> Iterator[tuple[bytes, int, list[PortRule]]]:
    """Every prefix key with its size class and its rules in order of entry."""
    longer = {}
    for key, value in tables.prefixes.items():
        size_class, _, rules = decode_prefix(value)
        if size_class == layout.SIZE_INLINE:
            yield key, size_class, rules
        else:
            longer[key] = size_class
    for key, size_class in longer.items():
        data = tables.map(_PORTS[size_class]).lookup(key)
        if data is not None:
            yield key, size_class, decode_ports(data, size_class)


def repair(tables: Tables) -> State:
    """Rebuild all that follows from the prefixes; the state, still marked as in progress.

    For a writer that finds ``in_progress``: lengths and their counts, the free
    list, and port indexes that no prefix leads to.
    """
    counts: dict[bytes, int] = {}
    used: set[int] = set()
    led_to: dict[int, set[bytes]] = {size_class: set() for size_class in (0, *_PORTS)}
    for key, size_class, rules in port_rules(tables):
        length_key = length_key_of(key)
        counts[length_key] = counts.get(length_key, 0) + 1
        used.update(rule[_SLOT] for rule in rules)
        led_to[size_class].add(key)

    pairs: dict[int, set[tuple[int, int]]] = {table: set() for table in range(layout.TABLES)}
    for length_key in counts:
        table, destination_length, source_length = decode_length_key(length_key)
        pairs[table].add((destination_length, source_length))
    for table, wanted in pairs.items():
        write_lengths(tables, table, wanted)
    length_counts = tables.map("length_counts")
    for key in [key for key, _ in length_counts.items()]:
        length_counts.delete(key)
    for key, count in counts.items():
        length_counts.update(key, u32(count))
    for size_class, name in _PORTS.items():
        ports = tables.map(name)
        for key in [key for key, _ in ports.items(64)]:
            if key not in led_to[size_class]:
                ports.delete(key)

    state = tables.state()
    state.next_slot = max(used, default=-1) + 1
    state.free_slot = layout.NO_SLOT
    for slot in sorted(set(range(state.next_slot)) - used, reverse=True):
        segment, position = divmod(slot, layout.SEGMENT_SLOTS)
        records = tables.inner("rule_records", segment)
        if records is None:
            continue
        records.update(u32(position), _record.pack(b"", state.free_slot))
        state.free_slot = slot
    state.in_progress = 1
    tables.map("state").update(ZERO, state.encode())
    return state
