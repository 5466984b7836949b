# SPDX-License-Identifier: GPL-2.0-only
"""The cgroups that guards make: for what they guard, and for their own processes."""

from __future__ import annotations

import os
from contextlib import suppress
from typing import TYPE_CHECKING

from zfw_py.errors import Conflict, NotFound
from zfw_py.kernel import cgroup

if TYPE_CHECKING:
    from collections.abc import Collection

_GUARDED = "zfw-guard-"
_PROXY = "zfw-proxy-"
# Processes that fork while they are moved out.
_ATTEMPTS = 100


def guarded_in(above: str, identifier: str) -> str:
    """The path of the cgroup that a guard makes for what it guards."""
    return f"{above.rstrip('/')}/{_GUARDED}{identifier}"


def proxy_in(above: str, identifier: str) -> str:
    """The path of the one for its process, in the cgroup around the guarded one."""
    return f"{above.rstrip('/')}/{_PROXY}{identifier}"


def make(path: str) -> None:
    """Make one of them. Raises Conflict, NotFound, PermissionDenied."""
    cgroup.create(os.path.dirname(path), os.path.basename(path))


def remove(path: str, living: Collection[str]) -> None:
    """Remove one of them, if it is there; who is still in it goes to the one around it.

    What was made in it goes too, but stays with whoever lives there. An empty cgroup of a
    guard around it that is not among the ``living`` had to stay for this one, and goes now.
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
    """The id of the guard that a cgroup was made by, if it was."""
    name = os.path.basename(path)
    for prefix in (_GUARDED, _PROXY):
        if name.startswith(prefix):
            return name.removeprefix(prefix)
    return ""


def is_within(path: str, outer: str) -> bool:
    """Whether a cgroup is another one, or in it."""
    wanted = cgroup.identifier(outer)
    return any(cgroup.identifier(each) == wanted for each in (path, *cgroup.ancestors(path)))
