# SPDX-License-Identifier: GPL-2.0-only
"""Where the BPF file system is mounted, by statfs(2) and mount(2)."""

from __future__ import annotations

from zfw_py.errors import KernelError
from zfw_py.kernel import file_systems

MOUNT_POINT = "/sys/fs/bpf"


def is_mounted() -> bool:
    """Whether bpffs is mounted at MOUNT_POINT."""
    return file_systems.type_of(MOUNT_POINT) == file_systems.BPF


def mount() -> None:
    """Mount bpffs, mode 0700, where it is not mounted. Raises KernelError."""
    if is_mounted():
        return
    try:
        file_systems.mount_bpf(MOUNT_POINT)
    except OSError as error:
        raise KernelError(
            f"mount bpffs at {MOUNT_POINT}",
            error.errno or 0,
            hint="the kernel needs CONFIG_BPF_SYSCALL, and /sys has to be mounted",
        ) from error
