# SPDX-License-Identifier: GPL-2.0-only
"""Files that root reads and writes: reads are bounded, and writes replace a file atomically."""

from __future__ import annotations

import os
import secrets
from contextlib import contextmanager, suppress
from errno import EINVAL, ELOOP
from stat import S_ISLNK, S_ISREG, S_ISVTX, S_IWGRP, S_IWOTH
from struct import Struct
from typing import IO, TYPE_CHECKING

from zfw_py.errors import NotFound, UsageError, ZfwError
from zfw_py.kernel.libc import last_error, libc

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_NEW_FILE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
# include/uapi/linux/openat2.h: RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS. Since 5.6 (fddb5d430ad9).
_SYS_OPENAT2, _RESOLVE = 437, 0x10 | 0x02
_OPEN_HOW = Struct("=QQQ")  # flags, mode, resolve
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_STEP = os.O_PATH | os.O_CLOEXEC
_MOST_LINKS = 40  # of path_resolution(7)


def read(path: str, most: int) -> bytes:
    """Read a file, a pipe or a device to its end.

    Raises NotFound, or UsageError for one that has more than ``most`` bytes, naming the file.
    """
    try:
        with open(path, "rb") as file:
            return _bounded(file.read(most + 1), path, most)
    except FileNotFoundError:
        raise NotFound(f"{path}: no such file") from None
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}") from None


@contextmanager
def open_to_read(path: str) -> Iterator[IO[bytes]]:
    """A file, a pipe or a device to read, "-" for stdin, for the length of a with block.

    Raises NotFound, and UsageError that names the file, also for what fails within the block.
    """
    if path == "-":
        import sys

        yield sys.stdin.buffer
        return
    try:
        with open(path, "rb") as file:
            yield file
    except FileNotFoundError:
        raise NotFound(f"{path}: no such file") from None
    except ZfwError:
        raise
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}") from None


def open_in_root(root: str, path: str) -> int:
    """A descriptor for reading of a regular file, its path resolved below another root directory.

    ``root`` may be ``/proc/PID/root``. Links lead to where a process with that root finds them, and
    never out of it (openat2(2)). What is no regular file is not opened. Raises OSError.
    """
    directory = os.open(root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        how = _OPEN_HOW.pack(os.O_PATH | os.O_CLOEXEC, 0, _RESOLVE)
        fd = libc.syscall(_SYS_OPENAT2, directory, os.fsencode(path), how, len(how))
        if fd < 0:
            raise OSError(last_error(), os.strerror(last_error()), path)
    finally:
        os.close(directory)
    try:
        if not S_ISREG(os.fstat(fd).st_mode):
            raise OSError(EINVAL, "not a regular file", path)
        return os.open(f"/proc/self/fd/{fd}", os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    finally:
        os.close(fd)


def open_directory(path: str) -> int:
    """A descriptor of a directory, by no symbolic link that another user can have made.

    A link counts as the caller's if it belongs to root or the caller, in a directory of theirs that
    no other user can write to, or that has the sticky bit. "" is the working directory. Raises
    OSError; ELOOP for a link of another user.
    """
    present = os.open("/" if path.startswith("/") else ".", _STEP)
    links = 0
    try:
        left = path.split("/")[::-1]
        while left:
            name = left.pop()
            if name in ("", "."):
                continue
            following = os.open(name, _STEP | os.O_NOFOLLOW, dir_fd=present)
            if S_ISLNK(os.fstat(following).st_mode):
                try:
                    links += 1
                    if links > _MOST_LINKS or not _is_own(os.fstat(following), os.fstat(present)):
                        raise OSError(ELOOP, os.strerror(ELOOP), path)
                    target = os.readlink("", dir_fd=following)
                finally:
                    os.close(following)
                left += target.split("/")[::-1]
                if not target.startswith("/"):
                    continue
                following = os.open("/", _STEP)
            os.close(present)
            present = following
        return os.open(".", _DIRECTORY, dir_fd=present)
    finally:
        os.close(present)


def _is_own(link: os.stat_result, directory: os.stat_result) -> bool:
    """Whether a link is of root or the caller, and no other user can replace it."""
    own = (0, os.geteuid())
    is_shared = directory.st_mode & (S_IWGRP | S_IWOTH) and not directory.st_mode & S_ISVTX
    return link.st_uid in own and directory.st_uid in own and not is_shared


def read_stdin(most: int) -> bytes:
    """Read stdin to its end, with the same bound."""
    import sys

    return _bounded(sys.stdin.buffer.read(most + 1), "stdin", most)


def _bounded(data: bytes, name: str, most: int) -> bytes:
    if len(data) > most:
        raise UsageError(f"{name}: larger than {most} bytes")
    return data


def write(path: str, data: bytes, mode: int = 0o600) -> None:
    """Create or replace a file atomically and durably.

    Only a regular file is replaced. No link is followed in its place, and none in its path that
    another user can have made. Raises a ZfwError that names the file, which is unchanged then.
    """
    parent, name = os.path.split(path)
    if name in ("", ".", ".."):
        raise UsageError(f"{path}: not the name of a file")
    try:
        directory = open_directory(parent)
    except FileNotFoundError:
        raise NotFound(f"{path}: no such directory") from None
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}") from None
    try:
        with suppress(FileNotFoundError):
            if not S_ISREG(os.lstat(name, dir_fd=directory).st_mode):
                raise UsageError(f"{path}: not a regular file", hint="- is standard output")
        # Two commands may write the same file at the same time.
        temporary = f".{name[:200]}.{secrets.token_hex(8)}"
        replace_file(directory, name, data, mode, temporary=temporary)
    except OSError as error:
        raise ZfwError(f"{path}: {error.strerror}") from None
    finally:
        os.close(directory)


def replace_file(
    directory: int,
    name: str,
    data: bytes,
    mode: int,
    *,
    temporary: str,
    owner: tuple[int, int] | None = None,
    is_new: bool = False,
) -> None:
    """Create or replace a file in an open directory, whatever the umask, and sync both.

    The file is written as ``temporary`` first. ``owner`` is a user and a group id. With
    ``is_new`` an existing file is not replaced: FileExistsError. Raises OSError, with nothing
    changed and no temporary file left.
    """

    def create() -> None:
        fd = os.open(temporary, _NEW_FILE, 0o600, dir_fd=directory)
        with open(fd, "wb") as file:
            file.write(data)
            file.flush()
            if owner is not None:
                os.fchown(fd, *owner)
            os.fchmod(fd, mode)
            os.fsync(fd)

    _replace(directory, name, create, temporary, is_new=is_new)


def replace_link(
    directory: int, name: str, target: str, *, temporary: str, is_new: bool = False
) -> None:
    """Create or replace a symbolic link, as ``replace_file`` does a file."""

    def create() -> None:
        os.symlink(target, temporary, dir_fd=directory)

    _replace(directory, name, create, temporary, is_new=is_new)


def remove_if_there(directory: int, name: str) -> None:
    """Remove a file of an open directory, if there is one."""
    with suppress(FileNotFoundError):
        os.unlink(name, dir_fd=directory)


def _replace(
    directory: int, name: str, create: Callable[[], None], temporary: str, *, is_new: bool
) -> None:
    # A writer that was killed may have left it.
    remove_if_there(directory, temporary)
    try:
        create()
        if is_new:
            # rename() would replace a file that was created meanwhile.
            os.link(
                temporary, name, src_dir_fd=directory, dst_dir_fd=directory, follow_symlinks=False
            )
            os.unlink(temporary, dir_fd=directory)
        else:
            os.rename(temporary, name, src_dir_fd=directory, dst_dir_fd=directory)
    except BaseException:
        remove_if_there(directory, temporary)
        raise
    os.fsync(directory)
