# SPDX-License-Identifier: GPL-2.0-only
"""Creates and removes the instance of a guard, under the lock.

Creation:

1. Flatten the policy, before the lock is taken.
2. Lock; collect the leftovers of killed processes.
3. ``programs.install``: directory, manifest, cgroups, maps.
4. Start the supervisor; only then attach the programs, and publish.
5. Unlock. The caller moves processes and prints; if that fails, the guard is removed.
"""

from __future__ import annotations

import os
import time
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, TypeVar

from msgspec.structs import replace

from zfw_py.errors import NotFound, UsageError
from zfw_py.guard import background, cgroups, programs
from zfw_py.guard.dns.resolv_conf import system_upstreams
from zfw_py.guard.maps import STORE, Manifest, Maps, NoGuards
from zfw_py.guard.supervisor import GuardContext
from zfw_py.kernel import cgroup
from zfw_py.lifecycle import programs as lifecycle
from zfw_py.lifecycle.programs import collect, locked, make_root
from zfw_py.values.endpoint import Endpoint

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from zfw_py.guard.events import EventSink, Lines
    from zfw_py.guard.model import Policy
    from zfw_py.guard.target import GuardTarget
    from zfw_py.kernel.lock import Lock

_Started = TypeVar("_Started")


@contextmanager
def created(
    manifest: Manifest,
    policy: Policy | None,
    upstreams: list[Endpoint],
    sink: EventSink,
    start: Callable[[GuardContext, Lock], _Started],
) -> Iterator[tuple[GuardContext, _Started]]:
    """Create a guard and yield it; if the ``with`` block raises, remove the guard again.

    ``start`` starts the guard's DNS, before the first program redirects a query there. Yields
    its result too.
    """
    # A policy of many prefixes takes seconds; other commands may be waiting for the lock.
    rules = None if policy is None else programs.Rules.of(policy)
    make_root(STORE)
    background.fill_stdio()
    started: list[tuple[GuardContext, _Started]] = []
    try:
        with locked(STORE, is_exclusive=True) as lock:
            collect(programs.SYSTEM)

            def begin(maps: Maps, manifest: Manifest) -> None:
                context = GuardContext(maps, manifest, policy, upstreams, sink)
                started.append((context, start(context, lock)))

            programs.install(_with_proxy_cgroup(manifest), rules, begin, logs_all=sink.wants_all)
        yield started[0]
    except BaseException:
        remove_if_there(manifest.id)
        raise


def new_manifest(
    kind: str,
    target: GuardTarget,
    servers: Iterable[object],
    policy: Policy | None = None,
    lines: Lines = "none",
) -> Manifest:
    """The manifest of a guard that is to be created. ``kind``: run, attach or redirect."""
    identifier = programs.new_identifier()
    path = target.cgroup
    if target.is_created:
        path = cgroups.guarded_in(path, identifier)
    return Manifest(
        id=identifier,
        kind=kind,
        cgroup=path,
        cgroup_id=0 if target.is_created else cgroup.identifier(path),
        is_cgroup_ours=target.is_created,
        proxy_cgroup="",
        created=time.time(),
        servers=[str(server) for server in servers],
        policy={} if policy is None else policy.as_object(),
        lines=lines,
    )


def _with_proxy_cgroup(manifest: Manifest) -> Manifest:
    """Plan a cgroup for the supervisor where it must not stay in the caller's.

    Inside the guarded cgroup its own queries would be redirected back to it. Outside of guards
    around the new one, those guards would not admit the addresses that it resolves.
    """
    if manifest.kind == "redirect":
        return manifest  # without a supervisor
    if manifest.kind == "run":
        above = os.path.dirname(manifest.cgroup)
        if above == cgroup.of_process(os.getpid()):
            return manifest
        # The user of the command may move processes out of the caller's cgroup.
        return replace(manifest, proxy_cgroup=cgroups.proxy_in(above, manifest.id))
    if manifest.is_cgroup_ours:
        outer: str | None = os.path.dirname(manifest.cgroup)
        is_inside = False
    else:
        outer = cgroup.parent(manifest.cgroup)
        is_inside = cgroups.is_within(cgroup.of_process(os.getpid()), manifest.cgroup)
    if not is_inside and (outer is None or not programs.has_guards_at(outer)):
        return manifest
    if outer is None:
        raise UsageError(
            f"{manifest.cgroup}: zfw is in it, and the cgroup around it cannot be seen from here"
        )
    return replace(manifest, proxy_cgroup=cgroups.proxy_in(outer, manifest.id))


def upstreams_of(policy: Policy) -> list[Endpoint]:
    """The policy's DNS servers, else the system's. Raises NotFound if resolv.conf names none."""
    if not policy.dns_upstreams:
        return system_upstreams()
    return [Endpoint(server.address_text, server.port) for server in policy.dns_upstreams]


def remove(identifier: str) -> None:
    """Remove a guard: programs, maps, supervisor, and the cgroups that were created for it.

    Raises NotFound, LayoutMismatch for a guard of another layout.
    """
    directory = STORE.directory(identifier)
    missing = NotFound(f"no such guard: {identifier}")
    try:
        with locked(STORE, is_exclusive=True):
            if not os.path.isdir(directory):
                raise missing
            maps = Maps(directory)
            maps.config()
            process = maps.supervisor()
            lifecycle.clear(programs.SYSTEM)
            lifecycle.remove(programs.SYSTEM, identifier)
    except NoGuards:
        raise missing from None
    # After the lock is released: the supervisor may be waiting for it, to remove the guard.
    process.end()


def remove_if_there(identifier: str) -> None:
    """Remove a guard unless another process has removed it already."""
    with suppress(NotFound):
        remove(identifier)
