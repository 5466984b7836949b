# SPDX-License-Identifier: GPL-2.0-only
"""The processes of a systemd unit, by its cgroup; systemd is not asked.

systemd keeps every unit of the system in slices and nothing else: only these are looked
through. In a service or scope users may have cgroups of their own, of any name.
"""

from __future__ import annotations

import os
from contextlib import suppress

from zfw_py.errors import ZfwError
from zfw_py.kernel.cgroup import systemd_mounts

_SLICE = ".slice"
# Of a threaded or deep tree: cgroup v2 allows more, and systemd makes none.
_MOST_DEPTH = 16


def cgroups_of(unit: str) -> list[str]:
    """The cgroups that a unit has, one a hierarchy; none if it does not run.

    Raises ZfwError where there is no hierarchy of systemd's.
    """
    mounts = systemd_mounts()
    if not mounts:
        raise ZfwError(
            "no cgroup hierarchy that systemd keeps is mounted",
            hint="units need cgroup2, or the named hierarchy of cgroup v1, name=systemd",
        )
    return [path for mount in mounts for path in _within(mount, unit, _MOST_DEPTH)]


def _within(directory: str, unit: str, depth: int) -> list[str]:
    found = []
    try:
        with os.scandir(directory) as entries:
            for entry in entries:
                if not entry.is_dir(follow_symlinks=False):
                    continue
                if entry.name == unit:
                    found.append(entry.path)
                elif entry.name.endswith(_SLICE) and depth:
                    found += _within(entry.path, unit, depth - 1)
    except OSError:
        return []  # removed meanwhile
    return found


def processes_of(unit: str) -> set[int]:
    """The ids of a unit's processes, in all cgroups that it has. Raises as ``cgroups_of``."""
    pids: set[int] = set()
    for path in cgroups_of(unit):
        for directory, _, _ in os.walk(path):
            with suppress(OSError), open(f"{directory}/cgroup.procs", encoding="ascii") as file:
                pids.update(int(line) for line in file)
    return pids - {0}
