# SPDX-License-Identifier: GPL-2.0-only
"""What ``zfw doctor`` finds about the guards of the machine."""

from __future__ import annotations

from typing import TYPE_CHECKING

from zfw_py.guard import listing
from zfw_py.guard.programs import SYSTEM
from zfw_py.lifecycle.stale import unfinished
from zfw_py.values.finding import Registry

if TYPE_CHECKING:
    from collections.abc import Iterator

    from zfw_py.errors import LayoutMismatch
    from zfw_py.guard.listing import GuardStatus
    from zfw_py.values.finding import Finding

    Guards = tuple[list[GuardStatus], list[LayoutMismatch]]

REGISTRY: Registry[Guards] = Registry()
KINDS = REGISTRY.kinds


def findings() -> list[Finding]:
    """All that is found. Changes nothing. Raises PermissionDenied, Busy."""
    return list(REGISTRY.find(listing.guards()))


@REGISTRY.kind(
    "guard-process-gone",
    "error",
    "The guarded programs look up no name any more, and addresses that were admitted by name"
    " expire. Address rules still apply. The command starts a new process.",
)
def process_gone(guards: Guards) -> Iterator[tuple[str, str]]:
    """A guard whose DNS process has died."""
    for status in guards[0]:
        manifest = status.manifest
        if status.supervisor_pid is None and manifest.kind != "redirect" and not status.is_gone:
            what = f"guard {manifest.id}: the DNS process of {manifest.cgroup} has died"
            yield what, f"zfw guard upgrade {manifest.id}"


@REGISTRY.kind(
    "guard-cgroup-gone",
    "note",
    "No process can enter the cgroup again; the guard guards nothing.",
)
def cgroup_gone(guards: Guards) -> Iterator[tuple[str, str]]:
    """A guard whose cgroup is gone."""
    for status in guards[0]:
        if status.is_gone:
            manifest = status.manifest
            what = f"guard {manifest.id}: cgroup {manifest.cgroup} is gone"
            yield what, f"zfw guard detach {manifest.id}"


@REGISTRY.kind(
    "guard-of-another-version",
    "error",
    "This version of zfw can neither list nor change the guard. Use the version that made it.",
)
def another_version(guards: Guards) -> Iterator[tuple[str, str]]:
    """A guard whose maps were made by another version of zfw."""
    for error in guards[1]:
        yield error.message, ""


@REGISTRY.kind(
    "guard-stale-pins",
    "note",
    "The pins keep maps and programs in memory that nothing uses. The next guard that is made"
    " removes them.",
)
def stale_pins(_: Guards) -> Iterator[tuple[str, str]]:
    """Pins of a guard that a killed process left."""
    return unfinished(SYSTEM)
