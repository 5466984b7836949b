# SPDX-License-Identifier: GPL-2.0-only
"""Redirects: made, listed, taken away. What the command line and other programs call."""

from __future__ import annotations

import errno
import os
import time
from contextlib import contextmanager
from ipaddress import ip_address
from typing import TYPE_CHECKING, Literal, NamedTuple

from zfw_py.docker_dns import layout, namespace_info, programs
from zfw_py.docker_dns.codec import Config
from zfw_py.docker_dns.maps import STORE, About, NoRedirects, Tables, Watcher
from zfw_py.errors import (
    Conflict,
    KernelError,
    LayoutMismatch,
    NotFound,
    NotInstalled,
    PermissionDenied,
    UsageError,
)
from zfw_py.kernel import bpf_links
from zfw_py.kernel.namespaces import call_in, hold, path_of
from zfw_py.kernel.netns_cookie import netns_cookie
from zfw_py.kernel.process import Process, descriptor_path
from zfw_py.lifecycle.programs import clear, collect, locked, make_root
from zfw_py.lifecycle.programs import remove as remove_instance
from zfw_py.lifecycle.programs import upgrade as upgrade_instance

if TYPE_CHECKING:
    from collections.abc import Iterator

    from zfw_py.containers import Container
    from zfw_py.docker_dns.codec import Daemon
    from zfw_py.docker_dns.model import Redirect

Mode = Literal["auto", "tcx", "clsact"]


class Target(NamedTuple):
    """Whose queries: a network namespace by a path that leads to it, and its container, if any."""

    path: str
    container: Container | None = None

    def __str__(self) -> str:
        return f"container {self.container.name}" if self.container else self.path


class Making(NamedTuple):
    """How a redirect is made. ``daemon``: its ports, where they are not to be looked for."""

    mode: Mode = "auto"
    daemon: Daemon | None = None
    is_probed: bool = True
    is_watched: bool = False  # by this process, which reads the events and takes it away


class Status(NamedTuple):
    """A redirect as it is. ``problem`` says what is wrong with it, and is empty if nothing is.

    ``outcomes`` has packets and bytes of each; ``lost`` counts events nobody took in time.
    """

    about: About
    problem: str
    daemon: Daemon
    outcomes: dict[str, tuple[int, int]]
    lost: int


def of_container(container: Container) -> Target:
    """The network namespace of a running container."""
    return Target(path_of(container.pid), container)


def of_process(pid: int) -> Target:
    """The network namespace of a process. Raises UsageError, NotFound."""
    if pid <= 0:
        raise UsageError(f"--pid: not a process id: {pid}")
    path = path_of(pid)
    if not os.path.lexists(path):
        raise NotFound(f"no such process: {pid}")
    return Target(path)


def of_path(path: str) -> Target:
    """A network namespace by a file, as ``ip netns`` makes them beneath /run/netns."""
    return Target(os.path.abspath(path))


# Making


@contextmanager
def _held(path: str) -> Iterator[tuple[str, int]]:
    """Another path to a namespace, which leads to that one even if its process ends; its cookie."""
    fd = hold(path)
    try:
        held = descriptor_path(fd)
        try:
            cookie = call_in(held, netns_cookie)
        except UsageError:
            raise UsageError(f"{path}: not a network namespace") from None
        except PermissionDenied:
            raise PermissionDenied(f"enter the network namespace {path}: needs root") from None
        yield held, cookie
    finally:
        os.close(fd)


def redirect(target: Target, asked: Redirect, making: Making = Making()) -> About:  # noqa: B008
    """Send the queries of a network namespace to another server; nothing has to be kept.

    Raises NotFound, UsageError, Conflict, PermissionDenied, ZfwError, each in one line
    that says what is in the way; then nothing is changed.
    """
    with _held(target.path) as (path, cookie):
        if (older := _older(cookie, asked)) is not None and _upgrade(cookie):
            return older
        if target.container is not None and cookie == netns_cookie():
            raise UsageError(
                f"{target} shares this network namespace, whose DNS is not the engine's"
            )
        make_root(STORE)
        _check_free(cookie, making)
        found = call_in(path, lambda: namespace_info.look(asked, making.daemon))
        if making.is_probed:
            call_in(path, lambda: namespace_info.probe(asked, found.source))
        with locked(STORE, is_exclusive=True):
            collect(programs.SYSTEM)
            _check_free(cookie, making)
            # What a watcher that was killed has left.
            remove_instance(programs.SYSTEM, str(cookie))
            # Now that nothing of ours is there any more: what is will stay.
            about = _about(target, asked, making, found, path)
            config = _config(asked, making, found)
            return programs.install(about, config, found.daemon, asked.domains, path)


def _older(cookie: int, asked: Redirect) -> About | None:
    """The redirect that is asked for, if it is there and no watcher keeps it."""
    try:
        about = Tables(STORE.directory(cookie)).about()
    except (NotFound, LayoutMismatch):
        return None
    is_same = (
        about.server == str(asked.server)
        and about.resolver == str(asked.resolver)
        and about.domains == list(asked.domains)
        and (about.tcp, about.interface) == (asked.tcp, asked.interface)
    )
    return about if is_same and about.watcher is None and not programs.detached(about) else None


def _upgrade(cookie: int) -> bool:
    with locked(STORE, is_exclusive=True):
        clear(programs.SYSTEM)
        tables = Tables(STORE.directory(cookie))
        tables.config()
        return upgrade_instance(programs.SYSTEM, cookie)


def upgrade() -> bool:
    """Exchange programs of another build in the redirect of this network namespace.

    False if they are this build's. Raises NotInstalled where there is none, KernelError.
    """
    cookie = netns_cookie()
    if not STORE.exists(cookie):
        raise NotInstalled("no redirect of this network namespace")
    return _upgrade(cookie)


def _check_free(cookie: int, making: Making) -> None:
    """A namespace has one redirect, unless that is of no use any more.

    A watcher takes over from another that was killed.
    """
    tables = Tables(STORE.directory(str(cookie)))
    if not os.path.isdir(tables.directory):
        return
    about = tables.about()
    if making.is_watched and about.watcher is not None and not about.watcher.process.is_alive():
        return
    if programs.detached(about):
        return
    raise Conflict(
        f"its queries are redirected already, to {about.server}",
        hint=f"zfw docker-dns remove {about.id}",
    )


def _about(
    target: Target,
    asked: Redirect,
    making: Making,
    found: namespace_info.Surroundings,
    path: str,
) -> About:
    mode = _mode(making.mode, path)
    made_clsact = []
    if mode == "clsact":
        made_clsact = call_in(path, lambda: namespace_info.without_clsact(found.ifindex))
    container = target.container
    return About(
        id=str(found.cookie),
        container=container.name if container else "",
        container_id=container.id if container else "",
        path=target.path,
        interface=asked.interface,
        ifindex=found.ifindex,
        source=found.source,
        server=str(asked.server),
        resolver=str(asked.resolver),
        domains=list(asked.domains),
        tcp=asked.tcp,
        mode=mode,
        made_clsact=made_clsact,
        created=time.time(),
        watcher=Watcher(*Process.current()) if making.is_watched else None,
    )


def _mode(wanted: Mode, path: str) -> str:
    has_tcx = call_in(path, lambda: bpf_links.supports_tcx(namespace_info.LOOPBACK_IFINDEX))
    if wanted == "auto":
        return "tcx" if has_tcx else "clsact"
    if wanted == "tcx" and not has_tcx:
        raise KernelError(
            "attach by TCX",
            errno.EOPNOTSUPP,
            hint="the kernel has none (6.6 does); --mode clsact works",
        )
    return wanted


def _config(asked: Redirect, making: Making, found: namespace_info.Surroundings) -> Config:
    return Config(
        abi_version=layout.ABI_VERSION,
        resolver=asked.resolver.address,
        server=asked.server.address,
        source=ip_address(found.source).packed,
        uplink_ifindex=found.ifindex,
        resolver_port=asked.resolver.port,
        server_port=asked.server.port,
        first_port=found.first_port,
        port_count=found.port_count,
        has_ethernet=found.has_ethernet,
        has_domains=bool(asked.domains),
        redirects_tcp=asked.tcp == "redirect",
        is_watched=making.is_watched,
    )


# Taking away


def remove(identifier: str) -> None:
    """Take a redirect away: queries go to the built-in resolver again. Raises NotFound."""
    directory = STORE.directory(identifier)
    missing = NotFound(f"no such redirect: {identifier}")
    try:
        with locked(STORE, is_exclusive=True):
            clear(programs.SYSTEM)
            if not os.path.isdir(directory):
                raise missing
            remove_instance(programs.SYSTEM, identifier)
            collect(programs.SYSTEM)
    except NoRedirects:
        raise missing from None


def remove_all() -> list[str]:
    """Take all redirects away; their ids."""
    try:
        with locked(STORE, is_exclusive=True):
            clear(programs.SYSTEM)
            return [
                each
                for each in sorted(STORE.identifiers(), key=int)
                if remove_instance(programs.SYSTEM, each)
            ]
    except NoRedirects:
        return []


# Looking


def redirects() -> list[Status]:
    """All redirects, the oldest first."""
    try:
        with locked(STORE, is_exclusive=False):
            found = [status(identifier) for identifier in STORE.identifiers()]
    except NoRedirects:
        return []
    return sorted(found, key=lambda each: each.about.created)


def status(identifier: str) -> Status:
    """One redirect as it is. Raises NotFound, LayoutMismatch."""
    tables = Tables(STORE.directory(identifier))
    about = tables.about()
    tables.config()
    return Status(
        about=about,
        problem=problem(about),
        daemon=tables.daemon(),
        outcomes=tables.outcomes(),
        lost=tables.lost(),
    )


def problem(about: About) -> str:
    """What is wrong with a redirect, for people; empty if nothing is."""
    if programs.is_gone(about):
        return "its network namespace is gone"
    missing = programs.detached(about)
    if "answer" in missing:
        return f"{about.interface} is gone, or the program on it"
    if missing:
        return "the program on lo is gone"
    if programs.is_at(about.path, int(about.id)):
        server = about.server.partition(":")[0]
        if not call_in(
            about.path, lambda: namespace_info.is_source(about.source, about.ifindex, server)
        ):
            return f"packets to {server} do not leave from {about.source} any more"
    if about.watcher is not None and not about.watcher.process.is_alive():
        return "its watcher has died: it stays as it is"
    return ""
