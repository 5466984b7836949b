# SPDX-License-Identifier: GPL-2.0-only
"""Declares steer's programs to the life cycle, and attaches them in this order.

1. The hooks that see sockets: ``set_state``, then those of the root cgroup.
2. A scan finds the sockets that listened before.
3. ``lookup``, on the network namespace: steering takes effect.
"""

from __future__ import annotations

import errno
import grp
import os
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from zfw_py.errors import KernelError, raise_expected
from zfw_py.kernel import bpf_links, bpf_run, cgroup
from zfw_py.lifecycle import programs
from zfw_py.lifecycle.attachment import (
    PIN,
    Attachment,
    CgroupHook,
    NetnsHook,
    Tracing,
    opened,
)
from zfw_py.lifecycle.manifest import read as read_manifest
from zfw_py.lifecycle.manifest import write as write_manifest
from zfw_py.lifecycle.programs import System
from zfw_py.lifecycle.store import MANIFEST, ROOT
from zfw_py.steer import codec, layout
from zfw_py.steer.maps import STORE, Maps
from zfw_py.steer.sockets import SocketSnapshot

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator, Sequence

# Its members may read the mappings and counters. zfw does not create the group.
GROUP = "zfw"

# In attach order; ``lookup`` follows.
_CGROUP_HOOKS = {
    "sock_release": bpf_links.CGROUP_INET_SOCK_RELEASE,
    "adopt": bpf_links.CGROUP_SOCK_OPS,
    "bind4": bpf_links.CGROUP_INET4_BIND,
    "bind6": bpf_links.CGROUP_INET6_BIND,
    "post_bind4": bpf_links.CGROUP_INET4_POST_BIND,
    "post_bind6": bpf_links.CGROUP_INET6_POST_BIND,
    "connect4": bpf_links.CGROUP_INET4_CONNECT,
    "connect6": bpf_links.CGROUP_INET6_CONNECT,
    "sendmsg4": bpf_links.CGROUP_UDP4_SENDMSG,
    "sendmsg6": bpf_links.CGROUP_UDP6_SENDMSG,
}
# An earlier version does not have them.
_ADDED = ("connect4", "connect6")
_TRACING = "set_state"
_LOOKUP = "lookup"
_SCANS = ("scan_tcp", "scan_udp")
_CALLED = ("take_slot", "forget")
# The pins that members of the group may read.
_READABLE = (
    "active", "config", "counters", "listening", "sockets", "target_ids", "targets", "troubles",
    MANIFEST,
)  # fmt: skip


class Manifest(msgspec.Struct, frozen=True):
    """The manifest of a steering, pinned as JSON in the map ``about``.

    ``digest``: SHA-256 of the object that the programs are from. ``cgroup``: the path of the
    cgroup that they are attached to. ``is_whole``: whether it is the root of all cgroups;
    false in a container, which sees a part of them.
    """

    digest: str
    cgroup: str
    is_whole: bool


class Namespace(NamedTuple):
    """A network namespace: cookie, descriptor, and a function that calls another one in it."""

    cookie: int
    fd: int
    call: Callable[[Callable[[], object]], object]


def _attachments(directory: str, cgroup: int = -1, netns: int = -1) -> Sequence[Attachment]:
    return (
        Tracing(directory, _TRACING),
        *(CgroupHook(directory, name, kind, cgroup) for name, kind in _CGROUP_HOOKS.items()),
        NetnsHook(directory, _LOOKUP, bpf_links.SK_LOOKUP, netns),
    )


def _additions(directory: str) -> Iterator[Attachment]:
    """The hooks that an earlier version's steering lacks, each while it is to be attached."""
    missing = [name for name in _ADDED if not os.path.lexists(f"{directory}/{PIN}{name}")]
    root = cgroup.open_directory(read_manifest(Maps(directory), Manifest).cgroup)
    try:
        for name in missing:
            yield CgroupHook(directory, name, _CGROUP_HOOKS[name], root)
    finally:
        os.close(root)


def _record(directory: str, digest: str) -> None:
    manifest = read_manifest(Maps(directory), Manifest)
    write_manifest(directory, msgspec.structs.replace(manifest, digest=digest))


def _abandoned() -> Iterator[str]:
    """Steerings whose network namespace is gone; the kernel detached their link with it."""
    return (each for each in STORE.identifiers() if not _lookup(each).target)


SYSTEM = System(
    store=STORE,
    object=Path(__file__).resolve().parent.parent / "objects" / "steer.bpf.o",
    attachments=_attachments,
    digest=lambda directory: read_manifest(Maps(directory), Manifest).digest,
    record=_record,
    abandoned=_abandoned,
    pinned=(_TRACING, *_CGROUP_HOOKS, _LOOKUP, *_SCANS, *_CALLED),
    added=_ADDED,
    additions=_additions,
)


def install(namespace: Namespace) -> Maps:
    """Create a steering without mappings and attach its programs; the caller holds the lock.

    Raises KernelError, VerifierError, PermissionDenied; then nothing is changed.
    """
    _check_kernel(namespace.fd)
    programs.collect(SYSTEM)
    path = cgroup.mount_point()
    manifest = Manifest(programs.digest_of(SYSTEM), path, cgroup.is_root(path))

    def prepare(directory: str) -> Generator[Attachment]:
        maps = Maps(directory)
        config = codec.Config(namespace.cookie, layout.ABI_VERSION, 0)
        maps.map("config").update(codec.ZERO, config.encode())
        maps.begin()
        root = cgroup.open_directory(path)
        try:
            *hooks, lookup = _attachments(directory, root, namespace.fd)
            yield from hooks
        finally:
            os.close(root)
        namespace.call(lambda: scan(maps))
        yield lookup
        share(directory)

    programs.install(SYSTEM, namespace.cookie, prepare, manifest)
    return Maps(STORE.directory(namespace.cookie))


def _check_kernel(netns: int) -> None:
    try:
        bpf_links.attached_to_netns(netns, bpf_links.SK_LOOKUP)
    except OSError as error:
        if error.errno == errno.EINVAL:
            raise KernelError(
                "steer: the kernel has no sk_lookup programs",
                errno.EOPNOTSUPP,
                hint=f"Linux 5.9 has them; steer needs Linux 5.15, this is {os.uname().release}",
            ) from None
        raise_expected(error)


def scan(maps: Maps) -> SocketSnapshot:
    """Count the sockets that listen in the caller's network namespace; a snapshot of them.

    1. The iterators count the sockets that no hook has seen.
    2. An iterator can return a UDP socket that is closing, whose end no hook sees any more. So
       a dump of all sockets follows, and each counted socket that it does not have is forgotten.
    3. If all listeners found room, look-ups rely on the tables again.
    """
    before = _unrecorded(maps)
    for name in _SCANS:
        with opened(f"{maps.directory}/{SYSTEM.prefix}{name}") as program:
            bpf_run.run_iterator(program)
    counted = maps.counted()
    snapshot = SocketSnapshot()
    for cookie in counted - snapshot.cookies:
        maps.forget_listener(cookie)
    if maps.has_unrecorded() and _unrecorded(maps) == before:
        maps.forget_unrecorded()
        if _unrecorded(maps) != before:
            return scan(maps)  # one more came meanwhile
    return snapshot


def _unrecorded(maps: Maps) -> int:
    return maps.errors().get("listeners", 0)


def upgrade(maps: Maps, namespace: Namespace) -> bool:
    """Exchange the programs of another build, on the same maps; False if they are this one's.

    A program is attached at all times. Raises as ``lifecycle.programs.upgrade``.
    """
    check_version(maps)
    if not programs.upgrade(SYSTEM, namespace.cookie):
        return False
    namespace.call(lambda: _scan_again(maps))
    share(maps.directory)
    return True


def _scan_again(maps: Maps) -> None:
    """Forget connected UDP sockets and scan: an earlier version counted them as listeners."""
    for cookie in maps.counted() & SocketSnapshot().connected:
        maps.forget_listener(cookie)
    scan(maps)


def check_version(maps: Maps) -> codec.Config:
    """The settings of the programs. Raises LayoutMismatch if another version wrote them."""
    config = codec.Config.decode(maps.map("config").lookup(codec.ZERO) or b"")
    if config.abi_version != layout.ABI_VERSION:
        raise maps.mismatch("config", f"version {config.abi_version}")
    return config


# Reading


def _lookup(cookie: str | int) -> NetnsHook:
    return NetnsHook(STORE.directory(cookie), _LOOKUP, bpf_links.SK_LOOKUP)


def program_id(cookie: int) -> int:
    """The id of the attached program ``lookup``; 0 if it was detached by hand."""
    return _lookup(cookie).program_id() or 0


def attached(cookie: int) -> list[str]:
    """The names of the programs that are attached; a link may have been detached by hand."""
    return [
        each.program
        for each in _attachments(STORE.directory(cookie))
        if each.program_id() is not None
    ]


def share(directory: str) -> None:
    """Let the group read a steering, if there is such a group; other users cannot."""
    try:
        number = grp.getgrnam(GROUP).gr_gid
    except KeyError:
        return
    # With x and without r a member can open a pin, but not list the directory or lock it.
    os.chmod(ROOT, 0o711)  # noqa: S103
    for path, mode in ((STORE.root, 0o710), (directory, 0o710)):
        os.chown(path, 0, number)
        os.chmod(path, mode)
    for name in (*_READABLE, *(each for each in os.listdir(directory) if "state_" in each)):
        with suppress(FileNotFoundError):
            os.chown(f"{directory}/{name}", 0, number)
            os.chmod(f"{directory}/{name}", 0o640)
