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
from zfw_py.firewall.codec import State
from zfw_py.firewall.flow_limits import FlowLimits
from zfw_py.firewall.flows import drop_tables, make_tables, write_limits
from zfw_py.firewall.maps import STORE, ZERO, Maps
from zfw_py.firewall.model import DIRECTIONS
from zfw_py.kernel import bpf_links, tc
from zfw_py.kernel.namespaces import live_cookies
from zfw_py.lifecycle import attachment as kinds
from zfw_py.lifecycle import programs
from zfw_py.lifecycle.attachment import Clsact, Tcx, opened
from zfw_py.lifecycle.programs import System
from zfw_py.lifecycle.store import unlink

if TYPE_CHECKING:
    from collections.abc import Generator, Iterable, Iterator

MODES = ("auto", "tcx", "clsact")


class Attachment(NamedTuple):
    """A program on an interface."""

    ifindex: int
    direction: str
    mode: str
    program_id: int


def _pinned_links(directory: str) -> Iterator[Tcx]:
    """Those whose interface is still there."""
    for name in programs.link_pins(directory):
        direction, _, number = name.partition("_")
        link = _tcx(directory, direction, int(number))
        if link.target == int(number):
            yield link


def _tcx(directory: str, direction: str, ifindex: int) -> Tcx:
    return Tcx(directory, direction, ifindex, direction, f"{direction}_{ifindex}")


def _clsact(directory: str, direction: str, ifindex: int) -> Clsact:
    ours = partial(programs.program_ids, SYSTEM, directory, direction)
    return Clsact(direction, ifindex, direction, tc.FIREWALL_HANDLE, ours)


def _found(directory: str) -> list[tuple[Tcx | Clsact, int]]:
    """What is attached on the interfaces of this network namespace, each with its program's id."""
    import socket

    hooks: list[Tcx | Clsact] = list(_pinned_links(directory))
    hooks += [
        _clsact(directory, direction, ifindex)
        for ifindex, _ in socket.if_nameindex()
        for direction in DIRECTIONS
    ]
    return [(hook, number) for hook in hooks if (number := hook.program_id()) is not None]


def _hooks(directory: str) -> list[Tcx | Clsact]:
    return [hook for hook, _ in _found(directory)]


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
    pinned=("ingress", "egress", "explain_ingress", "explain_egress"),
    prefix="",
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
    living = {link.pin for link in _pinned_links(maps.directory)}
    for name in programs.link_pins(maps.directory):
        if (pin := f"{maps.directory}/{kinds.PIN}{name}") not in living:
            unlink(pin)
    return programs.upgrade(SYSTEM, maps.directory.rpartition("/")[2])


def attachments(maps: Maps) -> list[Attachment]:
    """Where our programs are, as read back from the kernel."""
    return sorted(
        Attachment(
            hook.ifindex, hook.direction, "tcx" if isinstance(hook, Tcx) else "clsact", number
        )
        for hook, number in _found(maps.directory)
    )


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
        _forget_flows(maps)
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
    present = [a for a in attachments(maps) if a.ifindex == ifindex and a.direction == direction]
    if mode == "auto":
        if present:
            return present[0]
        mode = "tcx" if bpf_links.supports_tcx(ifindex) else "clsact"
    elif mode == "tcx" and not bpf_links.supports_tcx(ifindex):
        raise KernelError(
            f"attach to {name} by TCX",
            errno.EOPNOTSUPP,
            hint="the kernel has none (6.6 does); --mode clsact works",
        )
    if not any(a.mode == mode for a in present):
        if direction == "egress":
            make_tables(maps)
        with _opened_program(maps, direction) as program:
            hook = _hook(maps, ifindex, direction, mode)
            programs.attach(hook, program, f"to {name} ({direction})")
    for old in present:
        if old.mode != mode:
            _detach(maps, old)
    for attachment in attachments(maps):
        if (attachment.ifindex, attachment.direction, attachment.mode) == (
            ifindex,
            direction,
            mode,
        ):
            return attachment
    raise ZfwError(f"attached to {name} ({direction}, {mode}), but the kernel does not show it")


@contextmanager
def _opened_program(maps: Maps, name: str) -> Iterator[int]:
    """A pinned program. Raises LayoutMismatch for anything else in its place."""
    with ExitStack() as held:
        try:
            program = held.enter_context(opened(f"{maps.directory}/{name}"))
        except OSError as error:
            raise maps.mismatch(name, error.strerror or str(error)) from None
        if not bpf_links.is_program(program):
            raise maps.mismatch(name, "it is no program")
        yield program


def _hook(maps: Maps, ifindex: int, direction: str, mode: str) -> Tcx | Clsact:
    made = _tcx if mode == "tcx" else _clsact
    return made(maps.directory, direction, ifindex)


def _detach(maps: Maps, attachment: Attachment) -> None:
    _hook(maps, attachment.ifindex, attachment.direction, attachment.mode).detach()


def detach(maps: Maps, ifindex: int | None, direction: str | None) -> list[Attachment]:
    """Detach from an interface, or from all of them; the attachments that were detached."""
    taken = [
        a
        for a in attachments(maps)
        if ifindex in (None, a.ifindex) and direction in (None, a.direction)
    ]
    for attachment in taken:
        _detach(maps, attachment)
    _forget_flows(maps)
    return taken


def _forget_flows(maps: Maps) -> None:
    """Drop the tables of flows where no egress program is left to keep them up to date."""
    if not any(attachment.direction == "egress" for attachment in attachments(maps)):
        drop_tables(maps)


def uninstall(maps: Maps) -> None:
    """Detach all programs, and remove every pin of this network namespace."""
    programs.remove(SYSTEM, maps.directory.rpartition("/")[2])
