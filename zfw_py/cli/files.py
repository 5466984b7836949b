# SPDX-License-Identifier: GPL-2.0-only
"""Files that the command reads and writes as root: bounded, and whole or not at all."""

from __future__ import annotations

import os
import secrets
from stat import S_ISREG

from zfw_py.errors import NotFound, UsageError, ZfwError

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC


def read(path: str, most: int) -> bytes:
    """All of a file, or of what a pipe or a device has; more than ``most`` bytes are refused.

    Raises NotFound or UsageError, naming the file.
    """
    try:
        with open(path, "rb") as file:
            return _bounded(file.read(most + 1), path, most)
    except FileNotFoundError:
        raise NotFound(f"{path}: no such file") from None
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}") from None


def read_stdin(most: int) -> bytes:
    """All of stdin, with the same bound."""
    import sys

    return _bounded(sys.stdin.buffer.read(most + 1), "stdin", most)


def _bounded(data: bytes, name: str, most: int) -> bytes:
    if len(data) > most:
        raise UsageError(f"{name}: larger than {most} bytes")
    return data


def write(path: str, data: bytes, mode: int = 0o600) -> None:
    """Put a file there, or in the place of one, in one step and lastingly.

    Only a regular file is replaced, and no link is followed. Raises a ZfwError
    that names the file; what was there is there still.
    """
    parent, name = os.path.split(path)
    if name in ("", ".", ".."):
        raise UsageError(f"{path}: not the name of a file")
    try:
        directory = os.open(parent or ".", _DIRECTORY)
    except FileNotFoundError:
        raise NotFound(f"{path}: no such directory") from None
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}") from None
    try:
        _replace(directory, name, data, mode, path)
    except OSError as error:
        raise ZfwError(f"{path}: {error.strerror}") from None
    finally:
        os.close(directory)


def _replace(directory: int, name: str, data: bytes, mode: int, path: str) -> None:
    try:
        found = os.lstat(name, dir_fd=directory)
    except FileNotFoundError:
        pass
    else:
        if not S_ISREG(found.st_mode):
            raise UsageError(f"{path}: not a regular file", hint="- is standard output")
    temporary = f".{name[:200]}.{secrets.token_hex(8)}"
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    fd = os.open(temporary, flags, mode, dir_fd=directory)
    try:
        with open(fd, "wb") as file:
            os.fchmod(file.fileno(), mode)  # whatever the umask says
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.rename(temporary, name, src_dir_fd=directory, dst_dir_fd=directory)
    except BaseException:
        os.unlink(temporary, dir_fd=directory)
        raise
    os.fsync(directory)
