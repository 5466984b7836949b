# SPDX-License-Identifier: GPL-2.0-only
"""Programs onto interfaces and off them: by a pinned TCX link, or through clsact.

Settings and addresses are in place before a program goes live, a program is
exchanged without a gap, and nothing but our own attachments is touched.
"""

from __future__ import annotations

import errno
import os
from contextlib import contextmanager, suppress
from hashlib import sha256
from pathlib import Path
from struct import unpack_from
from typing import TYPE_CHECKING, NamedTuple

from zfw_py.errors import KernelError, ZfwError, raise_expected
from zfw_py.firewall.codec import State
from zfw_py.firewall.flow_limits import FlowLimits
from zfw_py.firewall.flows import drop_tables, make_tables, write_limits
from zfw_py.firewall.maps import ZERO, Tables
from zfw_py.firewall.model import DIRECTIONS
from zfw_py.kernel import bpf, bpffs, netlink
from zfw_py.kernel.libbpf import BpfObject
from zfw_py.kernel.namespaces import live_cookies

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

OBJECT = Path(__file__).resolve().parent.parent / "objects" / "firewall.bpf.o"
MODES = ("auto", "tcx", "clsact")
_TCX_TYPES = {"ingress": bpf.TCX_INGRESS, "egress": bpf.TCX_EGRESS}
_LINK_PIN = "link_"  # bpffs takes no dots in names


class Attachment(NamedTuple):
    """A program on an interface."""

    ifindex: int
    direction: str
    mode: str
    program_id: int


def _digest() -> bytes:
    try:
        return sha256(OBJECT.read_bytes()).digest()
    except FileNotFoundError:
        raise ZfwError(
            f"{OBJECT.name} is missing", hint="build it: pip install . in the source tree"
        ) from None


def open_or_install() -> Tables:
    """The tables, for writing; made and published first where there are none."""
    try:
        bpffs.make_root()
    except OSError as error:
        raise_expected(error)
    return Tables(is_writer=True, build=_install)


def _install(directory: str) -> None:
    """Load the object, pin all of it in a directory of its own, publish that by one rename."""
    for leftover in bpffs.unfinished():
        bpffs.remove_directory(leftover)
    _remove_state_of_gone_namespaces()
    digest = _digest()
    built = bpffs.new_directory()
    try:
        with BpfObject(OBJECT) as loaded:
            loaded.load()
            for name, fd in (loaded.maps() | loaded.programs()).items():
                bpf.pin(fd, f"{built}/{name}")
        tables = Tables(is_writer=True, directory=built)
        tables.new_inner("prefixes")
        write_limits(tables, FlowLimits())
        tables.map("state").update(ZERO, State.new(digest).encode())
        bpffs.publish(built, directory)
    except BaseException:
        bpffs.remove_directory(built)
        raise


def _remove_state_of_gone_namespaces() -> None:
    """Interface indexes and addresses mean nothing once their namespace is gone."""
    cookies = bpffs.published()
    live = live_cookies() if cookies else None
    if live is None:
        return
    for cookie in cookies:
        directory = bpffs.state_directory(cookie)
        # A link that still has its interface proves the scan wrong.
        if cookie not in live and not any(True for _ in _tcx_attachments(directory)):
            bpffs.remove_directory(directory)


def upgrade(tables: Tables) -> None:
    """Where the pinned programs come from another build: load ours on the same maps.

    Every attachment is exchanged in place, so that no packet passes unfiltered.
    """
    state = tables.state()
    digest = _digest()
    if state.object_digest == digest:
        return
    attached = attachments(tables)
    with BpfObject(OBJECT) as loaded:
        loaded.reuse_maps({name: tables.map(name).fd for name in loaded.maps()})
        loaded.load()
        programs = loaded.programs()
        for attachment in attached:
            _put(
                tables,
                attachment.ifindex,
                attachment.direction,
                attachment.mode,
                programs[attachment.direction],
            )
        for name, fd in programs.items():
            bpf.pin(fd, f"{tables.directory}/new_{name}")
            os.rename(f"{tables.directory}/new_{name}", f"{tables.directory}/{name}")
    state.object_digest = digest
    tables.map("state").update(ZERO, state.encode())


def _link_path(tables: Tables, ifindex: int, direction: str) -> str:
    return f"{tables.directory}/{_LINK_PIN}{direction}_{ifindex}"


def _link_ifindex(fd: int) -> tuple[int, int]:
    """Program id and interface index of a TCX link; index 0: the interface is gone."""
    # struct bpf_link_info: type, id, prog_id, padding, tcx.ifindex, tcx.attach_type
    program_id, ifindex = unpack_from("=I4xI", bpf.object_info(fd, 24), 8)
    return program_id, ifindex


def _tcx_attachments(directory: str) -> Iterable[Attachment]:
    for name in os.listdir(directory):
        if not name.startswith(_LINK_PIN):
            continue
        _, direction, number = name.split("_")
        try:
            fd = bpf.open_pin(f"{directory}/{name}")
        except FileNotFoundError:
            continue  # another reader removed a dead one
        try:
            program_id, ifindex = _link_ifindex(fd)
        finally:
            os.close(fd)
        if ifindex == int(number):
            yield Attachment(ifindex, direction, "tcx", program_id)
        else:
            with suppress(FileNotFoundError):  # another reader was quicker
                os.unlink(f"{directory}/{name}")


def _open_program(tables: Tables, name: str) -> int:
    """A pinned program. Raises LayoutMismatch for anything else in its place."""
    try:
        fd = bpf.open_pin(f"{tables.directory}/{name}")
    except PermissionError:
        if os.path.isdir(f"{tables.directory}/{name}"):
            raise tables.mismatch(name, "it is a directory") from None
        raise
    except OSError as error:
        raise tables.mismatch(name, error.strerror or str(error)) from None
    if not bpf.is_program(fd):
        os.close(fd)
        raise tables.mismatch(name, "it is no program")
    return fd


def _program_ids(tables: Tables) -> dict[str, int]:
    found = {}
    for direction in DIRECTIONS:
        fd = _open_program(tables, direction)
        try:
            found[direction] = bpf.object_id(fd)
        finally:
            os.close(fd)
    return found


def _clsact_filters(tables: Tables, ifindexes: Iterable[int]) -> list[netlink.Filter]:
    ours = _program_ids(tables)
    return [
        found
        for ifindex in ifindexes
        for direction in DIRECTIONS
        for found in netlink.bpf_filters(ifindex, direction)
        if found.program_id == ours[direction]
    ]


def _all_ifindexes() -> list[int]:
    import socket

    return [index for index, _ in socket.if_nameindex()]


def attachments(tables: Tables) -> list[Attachment]:
    """Where our programs are, as read back from the kernel."""
    by_clsact = [
        Attachment(found.ifindex, found.direction, "clsact", found.program_id)
        for found in _clsact_filters(tables, _all_ifindexes())
    ]
    return sorted([*_tcx_attachments(tables.directory), *by_clsact])


def attach_all(
    tables: Tables, ifindex: int, name: str, directions: Iterable[str], mode: str
) -> list[Attachment]:
    """Attach the programs of these directions: all of them, or on an error none anew."""
    before = attachments(tables)
    try:
        return [attach(tables, ifindex, name, direction, mode) for direction in directions]
    except BaseException:
        for attachment in attachments(tables):
            if attachment not in before:
                _take_off(tables, attachment)
        raise


def equate(
    tables: Tables, wanted: Iterable[tuple[int, str, str, str]]
) -> tuple[list[Attachment], list[Attachment]]:
    """Make the attachments exactly these: what is new, and what was taken off.

    Each is (ifindex, name, direction, mode). On an error they are as before.
    """
    before = attachments(tables)
    places = set()
    made = []
    try:
        for ifindex, name, direction, mode in wanted:
            places.add((ifindex, direction))
            with _told_as(f"attach to {name} ({direction})"):
                attachment = attach(tables, ifindex, name, direction, mode)
            if attachment not in before:
                made.append(attachment)
        taken = [a for a in before if (a.ifindex, a.direction) not in places]
        for attachment in taken:
            with _told_as(f"detach from interface {attachment.ifindex} ({attachment.direction})"):
                _take_off(tables, attachment)
        _forget_flows(tables)
    except BaseException:
        now = attachments(tables)
        for old in before:
            if old not in now:
                attach(tables, old.ifindex, str(old.ifindex), old.direction, old.mode)
        for new in now:
            if not any((new.ifindex, new.direction) == (a.ifindex, a.direction) for a in before):
                _take_off(tables, new)
        raise
    return made, taken


@contextmanager
def _told_as(operation: str) -> Iterator[None]:
    """Let an OSError of the kernel say what it was about."""
    try:
        yield
    except ZfwError:
        raise
    except OSError as error:
        raise KernelError(operation, error.errno or 0) from error


def attach(tables: Tables, ifindex: int, name: str, direction: str, mode: str) -> Attachment:
    """Attach one direction's program; where it is attached already, that stays as it is.

    A mode other than "auto" that differs from the present one is changed to,
    the new way in place before the old one goes.
    """
    present = [a for a in attachments(tables) if a.ifindex == ifindex and a.direction == direction]
    if mode == "auto":
        if present:
            return present[0]
        mode = "tcx" if bpf.supports_tcx(ifindex) else "clsact"
    elif mode == "tcx" and not bpf.supports_tcx(ifindex):
        raise KernelError(
            f"attach to {name} by TCX",
            errno.EOPNOTSUPP,
            hint="the kernel has none (6.6 does); --mode clsact works",
        )
    if not any(a.mode == mode for a in present):
        if direction == "egress":
            make_tables(tables)
        fd = _open_program(tables, direction)
        try:
            _put(tables, ifindex, direction, mode, fd)
        finally:
            os.close(fd)
    for old in present:
        if old.mode != mode:
            _take_off(tables, old)
    for attachment in attachments(tables):
        if (attachment.ifindex, attachment.direction, attachment.mode) == (
            ifindex,
            direction,
            mode,
        ):
            return attachment
    raise ZfwError(f"attached to {name} ({direction}, {mode}), but the kernel does not show it")


def _put(tables: Tables, ifindex: int, direction: str, mode: str, program_fd: int) -> None:
    if mode == "clsact":
        netlink.attach_clsact(ifindex, direction, program_fd, f"zfw_{direction}")
        return
    path = _link_path(tables, ifindex, direction)
    with suppress(FileNotFoundError):
        link = bpf.open_pin(path)
        try:
            bpf.update_link(link, program_fd)
            return
        finally:
            os.close(link)
    link = bpf.create_link(program_fd, ifindex, _TCX_TYPES[direction])
    try:
        # Unpinned, the link and with it the filter would go with this process.
        bpf.pin(link, path)
    finally:
        os.close(link)


def _take_off(tables: Tables, attachment: Attachment) -> None:
    if attachment.mode == "tcx":
        path = _link_path(tables, attachment.ifindex, attachment.direction)
        link = bpf.open_pin(path)
        try:
            bpf.detach_link(link)
        finally:
            os.close(link)
        os.unlink(path)
        return
    for found in _clsact_filters(tables, [attachment.ifindex]):
        if found.direction == attachment.direction:
            netlink.delete_filter(found)


def detach(tables: Tables, ifindex: int | None, direction: str | None) -> list[Attachment]:
    """Take our programs off an interface, or off all of them; what was taken off."""
    taken = [
        a
        for a in attachments(tables)
        if ifindex in (None, a.ifindex) and direction in (None, a.direction)
    ]
    for attachment in taken:
        _take_off(tables, attachment)
    _forget_flows(tables)
    return taken


def _forget_flows(tables: Tables) -> None:
    """Where no egress program is left nothing keeps up with flows any more."""
    if not any(attachment.direction == "egress" for attachment in attachments(tables)):
        drop_tables(tables)


def uninstall(tables: Tables) -> None:
    """After ``detach``: remove every pin of this namespace."""
    bpffs.withdraw(tables.directory)
