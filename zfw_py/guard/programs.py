# SPDX-License-Identifier: GPL-2.0-only
"""Declares the guard for the life cycle: its hooks, its cgroups and its nested guards.

Order of ``install``:

1. Create the cgroups that the manifest names; pin the manifest again, with the cgroup's id.
2. Write prefixes and flags.
3. Start the supervisor: it answers before a query is redirected to it.
4. Check for programs that allow no other beside them.
5. Move supervisors of guards inside the new one.
6. Attach the programs; ``egress``, which enforces the policy, last.
"""

from __future__ import annotations

import os
import secrets
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Self

from msgspec.structs import replace

from zfw_py.errors import Conflict, LayoutMismatch, NotFound
from zfw_py.guard import cgroups, layout
from zfw_py.guard.maps import STORE, Maps
from zfw_py.kernel import bpf_links, cgroup
from zfw_py.kernel.process import Process
from zfw_py.lifecycle import programs
from zfw_py.lifecycle.attachment import Attachment, CgroupHook
from zfw_py.lifecycle.programs import System

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator, Mapping, Sequence

    from zfw_py.guard.maps import Manifest
    from zfw_py.guard.model import Policy, Reach

# In attach order.
_REDIRECT = {
    "sock_create": bpf_links.CGROUP_INET_SOCK_CREATE,
    "recvmsg4": bpf_links.CGROUP_UDP4_RECVMSG,
    "recvmsg6": bpf_links.CGROUP_UDP6_RECVMSG,
    "getpeername4": bpf_links.CGROUP_INET4_GETPEERNAME,
    "getpeername6": bpf_links.CGROUP_INET6_GETPEERNAME,
    "connect4": bpf_links.CGROUP_INET4_CONNECT,
    "connect6": bpf_links.CGROUP_INET6_CONNECT,
    "sendmsg4": bpf_links.CGROUP_UDP4_SENDMSG,
    "sendmsg6": bpf_links.CGROUP_UDP6_SENDMSG,
}
_ENFORCE = {"setsockopt": bpf_links.CGROUP_SETSOCKOPT, "egress": bpf_links.CGROUP_INET_EGRESS}


def new_identifier() -> str:
    """A random id of eight hexadecimal digits."""
    return secrets.token_hex(4)


# Creating


class Rules(NamedTuple):
    """A policy as the maps hold it; ``flat`` as ``Policy.flatten`` returns it."""

    flat: Mapping[tuple[bytes, int], Reach]
    is_log_only: bool
    is_allowed_by_default: bool

    @classmethod
    def of(cls, policy: Policy) -> Self:
        """Flatten a policy. Raises UsageError for a prefix with too many ports."""
        return cls(policy.flatten(), policy.is_log_only, policy.is_allowed_by_default)


def _attachments(directory: str) -> Sequence[Attachment]:
    there = set(programs.link_pins(directory))
    return [
        CgroupHook(directory, name, kind)
        for name, kind in (_REDIRECT | _ENFORCE).items()
        if name in there
    ]


def _digest(directory: str) -> str:
    return Maps(directory).manifest().digest


def _record(directory: str, digest: str) -> None:
    maps = Maps(directory)
    maps.write_manifest(replace(maps.manifest(), digest=digest))


def _undo(directory: str) -> None:
    """Remove the cgroups that were created for a guard."""
    manifest = _manifest_of(directory)
    if manifest is None:
        return
    for path, is_ours in (
        (manifest.cgroup, manifest.is_cgroup_ours),
        (manifest.proxy_cgroup, bool(manifest.proxy_cgroup)),
    ):
        if is_ours:
            cgroups.remove(path, STORE.identifiers())


def _abandoned() -> Iterator[str]:
    for identifier in STORE.identifiers():
        manifest = _manifest_of(STORE.directory(identifier))
        if manifest is not None and is_abandoned(identifier, manifest):
            yield identifier


SYSTEM = System(
    store=STORE,
    object=Path(__file__).resolve().parent.parent / "objects" / "guard.bpf.o",
    attachments=_attachments,
    digest=_digest,
    record=_record,
    abandoned=_abandoned,
    undo=_undo,
)


def install(
    manifest: Manifest,
    rules: Rules | None,
    start: Callable[[Maps, Manifest], None],
    *,
    logs_all: bool,
) -> None:
    """Create a guard and publish it; the caller holds the lock.

    Without ``rules`` the guard redirects DNS only. Without ``logs_all`` the programs emit denials
    only. ``start`` starts the guard's DNS. Raises Conflict if the cgroup is guarded already, or if
    another program forbids ours; then nothing is left.
    """
    for other in STORE.identifiers():
        found = _manifest_of(STORE.directory(other))
        if found is not None and found.cgroup_id == manifest.cgroup_id:
            raise Conflict(f"{manifest.cgroup} is guarded already, by guard {other}")
    hooks = _REDIRECT if rules is None else _REDIRECT | _ENFORCE
    manifest = replace(manifest, digest=programs.digest_of(SYSTEM))

    def prepare(directory: str) -> Generator[Attachment]:
        maps = Maps(directory)
        complete = _create_cgroups(manifest)
        maps.write_manifest(complete)
        _fill(maps, rules, logs_all=logs_all)
        try:
            start(maps, complete)
            _check_other_programs(complete.cgroup, hooks)
            _move_inner_supervisors(complete)
            place = cgroup.open_directory(complete.cgroup)
            try:
                for name, kind in hooks.items():
                    yield CgroupHook(directory, name, kind, place)
            finally:
                os.close(place)
        except BaseException:
            maps.supervisor().end()
            raise
        maps.directory = STORE.directory(manifest.id)

    sizes = {} if rules is None else {"prefixes": max(1, len(rules.flat))}
    programs.install(SYSTEM, manifest.id, prepare, manifest, sizes)


def _create_cgroups(manifest: Manifest) -> Manifest:
    if manifest.is_cgroup_ours:
        cgroups.create(manifest.cgroup)
    if manifest.proxy_cgroup:
        cgroups.create(manifest.proxy_cgroup)
    return replace(manifest, cgroup_id=cgroup.identifier(manifest.cgroup))


def _fill(maps: Maps, rules: Rules | None, *, logs_all: bool) -> None:
    flags = layout.REDIRECT_ONLY
    if rules is not None:
        maps.write_prefixes(rules.flat)
        flags = layout.LOG_ONLY if rules.is_log_only else 0
        if rules.is_allowed_by_default:
            flags |= layout.DEFAULT_ALLOW
    if logs_all:
        flags |= layout.TELL_ALL
    maps.write_config(flags)
    # A redirect keeps its creator; a supervisor replaces it.
    maps.write_supervisor(Process.current())
    maps.open_all()


def _check_other_programs(path: str, hooks: Mapping[str, int]) -> None:
    """Raise Conflict if another program forbids ours, or would be replaced by ours.

    A program without BPF_F_ALLOW_MULTI is alone on its cgroup. Below that cgroup no other program
    may attach, or one that attaches replaces it.
    """
    for where in (path, *cgroup.ancestors(path)):
        place = cgroup.open_directory(where)
        try:
            for name, attach_type in hooks.items():
                count, flags = bpf_links.attached_to_cgroup(place, attach_type)
                if count and not flags & bpf_links.ALLOW_MULTI:
                    raise Conflict(
                        f"attach {name}: a program on {where} allows no other beside it",
                        hint="bpftool cgroup tree shows it",
                    )
        finally:
            os.close(place)


def is_gone(manifest: Manifest) -> bool:
    """Whether the guarded cgroup was removed; another cgroup may have its path by now."""
    try:
        return cgroup.identifier(manifest.cgroup) != manifest.cgroup_id
    except NotFound:
        return True


def is_abandoned(identifier: str, manifest: Manifest) -> bool:
    """Whether a guard is of no use any more: no cgroup, or neither processes nor supervisor.

    The second case is for cgroups that were created for the guard.
    """
    if is_gone(manifest):
        return True
    if not manifest.is_cgroup_ours or cgroup.is_populated(manifest.cgroup):
        return False
    try:
        return not Maps(STORE.directory(identifier)).supervisor().is_alive()
    except LayoutMismatch:
        return False


# Other guards


def _manifest_of(directory: str) -> Manifest | None:
    """The manifest of a guard; None if it is of another layout, or was not written yet."""
    try:
        return Maps(directory).manifest()
    except (LayoutMismatch, NotFound):
        return None


def has_guards_at(path: str) -> bool:
    """Whether a cgroup or an ancestor of it is guarded; the caller holds the lock."""
    here = {cgroup.identifier(each) for each in (path, *cgroup.ancestors(path))}
    return any(
        manifest is not None and manifest.cgroup_id in here
        for manifest in (_manifest_of(STORE.directory(each)) for each in STORE.identifiers())
    )


def guard_of(path: str) -> str | None:
    """The id of the guard on a cgroup, if there is one."""
    here = cgroup.identifier(path)
    for identifier in STORE.identifiers():
        manifest = _manifest_of(STORE.directory(identifier))
        if manifest is not None and manifest.cgroup_id == here:
            return identifier
    return None


def supervisor_pids() -> set[int]:
    """The pids of the supervisors of all guards."""
    found = set()
    for identifier in STORE.identifiers():
        with suppress(LayoutMismatch, NotFound):
            process = Maps(STORE.directory(identifier)).supervisor()
            if process.is_alive():
                found.add(process.pid)
    return found


def _move_inner_supervisors(outer: Manifest) -> None:
    """Move supervisors of guards inside a new one into it, so that they ask through it.

    Otherwise their queries would bypass the new guard, which would then not admit the addresses
    and deny the connections.
    """
    for identifier in STORE.identifiers():
        maps = Maps(STORE.directory(identifier))
        try:
            inner, process = maps.manifest(), maps.supervisor()
            is_inside = inner.cgroup_id != outer.cgroup_id and cgroups.is_within(
                inner.cgroup, outer.cgroup
            )
            if (
                is_inside
                and inner.kind != "redirect"
                and process.is_alive()
                and not cgroups.is_within(cgroup.of_process(process.pid), outer.cgroup)
            ):
                beside = cgroups.proxy_in(os.path.dirname(inner.cgroup), identifier)
                maps.write_manifest(replace(inner, proxy_cgroup=beside))
                cgroups.create(beside)
                cgroup.move(process.pid, beside)
        except (LayoutMismatch, NotFound):
            continue  # of another layout, or ended in the meantime
