# SPDX-License-Identifier: GPL-2.0-only
"""Process ids that BPF programs report: those of the initial PID namespace."""

from __future__ import annotations

from pathlib import Path

import pytest

_INITIAL = 0xEFFFFFFC  # PROC_PID_INIT_INO, include/linux/proc_ns.h


def are_told() -> bool:
    """Whether a process has the same id in this PID namespace."""
    return Path("/proc/self/ns/pid").stat().st_ino == _INITIAL


def is_told(pid: int, own: int) -> bool:
    """Whether a reported id may be that of a process: outside of the initial namespace any may."""
    return pid == own or (pid > 0 and not are_told())


needs_told_pids = pytest.mark.skipif(
    not are_told(), reason="within a PID namespace a process is not known by the id that is told"
)
