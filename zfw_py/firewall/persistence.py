# SPDX-License-Identifier: GPL-2.0-only
"""Save the firewall as a document, and make it equal to one.

The caller holds the lock. A restore writes limits, settings and rules, then exchanges the
attachments; an error anywhere undoes all of it.
"""

from __future__ import annotations

from socket import if_indextoname
from typing import TYPE_CHECKING, NamedTuple

from msgspec.structs import asdict

from zfw_py.errors import NotFound, UsageError
from zfw_py.firewall import programs
from zfw_py.firewall.codec import encode_prefix_key
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
from zfw_py.firewall.interfaces import index_of, own_name
from zfw_py.firewall.listing import read_rules
from zfw_py.firewall.routes import held, obstacle_to
from zfw_py.firewall.rules import Transaction
from zfw_py.firewall.rules.reconcile import Reconciled, reconcile
from zfw_py.firewall.settings import SETTINGS
from zfw_py.firewall.wanted import detach_unwanted_away
from zfw_py.kernel.signals import HeldSignals

if TYPE_CHECKING:
    from collections.abc import Callable

    from zfw_py.firewall.interfaces import Interfaces
    from zfw_py.firewall.maps import Maps
    from zfw_py.firewall.programs import Attachment
    from zfw_py.firewall.rules.edit import RuleEdit
    from zfw_py.firewall.rules.reconcile import Wanted
    from zfw_py.values.prefix import Prefix

# Progress is reported once for so many prefixes.
_STEP = 4096


class Restored(NamedTuple):
    """What a restore changed, and what it could not do."""

    is_new: bool  # there was no firewall before
    inserted: int
    changed: int
    deleted: int
    reordered: int  # prefixes whose rules stand in another order now
    settings: list[tuple[str, str, bool]]  # interface, setting, its new value
    flow_limits: FlowLimits | None  # the new ones, if they differ
    attached: list[Attachment]
    detached: list[Attachment]
    missing: list[str]  # interfaces that do not exist, and so were not attached
    warnings: list[str]

    @property
    def is_changed(self) -> bool:
        """Whether the firewall differed from the document before."""
        return any(self[:9])


def snapshot(maps: Maps, interfaces: Interfaces) -> Document:
    """The maps and the attachments as a document. The same firewall gives the same document.

    Attachments are those that are wanted, also where there is no interface now.
    """
    settings = {name: Settings(**values) for name, values in interfaces.settings().items()}
    attached = {
        (name, direction): mode
        for name, modes in interfaces.wanted().items()
        for direction, mode in modes.items()
    }
    for found in programs.attachments(maps):
        try:
            name = if_indextoname(found.ifindex)
        except OSError:
            continue  # it was deleted just now
        attached[name, found.direction] = found.mode
    return Document(
        version=VERSION,
        flows=FlowEntry(**read_limits(maps)._asdict()),
        settings={name: value for name, value in settings.items() if value != Settings()},
        attachments=tuple(
            AttachmentEntry(interface=name, direction=direction, mode=mode)  # type: ignore[arg-type]
            for (name, direction), mode in sorted(attached.items())
        ),
        rules=tuple(RuleEntry.of(rule) for rule in read_rules(maps, interfaces)),
    )


def restore(maps: Maps, document: Document, on_progress: Callable[[int], None]) -> Restored:
    """Make the firewall equal to the document; what is equal already is not written.

    ``on_progress`` is called now and then with how many rules have been compared.
    """
    old_limits = read_limits(maps)
    limits = FlowLimits(**asdict(document.flows))
    settings = _by_own_name(document.settings)
    places, missing = _places(document)
    changed: list[tuple[str, str, bool]] = []
    moved: tuple[list[Attachment], list[Attachment]] = ([], [])
    recorded: list[tuple[str, dict[str, str]]] = []

    def go_live() -> None:
        nonlocal moved
        # After the routes, which are addresses of lo, and before the programs are attached.
        interfaces.refresh()
        for name, modes in _wanted(maps, document, interfaces):
            recorded.append((name, interfaces.want(name, modes)))
        moved = programs.reconcile(maps, places)
        detach_unwanted_away(maps, interfaces)

    transaction = Transaction(maps, last=go_live)
    interfaces = transaction.interfaces
    try:
        with transaction as edit:
            counts, warnings = _reconcile(maps, edit, document, on_progress)
            set_limits(maps, limits)
            changed = _different(interfaces, settings)
            for name, setting, on in changed:
                bits = edit.settings.get(name, interfaces.bits_of(name))
                edit.settings[name] = SETTINGS[setting].applied(bits, on)
            for _, name, _, _ in places:
                interfaces.add(name)
    except BaseException:
        with HeldSignals():
            for name, modes in recorded:
                interfaces.want(name, modes)
            set_limits(maps, old_limits)
            interfaces.refresh()
        raise
    return Restored(
        maps.is_new,
        *counts,
        changed,
        limits if limits != old_limits else None,
        *moved,
        missing,
        document.warnings()
        + warnings
        + [text for inserted in edit.inserted for text in inserted.warnings()],
    )


def _by_own_name(settings: dict[str, Settings]) -> dict[str, Settings]:
    found: dict[str, Settings] = {}
    for name, values in settings.items():
        own = own_name(name)
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
    """Where programs shall be, for ``programs.reconcile``; and the names that no interface has."""
    places: list[tuple[int, str, str, str]] = []
    missing: dict[str, None] = {}
    for number, entry in enumerate(document.attachments):
        name, direction = own_name(entry.interface), entry.direction
        try:
            ifindex = index_of(name)
        except NotFound:
            missing[name] = None
            continue
        if any((ifindex, direction) == (place[0], place[2]) for place in places):
            raise UsageError(f"attachments[{number}]: another name of {name}, which is attached")
        places.append((ifindex, name, direction, entry.mode))
    return places, list(missing)


def _wanted(
    maps: Maps, document: Document, interfaces: Interfaces
) -> list[tuple[str, dict[str, str]]]:
    """The names whose wanted attachments differ from the document's, each with the new ones."""
    wanted: dict[str, dict[str, str]] = {name: {} for name in interfaces.wanted()}
    indexes = interfaces.present()
    for entry in document.attachments:
        name, mode = own_name(entry.interface), entry.mode
        ifindex = indexes.get(name)
        wanted.setdefault(name, {})[entry.direction] = (
            programs.resolved(maps, ifindex, entry.direction, mode) if ifindex else mode
        )
    return [
        (name, modes)
        for name, modes in wanted.items()
        if modes != interfaces.wanted().get(name, {})
    ]


def _reconcile(
    maps: Maps, edit: RuleEdit, document: Document, on_progress: Callable[[int], None]
) -> tuple[Reconciled, list[str]]:
    """Collect what makes the rules equal to the document's; the counts, and the warnings."""
    wanted: dict[bytes, list[Wanted]] = {key: [] for key in edit.finder.read_all()}
    # Why destinations must not be made local; none for those that rules hold already.
    obstacles: dict[Prefix, str | None] = dict.fromkeys(held(maps))
    own_names: dict[str, str] = {}
    warnings = []
    for rule in document.parsed_rules:
        names: tuple[str, ...] = ()
        if rule.interfaces:
            for name in rule.interfaces:
                if name not in own_names:
                    own_names[name] = own_name(name)
            names = tuple(sorted({own_names[name] for name in rule.interfaces}))
        is_routed, destination = rule.is_routed, rule.key.destination
        if is_routed:
            if destination not in obstacles:
                obstacles[destination] = obstacle_to(destination)
            if obstacle := obstacles[destination]:
                warnings.append(f"rule {rule}: no local route is made: {obstacle}")
                is_routed = False
        wanted.setdefault(encode_prefix_key(rule.key), []).append((rule, names, is_routed))
    inserted = changed = deleted = reordered = done = 0
    for number, (key, rules) in enumerate(wanted.items()):
        if number % _STEP == 0:
            on_progress(done)
        counts = reconcile(edit, key, rules)
        if counts is not None:
            inserted += counts.inserted
            changed += counts.changed
            deleted += counts.deleted
            reordered += counts.reordered
        done += len(rules)
    return Reconciled(inserted, changed, deleted, reordered), warnings
