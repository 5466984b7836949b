# SPDX-License-Identifier: GPL-2.0-only
"""Programs onto a cgroup and off it.

A guard is built in a directory of its own and published by one rename. Its rules
are written before its first program is there, and the one that judges packets
comes last. Only our own links are ever removed.
"""

from __future__ import annotations

import errno
import os
import secrets
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from zfw_py.abi import guard_layout as layout
from zfw_py.errors import Conflict, KernelError, NotFound, ZfwError, raise_expected
from zfw_py.guard import processes
from zfw_py.guard.tables import ROOT, Tables, directory_of, identifiers
from zfw_py.kernel import bpf, bpffs, cgroup
from zfw_py.kernel.libbpf import BpfObject

if TYPE_CHECKING:
    from collections.abc import Mapping

    from zfw_py.abi.guard_codec import Proxy
    from zfw_py.guard.tables import About
    from zfw_py.model.policy import Policy

OBJECT = Path(__file__).resolve().parent.parent / "objects" / "guard.bpf.o"
_LINK_PIN = "link_"

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


def install(about: About, policy: Policy | None, proxies: Mapping[int, Proxy]) -> Tables:
    """Guard a cgroup from now on; the caller holds the lock. Without a policy: DNS alone.

    Raises Conflict if the cgroup is guarded already, or another program forbids it.
    """
    for other in identifiers():
        found = _about(directory_of(other))
        if found is not None and found.cgroup_id == about.cgroup_id:
            raise Conflict(f"{about.cgroup} is guarded already, by guard {other}")
    if not OBJECT.exists():
        raise ZfwError(f"{OBJECT.name} is missing", hint="build it: pip install . in the source")
    built = bpffs.new_directory(ROOT)
    try:
        _build(built, about, policy, proxies)
        bpffs.publish(built, directory_of(about.id))
    except BaseException as error:
        _take_off(built)
        if isinstance(error, OSError):
            raise_expected(error)
        raise
    return Tables(directory_of(about.id))


def _build(
    directory: str, about: About, policy: Policy | None, proxies: Mapping[int, Proxy]
) -> None:
    with BpfObject(OBJECT) as loaded:
        if policy is not None:
            loaded.size_map("prefixes", max(1, len(policy.flatten())))
        loaded.load()
        for name, fd in loaded.maps().items():
            bpf.pin(fd, f"{directory}/{name}")
        tables = Tables(directory)
        tables.write_about(about)
        flags = layout.REDIRECT_ONLY
        if policy is not None:
            tables.write_prefixes(policy)
            flags = layout.LOG_ONLY if policy.is_log_only else 0
            if policy.is_allowed_by_default:
                flags |= layout.DEFAULT_ALLOW
        tables.write_config(flags)
        for cookie, proxy in proxies.items():
            tables.write_proxy(cookie, proxy)
        programs = loaded.programs()
        place = cgroup.open_directory(about.cgroup)
        try:
            for name, attach_type in (_REDIRECT | (_JUDGE if policy is not None else {})).items():
                _attach(programs[name], place, attach_type, f"{directory}/{_LINK_PIN}{name}")
        finally:
            os.close(place)


def _attach(program_fd: int, place: int, attach_type: int, pin: str) -> None:
    name = pin.rpartition(_LINK_PIN)[2]
    try:
        link = bpf.create_link(program_fd, place, attach_type)
    except OSError as error:
        if error.errno == errno.EPERM:
            # cgroup_attach without BPF_F_ALLOW_MULTI, on this cgroup or one around it.
            raise Conflict(
                f"attach {name}: a program on the cgroup, or on one around it, allows no other",
                hint="bpftool cgroup tree shows it",
            ) from error
        raise KernelError(f"attach {name} to the cgroup", error.errno or 0) from error
    try:
        # Unpinned, the link and with it the program would go with this process.
        bpf.pin(link, pin)
    finally:
        os.close(link)


def remove(identifier: str) -> bool:
    """Take a guard's programs off and forget it; the caller holds the lock.

    False if there is none of this id any more.
    """
    directory = directory_of(identifier)
    if not os.path.isdir(directory):
        return False
    about = _about(directory)
    doomed = bpffs.new_directory(ROOT)
    os.rename(directory, doomed)
    _take_off(doomed)
    if about is not None:
        if about.is_cgroup_ours:
            remove_cgroup(about.cgroup)
        if about.proxy_cgroup:
            remove_cgroup(about.proxy_cgroup)
    return True


def _about(directory: str) -> About | None:
    try:
        return Tables(directory).about()
    except ZfwError:
        return None  # of another version: its programs go all the same


def _take_off(directory: str) -> None:
    for name in os.listdir(directory):
        if name.startswith(_LINK_PIN):
            link = bpf.open_pin(f"{directory}/{name}")
            try:
                # Unpinned alone it would stay for a moment.
                bpf.detach_link(link)
            except OSError as error:
                # ENOLINK: its cgroup is gone.
                if error.errno not in (errno.ENOLINK, errno.ENOENT):
                    raise
            finally:
                os.close(link)
    bpffs.remove_directory(directory)


def remove_cgroup(path: str) -> None:
    """Remove a cgroup that we made; who is still in it goes to the one around it."""
    try:
        for inner in cgroup.processes(path):
            with suppress(NotFound):
                cgroup.move(inner, os.path.dirname(path))
        cgroup.remove(path)
    except NotFound:
        pass
    except Conflict:
        pass  # a cgroup was made in it, which is not ours


def collect() -> None:
    """Remove what a process that was killed has left; the caller holds the lock.

    That is what was being built, guards whose cgroup is gone, and those of ``run``
    that nobody keeps and nobody is in.
    """
    for leftover in bpffs.unfinished(ROOT):
        _take_off(leftover)
    for identifier in identifiers():
        about = _about(directory_of(identifier))
        if about is not None and is_abandoned(identifier, about):
            remove(identifier)


def is_abandoned(identifier: str, about: About) -> bool:
    """Whether a guard is of no use to anybody."""
    try:
        if cgroup.identifier(about.cgroup) != about.cgroup_id:
            return True  # another cgroup has its name now
    except NotFound:
        return True
    if about.kind != "run" or cgroup.is_populated(about.cgroup):
        return False
    return not processes.is_alive(Tables(directory_of(identifier)).keeper())


def guards_around(path: str) -> list[str]:
    """The ids of the guards on cgroups around a cgroup."""
    around = {cgroup.identifier(above) for above in cgroup.ancestors(path)}
    return [
        identifier
        for identifier in identifiers()
        if (about := _about(directory_of(identifier))) is not None and about.cgroup_id in around
    ]
