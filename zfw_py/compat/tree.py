# SPDX-License-Identifier: GPL-2.0-only
"""Files below a prefix: bounded reads, atomic writes, and only root's links are followed.

Paths are absolute, as if the prefix were ``/``.
"""

from __future__ import annotations

import errno
import os
from contextlib import contextmanager, suppress
from stat import S_ISDIR, S_ISLNK, S_ISREG
from typing import TYPE_CHECKING

from zfw_py.errors import (
    Busy,
    Conflict,
    KernelError,
    NotFound,
    PermissionDenied,
    UsageError,
    ZfwError,
)
from zfw_py.kernel import files

if TYPE_CHECKING:
    from collections.abc import Iterator

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC


def _temporary(name: str) -> str:
    """The same name each time: the next run removes the file that a killed run left."""
    return f".{name}.zfw-new"


class Tree:
    """The files below a prefix.

    Links on the path to a file are followed only if the prefix is ``/`` and only root can
    have created or replaced them.
    """

    def __init__(self, prefix: str = "/") -> None:
        """``prefix`` is a directory that exists. Raises NotFound, UsageError."""
        self.prefix = os.path.abspath(prefix)
        try:
            os.close(os.open(self.prefix, _DIRECTORY))
        except FileNotFoundError:
            raise NotFound(f"--prefix: no such directory: {prefix}") from None
        except OSError as error:
            raise UsageError(f"--prefix: {prefix}: {error.strerror}") from None

    @property
    def is_machine(self) -> bool:
        """Whether this is the machine's own root directory."""
        return self.prefix == "/"

    def absolute(self, path: str) -> str:
        """A path of this tree as the rest of the system knows it."""
        return path if self.is_machine else self.prefix + path

    # Reading

    def status(self, path: str) -> os.stat_result | None:
        """The status of a path, of a link itself; None if the path does not exist."""
        with suppress(FileNotFoundError), self._parent(path) as (directory, name):
            return os.stat(name, dir_fd=directory, follow_symlinks=False)
        return None

    def exists(self, path: str) -> bool:
        """Whether the path exists."""
        return self.status(path) is not None

    def read(self, path: str, limit: int) -> bytes | None:
        """Read a regular file of at most ``limit`` bytes; None if the path does not exist."""
        found = self.read_with_status(path, limit)
        return None if found is None else found[0]

    def read_with_status(self, path: str, limit: int) -> tuple[bytes, os.stat_result] | None:
        """Content and status of the same file. Raises Conflict if it is not a regular file."""
        try:
            with self._parent(path) as (directory, name):
                # O_NONBLOCK: opening a pipe must not wait for a writer.
                flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
                fd = os.open(name, flags, dir_fd=directory)
        except FileNotFoundError:
            return None
        except OSError as error:
            if error.errno == errno.ELOOP:
                raise Conflict(f"{self.absolute(path)}: is a symbolic link") from None
            raise _failure(f"read {self.absolute(path)}", error) from error
        status = os.fstat(fd)
        if not S_ISREG(status.st_mode):
            os.close(fd)
            raise Conflict(f"{self.absolute(path)}: is not a regular file")
        with os.fdopen(fd, "rb") as file:
            content = file.read(limit + 1)
        if len(content) > limit:
            raise UsageError(f"{self.absolute(path)}: larger than {limit} bytes")
        return content, status

    def link_target(self, path: str) -> str | None:
        """The target of a link; None if the path is not a link."""
        found = self.status(path)
        if found is None or not S_ISLNK(found.st_mode):
            return None
        with self._parent(path) as (directory, name):
            return os.readlink(name, dir_fd=directory)

    # Writing

    def write(
        self,
        path: str,
        content: bytes,
        mode: int,
        *,
        is_new: bool,
        like: os.stat_result | None = None,
    ) -> None:
        """Create or replace a file atomically.

        With ``is_new`` an existing file raises Conflict. ``like`` gives its owner and mode.
        """
        with self._changing(path) as (directory, name):
            files.replace_file(
                directory,
                name,
                content,
                mode if like is None else like.st_mode & 0o7777,
                temporary=_temporary(name),
                owner=None if like is None else (like.st_uid, like.st_gid),
                is_new=is_new,
            )

    def link(self, path: str, target: str, *, is_new: bool) -> None:
        """Create or replace a symbolic link, as ``write`` does a file."""
        with self._changing(path) as (directory, name):
            files.replace_link(directory, name, target, temporary=_temporary(name), is_new=is_new)

    def remove(self, path: str) -> bool:
        """Remove a file or link, and one that a killed ``write`` left; False if there is none."""
        try:
            with self._changing(path) as (directory, name):
                files.remove_if_there(directory, _temporary(name))
                os.unlink(name, dir_fd=directory)
        except FileNotFoundError:
            return False
        return True

    def make_directory(self, path: str, mode: int = 0o755) -> bool:
        """Make a directory; False if it exists. Raises Conflict if the path is something else."""
        with self._changing(path) as (directory, name):
            try:
                os.mkdir(name, 0o700, dir_fd=directory)
            except FileExistsError:
                os.close(self._step(directory, name, path))
                return False
            # mkdir applies the caller's umask.
            os.chmod(name, mode, dir_fd=directory)
        return True

    def remove_directory(self, path: str) -> bool:
        """Remove a directory; False if it is not empty or not there."""
        try:
            with self._changing(path) as (directory, name):
                os.rmdir(name, dir_fd=directory)
        except FileNotFoundError:
            return False
        except KernelError as error:
            if error.errno in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR, errno.EBUSY):
                return False
            raise
        return True

    @contextmanager
    def locked(self, path: str) -> Iterator[None]:
        """Hold the lock of a file, which is created if need be, for root only. Raises Busy."""
        from zfw_py.kernel.lock import try_exclusive

        with self._changing(path) as (directory, name):
            flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
            fd = os.open(name, flags, 0o600, dir_fd=directory)
        try:
            # Without a name: the process that held the lock has removed the file.
            if not try_exclusive(fd) or os.fstat(fd).st_nlink == 0:
                raise Busy(f"{self.absolute(path)}: another zfw process holds the lock")
            yield
        finally:
            os.close(fd)

    # Opening directories

    @contextmanager
    def _changing(self, path: str) -> Iterator[tuple[int, str]]:
        try:
            with self._parent(path) as found:
                yield found
        except (FileNotFoundError, KernelError):
            raise
        except FileExistsError:
            raise Conflict(f"{self.absolute(path)}: exists already") from None
        except OSError as error:
            raise _failure(f"change {self.absolute(path)}", error) from error

    @contextmanager
    def _parent(self, path: str) -> Iterator[tuple[int, str]]:
        """Open the directory of a path; yield it with the path's last part."""
        parts = path.strip("/").split("/")
        directory = os.open(self.prefix, _DIRECTORY)
        try:
            for depth, part in enumerate(parts[:-1], 1):
                following = self._step(directory, part, "/" + "/".join(parts[:depth]))
                os.close(directory)
                directory = following
            yield directory, parts[-1]
        finally:
            os.close(directory)

    def _step(self, directory: int, name: str, path: str) -> int:
        """Open a directory in another one."""
        try:
            return os.open(name, _DIRECTORY | os.O_NOFOLLOW, dir_fd=directory)
        except OSError as error:
            if error.errno not in (errno.ELOOP, errno.ENOTDIR):
                raise
        found = os.stat(name, dir_fd=directory, follow_symlinks=False)
        if not S_ISLNK(found.st_mode):
            raise Conflict(f"{self.absolute(path)}: is not a directory")
        if not (self.is_machine and found.st_uid == 0 and _is_roots(os.fstat(directory))):
            raise Conflict(f"{self.absolute(path)}: is a symbolic link, which zfw does not follow")
        return os.open(name, _DIRECTORY, dir_fd=directory)


def _failure(operation: str, error: OSError) -> ZfwError:
    if error.errno in (errno.EACCES, errno.EPERM):
        return PermissionDenied(f"{operation}: {error.strerror}")
    return KernelError(operation, error.errno or 0)


def _is_roots(status: os.stat_result) -> bool:
    """Whether only root can change the file, or the entries of the directory."""
    others = status.st_mode & 0o022 if status.st_gid else status.st_mode & 0o002
    return status.st_uid == 0 and not others


def changeable_by_others(path: str) -> str | None:
    """The first part of an absolute path that users other than root can change, or None."""
    path = os.path.realpath(path)
    while True:
        found = os.stat(path)
        is_sticky = S_ISDIR(found.st_mode) and bool(found.st_mode & 0o1000)
        if not _is_roots(found) and not (is_sticky and found.st_uid == 0):
            return path
        if path == "/":
            return None
        path = os.path.dirname(path)
