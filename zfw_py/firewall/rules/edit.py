# SPDX-License-Identifier: GPL-2.0-only
"""Collect inserts and deletes of rules; ``commit`` writes them together. Hot."""

from __future__ import annotations

from zfw_py.errors import MapFull, NotFound
from zfw_py.firewall import codec, layout
from zfw_py.firewall.codec import PortRule
from zfw_py.firewall.interfaces import warnings_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from zfw_py.firewall.codec import Interval, State
    from zfw_py.firewall.interfaces import Interfaces
    from zfw_py.firewall.maps import Maps
    from zfw_py.firewall.model import Rule, RuleKey
    from zfw_py.values.prefix import Prefix


class RuleNotFound(NotFound):
    """No such rule. ``is_prefix_known``: its prefix has other rules."""

    def __init__(self, key: RuleKey, message: str, *, is_prefix_known: bool) -> None:
        super().__init__(message)
        self.key = key
        self.is_prefix_known = is_prefix_known


class Inserted:
    """What an insert did.

    ``route_obstacle``: why no local route was made although one was asked for.
    ``is_shadowed``, known once the edit is committed: earlier rules cover the whole rule.
    ``is_idle``: it is an egress rule, and no interface has the outbound filter.
    ``limits``: what else keeps the rule from acting as its text says, a line each.
    """

    __slots__ = (
        "is_idle",
        "is_replaced",
        "is_shadowed",
        "limits",
        "route_obstacle",
        "rule",
        "slot",
    )

    def __init__(
        self, rule: Rule, slot: int, *, is_replaced: bool, route_obstacle: str | None = None
    ) -> None:
        self.rule = rule
        # The number of the rule's record and counters.
        self.slot = slot
        self.is_replaced = is_replaced
        self.is_shadowed = False
        self.is_idle = False
        self.limits: list[str] = []
        self.route_obstacle = route_obstacle

    def warnings(self) -> list[str]:
        """What the user should know about the rule, a line each."""
        found = []
        if self.is_shadowed:
            found.append(f"rule {self.rule} can never match: earlier rules of its prefix cover it")
        if self.route_obstacle:
            found.append(f"no local route is made: {self.route_obstacle}")
        if self.is_idle:
            found.append(
                f"rule {self.rule} has no effect: no interface with an egress program has the"
                " outbound filter: zfw set IFACE --outbound-filter on"
            )
        if not self.is_shadowed:
            found += self.limits
        return found


class Deleted:
    """What a delete did. ``is_gone`` is False where the rule keeps other interfaces."""

    __slots__ = ("is_gone", "key")

    def __init__(self, key: RuleKey, *, is_gone: bool) -> None:
        self.key = key
        self.is_gone = is_gone


class EditedPrefix:
    """A prefix in an edit: its elements in the maps, and the rules that it will have.

    ``old`` is its element in ``prefixes``, None where there is none; ``old_ports`` that in the
    map of its size class. A commit sets ``intervals`` and ``size_class`` if there are several
    rules, and ``union_class`` if it writes old and new rules together.
    """

    __slots__ = (
        "intervals",
        "key",
        "old",
        "old_class",
        "old_ports",
        "rules",
        "size_class",
        "union_class",
    )

    def __init__(
        self,
        key: bytes,
        rules: list[PortRule],
        old: bytes | None = None,
        old_class: int = layout.SIZE_INLINE,
        old_ports: bytes | None = None,
    ) -> None:
        self.key = key
        self.rules = rules
        self.old = old
        self.old_class = old_class
        self.old_ports = old_ports
        self.size_class = layout.SIZE_INLINE
        self.union_class = layout.SIZE_INLINE
        self.intervals: list[Interval] = []

    def position_of(self, low_port: int) -> int | None:
        """The position of the rule with this low port, or None."""
        try:
            return list(map(codec.low_port_of, self.rules)).index(low_port)
        except ValueError:
            return None


class Finder:
    """Reads prefixes and records one by one or, after ``read_all``, from a copy of the map."""

    def __init__(self, maps: Maps) -> None:
        self._maps = maps
        self._elements: dict[bytes, bytes] | None = None
        # Then records are read by whole segments.
        self._segments: dict[int, list[bytes]] = {}

    def expect(self, edits: int) -> None:
        """Before many edits: read the whole map at once, if that takes fewer system calls."""
        counts = self._maps.map("length_counts").items()
        if edits > 16 and sum(codec.from_u32(value) for _, value in counts) <= 4 * edits:
            self.read_all()

    def read_all(self) -> list[bytes]:
        """Read the whole map at once; the keys of its prefixes."""
        self._elements = dict(self._maps.prefixes.items())
        return list(self._elements)

    def prefix(self, key: bytes) -> EditedPrefix | None:
        """The prefix with its rules, or None if it has none."""
        if self._elements is None:
            element = self._maps.prefixes.lookup(key)
        else:
            element = self._elements.get(key)
        if element is None:
            return None
        _, size_class, rules = codec.decode_prefix(element)
        ports = None
        if size_class != layout.SIZE_INLINE:
            ports = self._maps.ports(size_class).lookup(key)
            if ports is not None:
                rules = codec.decode_ports(ports, size_class)
        return EditedPrefix(key, rules, element, size_class, ports)

    def record(self, slot: int) -> bytes:
        """The record of a slot, struct zfw_rule_record; zeros where there is none yet."""
        number, position = divmod(slot, layout.SEGMENT_SLOTS)
        if self._elements is None:
            segment = self._maps.inner("rule_records", number)
            record = segment.lookup(codec.u32(position)) if segment else None
            return record if record is not None else bytes(layout.RULE_RECORD_SIZE)
        if number not in self._segments:
            segment = self._maps.open_inner("rule_records", number)
            self._segments[number] = [value for _, value in segment.items()] if segment else []
        records = self._segments[number]
        return records[position] if records else bytes(layout.RULE_RECORD_SIZE)


class RuleEdit:
    """Inserts and deletes of one transaction.

    It writes nothing but names of interfaces. A verb that raises a ZfwError ends the
    transaction. The attributes are for ``commit`` and for the transaction.
    """

    def __init__(self, maps: Maps, interfaces: Interfaces, state: State) -> None:
        """``maps`` is entered as a writer; ``state`` is its state."""
        self._maps = maps
        self.interfaces = interfaces
        self.finder = Finder(maps)
        # Slots are taken from it; a commit writes it.
        self.state = state
        # A new prefix with one rule is no more than that rule's bytes: a bulk load has little
        # else, and an object with lists for each takes a GB for a million.
        self.single: dict[bytes, bytes] = {}
        self.prefixes: dict[bytes, EditedPrefix] = {}
        self.inserted: list[Inserted] = []
        # By new slot: the service id to write, and the counter's value to begin with.
        self.records: dict[int, str] = {}
        self.counters: dict[int, bytes] = {}
        self.freed: list[int] = []
        # Local routes that rules begin to hold, and those that rules hold no longer, each with
        # whether the last holder leaves it in place.
        self.held: list[Prefix] = []
        self.released: list[tuple[Prefix, bool]] = []
        # By interface: settings to change together with the rules.
        self.settings: dict[str, int] = {}

    def insert(self, rule: Rule, names: tuple[str, ...] = (), *, route: bool = False) -> Inserted:
        """Add a rule, or change the one with its key in place.

        ``names`` are the own names of the rule's interfaces. With ``route`` the rule holds a
        local route for its destination, unless ``Inserted.route_obstacle`` says why not.
        """
        obstacle = None
        if route:
            from zfw_py.firewall.routes import obstacle_to

            obstacle = obstacle_to(rule.key.destination)
        key = codec.encode_prefix_key(rule.key)
        prefix = self.prefix(key)
        position = None if prefix is None else prefix.position_of(rule.key.low_port)
        was_routed = False
        if prefix is None or position is None:
            slot = self.new_slot(rule.service_id)
        else:
            old = prefix.rules[position]
            slot = self.slot_for(old, rule.service_id)
            was_routed = old.is_routed
            if names:
                names = (*names, *self.interfaces.names_of(old.interface_set))
        is_newly_routed = route and obstacle is None and not was_routed
        number = self.interfaces.number_of(names) if names else 0
        port_rule = PortRule.of(rule, number, slot, is_routed=was_routed or is_newly_routed)
        if prefix is None:
            self.single[key] = codec.encode_port_rule(port_rule)
        elif position is None:
            prefix.rules.append(port_rule)
        else:
            prefix.rules[position] = port_rule
        if is_newly_routed:
            self.held.append(rule.key.destination)
        inserted = Inserted(rule, slot, is_replaced=position is not None, route_obstacle=obstacle)
        if names or rule.action == "deny":
            inserted.limits = warnings_of(self.interfaces, rule, names)
        self.inserted.append(inserted)
        return inserted

    def delete(
        self, key: RuleKey, names: tuple[str, ...] = (), *, keep_route: bool = False
    ) -> Deleted:
        """Remove a rule; or, with ``names``, only these from its interfaces.

        A rule whose last interface goes is removed. ``keep_route`` leaves its local route in
        place. Raises RuleNotFound.
        """
        prefix = self.prefix(codec.encode_prefix_key(key))
        position = None if prefix is None else prefix.position_of(key.low_port)
        if prefix is None or position is None:
            known = prefix is not None and bool(prefix.rules)
            what = f"no rule {key}"
            raise RuleNotFound(
                key, what if known else f"{what}: the prefix has none", is_prefix_known=known
            )
        rule = prefix.rules[position]
        if names:
            present = self.interfaces.names_of(rule.interface_set)
            for name in names:
                if name not in present:
                    raise RuleNotFound(
                        key, f"rule {key} does not name interface {name}", is_prefix_known=True
                    )
            left = [name for name in present if name not in names]
            if left:
                number = self.interfaces.number_of(left)
                prefix.rules[position] = rule.with_interface_set(number)
                return Deleted(key, is_gone=False)
        del prefix.rules[position]
        self.records.pop(rule.slot, None)
        self.freed.append(rule.slot)
        if rule.is_routed:
            self.released.append((key.destination, keep_route))
        return Deleted(key, is_gone=True)

    def is_empty(self) -> bool:
        """Whether a commit would write nothing."""
        return not (self.prefixes or self.single or self.settings)

    def prefix(self, key: bytes) -> EditedPrefix | None:
        """The prefix as this edit has left it so far; None if there is none."""
        if key in self.prefixes:
            return self.prefixes[key]
        single = self.single.pop(key, None)
        if single is not None:
            prefix: EditedPrefix | None = EditedPrefix(key, [codec.decode_port_rule(single)])
        else:
            prefix = self.finder.prefix(key)
        if prefix is not None:
            self.prefixes[key] = prefix
        return prefix

    def slot_for(self, rule: PortRule, service_id: str) -> int:
        """The slot of a rule that is changed: another one if its service id changes.

        A record is never changed while a rule refers to it: with the slot in the prefix's
        element, the rule and its service id change in the same step. The counters move along.
        """
        old = rule.slot
        if old in self.records:
            self.records[old] = service_id
            return old
        field, _ = codec.decode_record(self.finder.record(old))
        if codec.decode_text(field) == service_id:
            return old
        slot = self.new_slot(service_id)
        segment, position = divmod(old, layout.SEGMENT_SLOTS)
        counters = self._maps.inner("rule_counters", segment)
        value = counters.lookup(codec.u32(position)) if counters else None
        if value is not None:
            self.counters[slot] = value
        self.freed.append(old)
        return slot

    def new_slot(self, service_id: str) -> int:
        """Take a free slot for a rule with this service id. Raises MapFull."""
        state = self.state
        slot = state.free_slot
        if slot != layout.NO_SLOT:
            _, state.free_slot = codec.decode_record(self.finder.record(slot))
        elif state.next_slot < layout.SEGMENTS * layout.SEGMENT_SLOTS:
            slot = state.next_slot
            state.next_slot += 1
        else:
            raise MapFull(f"{layout.SEGMENTS * layout.SEGMENT_SLOTS} rules are in use already")
        self.records[slot] = service_id
        return slot
