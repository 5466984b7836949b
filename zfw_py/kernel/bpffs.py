# SPDX-License-Identifier: GPL-2.0-only
"""Where state is pinned, and how it gets there: whole, by one rename.

A network namespace's firewall has a directory below ROOT; each further system has
one there, with directories of its own in it.
"""

from __future__ import annotations

import posix

from zfw_py.errors import KernelError

MOUNT_POINT = "/sys/fs/bpf"
ROOT = f"{MOUNT_POINT}/zfw"

# What is being built has this prefix and the process's id; it is no number, so
# it is never taken for the state of a namespace.
_BUILDING = "new_"


def state_directory(cookie: int) -> str:
    """The directory of a network namespace."""
    return f"{ROOT}/{cookie}"


def _is_bpffs(path: str) -> bool:
    import ctypes

    # struct statfs starts with f_type, a long; 120 bytes are enough everywhere.
    buffer = ctypes.create_string_buffer(256)
    if ctypes.CDLL(None, use_errno=True).statfs(path.encode(), buffer) != 0:
        return False
    magic: int = ctypes.c_long.from_buffer(buffer).value & 0xFFFFFFFF
    return magic == 0xCAFE4A11  # BPF_FS_MAGIC


def make_root() -> None:
    """Mount bpffs if it is missing and make the directory of all our state, mode 0700."""
    if not _is_bpffs(MOUNT_POINT):
        import ctypes

        libc = ctypes.CDLL(None, use_errno=True)
        nosuid_nodev_noexec = 2 | 4 | 8
        if libc.mount(b"bpf", MOUNT_POINT.encode(), b"bpf", nosuid_nodev_noexec, b"mode=700") != 0:
            raise KernelError(
                f"mount bpffs at {MOUNT_POINT}",
                ctypes.get_errno(),
                hint="the kernel needs CONFIG_BPF_SYSCALL, and /sys has to be mounted",
            )
    try:
        posix.mkdir(ROOT, 0o700)
    except FileExistsError:
        pass


def new_directory(parent: str = ROOT) -> str:
    """A directory to build state in, before it is published."""
    path = f"{parent}/{_BUILDING}{posix.getpid()}"
    posix.mkdir(path, 0o700)
    return path


def publish(built: str, path: str) -> None:
    """Give what was built its name, in one step."""
    posix.rename(built, path)


def remove_directory(path: str) -> None:
    """Unpin all that a directory of pins holds, and the directory."""
    for name in posix.listdir(path):
        posix.unlink(f"{path}/{name}")
    posix.rmdir(path)


def withdraw(path: str) -> None:
    """Undo ``publish`` in one step, then remove what was there."""
    doomed = f"{path.rpartition('/')[0]}/{_BUILDING}{posix.getpid()}"
    posix.rename(path, doomed)
    remove_directory(doomed)


def unfinished(parent: str = ROOT) -> list[str]:
    """Directories that a process began to build or to remove, and did not get to the end of."""
    return [f"{parent}/{name}" for name in posix.listdir(parent) if name.startswith(_BUILDING)]


def published() -> list[int]:
    """The cookies of the network namespaces that have state."""
    return [int(name) for name in posix.listdir(ROOT) if name.isdigit()]
