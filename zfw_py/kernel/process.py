# SPDX-License-Identifier: GPL-2.0-only
"""Processes that are still to be known when they are not there any more.

A process id is given again; the id and the time of its start are not.
"""

from __future__ import annotations


def start_time(pid: int) -> int | None:
    """In clock ticks since boot, field 22 of /proc/PID/stat (proc(5)); None: no such process."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            text = file.read(4096)
    except (FileNotFoundError, ProcessLookupError):
        return None
    # The command, in parentheses, may have any character.
    fields = text.rpartition(b")")[2].split()
    return None if fields[0] in (b"Z", b"X") else int(fields[19])
