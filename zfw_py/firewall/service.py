# SPDX-License-Identifier: GPL-2.0-only
"""The firewall of the caller's network namespace: every verb, each under the lock.

Hot: what only rare verbs need is imported where they need it.
"""

from __future__ import annotations

from zfw_py.errors import Conflict, NotFound, NotInstalled, UsageError
from zfw_py.firewall.interfaces import Interfaces, index_of, own_name, primary_name
from zfw_py.firewall.maps import Maps
from zfw_py.firewall.model import DIRECTIONS, OwnAddresses, Rule, RuleKey
from zfw_py.firewall.rules import Transaction

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from zfw_py.firewall.capture import Captured
    from zfw_py.firewall.document import Document
    from zfw_py.firewall.explain import Decision
    from zfw_py.firewall.flow_limits import FlowLimits
    from zfw_py.firewall.flows import Flow
    from zfw_py.firewall.persistence import Restored
    from zfw_py.firewall.programs import Attachment
    from zfw_py.firewall.question import Question
    from zfw_py.firewall.replay import Answer
    from zfw_py.firewall.rules import Deleted, Inserted
    from zfw_py.firewall.rules.edit import RuleEdit
    from zfw_py.firewall.status import Status
    from zfw_py.firewall.story import Explanation
    from zfw_py.firewall.wanted import Difference, Followed
    from zfw_py.values.prefix import Prefix


class Insert:
    """A rule to add, or to change in place. With ``route`` its destination is made local."""

    __slots__ = ("route", "rule")

    def __init__(self, rule: Rule, *, route: bool = False) -> None:
        self.rule = rule
        self.route = route

    @property
    def is_newer(self) -> bool:
        """Whether programs of an earlier build do not know what the rule says."""
        return self.rule.is_limited or isinstance(self.rule.key.destination, OwnAddresses)

    def own_names(self) -> tuple[str, ...]:
        """The own names of the rule's interfaces. Raises NotFound."""
        return tuple(map(primary_name, self.rule.interfaces))

    def collect(self, edit: RuleEdit, names: tuple[str, ...]) -> Inserted:
        """Add it to an edit."""
        inserted = edit.insert(self.rule, names, route=self.route)
        if self.rule.key.direction == "egress":
            inserted.is_idle = not edit.interfaces.has_filtered()
        return inserted


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

    def own_names(self) -> tuple[str, ...]:
        """The own names of the interfaces to remove, some of which may not exist any more."""
        return tuple(map(own_name, self.interfaces))

    def collect(self, edit: RuleEdit, names: tuple[str, ...]) -> Deleted:
        """Add it to an edit. Raises RuleNotFound."""
        return edit.delete(self.key, names, keep_route=not self.route)


def _upgrade(maps: Maps) -> None:
    """Exchange programs of another build, which may not know what a rule says.

    Raises LayoutMismatch, KernelError.
    """
    from zfw_py.firewall import wanted

    wanted.upgrade(maps)


class Firewall:
    """The firewall of the network namespace that the caller is in.

    The constructor does nothing, no verb leaves anything open, and several processes may use
    the same firewall at once. Verbs raise ZfwError; one that fails has changed nothing.
    """

    # Rules

    def insert(self, rule: Rule, *, route: bool = False) -> Inserted:
        """Add a rule; one with the same key is changed in place and keeps its position.

        Where the new rule names interfaces, they join those that the old one
        names. Established connections go on. ``route`` makes the destination
        local for as long as the rule stands.
        """
        insert = Insert(rule, route=route)
        names = insert.own_names()
        with Maps(is_writer=True) as maps:
            if insert.is_newer:
                _upgrade(maps)
            with Transaction(maps) as edit:
                return insert.collect(edit, names)

    def delete(
        self, key: RuleKey, interfaces: tuple[str, ...] = (), *, route: bool = True
    ) -> Deleted:
        """Remove a rule, or with ``interfaces`` only those from its list.

        Raises RuleNotFound. ``route`` False leaves its local route in place.
        """
        names = tuple(map(own_name, interfaces))
        with Maps(is_writer=True) as maps, Transaction(maps) as edit:
            return edit.delete(key, names, keep_route=not route)

    def apply(self, edits: Sequence[Insert | Delete]) -> list[Inserted | Deleted]:
        """Inserts and deletes in order, under one lock: all of them, or on an error none."""
        names = []
        is_newer = False
        for edit in edits:
            names.append(edit.own_names())
            is_newer |= isinstance(edit, Insert) and edit.is_newer
        with Maps(is_writer=True) as maps:
            if is_newer:
                _upgrade(maps)
            with Transaction(maps) as collected:
                collected.finder.expect(len(edits))
                # Iterates over the edits itself: those of a batch file note their line thereby.
                return [
                    edit.collect(collected, its_names)
                    for edit, its_names in zip(edits, names, strict=True)
                ]

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

        with Maps(is_writer=False) as maps:
            return read_rules(maps, Interfaces(maps), wanted)

    def flush(self, direction: str | None = None, *, routes: bool = True) -> int:
        """Remove all rules, or those of one direction; how many there were.

        With ``routes`` the local routes that --route made go as well.
        Settings, attachments and established connections stay.
        """
        from zfw_py.firewall.rules.rebuild import clear

        with Maps(is_writer=True) as maps, Transaction(maps, writes_directly=True):
            count, routed = clear(maps, direction)
            # Most firewalls have no local routes, and routes.py is slow to import.
            if any(True for _ in maps.map("routes").items()):
                from zfw_py.firewall.routes import forget_all, release

                for destination in routed:
                    release(maps, destination, keep=not routes)
                if routes:
                    forget_all(maps, unused_only=True)
            return count

    # Bound addresses

    def bind(self, prefix: Prefix) -> int:
        """Make a prefix local, so that this host's sockets can bind to it.

        A prefix that is bound already is only counted; returns how often it is
        bound now. It stays local until it is unbound as often, and while a
        rule's ``route`` needs it. Raises Conflict for a prefix of more than one
        address that shares addresses with an interface's subnet.
        """
        from zfw_py.firewall import routes

        if prefix.length < (32 if prefix.family == 4 else 128):
            obstacle = routes.obstacle_to(prefix)
            if obstacle:
                raise Conflict(f"bind {prefix}: {obstacle}")
        with Maps(is_writer=True) as maps, Transaction(maps, writes_directly=True):
            return routes.bind(maps, prefix)

    def unbind(self, prefix: Prefix) -> int:
        """Undo one ``bind``; how many of them are left. Raises NotFound."""
        from zfw_py.firewall import routes

        with Maps(is_writer=True) as maps, Transaction(maps, writes_directly=True):
            left = routes.unbind(maps, prefix)
        if left is None:
            raise NotFound(f"unbind {prefix}: it is not bound")
        return left

    def unbind_all(self) -> int:
        """Undo every ``bind``; how many prefixes were bound. Rules keep their routes."""
        from zfw_py.firewall import routes

        with Maps(is_writer=True) as maps, Transaction(maps, writes_directly=True):
            return routes.unbind_all(maps)

    def bound(self) -> dict[Prefix, int]:
        """The bound prefixes, each with how often it is bound."""
        from zfw_py.firewall import routes

        with Maps(is_writer=False) as maps:
            return routes.bound(maps)

    # Interfaces

    def set(self, names: Iterable[str], setting: str, on: bool) -> None:
        """Turn a setting of interfaces on or off; ``SETTINGS`` has the names of settings.

        A setting belongs to the name and outlives the interface.
        """
        from zfw_py.firewall.settings import SETTINGS

        if setting not in SETTINGS:
            raise UsageError(f"no setting {setting!r}; there are {', '.join(SETTINGS)}")
        names = [primary_name(name) for name in names]
        with Maps(is_writer=True) as maps:
            transaction = Transaction(maps)
            with transaction:
                for name in names:
                    transaction.interfaces.set(name, setting, on)

    def without_egress(self, names: Iterable[str]) -> list[str]:
        """Those of these interfaces that have no egress program: no outbound filter can act there.

        ``lo`` is one of them: it is never filtered.
        """
        from zfw_py.firewall.wanted import has_egress

        with Maps(is_writer=False) as maps:
            interfaces = Interfaces(maps)
            return [
                name
                for name in map(primary_name, names)
                if name == "lo" or not has_egress(maps, interfaces, name)
            ]

    def refresh(self) -> None:
        """Bring the table of interfaces and their addresses up to date."""
        with Maps(is_writer=True) as maps:
            Interfaces(maps).refresh()

    def follow(self) -> Followed:
        """``refresh``, then attach what is wanted and not attached: what the follower does.

        What fails on one interface does not stop the others.
        """
        from zfw_py.firewall.wanted import follow

        with Maps(is_writer=True) as maps:
            return follow(maps, Interfaces(maps))

    def attach(self, name: str, direction: str = "both", mode: str = "auto") -> list[Attachment]:
        """Attach the firewall to an interface; from then on it drops what no rule allows.

        ``direction`` is "ingress", "egress" or "both". Answers need the egress
        program, which tracks the flows that leave, unless they reach a connected
        socket. ``mode`` is "auto" (TCX where the kernel has it), "tcx" or
        "clsact". What is attached already stays as it is; programs of an older
        build are replaced in place.
        """
        from zfw_py.firewall import programs, wanted

        if direction not in (*DIRECTIONS, "both"):
            raise UsageError(f"direction: not ingress, egress or both: {direction!r}")
        if mode not in programs.MODES:
            raise UsageError(f"mode: not auto, tcx or clsact: {mode!r}")
        name = primary_name(name)
        directions = DIRECTIONS if direction == "both" else (direction,)
        with programs.open_or_install() as maps:
            try:
                wanted.upgrade(maps)
                return wanted.attach(maps, Interfaces(maps), name, directions, mode)
            except BaseException:
                if maps.is_new:
                    programs.uninstall(maps)
                raise

    def upgrade(self) -> bool:
        """Exchange programs of another build of zfw in place; False if they are this one's.

        Raises NotInstalled where there is no firewall, LayoutMismatch, KernelError.
        """
        from zfw_py.firewall import wanted

        with Maps(is_writer=True) as maps:
            return wanted.upgrade(maps)

    def detach(self, name: str, direction: str | None = None) -> list[Attachment]:
        """Detach the firewall from an interface. Rules and settings stay. Raises NotFound.

        No program is attached to this name any more when it appears. Where it has no interface
        now, nothing but that changes, except that programs are detached from an interface that
        was moved to another network namespace. From one that was moved to this one, programs of
        the firewall of its former namespace are detached, also where there is no firewall here.
        """
        from zfw_py.firewall import wanted

        try:
            with Maps(is_writer=True) as maps:
                return wanted.detach(maps, Interfaces(maps), own_name(name), direction)
        except NotInstalled:
            if taken := wanted.detach_moved_here(name, direction):
                return taken
            raise

    def detach_all(self) -> list[Attachment]:
        """Detach the firewall from every interface; remove rules, settings and all else."""
        from zfw_py.firewall import programs, routes

        with Maps(is_writer=True) as maps:
            taken = programs.detach(maps, None, None)
            routes.forget_all(maps)
            programs.uninstall(maps)
            return taken

    # The whole

    def save(self) -> Document:
        """Rules, settings, attachments and flow limits as a document, without counters."""
        from zfw_py.firewall.persistence import snapshot

        with Maps(is_writer=False) as maps:
            return snapshot(maps, Interfaces(maps))

    def restore(
        self, document: Document, on_progress: Callable[[int], None] = lambda done: None
    ) -> Restored:
        """Make the firewall equal to a document; on an error it stays as it was.

        Rules that stay keep their counters, established connections go on, and
        only what differs is written. Where there is no firewall, one is
        installed. An interface that does not exist keeps its settings and its
        place in rules; ``Restored.missing`` lists it if it should be attached.
        ``on_progress`` is called now and then with how many rules have been compared.
        """
        from zfw_py.firewall import programs, wanted
        from zfw_py.firewall.persistence import restore

        with programs.open_or_install() as maps:
            try:
                wanted.upgrade(maps)
                return restore(maps, document, on_progress)
            except BaseException:
                if maps.is_new:
                    programs.uninstall(maps)
                raise

    def status(self) -> Status:
        """Version, interfaces, how many rules, and the count of every decision reason."""
        from zfw_py.firewall.status import read_status

        with Maps(is_writer=False) as maps:
            return read_status(maps, Interfaces(maps))

    def moved_here(self) -> list[Difference]:
        """Interfaces here that carry the firewall of the namespace that they were moved from.

        They are among the differences of ``status``; this verb needs no firewall here.
        """
        from zfw_py.firewall.wanted import read_moved_here

        return read_moved_here()

    def is_installed(self) -> bool:
        """Whether there is a firewall in this network namespace."""
        try:
            with Maps(is_writer=False):
                return True
        except NotInstalled:
            return False

    def explain(
        self, frame: bytes, name: str, direction: str = "ingress", came_by: str | None = None
    ) -> Decision:
        """What the program would do with a frame that arrives at this interface, or leaves by it.

        ``came_by`` is the interface that a leaving frame came in by, None if this host sends
        it. See ``explain.explain``.
        """
        from zfw_py.firewall.explain import explain

        if direction not in DIRECTIONS:
            raise UsageError(f"direction: not ingress or egress: {direction!r}")
        ifindex = index_of(name)
        ingress_ifindex = index_of(came_by) if came_by else 0
        with Maps(is_writer=False) as maps:
            return explain(maps, frame, ifindex, direction, ingress_ifindex)

    def story(self, question: Question) -> Explanation:
        """What happens to a packet, and all that explains it; see ``story.explain``."""
        from zfw_py.firewall.story import explain

        with Maps(is_writer=False) as maps:
            return explain(maps, Interfaces(maps), question)

    def replay(
        self, captured: Iterable[Captured], interface: str | None, direction: str = "ingress"
    ) -> Iterator[Answer]:
        """What happens to each packet of a capture; see ``replay.replay``."""
        from zfw_py.firewall.replay import replay

        return replay(captured, interface, direction)

    # Tracked flows

    def flows(self) -> list[Flow]:
        """The tracked flows; none where no interface has the egress program."""
        from zfw_py.firewall.flows import read_flows

        with Maps(is_writer=False) as maps:
            return list(read_flows(maps))

    def expire_flows(self) -> int:
        """Remove the entries of flows that are forgotten already; how many there were."""
        from zfw_py.firewall.flows import expire

        with Maps(is_writer=True) as maps:
            return expire(maps)

    def flow_limits(self) -> FlowLimits:
        """When flows are forgotten, and how many are kept."""
        from zfw_py.firewall.flows import read_limits

        with Maps(is_writer=False) as maps:
            return read_limits(maps)

    def set_flow_limits(
        self,
        *,
        udp_idle: int | None = None,
        tcp_idle: int | None = None,
        max_flows: int | None = None,
    ) -> FlowLimits:
        """Change when flows are forgotten (seconds without a packet), and how many are kept.

        Tracked flows stay. Returns the new limits. Raises UsageError for one out of bounds.
        """
        from zfw_py.firewall.flows import read_limits, set_limits

        asked = {"udp_idle": udp_idle, "tcp_idle": tcp_idle, "max_flows": max_flows}
        with Maps(is_writer=True) as maps:
            limits = read_limits(maps)._replace(
                **{name: value for name, value in asked.items() if value is not None}
            )
            set_limits(maps, limits)
            return limits
