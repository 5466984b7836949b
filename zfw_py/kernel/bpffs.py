# SPDX-License-Identifier: GPL-2.0-only
"""The BPF file system: statfs(2) and mount(2)."""

from __future__ import annotations

import ctypes

from zfw_py.errors import KernelError

MOUNT_POINT = "/sys/fs/bpf"
_MAGIC = 0xCAFE4A11  # BPF_FS_MAGIC
_NOSUID_NODEV_NOEXEC = 2 | 4 | 8


def is_mounted() -> bool:
    """Whether bpffs is mounted at its place."""
    # struct statfs starts with f_type, a long; it has up to 120 bytes.
    buffer = ctypes.create_string_buffer(256)
    if ctypes.CDLL(None, use_errno=True).statfs(MOUNT_POINT.encode(), buffer) != 0:
        return False
    magic: int = ctypes.c_long.from_buffer(buffer).value & 0xFFFFFFFF
    return magic == _MAGIC


def mount() -> None:
    """Mount bpffs, mode 0700, where it is not mounted. Raises KernelError."""
    if is_mounted():
        return
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mount(b"bpf", MOUNT_POINT.encode(), b"bpf", _NOSUID_NODEV_NOEXEC, b"mode=700") != 0:
        raise KernelError(
            f"mount bpffs at {MOUNT_POINT}",
            ctypes.get_errno(),
            hint="the kernel needs CONFIG_BPF_SYSCALL, and /sys has to be mounted",
        )
