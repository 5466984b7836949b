# SPDX-License-Identifier: GPL-2.0-only
"""Creates and removes the cgroups of guards: guarded ones, and those of supervisors."""

from __future__ import annotations

import os
from contextlib import suppress
from typing import TYPE_CHECKING

from zfw_py.errors import Busy, Conflict, NotFound
from zfw_py.kernel import cgroup
from zfw_py.kernel.process import tree_of

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

_GUARDED = "zfw-guard-"
_PROXY = "zfw-proxy-"
# Processes may fork while they are moved out.
_ATTEMPTS = 100


def guarded_in(above: str, identifier: str) -> str:
    """The path of the cgroup that a guard creates, to guard it."""
    return f"{above.rstrip('/')}/{_GUARDED}{identifier}"


def proxy_in(above: str, identifier: str) -> str:
    """The path of the cgroup for its supervisor, beside the guarded one."""
    return f"{above.rstrip('/')}/{_PROXY}{identifier}"


def create(path: str) -> None:
    """Create a cgroup by its path. Raises Conflict, NotFound, PermissionDenied."""
    cgroup.create(os.path.dirname(path), os.path.basename(path))


def remove(path: str, living: Collection[str]) -> None:
    """Remove a guard's cgroup, if it exists; its processes move to the cgroup above.

    Empty cgroups below it are removed too. So are empty cgroups above it of guards that are not
    among the ``living``: they could not be removed before this one.
    """
    with suppress(NotFound):
        for inner in reversed(cgroup.descendants(path)):
            if not _identifier_of(inner):
                with suppress(NotFound, Conflict):
                    cgroup.remove(inner)
        _remove(path)
    above = os.path.dirname(path)
    with suppress(NotFound, Conflict):
        while _identifier_of(above) and _identifier_of(above) not in living:
            cgroup.remove(above)
            above = os.path.dirname(above)


def _remove(path: str) -> None:
    for _ in range(_ATTEMPTS):
        for pid in cgroup.processes(path):
            with suppress(NotFound):
                cgroup.move(pid, os.path.dirname(path))
        try:
            cgroup.remove(path)
        except Conflict:
            if cgroup.processes(path):
                continue
        return


def _identifier_of(path: str) -> str:
    """The id of the guard that created a cgroup; empty if no guard did."""
    name = os.path.basename(path)
    for prefix in (_GUARDED, _PROXY):
        if name.startswith(prefix):
            return name.removeprefix(prefix)
    return ""


def move_tree(pid: int, path: str) -> None:
    """Move a process with all its descendants into a cgroup, but not the caller and its own.

    A process that is moved starts its later children there. So this looks for descendants elsewhere
    until there are none. Raises NotFound without such a process, Conflict if one cannot be moved.
    """
    cgroup.move(pid, path)
    for _ in range(_ATTEMPTS):
        outside = [
            each for each in tree_of(pid, without=os.getpid()) if not _is_there(each.pid, path)
        ]
        if not outside:
            return
        for each in outside:
            # The id may be another process's by now.
            if each.is_alive():
                with suppress(NotFound):
                    cgroup.move(each.pid, path)
    raise Busy(f"process {pid} starts processes faster than they can be moved")


def _is_there(pid: int, path: str) -> bool:
    """Whether a process is in a cgroup or below, or has ended."""
    try:
        place = cgroup.of_process(pid)
    except NotFound:
        return True
    return place == path or place.startswith(f"{path}/")


def beyond(path: str, uid: int, groups: Collection[int]) -> str | None:
    """The innermost cgroup, from ``path`` up, out of which a user may move no process.

    A process moves if the user may write to ``cgroup.procs`` of the cgroup around both places, so
    all cgroups above the one that is returned count too (Documentation/admin-guide/cgroup-v2.rst,
    Delegation Containment). None if the user may write to the topmost one that the caller sees.
    """
    chain = [path, *cgroup.ancestors(path)]
    may_write = [cgroup.may_move(each, uid, groups) for each in chain]
    return next(
        (each for number, each in enumerate(chain) if not any(may_write[number:])),
        None,
    )


def between(path: str, outer: str) -> Iterator[str]:
    """The cgroups from ``path`` up that ``outer`` contains, without ``outer``."""
    for each in (path, *cgroup.ancestors(path)):
        if each == outer:
            return
        yield each


def is_within(path: str, outer: str) -> bool:
    """Whether a cgroup is ``outer`` or below it."""
    wanted = cgroup.identifier(outer)
    return any(cgroup.identifier(each) == wanted for each in (path, *cgroup.ancestors(path)))
