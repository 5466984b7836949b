# SPDX-License-Identifier: GPL-2.0-only
"""A guard's programs on a cgroup: what is made, in which order, and which guards are in the way.

The DNS process answers before the first program is attached; the program that evaluates
packets is attached last.
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
from zfw_py.guard.maps import STORE, Tables
from zfw_py.kernel import bpf_links, cgroup
from zfw_py.kernel.process import Process
from zfw_py.lifecycle import programs
from zfw_py.lifecycle.attachment import Attachment, CgroupHook
from zfw_py.lifecycle.programs import System

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator, Mapping, Sequence

    from zfw_py.guard.maps import About
    from zfw_py.guard.model import Policy, Reach

# In the order in which they are attached.
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
_JUDGE = {"setsockopt": bpf_links.CGROUP_SETSOCKOPT, "egress": bpf_links.CGROUP_INET_EGRESS}


def new_identifier() -> str:
    """An id that no guard has had."""
    return secrets.token_hex(4)


# Onto it


class Rules(NamedTuple):
    """What a guard goes by: of a policy, flattened."""

    flat: Mapping[tuple[bytes, int], Reach]
    is_log_only: bool
    is_allowed_by_default: bool

    @classmethod
    def of(cls, policy: Policy) -> Self:
        """A policy's. Raises UsageError if it is beyond a limit."""
        return cls(policy.flatten(), policy.is_log_only, policy.is_allowed_by_default)


def _attachments(directory: str) -> Sequence[Attachment]:
    there = set(programs.link_pins(directory))
    return [
        CgroupHook(directory, name, kind)
        for name, kind in (_REDIRECT | _JUDGE).items()
        if name in there
    ]


def _digest(directory: str) -> str:
    return Tables(directory).about().digest


def _record(directory: str, digest: str) -> None:
    tables = Tables(directory)
    tables.write_about(replace(tables.about(), digest=digest))


def _undo(directory: str) -> None:
    """Remove the cgroups that were made for a guard."""
    about = _about(directory)
    if about is None:
        return
    for path, is_ours in (
        (about.cgroup, about.is_cgroup_ours),
        (about.proxy_cgroup, bool(about.proxy_cgroup)),
    ):
        if is_ours:
            cgroups.remove(path, STORE.identifiers())


def _abandoned() -> Iterator[str]:
    for identifier in STORE.identifiers():
        about = _about(STORE.directory(identifier))
        if about is not None and is_abandoned(identifier, about):
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
    about: About, rules: Rules | None, start: Callable[[Tables, About], None], *, tells_all: bool
) -> None:
    """Make a guard and put it in force; the caller holds the lock.

    Without rules: for DNS alone; without ``tells_all`` only denials are emitted. ``start``
    starts what answers its DNS, before the first program is attached. Raises Conflict if the
    cgroup is guarded already, or another program forbids ours; then nothing is left.
    """
    for other in STORE.identifiers():
        found = _about(STORE.directory(other))
        if found is not None and found.cgroup_id == about.cgroup_id:
            raise Conflict(f"{about.cgroup} is guarded already, by guard {other}")
    hooks = _REDIRECT if rules is None else _REDIRECT | _JUDGE
    about = replace(about, digest=programs.digest_of(SYSTEM))

    def prepare(directory: str) -> Generator[Attachment]:
        tables = Tables(directory)
        made = _make_cgroups(about)
        tables.write_about(made)
        _fill(tables, rules, tells_all=tells_all)
        try:
            start(tables, made)
            _check_others(made.cgroup, hooks)
            _take_in(made)
            place = cgroup.open_directory(made.cgroup)
            try:
                for name, kind in hooks.items():
                    yield CgroupHook(directory, name, kind, place)
            finally:
                os.close(place)
        except BaseException:
            tables.keeper().end()
            raise
        tables.directory = STORE.directory(about.id)

    sizes = {} if rules is None else {"prefixes": max(1, len(rules.flat))}
    programs.install(SYSTEM, about.id, prepare, about, sizes)


def _make_cgroups(about: About) -> About:
    if about.is_cgroup_ours:
        cgroups.make(about.cgroup)
    if about.proxy_cgroup:
        cgroups.make(about.proxy_cgroup)
    return replace(about, cgroup_id=cgroup.identifier(about.cgroup))


def _fill(tables: Tables, rules: Rules | None, *, tells_all: bool) -> None:
    flags = layout.REDIRECT_ONLY
    if rules is not None:
        tables.write_prefixes(rules.flat)
        flags = layout.LOG_ONLY if rules.is_log_only else 0
        if rules.is_allowed_by_default:
            flags |= layout.DEFAULT_ALLOW
    if tells_all:
        flags |= layout.TELL_ALL
    tables.write_config(flags)
    # Until it has a process of its own.
    tables.write_keeper(Process.current())
    tables.open_all()


def _check_others(path: str, hooks: Mapping[str, int]) -> None:
    """Raise Conflict if another program forbids ours, or would not run beside it.

    Without BPF_F_ALLOW_MULTI a program is alone on its cgroup, and below that cgroup either
    no other may attach, or one that attaches takes its place.
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


def is_gone(about: About) -> bool:
    """Whether the guarded cgroup is gone; another one may have its name."""
    try:
        return cgroup.identifier(about.cgroup) != about.cgroup_id
    except NotFound:
        return True


def is_abandoned(identifier: str, about: About) -> bool:
    """Whether a guard is of no use to anybody."""
    if is_gone(about):
        return True
    if not about.is_cgroup_ours or cgroup.is_populated(about.cgroup):
        return False
    try:
        return not Tables(STORE.directory(identifier)).keeper().is_alive()
    except LayoutMismatch:
        return False


# Others


def _about(directory: str) -> About | None:
    """What a guard is; None if another version made it, or nobody has said it yet."""
    try:
        return Tables(directory).about()
    except (LayoutMismatch, NotFound):
        return None


def has_guards_at(path: str) -> bool:
    """Whether a cgroup, or one around it, is guarded; the caller holds the lock."""
    here = {cgroup.identifier(each) for each in (path, *cgroup.ancestors(path))}
    return any(
        about is not None and about.cgroup_id in here
        for about in (_about(STORE.directory(each)) for each in STORE.identifiers())
    )


def keeper_pids() -> set[int]:
    """The ids of the processes that keep guards."""
    found = set()
    for identifier in STORE.identifiers():
        with suppress(LayoutMismatch, NotFound):
            process = Tables(STORE.directory(identifier)).keeper()
            if process.is_alive():
                found.add(process.pid)
    return found


def _take_in(outer: About) -> None:
    """Let the guards within a new one ask through it.

    Else what they allow would be asked past it, and it would not know the addresses
    when the packets come.
    """
    for identifier in STORE.identifiers():
        tables = Tables(STORE.directory(identifier))
        try:
            inner, process = tables.about(), tables.keeper()
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
                tables.write_about(replace(inner, proxy_cgroup=beside))
                cgroups.make(beside)
                cgroup.move(process.pid, beside)
        except (LayoutMismatch, NotFound):
            continue  # of another version, or it has ended meanwhile
