# SPDX-License-Identifier: GPL-2.0-only
"""The firewall's programs on interfaces: by a pinned TCX link, or through clsact.

Settings and addresses are in place before a program is attached, and nothing but our own
attachments is touched.
"""

from __future__ import annotations

import errno
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from zfw_py.errors import KernelError, ZfwError
from zfw_py.firewall import delivery
from zfw_py.firewall.codec import State
from zfw_py.firewall.flow_limits import FlowLimits
from zfw_py.firewall.flows import drop_tables, make_tables, write_limits
from zfw_py.firewall.interfaces import note_detached
from zfw_py.firewall.maps import STORE, ZERO, Maps
from zfw_py.firewall.model import DIRECTIONS
from zfw_py.kernel import bpf_links, tc
from zfw_py.kernel.namespaces import live_cookies
from zfw_py.kernel.own_netns import netns_cookie
from zfw_py.lifecycle import attachment as kinds
from zfw_py.lifecycle import programs
from zfw_py.lifecycle.attachment import Clsact, Tcx, opened
from zfw_py.lifecycle.programs import System
from zfw_py.lifecycle.store import unlink

if TYPE_CHECKING:
    from collections.abc import Generator, Iterable, Iterator

    from zfw_py.firewall.interfaces import Interfaces

MODES = ("auto", "tcx", "clsact")


class Attachment(NamedTuple):
    """A program on an interface."""

    ifindex: int
    direction: str
    mode: str
    program_id: int


def _pinned_links(directory: str) -> Iterator[Tcx]:
    """Those whose interface still exists, perhaps in another network namespace.

    The number in a pin's name is the index that the interface had when it was attached.
    """
    for name in programs.link_pins(directory):
        direction = name.partition("_")[0]
        ifindex = Tcx(directory, direction, 0, direction, name).target
        if ifindex:
            yield Tcx(directory, direction, ifindex, direction, name)


def _links_here(directory: str, ifindex: int | None = None) -> list[Tcx]:
    """Those whose interface is in the caller's network namespace; of one index, or of all."""
    return [
        link
        for link in _pinned_links(directory)
        if ifindex in (None, link.ifindex) and _is_here(link)
    ]


def _is_here(link: Tcx) -> bool:
    """Whether the interface with the link's index here has this very link.

    An interface in another namespace may have the same index.
    """
    return link.link_id() in [
        link_id for _, link_id in bpf_links.attached_to_interface(link.ifindex, link.attach_type)
    ]


def _new_tcx(directory: str, direction: str, ifindex: int) -> Tcx:
    """A link that is not pinned yet. An interface that was moved away may hold the usual name."""
    name = base = f"{direction}_{ifindex}"
    number = 0
    while Tcx(directory, direction, ifindex, direction, name).target:
        number += 1
        name = f"{base}_{number}"
    # A program in front of ours could end the chain, and its packets would pass unseen.
    return Tcx(directory, direction, ifindex, direction, name, is_first=True)


def _clsact(directory: str, direction: str, ifindex: int) -> Clsact:
    ours = partial(programs.program_ids, SYSTEM, directory, direction)
    return Clsact(direction, ifindex, direction, tc.FIREWALL_HANDLE, ours)


def _found(
    directory: str, links: Iterable[Tcx], ifindex: int | None = None
) -> list[tuple[Tcx | Clsact, int]]:
    """These links, and the filters in this network namespace, each with its program's id.

    ``ifindex``: those of one interface alone.
    """
    indexes = tc.may_have_filters()
    if ifindex is not None:
        indexes &= {ifindex}
    hooks: list[Tcx | Clsact] = [*links]
    hooks += [
        _clsact(directory, direction, index)
        for index in sorted(indexes)
        for direction in DIRECTIONS
    ]
    return [(hook, number) for hook in hooks if (number := hook.program_id()) is not None]


def _hooks(directory: str) -> list[kinds.Attachment]:
    """All that is ours, also on interfaces that were moved to another network namespace."""
    found = _found(directory, _pinned_links(directory))
    return [*(hook for hook, _ in found), *delivery.attached(directory)]


def _additions(directory: str) -> Iterator[kinds.Attachment]:
    """``deliver``, where an earlier version attached ``ingress`` alone."""
    if any(hook.direction == "ingress" for hook, _ in _found(directory, _links_here(directory))):
        yield from delivery.missing(directory)


def _digest(directory: str) -> str:
    return Maps(is_writer=True, directory=directory).state().object_digest.hex()


def _record(directory: str, digest: str) -> None:
    maps = Maps(is_writer=True, directory=directory)
    state = maps.state()
    state.object_digest = bytes.fromhex(digest)
    maps.map("state").update(ZERO, state.encode())


def _abandoned() -> Iterator[str]:
    """Interface indexes and addresses mean nothing once their network namespace is gone."""
    cookies = STORE.identifiers()
    live = live_cookies() if cookies else None
    if live is None:
        return
    for cookie in cookies:
        # A link that still has its interface proves the scan wrong.
        if int(cookie) not in live and not any(
            True for _ in _pinned_links(STORE.directory(cookie))
        ):
            yield cookie


SYSTEM = System(
    store=STORE,
    object=Path(__file__).resolve().parent.parent / "objects" / "firewall.bpf.o",
    attachments=_hooks,
    digest=_digest,
    record=_record,
    abandoned=_abandoned,
    pinned=("ingress", "egress", "explain_ingress", "explain_egress", delivery.PROGRAM),
    prefix="",
    added=(delivery.PROGRAM,),
    additions=_additions,
)


def open_or_install() -> Maps:
    """The maps, for writing; made and published first where there are none."""
    programs.make_root(STORE)
    return Maps(is_writer=True, build=_install)


def _install(directory: str) -> None:
    """Publish the maps and programs of a firewall that is attached to nothing yet."""
    programs.collect(SYSTEM)

    def prepare(built: str) -> Generator[kinds.Attachment]:
        maps = Maps(is_writer=True, directory=built)
        maps.new_inner("prefixes")
        write_limits(maps, FlowLimits())
        digest = bytes.fromhex(programs.digest_of(SYSTEM))
        maps.map("state").update(ZERO, State.new(digest).encode())
        yield from ()

    programs.install(SYSTEM, directory.rpartition("/")[2], prepare)


def upgrade(maps: Maps) -> bool:
    """Exchange programs of another build, as ``lifecycle.programs.upgrade`` does.

    Pins of links whose interface is gone are removed first.
    """
    remove_dead_links(maps)
    return programs.upgrade(SYSTEM, maps.directory.rpartition("/")[2])


def remove_dead_links(maps: Maps) -> None:
    """Remove the pins of links whose interface is gone."""
    living = {link.pin for link in _pinned_links(maps.directory)}
    for name in programs.link_pins(maps.directory):
        if (pin := f"{maps.directory}/{kinds.PIN}{name}") not in living:
            unlink(pin)


def attachments(maps: Maps, ifindex: int | None = None) -> list[Attachment]:
    """Where our programs are in this network namespace, as read back from the kernel.

    ``ifindex``: on one interface alone.
    """
    return sorted(attachment for _, attachment in _attached(maps, ifindex))


def _attached(maps: Maps, ifindex: int | None) -> list[tuple[Tcx | Clsact, Attachment]]:
    links = _links_here(maps.directory, ifindex)
    return [
        (
            hook,
            Attachment(
                hook.ifindex, hook.direction, "tcx" if isinstance(hook, Tcx) else "clsact", number
            ),
        )
        for hook, number in _found(maps.directory, links, ifindex)
    ]


def attachment_at(maps: Maps, ifindex: int, direction: str) -> Attachment | None:
    """Our program of one direction on an interface, if there is one.

    Where it is attached by TCX no netlink library is loaded.
    """
    for link in _links_here(maps.directory, ifindex):
        if link.direction == direction and (number := link.program_id()) is not None:
            return Attachment(ifindex, direction, "tcx", number)
    number = _clsact(maps.directory, direction, ifindex).program_id()
    return None if number is None else Attachment(ifindex, direction, "clsact", number)


def is_attached(maps: Maps, ifindex: int) -> bool:
    """Whether an interface of this network namespace carries our program."""
    return bool(attachments(maps, ifindex))


def index_away(maps: Maps, ifindex: int) -> int:
    """The present index of an interface that was moved to another namespace with our program.

    ``ifindex`` is the index that it had here. 0 if there is none: a filter does not survive a
    move, a link does.
    """
    return next((link.ifindex for link in links_away(maps, ifindex)), 0)


def links_away(maps: Maps, ifindex: int | None = None) -> list[Tcx]:
    """The links whose interface was moved to another network namespace.

    ``ifindex``: of the interface that had this index here.
    """
    return [
        link
        for link in _pinned_links(maps.directory)
        if ifindex in (None, index_before(link)) and not _is_here(link)
    ]


def links_moved_here(ifindex: int | None = None) -> list[Tcx]:
    """The links of other network namespaces' firewalls whose interface was moved to this one.

    ``ifindex``: of one interface alone. The caller holds the lock, which all firewalls share.
    """
    return [
        link
        for cookie in STORE.identifiers()
        if cookie != str(netns_cookie())
        for link in _links_here(STORE.directory(cookie), ifindex)
    ]


def detach_moved_here(ifindex: int, direction: str | None) -> list[Attachment]:
    """Detach other namespaces' firewalls from an interface that was moved to this one."""
    taken = []
    for link in links_moved_here(ifindex):
        if direction in (None, link.direction):
            taken.append(Attachment(ifindex, link.direction, "tcx", link.program_id() or 0))
            link.detach()
    return taken


def index_before(link: Tcx) -> int:
    """The index that a link's interface had here when it was attached: a part of the pin's name."""
    return int(link.pin.rpartition("/")[2].removeprefix(kinds.PIN).split("_")[1])


def in_front(attachment: Attachment) -> list[int]:
    """The ids of TCX programs that run before ours where ours is attached."""
    attach_type = bpf_links.TCX_INGRESS
    if attachment.direction == "egress":
        attach_type = bpf_links.TCX_EGRESS
    found = [
        number for number, _ in bpf_links.attached_to_interface(attachment.ifindex, attach_type)
    ]
    if attachment.program_id in found:
        return found[: found.index(attachment.program_id)]
    return found  # TCX programs run before all filters


def missing(maps: Maps, interfaces: Interfaces) -> list[tuple[int, str, str, str]]:
    """Where a program is wanted and none is: (ifindex, name, direction, mode), as ``attach``."""
    indexes = interfaces.present()
    linked = {(link.ifindex, link.direction) for link in _links_here(maps.directory)}
    return [
        (ifindex, name, direction, mode)
        for name, modes in interfaces.wanted().items()
        if (ifindex := indexes.get(name, 0))
        for direction, mode in modes.items()
        if (ifindex, direction) not in linked
        and (mode == "tcx" or _clsact(maps.directory, direction, ifindex).program_id() is None)
    ]


def resolved(maps: Maps, ifindex: int, direction: str, mode: str) -> str:
    """The mode that "auto" means: the present one, else TCX where the kernel has it."""
    if mode != "auto":
        return mode
    for attachment in attachments(maps, ifindex):
        if attachment.direction == direction:
            return attachment.mode
    return "tcx" if bpf_links.supports_tcx(ifindex) else "clsact"


def attach_all(
    maps: Maps, ifindex: int, name: str, directions: Iterable[str], mode: str
) -> list[Attachment]:
    """Attach the programs of these directions: all of them, or on an error none anew."""
    before = attachments(maps)
    try:
        return [attach(maps, ifindex, name, direction, mode) for direction in directions]
    except BaseException:
        for attachment in attachments(maps):
            if attachment not in before:
                _detach(maps, attachment)
        raise


def reconcile(
    maps: Maps, wanted: Iterable[tuple[int, str, str, str]]
) -> tuple[list[Attachment], list[Attachment]]:
    """Attach what is missing of ``wanted``, detach the rest; both as lists of attachments.

    Each is (ifindex, name, direction, mode). On an error they are as before.
    """
    before = attachments(maps)
    places = set()
    made = []
    try:
        for ifindex, name, direction, mode in wanted:
            places.add((ifindex, direction))
            with _named(f"attach to {name} ({direction})"):
                attachment = attach(maps, ifindex, name, direction, mode)
            if attachment not in before:
                made.append(attachment)
        taken = [a for a in before if (a.ifindex, a.direction) not in places]
        for attachment in taken:
            with _named(f"detach from interface {attachment.ifindex} ({attachment.direction})"):
                _detach(maps, attachment)
        _forget(maps)
    except BaseException:
        now = attachments(maps)
        for old in before:
            if old not in now:
                attach(maps, old.ifindex, str(old.ifindex), old.direction, old.mode)
        for new in now:
            if not any((new.ifindex, new.direction) == (a.ifindex, a.direction) for a in before):
                _detach(maps, new)
        raise
    return made, taken


@contextmanager
def _named(operation: str) -> Iterator[None]:
    """Name the operation in an OSError of the kernel."""
    try:
        yield
    except ZfwError:
        raise
    except OSError as error:
        raise KernelError(operation, error.errno or 0) from error


def attach(maps: Maps, ifindex: int, name: str, direction: str, mode: str) -> Attachment:
    """Attach one direction's program; one that is attached already stays as it is.

    Where ``mode`` is not "auto" and differs from the present mode, the program is attached in
    the new mode before the old attachment is detached.
    """
    present = [a for a in attachments(maps, ifindex) if a.direction == direction]
    if mode == "auto" and present:
        return present[0]
    mode = resolved(maps, ifindex, direction, mode)
    if mode == "tcx" and not bpf_links.supports_tcx(ifindex):
        raise KernelError(
            f"attach to {name} by TCX",
            errno.EOPNOTSUPP,
            hint="the kernel has none (6.6 does); --mode clsact works",
        )
    if not any(a.mode == mode for a in present):
        attach_anew(maps, ifindex, name, direction, mode)
    for old in present:
        if old.mode != mode:
            _detach(maps, old)
    for attachment in attachments(maps, ifindex):
        if (attachment.direction, attachment.mode) == (direction, mode):
            return attachment
    raise ZfwError(f"attached to {name} ({direction}, {mode}), but the kernel does not show it")


def attach_anew(maps: Maps, ifindex: int, name: str, direction: str, mode: str) -> None:
    """Attach one direction's program where it is not attached; ``mode`` is "tcx" or "clsact"."""
    if direction == "egress":
        make_tables(maps)
    if mode == "tcx":
        hook: Tcx | Clsact = _new_tcx(maps.directory, direction, ifindex)
    else:
        hook = _clsact(maps.directory, direction, ifindex)
    with _opened_program(maps, direction) as program:
        programs.attach(hook, program, f"to {name} ({direction})")
    if direction == "ingress":
        with _opened_program(maps, delivery.PROGRAM) as program:
            delivery.attach(maps.directory, program)


@contextmanager
def _opened_program(maps: Maps, name: str) -> Iterator[int]:
    """A pinned program. Raises LayoutMismatch for anything else in its place."""
    with ExitStack() as held:
        try:
            program = held.enter_context(opened(f"{maps.directory}/{name}"))
        except OSError as error:
            raise maps.not_opened(name, error) from None
        if not bpf_links.is_program(program):
            raise maps.mismatch(name, "it is no program")
        yield program


def _detach(maps: Maps, attachment: Attachment) -> None:
    for hook, found in _attached(maps, attachment.ifindex):
        if found[:3] == attachment[:3]:
            hook.detach()


def detach_away(maps: Maps, ifindex: int, direction: str | None) -> list[Attachment]:
    """Detach from an interface that had this index and was moved to another network namespace."""
    taken = []
    for link in links_away(maps, ifindex):
        if direction in (None, link.direction):
            taken.append(Attachment(ifindex, link.direction, "tcx", link.program_id() or 0))
            link.detach()
    return taken


def detach(maps: Maps, ifindex: int | None, direction: str | None) -> list[Attachment]:
    """Detach from an interface, or from all of them; the attachments that were detached."""
    taken = [
        (hook, attachment)
        for hook, attachment in _attached(maps, ifindex)
        if direction in (None, attachment.direction)
    ]
    for hook, _ in taken:
        hook.detach()
    _forget(maps)
    return sorted(attachment for _, attachment in taken)


def _forget(maps: Maps) -> None:
    """What no program is left for: the tables of flows, kept by ``egress``, and ``deliver``."""
    left = attachments(maps)
    if not any(attachment.direction == "egress" for attachment in left):
        drop_tables(maps)
    covered = [attachment.ifindex for attachment in left if attachment.direction == "ingress"]
    note_detached(maps, covered)
    if not covered:
        delivery.detach(maps.directory)


def uninstall(maps: Maps) -> None:
    """Detach all programs, and remove every pin of this network namespace."""
    programs.remove(SYSTEM, maps.directory.rpartition("/")[2])
