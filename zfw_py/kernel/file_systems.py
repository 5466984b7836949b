# SPDX-License-Identifier: GPL-2.0-only
"""File systems, by statfs(2) and mount(2)."""

from __future__ import annotations

import ctypes
import os

from zfw_py.kernel.libc import last_error, libc

# include/uapi/linux/magic.h
BPF = 0xCAFE4A11
CGROUP = 0x27E0EB
CGROUP2 = 0x63677270

_MS_NOSUID, _MS_NODEV, _MS_NOEXEC = 2, 4, 8  # include/uapi/linux/mount.h


def type_of(place: str | int) -> int | None:
    """The magic number of the file system of a path or descriptor; None if there is no such."""
    # struct statfs begins with f_type, a long, and has at most 120 bytes on every architecture.
    buffer = ctypes.create_string_buffer(256)
    call = libc.fstatfs if isinstance(place, int) else libc.statfs
    if call(place if isinstance(place, int) else os.fsencode(place), buffer) != 0:
        return None
    return ctypes.c_long.from_buffer(buffer).value & 0xFFFFFFFF


def mount_bpf(place: str) -> None:
    """Mount a BPF file system that only root can use. Raises OSError."""
    flags = _MS_NOSUID | _MS_NODEV | _MS_NOEXEC
    if libc.mount(b"bpf", os.fsencode(place), b"bpf", flags, b"mode=700") != 0:
        raise OSError(last_error(), os.strerror(last_error()))
