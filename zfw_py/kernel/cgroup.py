# SPDX-License-Identifier: GPL-2.0-only
"""cgroups of cgroup2, by its file system (cgroups(7)) and /proc/PID/cgroup.

A cgroup is given by its directory, an absolute path. The kernel's
Documentation/admin-guide/cgroup-v2.rst describes the files that are read here.
"""

from __future__ import annotations

import errno
import os
import re
import select
import stat
from typing import TYPE_CHECKING, NamedTuple

from zfw_py.errors import (
    Conflict,
    KernelError,
    NotFound,
    PermissionDenied,
    UsageError,
    ZfwError,
)
from zfw_py.kernel import file_systems

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator
    from types import TracebackType

_NAME_MAX = 255  # bytes
# More bytes than cgroup.events has.
_SMALL = 4096
_DELETED = " (deleted)"


class _Mount(NamedTuple):
    """A mount of cgroup2: its number, the cgroup at its root, and the mount point.

    ``root`` is written as in /proc/PID/cgroup.
    """

    number: int
    root: str
    point: str


# Finding cgroups


def mount_point() -> str:
    """Where cgroup2 is mounted; of several mounts, the one that shows the most cgroups.

    Raises ZfwError if it is mounted nowhere.
    """
    return min(_visible_mounts(), key=lambda mount: _depth(mount.root)).point


def systemd_mounts() -> list[str]:
    """Where the hierarchies are mounted that systemd may keep its units in.

    These are cgroup2 and the named hierarchy of cgroup v1; a host has one or both.
    """
    found = []
    for line in _lines("/proc/self/mountinfo"):
        fields = line.split(" ")
        kind, _, options = fields[fields.index("-", 6) + 1 :][:3]
        is_named = kind == "cgroup" and "name=systemd" in options.split(",")
        if kind == "cgroup2" or is_named:
            found.append(_unescaped(fields[4]))
    return list(dict.fromkeys(found))


def of_process(pid: int) -> str:
    """The cgroup of a process.

    Raises NotFound if there is no such process or its cgroup has been removed, which a
    zombie does not prevent; ZfwError if no mount that the caller sees shows the cgroup.
    """
    path = f"/proc/{pid}/cgroup"
    try:
        lines = _lines(path)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ESRCH):
            raise NotFound(f"no such process: {pid}") from error
        raise _failed("read", path, error) from error
    mounts = _visible_mounts()
    for line in lines:
        if line.startswith("0::"):
            return _shown(pid, line.removeprefix("0::"), mounts)
    raise ZfwError(f"process {pid} is in no cgroup of cgroup2")


def _shown(pid: int, cgroup: str, mounts: list[_Mount]) -> str:
    for place in _places(cgroup, mounts):
        if os.path.isdir(place):
            return place
    if cgroup.endswith(_DELETED):
        raise NotFound(f"process {pid}: its cgroup {cgroup.removesuffix(_DELETED)} is gone")
    if ".." in _components(cgroup):
        raise ZfwError(f"process {pid}: its cgroup lies outside of our cgroup namespace: {cgroup}")
    raise ZfwError(f"process {pid}: no mount of cgroup2 shows its cgroup {cgroup}")


def _places(cgroup: str, mounts: list[_Mount]) -> list[str]:
    """The paths at which mounts show a cgroup of /proc/PID/cgroup.

    That path and a mount's root are both relative to the reader's cgroup
    namespace, and begin with ``/..`` outside of it (cgroup_namespaces(7)).
    """
    wanted = _components(cgroup)
    places = []
    for _, root, point in mounts:
        above = _components(root)
        rest = wanted[len(above) :]
        # The cgroups between a root above the namespace and the namespace have no name here.
        if wanted[: len(above)] == above and ".." not in rest:
            places.append("/".join([point.rstrip("/"), *rest]) or "/")
    return places


def _components(path: str) -> list[str]:
    return [part for part in path.split("/") if part]


def _depth(path: str) -> int:
    return sum(-1 if part == ".." else 1 for part in _components(path))


def _lines(path: str) -> list[str]:
    """The lines of a file of /proc.

    Not ``splitlines()``: a cgroup's name may have characters that Python takes for line ends.
    """
    with open(path, "rb") as file:
        return os.fsdecode(file.read()).removesuffix("\n").split("\n")


def _visible_mounts() -> list[_Mount]:
    mounts = _mounts(_lines("/proc/self/mountinfo"))
    # A later mount may hide an earlier one.
    visible = [mount for mount in mounts if _mount_number(mount.point) == mount.number]
    if not visible:
        raise ZfwError(
            "no cgroup2 is mounted", hint="mount -t cgroup2 none /sys/fs/cgroup, or see systemd(1)"
        )
    return visible


def _mounts(mountinfo: list[str]) -> list[_Mount]:
    """The mounts of cgroup2 among the lines of a mountinfo (proc(5))."""
    found = []
    for line in mountinfo:
        fields = line.split(" ")
        # The optional fields end with a hyphen; type, source and options follow.
        if fields[fields.index("-", 6) + 1] == "cgroup2":
            found.append(_Mount(int(fields[0]), _unescaped(fields[3]), _unescaped(fields[4])))
    return found


def _unescaped(field: str) -> str:
    """A field in which space, tab, newline and backslash are written in octal digits."""
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), field)


def _mount_number(path: str) -> int | None:
    """The number of the mount that a path is on (mnt_id of fdinfo, proc(5)), or None."""
    try:
        fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        fields = (line.split() for line in _lines(f"/proc/self/fdinfo/{fd}"))
        return next(int(field[1]) for field in fields if field[0] == "mnt_id:")
    finally:
        os.close(fd)


# One cgroup


def open_directory(path: str) -> int:
    """A descriptor of a cgroup's directory, to attach programs to; the caller closes it.

    Raises NotFound, PermissionDenied, and UsageError if the path is no cgroup of cgroup2.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except NotADirectoryError:
        raise UsageError(f"{path}: not a directory, so not a cgroup") from None
    except OSError as error:
        raise _failed("open", path, error) from error
    kind = file_systems.type_of(fd)
    if kind == file_systems.CGROUP2:
        return fd
    os.close(fd)
    if kind == file_systems.CGROUP:
        raise UsageError(f"{path}: a cgroup of version 1, not of cgroup2")
    raise UsageError(f"{path}: not a cgroup")


def resolve(path: str) -> str:
    """The cgroup of a path that a user gave, without links and ``..``.

    Raises NotFound, PermissionDenied, UsageError.
    """
    try:
        resolved = os.path.realpath(path, strict=True)
    except NotADirectoryError:
        raise UsageError(f"{path}: not a directory, so not a cgroup") from None
    except OSError as error:
        raise _failed("find", path, error) from error
    os.close(open_directory(resolved))
    return resolved


def is_root(path: str) -> bool:
    """Whether a cgroup is the one that contains all others.

    The root of a cgroup namespace is not. Raises as ``open_directory`` does.
    """
    os.close(open_directory(path))
    # Only the root cgroup has no such file (Documentation/admin-guide/cgroup-v2.rst).
    return not os.path.exists(f"{path}/cgroup.events")


def identifier(path: str) -> int:
    """A cgroup's id, as bpf_skb_cgroup_id() and sock_diag return it.

    Since Linux 5.5 (743210386c03) it is the inode number of the directory, on a 64-bit
    kernel with 64 bits. The kernel never reuses one while the machine runs.
    """
    try:
        return os.stat(path).st_ino
    except OSError as error:
        raise _failed("look at", path, error) from error


def parent(path: str) -> str | None:
    """The cgroup that contains a cgroup; None for the topmost one that the caller sees."""
    above = os.path.dirname(path)
    try:
        is_same = os.stat(above).st_dev == os.stat(path).st_dev
    except OSError as error:
        raise _failed("look at", path, error) from error
    return above if is_same and above != path else None


def ancestors(path: str) -> Iterator[str]:
    """The cgroups that contain a cgroup, from the innermost to the topmost that the caller sees."""
    above = parent(path)
    while above is not None:
        yield above
        above = parent(above)


def descendants(path: str) -> list[str]:
    """The cgroups within a cgroup, at any depth, each after the one that contains it."""
    found = _children(path)
    for cgroup in found:
        try:
            found.extend(_children(cgroup))
        except NotFound:
            pass  # removed since
    return found


def _children(path: str) -> list[str]:
    try:
        with os.scandir(path) as entries:
            return [entry.path for entry in entries if entry.is_dir(follow_symlinks=False)]
    except OSError as error:
        raise _failed("list", path, error) from error


def create(above: str, name: str) -> str:
    """Create a cgroup within another one, mode 0755; its path.

    Raises UsageError if ``name`` cannot be a name, Conflict if it exists already.
    """
    path = f"{above.rstrip('/')}/{name}"
    is_name = name not in ("", ".", "..") and not set(name) & {"/", "\n", "\0"}
    if not is_name or len(os.fsencode(name)) > _NAME_MAX:
        raise UsageError(f"not a name for a cgroup: {name!r}")
    fd = open_directory(above)
    try:
        os.mkdir(name, 0o755, dir_fd=fd)
        # mkdir(2) applies the umask.
        os.chmod(name, 0o755, dir_fd=fd)  # noqa: S103 - the mode of all cgroups
    except FileExistsError:
        raise Conflict(f"create {path}: it is there already") from None
    except OSError as error:
        if error.errno == errno.EAGAIN:
            raise KernelError(
                f"create {path}",
                errno.EAGAIN,
                hint="cgroup.max.descendants or cgroup.max.depth of a cgroup around it",
            ) from error
        raise _failed("create", path, error) from error
    finally:
        os.close(fd)
    return path


def remove(path: str) -> None:
    """Remove a cgroup. Raises Conflict if it contains a process or a cgroup."""
    try:
        os.rmdir(path)
    except OSError as error:
        if error.errno in (errno.EBUSY, errno.ENOTEMPTY):
            raise Conflict(f"remove {path}: there are processes or cgroups in it") from error
        raise _failed("remove", path, error) from error


# Processes


def processes(path: str, *, is_recursive: bool = False) -> list[int]:
    """The ids of the processes in a cgroup, in rising order.

    A threaded cgroup contains a process if it contains one of its threads. Processes
    without an id in the caller's PID namespace are left out.
    """
    found = _processes(path)
    if is_recursive:
        for cgroup in descendants(path):
            try:
                found |= _processes(cgroup)
            except NotFound:
                pass  # removed since
    return sorted(found)


def _processes(path: str) -> set[int]:
    try:
        found = _numbers(f"{path}/cgroup.procs")
    except OSError as error:
        if error.errno != errno.EOPNOTSUPP:
            raise _failed("read the processes of", path, error) from error
        # A threaded cgroup lists no processes.
        try:
            found = {_process_of(thread) for thread in _numbers(f"{path}/cgroup.threads")}
        except OSError as second:
            raise _failed("read the threads of", path, second) from second
    return found - {0}


def _numbers(path: str) -> set[int]:
    with open(path, encoding="ascii") as file:
        return {int(line) for line in file}


def _process_of(thread: int) -> int:
    """The process of a thread; 0 if it has ended or has no id in the caller's PID namespace."""
    try:
        with open(f"/proc/{thread}/status", encoding="utf-8", errors="replace") as file:
            for line in file:
                if line.startswith("Tgid:"):
                    return int(line.split()[1])
    except (FileNotFoundError, ProcessLookupError):
        pass
    return 0


def may_move(path: str, uid: int, groups: Collection[int]) -> bool:
    """Whether a user without capabilities may write to a cgroup's ``cgroup.procs``."""
    try:
        status = os.stat(f"{path}/cgroup.procs")
    except OSError as error:
        raise _failed("look at", path, error) from error
    if status.st_uid == uid:
        return bool(status.st_mode & stat.S_IWUSR)
    return bool(status.st_mode & (stat.S_IWGRP if status.st_gid in groups else stat.S_IWOTH))


def move(pid: int, path: str) -> None:
    """Move a process, with all its threads, into a cgroup.

    Its sockets keep the cgroup that they were created in. Raises NotFound if there is no
    such process or cgroup, Conflict if the cgroup can contain no processes.
    """
    if pid <= 0:  # 0 stands for the writer
        raise UsageError(f"not a process id: {pid}")
    try:
        fd = os.open(f"{path}/cgroup.procs", os.O_WRONLY | os.O_CLOEXEC)
    except OSError as error:
        raise _failed("move a process into", path, error) from error
    try:
        os.write(fd, b"%d" % pid)
    except OSError as error:
        if error.errno == errno.ESRCH:
            raise NotFound(f"no such process: {pid}") from error
        if error.errno in (errno.EBUSY, errno.EOPNOTSUPP):
            raise Conflict(
                f"move process {pid} into {path}: the cgroup takes none",
                hint="it hands controllers down, or has threaded cgroups in it or around it",
            ) from error
        raise _failed(f"move process {pid} into", path, error) from error
    finally:
        os.close(fd)


def is_populated(path: str) -> bool:
    """Whether a cgroup, or one within it, contains a process; zombies do not count."""
    if is_root(path):
        return True
    with Population(path) as population:
        return population.is_populated()


class Population:
    """Notifies when the last process of a cgroup, and of all within it, has ended.

    ``fileno()`` is readable when that may have changed, for select, asyncio and the like.
    ``is_populated()`` answers and makes it unreadable until the next change. A context
    manager. Raises NotFound, and UsageError for the root cgroup, which is never empty.

    (The kernel reports a change as POLLPRI and POLLERR of cgroup.events. But that file is
    always readable, so asyncio would call the reader without end. Hence the epoll
    descriptor, which waits for POLLPRI alone.)
    """

    def __init__(self, path: str) -> None:
        if is_root(path):
            raise UsageError(f"{path}: the root cgroup is never empty")
        self.path = path
        self._epoll = select.epoll()
        self._events = -1
        try:
            self._events = os.open(f"{path}/cgroup.events", os.O_RDONLY | os.O_CLOEXEC)
            # epoll reports the changes since the last read.
            self.is_populated()
            self._epoll.register(self._events, select.EPOLLPRI)
        except OSError as error:
            self.close()
            raise _failed("watch", path, error) from error

    def fileno(self) -> int:
        """A descriptor that is readable after a change."""
        return self._epoll.fileno()

    def is_populated(self) -> bool:
        """Whether it contains a process; a cgroup that has been removed does not."""
        try:
            text = os.pread(self._events, _SMALL, 0)
        except OSError as error:
            if error.errno == errno.ENODEV:
                return False
            raise _failed("watch", self.path, error) from error
        return b"populated 1" in text.splitlines()

    def close(self) -> None:
        """Close the descriptors."""
        self._epoll.close()
        if self._events >= 0:
            os.close(self._events)
            self._events = -1

    def __enter__(self) -> Population:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def _failed(operation: str, path: str, error: OSError) -> ZfwError:
    number = error.errno or 0
    # ENODEV: the cgroup was removed while its file was open.
    if number in (errno.ENOENT, errno.ENODEV, errno.ENOTDIR):
        return NotFound(f"no such cgroup: {path}")
    if number in (errno.EACCES, errno.EPERM, errno.EROFS):
        return PermissionDenied(f"{operation} {path}: {os.strerror(number)}")
    return KernelError(f"{operation} {path}", number)
