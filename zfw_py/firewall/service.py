# SPDX-License-Identifier: GPL-2.0-only
"""The firewall of the caller's network namespace: every verb, each under the lock.

Hot: what only rare verbs need is imported where they need it.
"""

from __future__ import annotations

from zfw_py.errors import Conflict, NotFound, NotInstalled, UsageError
from zfw_py.firewall.interfaces import Interfaces, index_of, primary_name
from zfw_py.firewall.maps import Tables
from zfw_py.firewall.model import DIRECTIONS, Rule, RuleKey
from zfw_py.firewall.rules import Deleted, Inserted, RuleEdit, port_rules, repair

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from zfw_py.firewall.document import Document
    from zfw_py.firewall.explain import Decision
    from zfw_py.firewall.flow_limits import FlowLimits
    from zfw_py.firewall.flows import Flow
    from zfw_py.firewall.persistence import Restored
    from zfw_py.firewall.programs import Attachment
    from zfw_py.firewall.status import Status
    from zfw_py.values.prefix import Prefix


class Insert:
    """A rule to add, or to change in place. With ``route`` its destination is made local."""

    __slots__ = ("route", "rule")

    def __init__(self, rule: Rule, *, route: bool = False) -> None:
        self.rule = rule
        self.route = route


class Delete:
    """A rule to remove; with ``interfaces``, only those from its list.

    ``route`` False leaves a local route that --route made where it is.
    """

    __slots__ = ("interfaces", "key", "route")

    def __init__(
        self, key: RuleKey, interfaces: tuple[str, ...] = (), *, route: bool = True
    ) -> None:
        self.key = key
        self.interfaces = interfaces
        self.route = route


def _interfaces(tables: Tables) -> Interfaces:
    def sets_in_use() -> set[int]:
        return {rule[3] for _, _, rules in port_rules(tables) for rule in rules}

    return Interfaces(tables, sets_in_use)


def _names_of(edit: Insert | Delete) -> tuple[str, ...]:
    """The own names of the interfaces that an edit names; one to delete may be gone."""
    if isinstance(edit, Insert):
        return tuple(map(primary_name, edit.rule.interfaces))
    names = []
    for name in edit.interfaces:
        try:
            names.append(primary_name(name))
        except NotFound:
            names.append(name)
    return tuple(names)


def _settle(tables: Tables) -> None:
    """Rebuild what a writer that died left half done."""
    if not tables.state().in_progress:
        return
    from zfw_py.firewall.codec import decode_prefix_key
    from zfw_py.firewall.routes import reconcile

    repair(tables)
    needed: dict[Prefix, int] = {}
    for key, _, rules in port_rules(tables):
        destination = decode_prefix_key(key)[2]
        for rule in rules:
            if rule[6]:
                needed[destination] = needed.get(destination, 0) + 1
    reconcile(tables, needed)
    tables.set_in_progress(False)


class Firewall:
    """The firewall of the network namespace that the caller is in.

    Nothing happens before a verb is called, nothing is kept open between two,
    and several processes may use the same firewall at once. Verbs raise
    ZfwError; one that fails has changed nothing.
    """

    # Rules

    def insert(self, rule: Rule, *, route: bool = False) -> Inserted:
        """Add a rule; one with the same key is changed in place, its place in the order kept.

        Where the new rule names interfaces, they join those that the old one
        names. Established connections go on. ``route`` makes the destination
        local for as long as the rule stands.
        """
        return self.apply([Insert(rule, route=route)])[0]  # type: ignore[return-value]

    def delete(
        self, key: RuleKey, interfaces: tuple[str, ...] = (), *, route: bool = True
    ) -> Deleted:
        """Remove a rule, or with ``interfaces`` only those from its list.

        Raises RuleNotFound. ``route`` False leaves its local route in place.
        """
        return self.apply([Delete(key, interfaces, route=route)])[0]  # type: ignore[return-value]

    def apply(self, edits: Sequence[Insert | Delete]) -> list[Inserted | Deleted]:
        """Inserts and deletes in order, under one lock: all of them, or on an error none."""
        names = [_names_of(edit) for edit in edits]
        with Tables(is_writer=True) as tables:
            _settle(tables)
            interfaces = _interfaces(tables)
            rule_edit = RuleEdit(tables, interfaces)
            rule_edit.expect(len(edits))
            results: list[Inserted | Deleted] = []
            for edit, its_names in zip(edits, names, strict=True):
                if isinstance(edit, Insert):
                    obstacle = self._route_obstacle(edit)
                    inserted = rule_edit.insert(
                        edit.rule, its_names, is_routed=edit.route and obstacle is None
                    )
                    inserted.route_obstacle = obstacle
                    results.append(inserted)
                else:
                    results.append(rule_edit.delete(edit.key, its_names))
            held: list[Prefix] = []
            try:
                self._hold_routes(tables, results, held)
                rule_edit.commit()
            except BaseException:
                self._release_routes(tables, held)
                tables.set_in_progress(False)
                raise
            self._release_deleted(tables, edits, results)
            tables.set_in_progress(False)
            interfaces.refresh()
            return results

    @staticmethod
    def _route_obstacle(edit: Insert) -> str | None:
        if not edit.route:
            return None
        from zfw_py.firewall.routes import obstacle

        return obstacle(edit.rule.key.destination)

    @staticmethod
    def _hold_routes(tables: Tables, results: list[Inserted | Deleted], held: list[Prefix]) -> None:
        for result in results:
            if isinstance(result, Inserted) and result.is_newly_routed:
                from zfw_py.firewall import routes

                if not held:
                    tables.set_in_progress(True)
                routes.hold(tables, result.rule.key.destination)
                held.append(result.rule.key.destination)

    @staticmethod
    def _release_routes(tables: Tables, held: list[Prefix]) -> None:
        for destination in held:
            from zfw_py.firewall import routes

            routes.release(tables, destination)

    @staticmethod
    def _release_deleted(
        tables: Tables, edits: Sequence[Insert | Delete], results: list[Inserted | Deleted]
    ) -> None:
        for edit, result in zip(edits, results, strict=True):
            if isinstance(edit, Delete) and isinstance(result, Deleted) and result.was_routed:
                from zfw_py.firewall import routes

                routes.release(tables, edit.key.destination, keep=not edit.route)

    def rules(
        self,
        direction: str | None = None,
        destination: Prefix | None = None,
        family: int | None = None,
    ) -> list[Rule]:
        """The rules with their counters, sorted by prefix; in a prefix by order of entry."""
        from zfw_py.firewall.listing import read_rules

        def wanted(key: RuleKey) -> bool:
            return (
                direction in (None, key.direction)
                and destination in (None, key.destination)
                and family in (None, key.family)
            )

        with Tables(is_writer=False) as tables:
            return read_rules(tables, _interfaces(tables), wanted)

    def flush(self, direction: str | None = None, *, routes: bool = True) -> int:
        """Remove all rules, or those of one direction; how many there were.

        With ``routes`` the local routes that --route made go as well.
        Settings, attachments and established connections stay.
        """
        with Tables(is_writer=True) as tables:
            _settle(tables)
            interfaces = _interfaces(tables)
            doomed = []
            count = 0
            released = []
            for key, _, rules in port_rules(tables):
                if direction in (None, DIRECTIONS[key[34] // 4]):
                    doomed.append(key)
                    count += len(rules)
                    released += [key for rule in rules if rule[6]]
            tables.set_in_progress(True)
            if direction is None:
                # One pointer: every rule is gone at the same moment.
                tables.new_inner("prefixes")
            else:
                tables.prefixes.delete_many(doomed)
            repair(tables)
            self._flush_routes(tables, released, routes=routes)
            tables.set_in_progress(False)
            interfaces.refresh()
            return count

    @staticmethod
    def _flush_routes(tables: Tables, released: list[bytes], *, routes: bool) -> None:
        if not any(True for _ in tables.map("routes").items()):
            return
        from zfw_py.firewall import routes as local
        from zfw_py.firewall.codec import decode_prefix_key

        for key in released:
            local.release(tables, decode_prefix_key(key)[2], keep=not routes)
        if routes:
            local.forget_all(tables, unused_only=True)

    # Bound addresses

    def bind(self, prefix: Prefix) -> int:
        """Make a prefix local, so that this host's sockets can bind to it.

        Bound again it is only counted; returns how often it was bound. It stays
        until it was unbound as often, and where a rule's ``route`` needs it as
        well, as long as the rule. Raises Conflict for a prefix, longer than one
        address, that shares addresses with an interface's subnet.
        """
        from zfw_py.firewall import routes

        if prefix.length < (32 if prefix.family == 4 else 128):
            obstacle = routes.obstacle(prefix)
            if obstacle:
                raise Conflict(f"bind {prefix}: {obstacle}")
        with Tables(is_writer=True) as tables:
            _settle(tables)
            # Stays set where it fails: then the next writer puts things right.
            tables.set_in_progress(True)
            count = routes.bind(tables, prefix)
            tables.set_in_progress(False)
            _interfaces(tables).refresh()
            return count

    def unbind(self, prefix: Prefix) -> int:
        """Take back one ``bind``; how many of them are left. Raises NotFound."""
        from zfw_py.firewall import routes

        with Tables(is_writer=True) as tables:
            _settle(tables)
            tables.set_in_progress(True)
            left = routes.unbind(tables, prefix)
            tables.set_in_progress(False)
            _interfaces(tables).refresh()
            if left is None:
                raise NotFound(f"unbind {prefix}: it is not bound")
            return left

    def unbind_all(self) -> int:
        """Take back every ``bind``; how many prefixes were bound. Rules keep their routes."""
        from zfw_py.firewall import routes

        with Tables(is_writer=True) as tables:
            _settle(tables)
            tables.set_in_progress(True)
            count = routes.unbind_all(tables)
            tables.set_in_progress(False)
            _interfaces(tables).refresh()
            return count

    def bound(self) -> dict[Prefix, int]:
        """The bound prefixes, each with how often it was bound."""
        from zfw_py.firewall import routes

        with Tables(is_writer=False) as tables:
            return routes.bound(tables)

    # Interfaces

    def set(self, names: Iterable[str], setting: str, on: bool) -> None:
        """Turn a setting of interfaces on or off; the names of settings are in ``SETTINGS``.

        It belongs to the name and outlives the interface.
        """
        from zfw_py.firewall.settings import SETTINGS

        if setting not in SETTINGS:
            raise UsageError(f"no setting {setting!r}; there are {', '.join(SETTINGS)}")
        names = [primary_name(name) for name in names]
        with Tables(is_writer=True) as tables:
            interfaces = _interfaces(tables)
            for name in names:
                interfaces.set(name, setting, on)
            interfaces.refresh()

    def refresh(self) -> None:
        """Bring the table of interfaces and their addresses up to date."""
        with Tables(is_writer=True) as tables:
            _interfaces(tables).refresh()

    def attach(self, name: str, direction: str = "ingress", mode: str = "auto") -> list[Attachment]:
        """Put the firewall onto an interface; from then on what no rule allows is dropped.

        ``direction`` is "ingress", "egress" or "both"; ``mode`` is "auto" (TCX
        where the kernel has it), "tcx" or "clsact". Done again it changes
        nothing, but brings programs of an older build up to date in place.
        """
        from zfw_py.firewall import programs

        if direction not in (*DIRECTIONS, "both"):
            raise UsageError(f"direction: not ingress, egress or both: {direction!r}")
        if mode not in programs.MODES:
            raise UsageError(f"mode: not auto, tcx or clsact: {mode!r}")
        name = primary_name(name)
        directions = DIRECTIONS if direction == "both" else (direction,)
        with programs.open_or_install() as tables:
            try:
                programs.upgrade(tables)
                interfaces = _interfaces(tables)
                interfaces.add(name)
                interfaces.refresh()
                return programs.attach_all(tables, index_of(name), name, directions, mode)
            except BaseException:
                if tables.is_new:
                    programs.uninstall(tables)
                raise

    def upgrade(self) -> bool:
        """Exchange programs of another build of zfw in place; False if they are this one's.

        Raises NotInstalled where there is no firewall, LayoutMismatch, KernelError.
        """
        from zfw_py.firewall import programs

        with Tables(is_writer=True) as tables:
            return programs.upgrade(tables)

    def detach(self, name: str, direction: str | None = None) -> list[Attachment]:
        """Take the firewall off an interface. Rules and settings stay."""
        from zfw_py.firewall import programs

        ifindex = index_of(name)
        with Tables(is_writer=True) as tables:
            taken = programs.detach(tables, ifindex, direction)
            if not taken:
                raise NotFound(f"nothing is attached to {name}")
            return taken

    def detach_all(self) -> list[Attachment]:
        """Take the firewall off every interface and remove its state: rules, settings, all."""
        from zfw_py.firewall import programs, routes

        with Tables(is_writer=True) as tables:
            taken = programs.detach(tables, None, None)
            routes.forget_all(tables)
            programs.uninstall(tables)
            return taken

    # The whole

    def save(self) -> Document:
        """All that was chosen, as a document: rules, settings, attachments; no counters."""
        from zfw_py.firewall.persistence import take

        with Tables(is_writer=False) as tables:
            return take(tables, _interfaces(tables))

    def restore(
        self, document: Document, told: Callable[[int], None] = lambda done: None
    ) -> Restored:
        """Make the firewall equal to a document; on an error it stays as it was.

        Rules that stay keep their counters, established connections go on, and
        what is so already is not written. Where there is no firewall, one is
        installed. An interface that does not exist keeps its settings and its
        place in rules; its attachments are told in ``Restored.missing``.
        ``told`` is called now and then with how many rules have been looked at.
        """
        from zfw_py.firewall import programs
        from zfw_py.firewall.persistence import restore

        with programs.open_or_install() as tables:
            try:
                _settle(tables)
                programs.upgrade(tables)
                return restore(tables, _interfaces(tables), document, told)
            except BaseException:
                if tables.is_new:
                    programs.uninstall(tables)
                raise

    def status(self) -> Status:
        """Version, interfaces, how many rules, and the count of every decision reason."""
        from zfw_py.firewall.status import read_status

        with Tables(is_writer=False) as tables:
            return read_status(tables, _interfaces(tables))

    def is_installed(self) -> bool:
        """Whether there is a firewall in this network namespace."""
        try:
            with Tables(is_writer=False):
                return True
        except NotInstalled:
            return False

    def explain(
        self, frame: bytes, name: str, direction: str = "ingress", came_by: str | None = None
    ) -> Decision:
        """What would become of a frame that arrives at this interface, or leaves by it.

        Of one that leaves, ``came_by`` is the interface that it came by, None if this
        host sends it. See ``explain``.
        """
        from zfw_py.firewall.explain import explain

        if direction not in DIRECTIONS:
            raise UsageError(f"direction: not ingress or egress: {direction!r}")
        ifindex = index_of(name)
        ingress_ifindex = index_of(came_by) if came_by else 0
        with Tables(is_writer=False) as tables:
            return explain(tables, frame, ifindex, direction, ingress_ifindex)

    # Tracked flows

    def flows(self) -> list[Flow]:
        """The flows that are tracked; none where nothing is attached to egress."""
        from zfw_py.firewall.flows import read_flows

        with Tables(is_writer=False) as tables:
            return list(read_flows(tables))

    def expire_flows(self) -> int:
        """Remove the entries of flows that count as forgotten already; how many there were."""
        from zfw_py.firewall.flows import expire

        with Tables(is_writer=True) as tables:
            return expire(tables)

    def flow_limits(self) -> FlowLimits:
        """When flows are forgotten, and how many are kept."""
        from zfw_py.firewall.flows import read_limits

        with Tables(is_writer=False) as tables:
            return read_limits(tables)

    def set_flow_limits(
        self,
        *,
        udp_idle: int | None = None,
        tcp_idle: int | None = None,
        max_flows: int | None = None,
    ) -> FlowLimits:
        """Change when flows are forgotten (seconds without a packet), and how many are kept.

        Flows that are tracked stay so. Returns what holds from now on.
        """
        from zfw_py.firewall.flows import read_limits, set_limits

        asked = {"udp_idle": udp_idle, "tcp_idle": tcp_idle, "max_flows": max_flows}
        with Tables(is_writer=True) as tables:
            limits = read_limits(tables)._replace(
                **{name: value for name, value in asked.items() if value is not None}
            )
            set_limits(tables, limits)
            return limits
