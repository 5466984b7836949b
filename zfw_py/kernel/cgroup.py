# SPDX-License-Identifier: GPL-2.0-only
"""cgroup2: where it is mounted, which cgroup a process is in, what is in a cgroup.

A cgroup is its directory, an absolute path. cgroups(7) and the kernel's
Documentation/admin-guide/cgroup-v2.rst have the files that are read here.
"""

from __future__ import annotations

import ctypes
import errno
import os
import re
import select
from time import monotonic
from typing import TYPE_CHECKING, NamedTuple

from zfw_py.errors import (
    Conflict,
    KernelError,
    NotFound,
    PermissionDenied,
    UsageError,
    ZfwError,
)

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import TracebackType

# include/uapi/linux/magic.h
_CGROUP2_SUPER_MAGIC = 0x63677270
_CGROUP_SUPER_MAGIC = 0x27E0EB
_NAME_MAX = 255  # bytes
# The files of one or two lines; the lists of processes are read to their end.
_SMALL = 4096
_DELETED = " (deleted)"

_libc = ctypes.CDLL(None, use_errno=True)


class _Mount(NamedTuple):
    """A mount of cgroup2: the cgroup at its top, as /proc/PID/cgroup writes one, and where."""

    number: int
    root: str
    point: str


# Finding cgroups


def mount_point() -> str:
    """Where cgroup2 is mounted; of several mounts, the one that shows most.

    Raises ZfwError if it is mounted nowhere.
    """
    return min(_visible_mounts(), key=lambda mount: _depth(mount.root)).point


def systemd_mounts() -> list[str]:
    """Where the hierarchies are mounted in which systemd may keep its units.

    That is cgroup2, and cgroup v1's named hierarchy beside it or instead of it.
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

    Raises NotFound if there is no such process or its cgroup has been removed
    (a zombie stays in it), ZfwError if the cgroup cannot be seen from here.
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
    """Where mounts show a cgroup of /proc/PID/cgroup.

    That path and a mount's root are both relative to the reader's cgroup
    namespace, and begin with ``/..`` outside of it (cgroup_namespaces(7)).
    """
    wanted = _components(cgroup)
    places = []
    for _, root, point in mounts:
        above = _components(root)
        rest = wanted[len(above) :]
        # What lies between a root above our namespace and the namespace has no name here.
        if wanted[: len(above)] == above and ".." not in rest:
            places.append("/".join([point.rstrip("/"), *rest]) or "/")
    return places


def _components(path: str) -> list[str]:
    return [part for part in path.split("/") if part]


def _depth(path: str) -> int:
    return sum(-1 if part == ".." else 1 for part in _components(path))


def _lines(path: str) -> list[str]:
    """The lines of a file of /proc: a cgroup's name may hold what Python takes for line ends."""
    with open(path, "rb") as file:
        return os.fsdecode(file.read()).removesuffix("\n").split("\n")


def _visible_mounts() -> list[_Mount]:
    mounts = _mounts(_lines("/proc/self/mountinfo"))
    # Another mount may lie over it.
    visible = [mount for mount in mounts if _mount_number(mount.point) == mount.number]
    if not visible:
        raise ZfwError(
            "no cgroup2 is mounted", hint="mount -t cgroup2 none /sys/fs/cgroup, or see systemd(1)"
        )
    return visible


def _mounts(mountinfo: list[str]) -> list[_Mount]:
    """The mounts of cgroup2 among the lines of a mountinfo; its fields are in proc(5)."""
    found = []
    for line in mountinfo:
        fields = line.split(" ")
        # The optional fields end with a hyphen; type, source and options follow.
        if fields[fields.index("-", 6) + 1] == "cgroup2":
            found.append(_Mount(int(fields[0]), _unescaped(fields[3]), _unescaped(fields[4])))
    return found


def _unescaped(field: str) -> str:
    """Space, tab, newline and backslash are written in octal digits."""
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), field)


def _mount_number(path: str) -> int | None:
    """The number of the mount that a path leads to, of its field mnt_id (proc(5)); or None."""
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
    """A descriptor of a cgroup's directory, as programs are attached to; the caller closes it.

    Raises NotFound, PermissionDenied, and UsageError if the path is no cgroup of cgroup2.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except NotADirectoryError:
        raise UsageError(f"{path}: not a directory, so not a cgroup") from None
    except OSError as error:
        raise _failed("open", path, error) from error
    # struct statfs starts with f_type, a long; 120 bytes are enough everywhere.
    buffer = ctypes.create_string_buffer(256)
    _libc.fstatfs(fd, buffer)
    magic = ctypes.c_long.from_buffer(buffer).value & 0xFFFFFFFF
    if magic == _CGROUP2_SUPER_MAGIC:
        return fd
    os.close(fd)
    if magic == _CGROUP_SUPER_MAGIC:
        raise UsageError(f"{path}: a cgroup of version 1, not of cgroup2")
    raise UsageError(f"{path}: not a cgroup")


def resolve(path: str) -> str:
    """The cgroup that a user named, without links and ``..``.

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
    """Whether a cgroup is the one that all others are in.

    The root of a cgroup namespace looks like it from within, and is another one.
    Raises as ``open_directory`` does.
    """
    os.close(open_directory(path))
    # Of all cgroups this one alone has no such file (Documentation/admin-guide/cgroup-v2.rst).
    return not os.path.exists(f"{path}/cgroup.events")


def identifier(path: str) -> int:
    """A cgroup's id: what BPF helpers such as bpf_skb_cgroup_id() and sock_diag give.

    It is the inode number of the directory since Linux 5.5 (743210386c03), 64 bits
    wide where the kernel is. While the machine runs an id is not given twice.
    """
    try:
        return os.stat(path).st_ino
    except OSError as error:
        raise _failed("look at", path, error) from error


def parent(path: str) -> str | None:
    """The cgroup around a cgroup; None for the topmost one that can be seen here."""
    above = os.path.dirname(path)
    try:
        is_same = os.stat(above).st_dev == os.stat(path).st_dev
    except OSError as error:
        raise _failed("look at", path, error) from error
    return above if is_same and above != path else None


def ancestors(path: str) -> Iterator[str]:
    """The cgroups around a cgroup, from the inside to the topmost one that can be seen here."""
    above = parent(path)
    while above is not None:
        yield above
        above = parent(above)


def descendants(path: str) -> list[str]:
    """The cgroups in a cgroup, at any depth, each after the one that it is in."""
    found = _children(path)
    for cgroup in found:
        try:
            found.extend(_children(cgroup))
        except NotFound:
            pass  # removed meanwhile
    return found


def _children(path: str) -> list[str]:
    try:
        with os.scandir(path) as entries:
            return [entry.path for entry in entries if entry.is_dir(follow_symlinks=False)]
    except OSError as error:
        raise _failed("list", path, error) from error


def create(above: str, name: str) -> str:
    """Make a cgroup in another one, mode 0755; its path.

    Raises UsageError for what is no name, Conflict if there is one of that name.
    """
    path = f"{above.rstrip('/')}/{name}"
    is_name = name not in ("", ".", "..") and not set(name) & {"/", "\n", "\0"}
    if not is_name or len(os.fsencode(name)) > _NAME_MAX:
        raise UsageError(f"not a name for a cgroup: {name!r}")
    fd = open_directory(above)
    try:
        os.mkdir(name, 0o755, dir_fd=fd)
        # Whatever the caller's umask.
        os.chmod(name, 0o755, dir_fd=fd)  # noqa: S103 - as all cgroups are
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
    """Remove a cgroup; Conflict if there is a process or a cgroup in it."""
    try:
        os.rmdir(path)
    except OSError as error:
        if error.errno in (errno.EBUSY, errno.ENOTEMPTY):
            raise Conflict(f"remove {path}: there are processes or cgroups in it") from error
        raise _failed("remove", path, error) from error


# Processes


def processes(path: str, *, is_recursive: bool = False) -> list[int]:
    """The ids of the processes in a cgroup, in rising order.

    A process is in a threaded cgroup if one of its threads is. Processes that
    have no id in our PID namespace are left out.
    """
    found = _processes(path)
    if is_recursive:
        for cgroup in descendants(path):
            try:
                found |= _processes(cgroup)
            except NotFound:
                pass  # removed meanwhile
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
    """The process of a thread; 0 if it has ended, or has no id here."""
    try:
        with open(f"/proc/{thread}/status", encoding="utf-8", errors="replace") as file:
            for line in file:
                if line.startswith("Tgid:"):
                    return int(line.split()[1])
    except (FileNotFoundError, ProcessLookupError):
        pass
    return 0


def move(pid: int, path: str) -> None:
    """Move a process, with all its threads, into a cgroup.

    Its sockets stay with the cgroup that they were made in. Raises NotFound if
    either is not there, Conflict if the cgroup takes no processes.
    """
    if pid <= 0:  # 0 would be ourselves
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
    """Whether a process lives in a cgroup or in one within it; zombies do not count."""
    if is_root(path):
        return True
    with Population(path) as population:
        return population.is_populated()


class Population:
    """Tells, without polling, when the last process of a cgroup and all within it has ended.

    ``fileno()`` is readable when that may have changed, for select, asyncio and the like;
    ``is_populated()`` answers, and makes it quiet again. A context manager.
    Raises NotFound, and UsageError for the root cgroup, which is never empty.

    (A change raises POLLPRI and POLLERR on cgroup.events itself, which is always
    readable too: asyncio's ``add_reader`` would be called without end. Hence the
    epoll descriptor around it. inotify tells as much, and takes a C library.)
    """

    def __init__(self, path: str) -> None:
        if is_root(path):
            raise UsageError(f"{path}: the root cgroup is never empty")
        self.path = path
        self._epoll = select.epoll()
        self._events = -1
        try:
            self._events = os.open(f"{path}/cgroup.events", os.O_RDONLY | os.O_CLOEXEC)
            # Changes count from the last reading.
            self.is_populated()
            self._epoll.register(self._events, select.EPOLLPRI)
        except OSError as error:
            self.close()
            raise _failed("watch", path, error) from error

    def fileno(self) -> int:
        """A descriptor that is readable after a change."""
        return self._epoll.fileno()

    def is_populated(self) -> bool:
        """Whether there is a process; a cgroup that was removed has none."""
        try:
            text = os.pread(self._events, _SMALL, 0)
        except OSError as error:
            if error.errno == errno.ENODEV:
                return False
            raise _failed("watch", self.path, error) from error
        return b"populated 1" in text.splitlines()

    def wait_until_empty(self, timeout: float | None = None) -> bool:
        """Wait until there is no process; False if there still is one after so many seconds."""
        deadline = None if timeout is None else monotonic() + timeout
        while self.is_populated():
            left = None if deadline is None else max(deadline - monotonic(), 0)
            if not self._epoll.poll(left):
                return not self.is_populated()
        return True

    def close(self) -> None:
        """Let go of the descriptors."""
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
    # ENODEV: it was removed while its file was open.
    if number in (errno.ENOENT, errno.ENODEV, errno.ENOTDIR):
        return NotFound(f"no such cgroup: {path}")
    if number in (errno.EACCES, errno.EPERM, errno.EROFS):
        return PermissionDenied(f"{operation} {path}: {os.strerror(number)}")
    return KernelError(f"{operation} {path}", number)
