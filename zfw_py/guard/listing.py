# SPDX-License-Identifier: GPL-2.0-only
"""Reads the state of guards; changes nothing."""

from __future__ import annotations

import os
import time
from contextlib import suppress
from typing import TYPE_CHECKING, NamedTuple

from zfw_py.errors import LayoutMismatch, NotFound
from zfw_py.guard.maps import STORE, Maps, NoGuards
from zfw_py.guard.programs import is_gone
from zfw_py.kernel import cgroup
from zfw_py.kernel.namespaces import path_of
from zfw_py.lifecycle.programs import locked

if TYPE_CHECKING:
    from zfw_py.guard.maps import Manifest

# A supervisor that was started again in the last so many seconds is a problem to report.
_RECENT = 600.0


class GuardStatus(NamedTuple):
    """The state of a guard.

    ``supervisor_pid`` is None without a supervisor; a redirect needs none. ``is_gone``: its
    cgroup was removed. ``processes``: how many are in the cgroup and below. ``resolved``: how
    many addresses are admitted now for allowed names. ``servers``: those that the DNS proxy asks
    now, or a redirect's; none without a supervisor. ``decisions``: counts by hook and reason.
    ``lost``: events that found the ring buffer full.
    """

    manifest: Manifest
    supervisor_pid: int | None
    is_gone: bool
    processes: int
    resolved: int
    servers: list[str]
    decisions: dict[str, dict[str, int]]
    lost: int

    @property
    def problem(self) -> str:
        """What is wrong with the guard; empty if nothing is."""
        if self.is_gone:
            return "its cgroup is gone"
        if self.supervisor_pid is None and self.manifest.kind != "redirect":
            return (
                "DNS proxy process died: name look-ups fail, address rules still apply"
                f"{self._times_started_again}"
            )
        if time.time() - self.manifest.restarted < _RECENT:
            return f"DNS proxy process died and runs again{self._times_started_again}"
        return ""

    @property
    def _times_started_again(self) -> str:
        count, ended = self.manifest.restarts, self.manifest.ended
        if not count:
            return ""
        return f" (started again {count} time{'s' * (count != 1)}, the last time after {ended})"


def guards() -> tuple[list[GuardStatus], list[LayoutMismatch]]:
    """All guards, the oldest first; and an error for each guard of another layout.

    Raises PermissionDenied.
    """
    found, errors = [], []
    try:
        with locked(STORE, is_exclusive=False):
            for identifier in sorted(STORE.identifiers()):
                try:
                    found.append(_status(Maps(STORE.directory(identifier))))
                except LayoutMismatch as error:
                    errors.append(error)
                except NotFound:
                    continue  # its pins were removed by hand
    except NoGuards:
        return [], []
    return sorted(found, key=lambda status: status.manifest.created), errors


def status(identifier: str) -> GuardStatus:
    """One guard. Raises NotFound, LayoutMismatch, PermissionDenied."""
    with locked(STORE, is_exclusive=False):
        if not STORE.exists(identifier):
            raise NotFound(f"no such guard: {identifier}")
        return _status(Maps(STORE.directory(identifier)))


def _status(maps: Maps) -> GuardStatus:
    manifest = maps.manifest()
    maps.config()
    supervisor = maps.supervisor()
    supervisor_pid = supervisor.pid if supervisor.is_alive() else None
    is_here = not is_gone(manifest)
    pids: list[int] = []
    if is_here:
        try:
            pids = cgroup.processes(manifest.cgroup, is_recursive=True)
        except NotFound:
            is_here = False
    return GuardStatus(
        manifest=manifest,
        supervisor_pid=supervisor_pid,
        is_gone=not is_here,
        processes=len(pids),
        resolved=len({address for address, _ in maps.resolved()}),
        servers=_servers(manifest, supervisor_pid, pids),
        decisions=maps.decisions(),
        lost=maps.lost(),
    )


def _servers(manifest: Manifest, supervisor: int | None, pids: list[int]) -> list[str]:
    """The servers of now: of each network namespace that a process of the guard is in."""
    if manifest.kind == "redirect":
        return manifest.servers
    if supervisor is None:
        return []
    if manifest.policy.get("dns_upstream") or manifest.is_dns_fixed:
        return manifest.servers
    # Imported here: dnspython takes 50 ms.
    from zfw_py.guard.namespaces import servers_seen_by

    own = servers_seen_by(supervisor, manifest.servers)
    by_namespace: dict[int, list[str]] = {}
    for pid in pids:
        with suppress(OSError):  # it has ended
            namespace = os.stat(path_of(pid)).st_ino
            if namespace in by_namespace:
                continue
            is_own = namespace == os.stat(path_of(supervisor)).st_ino
            by_namespace[namespace] = own if is_own else servers_seen_by(pid)
    found = by_namespace.values() or [own]
    return list(dict.fromkeys(server for servers in found for server in servers))
