# SPDX-License-Identifier: GPL-2.0-only
"""Steer's programs on a network namespace and the cgroups of the machine.

The hooks that see listeners are attached first, then a scan finds the sockets that listened
before, and the program that steers is attached last.
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
from zfw_py.lifecycle import manifest, programs
from zfw_py.lifecycle.attachment import Attachment, CgroupHook, NetnsHook, Tracing, opened
from zfw_py.lifecycle.programs import System
from zfw_py.lifecycle.store import ROOT
from zfw_py.steer import codec, layout
from zfw_py.steer.maps import STORE, Tables
from zfw_py.steer.sockets import Surroundings

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator, Sequence

# Its members may read what is steered, with all counters. Made by whoever wants that.
GROUP = "zfw"

# In the order in which they are attached; then comes what steers.
_CGROUP_HOOKS = {
    "sock_release": bpf_links.CGROUP_INET_SOCK_RELEASE,
    "adopt": bpf_links.CGROUP_SOCK_OPS,
    "bind4": bpf_links.CGROUP_INET4_BIND,
    "bind6": bpf_links.CGROUP_INET6_BIND,
    "post_bind4": bpf_links.CGROUP_INET4_POST_BIND,
    "post_bind6": bpf_links.CGROUP_INET6_POST_BIND,
    "sendmsg4": bpf_links.CGROUP_UDP4_SENDMSG,
    "sendmsg6": bpf_links.CGROUP_UDP6_SENDMSG,
}
_TRACING = "set_state"
_LOOKUP = "lookup"
_SCANS = ("scan_tcp", "scan_udp")
_CALLED = ("take_slot", "forget")
# What others than root may read.
_READABLE = (
    "active", "config", "counters", "listening", "sockets", "target_ids", "targets", "troubles",
    manifest.NAME,
)  # fmt: skip


class About(msgspec.Struct, frozen=True):
    """What was attached: the digest of its programs, and on which cgroup they are.

    ``is_whole`` is false where the cgroup is not all of the machine, but what can be seen.
    """

    digest: str
    cgroup: str
    is_whole: bool


class Namespace(NamedTuple):
    """A network namespace: its cookie, a descriptor of it, and what calls from within it."""

    cookie: int
    fd: int
    call: Callable[[Callable[[], object]], object]


def _attachments(directory: str, cgroup: int = -1, netns: int = -1) -> Sequence[Attachment]:
    return (
        Tracing(directory, _TRACING),
        *(CgroupHook(directory, name, kind, cgroup) for name, kind in _CGROUP_HOOKS.items()),
        NetnsHook(directory, _LOOKUP, bpf_links.SK_LOOKUP, netns),
    )


def _record(directory: str, digest: str) -> None:
    about = manifest.read(Tables(directory), About)
    manifest.write(directory, msgspec.structs.replace(about, digest=digest))


def _abandoned() -> Iterator[str]:
    """Those whose network namespace is gone: their link was detached with it."""
    return (each for each in STORE.identifiers() if not _lookup(each).target)


SYSTEM = System(
    store=STORE,
    object=Path(__file__).resolve().parent.parent / "objects" / "steer.bpf.o",
    attachments=_attachments,
    digest=lambda directory: manifest.read(Tables(directory), About).digest,
    record=_record,
    abandoned=_abandoned,
    pinned=(_TRACING, *_CGROUP_HOOKS, _LOOKUP, *_SCANS, *_CALLED),
)


def install(namespace: Namespace) -> Tables:
    """Attach what there is, with no mapping yet; the caller holds the lock.

    Raises KernelError, VerifierError, PermissionDenied; then nothing is changed.
    """
    _check_kernel(namespace.fd)
    programs.collect(SYSTEM)
    place = cgroup.mount_point()
    about = About(programs.digest_of(SYSTEM), place, cgroup.is_root(place))

    def prepare(directory: str) -> Generator[Attachment]:
        tables = Tables(directory)
        config = codec.Config(namespace.cookie, layout.ABI_VERSION, 0)
        tables.map("config").update(codec.ZERO, config.encode())
        tables.begin()
        root = cgroup.open_directory(about.cgroup)
        try:
            *hooks, lookup = _attachments(directory, root, namespace.fd)
            yield from hooks
        finally:
            os.close(root)
        namespace.call(lambda: scan(tables))
        yield lookup
        share(directory)

    programs.install(SYSTEM, namespace.cookie, prepare, about)
    return Tables(STORE.directory(namespace.cookie))


def _check_kernel(netns: int) -> None:
    try:
        bpf_links.attached_to_netns(netns, bpf_links.SK_LOOKUP)
    except OSError as error:
        if error.errno == errno.EINVAL:
            raise KernelError(
                "steer: the kernel has no sk_lookup programs",
                errno.EOPNOTSUPP,
                hint=f"Linux 5.9 has, and what else it takes came until 5.15; this is"
                f" {os.uname().release}",
            ) from None
        raise_expected(error)


def scan(tables: Tables) -> Surroundings:
    """Take note of what listens in the caller's network namespace; what that is.

    Of a socket that is closed just as it is met nobody tells that it goes: what is noted
    before a look at all sockets, and is none of these, is forgotten.
    """
    for name in _SCANS:
        with opened(f"{tables.directory}/{SYSTEM.prefix}{name}") as program:
            bpf_run.run_iterator(program)
    noted = tables.noted()
    around = Surroundings()
    for cookie in noted - around.cookies:
        tables.forget_listener(cookie)
    return around


def upgrade(tables: Tables, namespace: Namespace) -> bool:
    """Exchange programs that another build of zfw has attached, if they are; on the same maps.

    No look-up is without a program. Raises as ``lifecycle.programs.upgrade``.
    """
    check_version(tables)
    if not programs.upgrade(SYSTEM, namespace.cookie):
        return False
    namespace.call(lambda: scan(tables))
    share(tables.directory)
    return True


def check_version(tables: Tables) -> codec.Config:
    """What the programs go by. Raises LayoutMismatch if another version wrote it."""
    config = codec.Config.decode(tables.map("config").lookup(codec.ZERO) or b"")
    if config.abi_version != layout.ABI_VERSION:
        raise tables.mismatch("config", f"version {config.abi_version}")
    return config


# How it is


def _lookup(cookie: str | int) -> NetnsHook:
    return NetnsHook(STORE.directory(cookie), _LOOKUP, bpf_links.SK_LOOKUP)


def program_id(cookie: int) -> int:
    """The id of the program that steers; 0 if it was detached by hand."""
    return _lookup(cookie).program_id() or 0


def attached(cookie: int) -> list[str]:
    """The names of the programs that are attached; a link may have been detached by hand."""
    return [
        each.program
        for each in _attachments(STORE.directory(cookie))
        if each.program_id() is not None
    ]


def share(directory: str) -> None:
    """Let the group read what may be read, if there is such a group; nobody else."""
    try:
        number = grp.getgrnam(GROUP).gr_gid
    except KeyError:
        return
    # Whoever may go through it can neither list it nor hold its lock.
    os.chmod(ROOT, 0o711)  # noqa: S103
    for path, mode in ((STORE.root, 0o710), (directory, 0o710)):
        os.chown(path, 0, number)
        os.chmod(path, mode)
    for name in (*_READABLE, *(each for each in os.listdir(directory) if "state_" in each)):
        with suppress(FileNotFoundError):
            os.chown(f"{directory}/{name}", 0, number)
            os.chmod(f"{directory}/{name}", 0o640)
