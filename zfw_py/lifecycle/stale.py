# SPDX-License-Identifier: GPL-2.0-only
"""Pins of instances that are of no use any more, for ``zfw doctor``. Changes nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING

from zfw_py.errors import NotFound, NotInstalled
from zfw_py.kernel.namespaces import live_cookies
from zfw_py.lifecycle.programs import locked

if TYPE_CHECKING:
    from collections.abc import Iterator

    from zfw_py.lifecycle.programs import System


def unfinished(system: System) -> Iterator[tuple[str, str]]:
    """Directories that a killed process left: the text of a finding, and its command.

    Raises PermissionDenied, Busy.
    """
    try:
        # Under the lock no process builds or removes an instance.
        with locked(system.store, is_exclusive=False):
            found = system.store.unfinished()
    except (NotFound, NotInstalled):
        return
    for directory in found:
        yield f"{directory} was left by a process that was killed", f"rm -r {directory}"


def abandoned(system: System) -> Iterator[tuple[str, str]]:
    """Instances whose network namespace is gone; otherwise as ``unfinished``."""
    try:
        with locked(system.store, is_exclusive=False):
            identifiers = list(system.abandoned())
    except (NotFound, NotInstalled):
        return
    live = live_cookies() if identifiers else None
    if live is None:
        return  # the caller does not see all namespaces
    for identifier in identifiers:
        if int(identifier) in live:
            continue  # its program was detached by hand
        directory = system.store.directory(identifier)
        what = f"{directory} is of a network namespace that is gone"
        yield what, f"rm -r {directory}"
