# SPDX-License-Identifier: GPL-2.0-only
"""Programs onto a cgroup and off it.

A guard is built in a directory of its own: what is to be made is written there
first, then cgroups, rules and programs. When its process answers DNS, the programs are
attached, the one that judges packets last, and the directory gets the guard's name:
from then on it is one. It goes the other way: it loses its name, and what says what
was made goes last. Whoever finds a directory without a name while holding the lock
knows that its maker was killed, and removes it. Only our own links are ever removed.
"""

from __future__ import annotations

import os
import secrets
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Self

from msgspec.structs import replace

from zfw_py.errors import (
    Conflict,
    KernelError,
    LayoutMismatch,
    NotFound,
    ZfwError,
    raise_expected,
)
from zfw_py.guard import cgroups, layout, processes
from zfw_py.guard.maps import ABOUT, ROOT, Tables, directory_of, identifiers
from zfw_py.kernel import bpf, bpffs, cgroup, pins
from zfw_py.kernel.libbpf import BpfObject

if TYPE_CHECKING:
    from collections.abc import Mapping

    from zfw_py.guard.maps import About
    from zfw_py.guard.model import Policy, Reach

OBJECT = Path(__file__).resolve().parent.parent / "objects" / "guard.bpf.o"
_LINK_PIN, _PROGRAM_PIN = "link_", "program_"

# In the order in which they are attached.
_REDIRECT = {
    "sock_create": bpf.CGROUP_INET_SOCK_CREATE,
    "recvmsg4": bpf.CGROUP_UDP4_RECVMSG,
    "recvmsg6": bpf.CGROUP_UDP6_RECVMSG,
    "getpeername4": bpf.CGROUP_INET4_GETPEERNAME,
    "getpeername6": bpf.CGROUP_INET6_GETPEERNAME,
    "connect4": bpf.CGROUP_INET4_CONNECT,
    "connect6": bpf.CGROUP_INET6_CONNECT,
    "sendmsg4": bpf.CGROUP_UDP4_SENDMSG,
    "sendmsg6": bpf.CGROUP_UDP6_SENDMSG,
}
_JUDGE = {"setsockopt": bpf.CGROUP_SETSOCKOPT, "egress": bpf.CGROUP_INET_EGRESS}


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


def build(about: About, rules: Rules | None, *, tells_all: bool) -> tuple[Tables, About]:
    """Make all that a guard is, attached to nothing yet; the caller holds the lock.

    Without rules: for DNS alone; without ``tells_all`` only denials are told. Raises
    Conflict if the cgroup is guarded already; whatever is raised, nothing is left.
    """
    for other in identifiers():
        found = _about(directory_of(other))
        if found is not None and found.cgroup_id == about.cgroup_id:
            raise Conflict(f"{about.cgroup} is guarded already, by guard {other}")
    if not OBJECT.exists():
        raise ZfwError(f"{OBJECT.name} is missing", hint="build it: pip install . in the source")
    tables = Tables(bpffs.new_directory(ROOT))
    try:
        tables.write_about(about)
        about = _make_cgroups(about)
        tables.write_about(about)
        _load(tables, rules, tells_all=tells_all)
    except BaseException as error:
        dismantle(tables.directory)
        if isinstance(error, OSError):
            raise_expected(error)
        raise
    return tables, about


def _make_cgroups(about: About) -> About:
    if about.is_cgroup_ours:
        cgroups.make(about.cgroup)
    if about.proxy_cgroup:
        cgroups.make(about.proxy_cgroup)
    return replace(about, cgroup_id=cgroup.identifier(about.cgroup))


def _load(tables: Tables, rules: Rules | None, *, tells_all: bool) -> None:
    with BpfObject(OBJECT) as loaded:
        if rules is not None:
            loaded.size_map("prefixes", max(1, len(rules.flat)))
        loaded.load()
        for name, fd in loaded.maps().items():
            bpf.pin(fd, f"{tables.directory}/{name}")
        programs = loaded.programs()
        for name in _REDIRECT if rules is None else _REDIRECT | _JUDGE:
            bpf.pin(programs[name], f"{tables.directory}/{_PROGRAM_PIN}{name}")
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
    tables.write_keeper(processes.this_process())
    tables.open_all()


def put_in_force(tables: Tables, about: About) -> None:
    """Attach what was built, and give it its name; the caller holds the lock.

    Raises Conflict if another program forbids it.
    """
    programs = {
        name: attach_type
        for name, attach_type in (_REDIRECT | _JUDGE).items()
        if os.path.exists(f"{tables.directory}/{_PROGRAM_PIN}{name}")
    }
    _check_others(about.cgroup, programs)
    place = cgroup.open_directory(about.cgroup)
    try:
        for name, attach_type in programs.items():
            pin = f"{tables.directory}/{_PROGRAM_PIN}{name}"
            _attach(pin, place, attach_type, f"{tables.directory}/{_LINK_PIN}{name}")
            os.unlink(pin)  # the link has it
    finally:
        os.close(place)
    _take_in(about)
    bpffs.publish(tables.directory, directory_of(about.id))
    tables.directory = directory_of(about.id)


def _check_others(path: str, programs: Mapping[str, int]) -> None:
    """Raise Conflict if a program of somebody's forbids ours, or would not run beside it.

    Without BPF_F_ALLOW_MULTI it is alone on its cgroup, and within it either nobody may
    attach or whoever does takes its place.
    """
    for where in (path, *cgroup.ancestors(path)):
        place = cgroup.open_directory(where)
        try:
            for name, attach_type in programs.items():
                count, flags = bpf.attached_to_cgroup(place, attach_type)
                if count and not flags & bpf.ALLOW_MULTI:
                    raise Conflict(
                        f"attach {name}: a program on {where} allows no other beside it",
                        hint="bpftool cgroup tree shows it",
                    )
        finally:
            os.close(place)


def _attach(program_pin: str, place: int, attach_type: int, pin: str) -> None:
    name = pin.rpartition(_LINK_PIN)[2]
    program = bpf.open_pin(program_pin)
    try:
        link = bpf.create_link(program, place, attach_type)
    except OSError as error:
        raise KernelError(f"attach {name} to the cgroup", error.errno or 0) from error
    finally:
        os.close(program)
    try:
        # Unpinned, the link and with it the program would go with this process.
        bpf.pin(link, pin)
    finally:
        os.close(link)


# Off it


def remove(identifier: str) -> bool:
    """Take a guard's programs off and forget it; the caller holds the lock.

    False if there is none of this id any more.
    """
    _remove_unfinished()
    doomed = bpffs.new_directory(ROOT)
    try:
        os.rename(directory_of(identifier), doomed)
    except FileNotFoundError:
        os.rmdir(doomed)
        return False
    dismantle(doomed)
    return True


def dismantle(directory: str) -> None:
    """Remove what is in a directory without a name, and what its guard made.

    The lock does not keep anybody from removing pins by hand meanwhile.
    """
    about = _about(directory)
    names = os.listdir(directory)
    for name in names:
        if name.startswith(_LINK_PIN):
            pins.detach(f"{directory}/{name}")
    if about is not None:
        if about.is_cgroup_ours:
            cgroups.remove(about.cgroup, identifiers())
        if about.proxy_cgroup:
            cgroups.remove(about.proxy_cgroup, identifiers())
    # What says what was made goes last.
    for name in sorted(names, key=lambda name: name == ABOUT):
        with suppress(FileNotFoundError):
            os.unlink(f"{directory}/{name}")
    with suppress(FileNotFoundError):
        os.rmdir(directory)


def _remove_unfinished() -> None:
    for leftover in bpffs.unfinished(ROOT):
        dismantle(leftover)


def collect() -> None:
    """Remove what a process that was killed has left; the caller holds the lock.

    That is what was being built or removed, guards whose cgroup is gone, and those
    whose cgroup was made for them that nobody keeps and nobody is in.
    """
    _remove_unfinished()
    for identifier in identifiers():
        about = _about(directory_of(identifier))
        if about is not None and is_abandoned(identifier, about):
            remove(identifier)


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
        return not processes.is_alive(Tables(directory_of(identifier)).keeper())
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
        for about in map(_about, map(directory_of, identifiers()))
    )


def keeper_pids() -> set[int]:
    """The ids of the processes that keep guards."""
    found = set()
    for identifier in identifiers():
        with suppress(LayoutMismatch, NotFound):
            process = Tables(directory_of(identifier)).keeper()
            if processes.is_alive(process):
                found.add(process.pid)
    return found


def _take_in(outer: About) -> None:
    """Let the guards within a new one ask through it.

    Else what they allow would be asked past it, and it would not know the addresses
    when the packets come.
    """
    for identifier in identifiers():
        tables = Tables(directory_of(identifier))
        try:
            inner, process = tables.about(), tables.keeper()
            is_inside = inner.cgroup_id != outer.cgroup_id and cgroups.is_within(
                inner.cgroup, outer.cgroup
            )
            if (
                is_inside
                and inner.kind != "redirect"
                and processes.is_alive(process)
                and not cgroups.is_within(cgroup.of_process(process.pid), outer.cgroup)
            ):
                beside = cgroups.proxy_in(os.path.dirname(inner.cgroup), identifier)
                tables.write_about(replace(inner, proxy_cgroup=beside))
                cgroups.make(beside)
                cgroup.move(process.pid, beside)
        except (LayoutMismatch, NotFound):
            continue  # of another version, or it has ended meanwhile
