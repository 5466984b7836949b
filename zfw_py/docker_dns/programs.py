# SPDX-License-Identifier: GPL-2.0-only
"""The two programs onto lo and the uplink, and off them.

A redirect is built in a directory of its own and published by one rename. Its settings
are written before its first program is there; the one that takes answers comes before
the one that sends queries, and goes after it. Only what is ours is ever removed.
"""

from __future__ import annotations

import os
from pathlib import Path
from struct import unpack_from
from typing import TYPE_CHECKING, NamedTuple

from zfw_py.docker_dns import layout
from zfw_py.docker_dns.maps import FLOWS, ROOT, Tables, directory_of, identifiers
from zfw_py.docker_dns.namespace_info import LOOPBACK_IFINDEX
from zfw_py.errors import KernelError, ZfwError, raise_expected
from zfw_py.kernel import bpf, bpffs, netlink, pins
from zfw_py.kernel.libbpf import BpfObject
from zfw_py.kernel.namespaces import call_in, find, live_cookies
from zfw_py.kernel.netns import netns_cookie

if TYPE_CHECKING:
    from zfw_py.docker_dns.codec import Config, Daemon
    from zfw_py.docker_dns.maps import About

OBJECT = Path(__file__).resolve().parent.parent / "objects" / "docker_dns.bpf.o"
_LINK_PIN = "link_"
_PROGRAM_PIN = "program_"


class _Hook(NamedTuple):
    program: str
    is_on_loopback: bool
    direction: str
    tcx: int


# In the order in which they are attached.
_HOOKS = (
    _Hook("answer", False, "ingress", bpf.TCX_INGRESS),
    _Hook("query", True, "egress", bpf.TCX_EGRESS),
)


def install(
    about: About, config: Config, daemon: Daemon, domains: tuple[str, ...], path: str
) -> Tables:
    """Redirect from now on; the caller holds the lock. ``path`` leads to the namespace.

    Raises KernelError, VerifierError, Conflict, PermissionDenied; then nothing is changed.
    """
    if not OBJECT.exists():
        raise ZfwError(f"{OBJECT.name} is missing", hint="build it: pip install . in the source")
    built = bpffs.new_directory(ROOT)
    try:
        with BpfObject(OBJECT) as loaded:
            for name in FLOWS:
                # The table forgets the oldest, and so there always is a port that is free.
                loaded.size_map(name, min(layout.FLOWS, config.port_count // 2))
            loaded.load()
            programs = loaded.programs()
            for name, fd in loaded.maps().items():
                bpf.pin(fd, f"{built}/{name}")
            for name, fd in programs.items():
                bpf.pin(fd, f"{built}/{_PROGRAM_PIN}{name}")
            tables = Tables(built)
            tables.write_about(about)
            tables.write_config(config)
            tables.write_daemon(daemon)
            tables.write_domains(domains)
            call_in(path, lambda: _attach(about, programs, built))
        bpffs.publish(built, directory_of(about.id))
    except BaseException as error:
        _take_off(built, about, path)
        if isinstance(error, OSError):
            raise_expected(error)
        raise
    return Tables(directory_of(about.id))


def _attach(about: About, programs: dict[str, int], directory: str) -> None:
    for hook in _HOOKS:
        ifindex = LOOPBACK_IFINDEX if hook.is_on_loopback else about.ifindex
        fd = programs[hook.program]
        if about.mode == "clsact":
            netlink.attach_clsact(
                ifindex, hook.direction, fd, f"zfw_{hook.program}", netlink.DOCKER_DNS_HANDLE
            )
            continue
        try:
            link = bpf.create_link(fd, ifindex, hook.tcx)
        except OSError as error:
            raise KernelError(f"attach {hook.program} by TCX", error.errno or 0) from error
        try:
            # Unpinned, the link and with it the program would go with this process.
            bpf.pin(link, f"{directory}/{_LINK_PIN}{hook.program}")
        finally:
            os.close(link)


def remove(identifier: str) -> bool:
    """Take a redirect's programs off and forget it; the caller holds the lock.

    False if there is no redirect of this id any more. Raises ZfwError where its
    namespace would have to be entered and cannot be seen from here.
    """
    directory = directory_of(identifier)
    if not os.path.isdir(directory):
        return False
    about, place = _whereabouts(directory)
    doomed = bpffs.new_directory(ROOT)
    os.rename(directory, doomed)
    _take_off(doomed, about, place)
    return True


def _whereabouts(directory: str) -> tuple[About | None, str | None]:
    """What ``_take_off`` has to know. Raises as ``path_of``."""
    try:
        about = Tables(directory).about()
    except ZfwError:
        return None, None  # of another version, or it did not come so far
    return about, path_of(about) if about.mode == "clsact" else None


def path_of(about: About) -> str | None:
    """A path to a redirect's namespace, None if that is gone.

    Raises ZfwError if it can only be that it is hidden from this process.
    """
    cookie = int(about.id)
    if is_at(about.path, cookie):
        return about.path
    path = find(cookie)
    if path is None and live_cookies() is None:
        raise ZfwError(
            f"redirect {about.id}: its network namespace cannot be seen from here",
            hint="outside of all PID namespaces it can",
        )
    return path


def is_at(path: str, cookie: int) -> bool:
    """Whether a path leads to the namespace of a cookie: process ids are given again."""
    try:
        return call_in(path, netns_cookie) == cookie
    except ZfwError:
        return False


def _take_off(directory: str, about: About | None, place: str | None) -> None:
    """Remove programs and pins. ``place`` leads to the namespace, if it still is."""
    for hook in reversed(_HOOKS):
        pins.detach(f"{directory}/{_LINK_PIN}{hook.program}")
    if about is not None and about.mode == "clsact" and place is not None:
        call_in(place, lambda: _remove_filters(directory, about))
    bpffs.remove_directory(directory)


def _remove_filters(directory: str, about: About) -> None:
    for ifindex, _, found in reversed(_filters(directory, about)):
        if found is not None:
            netlink.delete_filter(found)
        if ifindex in about.made_clsact:
            netlink.remove_empty_clsact(ifindex)


def _filters(directory: str, about: About) -> list[tuple[int, str, netlink.Filter | None]]:
    """Our filters, from within the namespace: on which interface, of which program."""
    placed: list[tuple[int, str, netlink.Filter | None]] = []
    for hook in _HOOKS:
        ifindex = LOOPBACK_IFINDEX if hook.is_on_loopback else about.ifindex
        number = _program_id(f"{directory}/{_PROGRAM_PIN}{hook.program}")
        ours = [
            found
            for found in netlink.bpf_filters(ifindex, hook.direction)
            if found.program_id == number
        ]
        placed.append((ifindex, hook.program, ours[0] if ours else None))
    return placed


def _program_id(pin: str) -> int | None:
    try:
        program = bpf.open_pin(pin)
    except FileNotFoundError:
        return None
    try:
        return bpf.object_id(program)
    finally:
        os.close(program)


def detached(about: About) -> list[str]:
    """The programs that are not where they were put: their interface is gone, or they were."""
    directory = directory_of(about.id)
    if about.mode == "clsact":
        path = path_of(about)
        if path is None:
            return [hook.program for hook in _HOOKS]
        placed = call_in(path, lambda: _filters(directory, about))
        return [program for _, program, found in placed if found is None]
    return [
        hook.program
        for hook in _HOOKS
        if _link_ifindex(f"{directory}/{_LINK_PIN}{hook.program}") == 0
    ]


def _link_ifindex(pin: str) -> int:
    """The interface that a TCX link is on; 0: none any more."""
    try:
        link = bpf.open_pin(pin)
    except FileNotFoundError:
        return 0
    try:
        # struct bpf_link_info: type, id, prog_id, padding, tcx.ifindex
        (ifindex,) = unpack_from("=I", bpf.object_info(link, 24), 16)
    finally:
        os.close(link)
    return int(ifindex)


def clear() -> None:
    """Remove what a process that was killed was building or removing; the caller holds the lock."""
    for leftover in bpffs.unfinished(ROOT):
        _take_off(leftover, *_whereabouts(leftover))


def collect() -> None:
    """The same, and remove redirects that are of no use: namespace or interface are gone."""
    clear()
    for identifier in identifiers():
        try:
            about = Tables(directory_of(identifier)).about()
        except ZfwError:
            continue  # of another version, which removes it
        if is_gone(about) or detached(about):
            remove(identifier)


def is_gone(about: About) -> bool:
    """Whether the network namespace is: lo goes with it, and never before."""
    if about.mode == "clsact":
        return path_of(about) is None
    return _link_ifindex(f"{directory_of(about.id)}/{_LINK_PIN}query") == 0
