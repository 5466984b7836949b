# SPDX-License-Identifier: GPL-2.0-only
"""The firewall as a document, and the firewall made equal to a document.

The caller holds the lock. Settings and rules first, programs last; an error
anywhere undoes all of it.
"""

from __future__ import annotations

from socket import if_indextoname
from typing import TYPE_CHECKING, NamedTuple

from msgspec.structs import asdict

from zfw_py.errors import NotFound, UsageError
from zfw_py.firewall import programs
from zfw_py.firewall.codec import decode_prefix_key, encode_prefix_key
from zfw_py.firewall.document import (
    VERSION,
    AttachmentEntry,
    Document,
    FlowEntry,
    RuleEntry,
    Settings,
)
from zfw_py.firewall.flow_limits import FlowLimits
from zfw_py.firewall.flows import read_limits, set_limits
from zfw_py.firewall.interfaces import index_of, primary_name
from zfw_py.firewall.listing import read_rules
from zfw_py.firewall.rules import RuleEdit

if TYPE_CHECKING:
    from collections.abc import Callable

    from zfw_py.firewall.interfaces import Interfaces
    from zfw_py.firewall.maps import Tables
    from zfw_py.firewall.model import Rule
    from zfw_py.firewall.programs import Attachment
    from zfw_py.values.prefix import Prefix

# Progress is told once for so many rules.
_STEP = 4096


class Restored(NamedTuple):
    """What a restore changed, and what it could not do."""

    is_new: bool  # there was no firewall before
    inserted: int
    changed: int
    deleted: int
    reordered: int  # prefixes whose rules stand in another order now
    settings: list[tuple[str, str, bool]]  # interface, setting, its new value
    flow_limits: FlowLimits | None  # the new ones, if they were others
    attached: list[Attachment]
    detached: list[Attachment]
    missing: list[str]  # interfaces that do not exist, and so were not attached
    warnings: list[str]

    @property
    def is_changed(self) -> bool:
        """Whether the firewall was anything but equal to the document before."""
        return any(self[:9])


def take(tables: Tables, interfaces: Interfaces) -> Document:
    """What the tables and the kernel hold. The same firewall gives the same document."""
    settings = {name: Settings(**values) for name, values in interfaces.settings().items()}
    attached = []
    for found in programs.attachments(tables):
        try:
            name = if_indextoname(found.ifindex)
        except OSError:
            continue  # it has gone just now
        attached.append((name, found.direction, found.mode))
    return Document(
        version=VERSION,
        flows=FlowEntry(**read_limits(tables)._asdict()),
        settings={name: value for name, value in settings.items() if value != Settings()},
        attachments=tuple(
            AttachmentEntry(interface=name, direction=direction, mode=mode)  # type: ignore[arg-type]
            for name, direction, mode in sorted(attached)
        ),
        rules=tuple(RuleEntry.of(rule) for rule in read_rules(tables, interfaces)),
    )


def restore(
    tables: Tables, interfaces: Interfaces, document: Document, told: Callable[[int], None]
) -> Restored:
    """Make all equal to the document; what is equal already is not written."""
    old_limits = read_limits(tables)
    limits = FlowLimits(**asdict(document.flows))
    settings = _by_own_name(document.settings)
    places, missing = _places(document)
    edit = _Edit(tables, interfaces, document, told)
    changed: list[tuple[str, str, bool]] = []
    moved: tuple[list[Attachment], list[Attachment]] = ([], [])

    def go_live() -> None:
        nonlocal moved
        # Here, because local routes are addresses of lo.
        interfaces.refresh()
        moved = programs.equate(tables, places)

    try:
        set_limits(tables, limits)
        for name, setting, on in _different(interfaces, settings):
            interfaces.set(name, setting, on)
            changed.append((name, setting, on))
        for _, name, _, _ in places:
            interfaces.add(name)
        edit.commit(go_live)
    except BaseException:
        for name, setting, on in changed:
            interfaces.set(name, setting, not on)
        interfaces.refresh()
        set_limits(tables, old_limits)
        raise
    return Restored(
        tables.is_new,
        edit.inserted,
        edit.changed,
        edit.deleted,
        edit.reordered,
        changed,
        limits if limits != old_limits else None,
        *moved,
        missing,
        edit.warnings(),
    )


def _own_name(name: str) -> str:
    """An interface's own name; a name that no interface has yet stays as it is."""
    try:
        return primary_name(name)
    except NotFound:
        return name


def _by_own_name(settings: dict[str, Settings]) -> dict[str, Settings]:
    found: dict[str, Settings] = {}
    for name, values in settings.items():
        own = _own_name(name)
        if own in found:
            raise UsageError(f"settings.{name}: another name of {own}, which has settings as well")
        found[own] = values
    return found


def _different(interfaces: Interfaces, wanted: dict[str, Settings]) -> list[tuple[str, str, bool]]:
    """The settings to change; those of names that the document has not go back to default."""
    present = interfaces.settings()
    default = Settings()
    return [
        (name, setting, on)
        for name in sorted({*present, *wanted})
        for setting, on in asdict(wanted.get(name, default)).items()
        if on != present.get(name, asdict(default))[setting]
    ]


def _places(document: Document) -> tuple[list[tuple[int, str, str, str]], list[str]]:
    """Where programs shall be, for ``programs.equate``; and the names that no interface has."""
    places: list[tuple[int, str, str, str]] = []
    missing: dict[str, None] = {}
    for number, entry in enumerate(document.attachments):
        name, direction = _own_name(entry.interface), entry.direction
        try:
            ifindex = index_of(name)
        except NotFound:
            missing[name] = None
            continue
        if any((ifindex, direction) == (place[0], place[2]) for place in places):
            raise UsageError(f"attachments[{number}]: another name of {name}, which is attached")
        places.append((ifindex, name, direction, entry.mode))
    return places, list(missing)


class _Edit:
    """The rules of a document against those that there are, and the local routes of both."""

    def __init__(
        self,
        tables: Tables,
        interfaces: Interfaces,
        document: Document,
        told: Callable[[int], None],
    ) -> None:
        """Compare; nothing is written but names of interfaces."""
        self.inserted = self.changed = self.deleted = self.reordered = 0
        self._tables = tables
        self._edit = RuleEdit(tables, interfaces)
        # How many more rules, or fewer, hold the route of a destination.
        self._held: dict[Prefix, int] = {}
        self._released: dict[Prefix, int] = {}
        self._warnings: list[str] = []

        wanted: dict[bytes, list[tuple[Rule, tuple[str, ...], bool]]] = {
            key: [] for key in self._edit.read_all()
        }
        obstacles = _Obstacles(tables)
        own_names: dict[str, str] = {}
        for rule in document.parsed_rules:
            names: tuple[str, ...] = ()
            if rule.interfaces:
                for name in rule.interfaces:
                    if name not in own_names:
                        own_names[name] = _own_name(name)
                names = tuple(sorted({own_names[name] for name in rule.interfaces}))
            is_routed = rule.is_routed
            if is_routed and (obstacle := obstacles.of(rule.key.destination)):
                self._warnings.append(f"rule {rule}: no local route is made: {obstacle}")
                is_routed = False
            key = encode_prefix_key(rule.key)
            wanted.setdefault(key, []).append((rule, names, is_routed))
        done = 0
        for number, (key, rules) in enumerate(wanted.items()):
            if number % _STEP == 0:
                told(done)
            self._equate(key, rules)
            done += len(rules)

    def _equate(self, key: bytes, rules: list[tuple[Rule, tuple[str, ...], bool]]) -> None:
        equated = self._edit.equate(key, rules)
        self.inserted += equated.inserted
        self.changed += equated.changed
        self.deleted += equated.deleted
        self.reordered += equated.is_reordered
        if equated.held or equated.released:
            destination = decode_prefix_key(key)[2]
            for counts, count in ((self._held, equated.held), (self._released, equated.released)):
                if count:
                    counts[destination] = counts.get(destination, 0) + count

    def commit(self, last: Callable[[], None]) -> None:
        """Routes and rules, then ``last``; an error leaves all as it was."""
        if self._edit.is_empty():
            last()
            return
        from zfw_py.firewall import routes

        tables = self._tables
        held: list[Prefix] = []
        released: list[Prefix] = []

        def release_and_end() -> None:
            for destination, count in self._released.items():
                for _ in range(count):
                    routes.release(tables, destination)
                    released.append(destination)
            last()

        tables.set_in_progress(True)
        try:
            for destination, count in self._held.items():
                for _ in range(count):
                    routes.hold(tables, destination)
                    held.append(destination)
            self._edit.commit(release_and_end)
        except BaseException:
            for destination in released:
                routes.hold(tables, destination)
            for destination in held:
                routes.release(tables, destination)
            raise
        finally:
            tables.set_in_progress(False)

    def warnings(self) -> list[str]:
        """What whoever wrote the document should know; after ``commit``."""
        shadowed = [text for inserted in self._edit.shadowed() for text in inserted.warnings()]
        return self._warnings + shadowed


class _Obstacles:
    """Why destinations must not be made local; each is looked at once."""

    def __init__(self, tables: Tables) -> None:
        from zfw_py.firewall.routes import held

        self._known: dict[Prefix, str | None] = dict.fromkeys(held(tables))

    def of(self, destination: Prefix) -> str | None:
        """The obstacle, or None; a destination that is held already has none."""
        if destination not in self._known:
            from zfw_py.firewall.routes import obstacle

            self._known[destination] = obstacle(destination)
        return self._known[destination]
