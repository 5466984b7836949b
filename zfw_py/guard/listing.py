# SPDX-License-Identifier: GPL-2.0-only
"""Reads the state of guards; changes nothing."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, NamedTuple

from zfw_py.errors import LayoutMismatch, NotFound
from zfw_py.guard.maps import STORE, Maps, NoGuards
from zfw_py.guard.programs import is_gone
from zfw_py.kernel import cgroup
from zfw_py.lifecycle.programs import locked

if TYPE_CHECKING:
    from zfw_py.guard.maps import Manifest

# A supervisor that was started again in the last so many seconds is a problem to report.
_RECENT = 600.0


class GuardStatus(NamedTuple):
    """The state of a guard.

    ``supervisor_pid`` is None without a supervisor; a redirect needs none. ``is_gone``: its
    cgroup was removed. ``processes``: how many are in the cgroup and below. ``resolved``: how
    many addresses are admitted now for allowed names. ``decisions``: counts by hook and reason.
    ``lost``: events that found the ring buffer full.
    """

    manifest: Manifest
    supervisor_pid: int | None
    is_gone: bool
    processes: int
    resolved: int
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
    is_here = not is_gone(manifest)
    count = 0
    if is_here:
        try:
            count = len(cgroup.processes(manifest.cgroup, is_recursive=True))
        except NotFound:
            is_here = False
    return GuardStatus(
        manifest=manifest,
        supervisor_pid=supervisor.pid if supervisor.is_alive() else None,
        is_gone=not is_here,
        processes=count,
        resolved=len({address for address, _ in maps.resolved()}),
        decisions=maps.decisions(),
        lost=maps.lost(),
    )
