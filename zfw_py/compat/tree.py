# SPDX-License-Identifier: GPL-2.0-only
"""Files below a prefix: read within bounds, replaced by one rename, no stranger's link followed.

Paths are absolute, as they are when the prefix is ``/``.
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

if TYPE_CHECKING:
    from collections.abc import Iterator

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_NEW_FILE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


def _temporary(name: str) -> str:
    """The same each time, so that the next run finds what a killed one left."""
    return f".{name}.zfw-new"


class Tree:
    """The files below a prefix.

    On the way to a file, links are followed only where the prefix is ``/`` and
    nobody but root could have made them or put others in their place.
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
        """Whether this is the machine's own tree, and no other place that is filled."""
        return self.prefix == "/"

    def absolute(self, path: str) -> str:
        """Where a path of this tree is for everybody else."""
        return path if self.is_machine else self.prefix + path

    # Reading

    def status(self, path: str) -> os.stat_result | None:
        """What a path is, a link itself and not its target; None if there is nothing."""
        with suppress(FileNotFoundError), self._parent(path) as (directory, name):
            return os.stat(name, dir_fd=directory, follow_symlinks=False)
        return None

    def exists(self, path: str) -> bool:
        """Whether there is anything."""
        return self.status(path) is not None

    def read(self, path: str, limit: int) -> bytes | None:
        """A regular file of at most ``limit`` bytes; None if there is nothing."""
        found = self.read_with_status(path, limit)
        return None if found is None else found[0]

    def read_with_status(self, path: str, limit: int) -> tuple[bytes, os.stat_result] | None:
        """Content and status of one and the same file. Raises Conflict for what is no file."""
        try:
            with self._parent(path) as (directory, name):
                # A pipe must not make us wait for somebody to write.
                flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
                fd = os.open(name, flags, dir_fd=directory)
        except FileNotFoundError:
            return None
        except OSError as error:
            if error.errno == errno.ELOOP:
                raise Conflict(f"{self.absolute(path)}: is a link") from None
            raise _failure(f"read {self.absolute(path)}", error) from error
        status = os.fstat(fd)
        if not S_ISREG(status.st_mode):
            os.close(fd)
            raise Conflict(f"{self.absolute(path)}: is no regular file")
        with os.fdopen(fd, "rb") as file:
            content = file.read(limit + 1)
        if len(content) > limit:
            raise UsageError(f"{self.absolute(path)}: larger than {limit} bytes")
        return content, status

    def link_target(self, path: str) -> str | None:
        """Where a link points to; None if there is no link."""
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
        """Put a file in place at once: whoever looks sees all of it, or what was there before.

        With ``is_new`` nothing may be there: Conflict. ``like`` gives its owner and mode.
        """
        with self._changing(path) as (directory, name):
            temporary = _temporary(name)
            self._discard(directory, temporary)
            fd = os.open(temporary, _NEW_FILE, 0o600, dir_fd=directory)
            with os.fdopen(fd, "wb") as file:
                file.write(content)
                file.flush()
                if like is not None:
                    os.fchown(fd, like.st_uid, like.st_gid)
                os.fchmod(fd, mode if like is None else like.st_mode & 0o7777)
                os.fsync(fd)
            self._place(path, directory, temporary, name, is_new=is_new)

    def link(self, path: str, target: str, *, is_new: bool) -> None:
        """Put a symbolic link in place, as ``write`` does a file."""
        with self._changing(path) as (directory, name):
            temporary = _temporary(name)
            self._discard(directory, temporary)
            os.symlink(target, temporary, dir_fd=directory)
            self._place(path, directory, temporary, name, is_new=is_new)

    def _place(self, path: str, directory: int, temporary: str, name: str, *, is_new: bool) -> None:
        if is_new:
            # rename() would replace what somebody put there since we looked.
            try:
                os.link(
                    temporary,
                    name,
                    src_dir_fd=directory,
                    dst_dir_fd=directory,
                    follow_symlinks=False,
                )
            except FileExistsError:
                raise Conflict(f"{self.absolute(path)}: is there already") from None
            finally:
                os.unlink(temporary, dir_fd=directory)
        else:
            os.rename(temporary, name, src_dir_fd=directory, dst_dir_fd=directory)
        os.fsync(directory)

    @staticmethod
    def _discard(directory: int, name: str) -> None:
        with suppress(FileNotFoundError):
            os.unlink(name, dir_fd=directory)

    def remove(self, path: str) -> bool:
        """Remove a file or a link, and what a killed ``write`` left; False if there is none."""
        try:
            with self._changing(path) as (directory, name):
                self._discard(directory, _temporary(name))
                os.unlink(name, dir_fd=directory)
        except FileNotFoundError:
            return False
        return True

    def make_directory(self, path: str, mode: int = 0o755) -> bool:
        """Make a directory; False if it is there. Raises Conflict if something else is."""
        with self._changing(path) as (directory, name):
            try:
                os.mkdir(name, 0o700, dir_fd=directory)
            except FileExistsError:
                os.close(self._step(directory, name, path))
                return False
            # Not by mkdir, which leaves it to the caller's umask.
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
        """Hold a lock that only root can take: a file, made if there is none. Raises Busy."""
        from zfw_py.kernel.lock import try_exclusive

        with self._changing(path) as (directory, name):
            flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
            fd = os.open(name, flags, 0o600, dir_fd=directory)
        try:
            # Without a name it is of no use: the process that held it has removed it.
            if not try_exclusive(fd) or os.fstat(fd).st_nlink == 0:
                raise Busy(f"{self.absolute(path)}: another zfw is at work")
            yield
        finally:
            os.close(fd)

    # On the way

    @contextmanager
    def _changing(self, path: str) -> Iterator[tuple[int, str]]:
        try:
            with self._parent(path) as found:
                yield found
        except FileNotFoundError:
            raise
        except KernelError:
            raise
        except OSError as error:
            raise _failure(f"change {self.absolute(path)}", error) from error

    @contextmanager
    def _parent(self, path: str) -> Iterator[tuple[int, str]]:
        """The directory that a path is in, opened, and the path's last part."""
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
            raise Conflict(f"{self.absolute(path)}: is no directory")
        if not (self.is_machine and found.st_uid == 0 and _is_roots(os.fstat(directory))):
            raise Conflict(f"{self.absolute(path)}: is a link, which is not followed here")
        return os.open(name, _DIRECTORY, dir_fd=directory)


def _failure(operation: str, error: OSError) -> ZfwError:
    if error.errno in (errno.EACCES, errno.EPERM):
        return PermissionDenied(f"{operation}: {error.strerror}")
    return KernelError(operation, error.errno or 0)


def _is_roots(status: os.stat_result) -> bool:
    """Whether only root can change it; of a directory, what is in it."""
    others = status.st_mode & 0o022 if status.st_gid else status.st_mode & 0o002
    return status.st_uid == 0 and not others


def changeable_by_others(path: str) -> str | None:
    """The first part of an absolute path that somebody other than root can change; None if none."""
    path = os.path.realpath(path)
    while True:
        found = os.stat(path)
        is_sticky = S_ISDIR(found.st_mode) and bool(found.st_mode & 0o1000)
        if not _is_roots(found) and not (is_sticky and found.st_uid == 0):
            return path
        if path == "/":
            return None
        path = os.path.dirname(path)
