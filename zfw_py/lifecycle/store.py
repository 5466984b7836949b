# SPDX-License-Identifier: GPL-2.0-only
"""Where a system pins its state: a directory on bpffs for each instance, and its pins. Hot.

An instance is a network namespace's firewall, redirect or steering, or a guard. Its
directory is built without a name and published by one rename. Under the lock, a directory
without a name was therefore left by a process that was killed.
"""

from __future__ import annotations

import posix
from os.path import isdir, lexists

from zfw_py.errors import KernelError, LayoutMismatch, NotFound, raise_expected
from zfw_py.kernel import bpf_maps
from zfw_py.kernel.lock import Lock, require_own

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping

    from zfw_py.errors import ZfwError

    # Type, key size, value size, max_entries, flags.
    MapSpec = tuple[int, int, int, int, int]

# Where bpffs is mounted.
_TOP = "/sys/fs/bpf"
ROOT = f"{_TOP}/zfw"

# Prefix of what is not published yet, or no longer: directories, and pins within one. No
# identifier has an underscore.
UNNAMED = "new_"
# EIO, EAGAIN, ENOMEM, ENFILE, EMFILE, EROFS (include/uapi/asm-generic/errno-base.h).
_OF_THE_SYSTEM = (5, 11, 12, 23, 24, 30)
# The pin of an instance's manifest, in systems that have one.
MANIFEST = "about"

_MAX_ENTRIES = 3  # index into a map's shape


def _is_number(name: str) -> bool:
    return name.isascii() and name.isdigit()


class Store:
    """The pin directories of one system.

    ``root`` has the directories of all instances. ``maps`` has the expected shape of each map
    by its name, as in the generated layout. ``noun`` names an instance in errors ("no such
    guard"). ``remedy`` is the hint where pins of another version are in the way, with
    ``{directory}``. Maps in ``sized`` may have any ``max_entries``. Maps in ``added`` came with
    a later version: an instance of an earlier one has them once it is upgraded. ``absent`` is
    raised where no instance was ever made. Identifiers are numbers (a namespace's cookie)
    unless ``is_identifier`` says otherwise.
    """

    __slots__ = ("absent", "added", "is_identifier", "maps", "noun", "remedy", "root", "sized")

    def __init__(
        self,
        root: str,
        maps: Mapping[str, MapSpec],
        *,
        noun: str,
        remedy: str,
        absent: Callable[[], ZfwError],
        sized: Collection[str] = (),
        added: Collection[str] = (),
        is_identifier: Callable[[str], bool] = _is_number,
    ) -> None:
        self.root = root
        self.maps = maps
        self.noun = noun
        self.remedy = remedy
        self.absent = absent
        self.sized = sized
        self.added = added
        self.is_identifier = is_identifier

    def directory(self, identifier: str | int) -> str:
        """The directory of an instance, whether it exists or not. Raises NotFound for a bad id."""
        name = str(identifier)
        if not self.is_identifier(name):
            raise NotFound(f"no such {self.noun}: {name!r}")
        return f"{self.root}/{name}"

    def exists(self, identifier: str | int) -> bool:
        """Whether an instance is published. Raises NotFound for a bad id, Conflict as the lock."""
        self.require_own_root()
        return isdir(self.directory(identifier))

    def identifiers(self) -> list[str]:
        """The instances that are published, in no order; none where there is no root.

        Raises PermissionDenied, and Conflict as the lock does.
        """
        self.require_own_root()
        try:
            return [name for name in posix.listdir(self.root) if self.is_identifier(name)]
        except FileNotFoundError:
            return []
        except OSError as error:
            raise_expected(error)

    def unfinished(self) -> list[str]:
        """Directories without a name. Under the lock: those that a killed process left."""
        return [
            f"{self.root}/{name}" for name in posix.listdir(self.root) if name.startswith(UNNAMED)
        ]

    def lock(self, *, is_exclusive: bool) -> Lock:
        """The lock on all instances of the system.

        As it is entered it raises FileNotFoundError if there is no root, and Conflict if another
        user than root can write to it.
        """
        return Lock(self.root, is_exclusive=is_exclusive, top=_TOP)

    def require_own_root(self) -> None:
        """Raise Conflict if another user than root can write to the root; it may be missing."""
        try:
            require_own(self.root, _TOP)
        except (FileNotFoundError, PermissionError):
            pass  # nothing can be opened in it either

    def make_root(self) -> None:
        """Mount bpffs where it is missing; make the root, mode 0700. Raises OSError or Conflict."""
        from zfw_py.kernel.bpffs import mount

        mount()
        for path in dict.fromkeys((ROOT, self.root)):
            try:
                posix.mkdir(path, 0o700)
            except FileExistsError:
                require_own(path, _TOP)

    def new_directory(self) -> str:
        """Make a directory without a name, to build an instance in."""
        path = f"{self.root}/{UNNAMED}{posix.getpid()}"
        posix.mkdir(path, 0o700)
        return path

    def publish(self, built: str, identifier: str | int) -> None:
        """Give a directory its name, in one step."""
        posix.rename(built, self.directory(identifier))

    def withdraw(self, identifier: str | int) -> str | None:
        """Take an instance's name away, in one step; its directory. None: there is none."""
        doomed = f"{self.root}/{UNNAMED}{posix.getpid()}"
        try:
            posix.rename(self.directory(identifier), doomed)
        except FileNotFoundError:
            return None
        return doomed


class Pins:
    """The maps in a directory, opened and checked as they are asked for."""

    def __init__(self, store: Store, directory: str, *, is_read_only: bool = False) -> None:
        """Nothing is opened yet. ``is_read_only``: for a caller that may only read the maps.

        Such a caller has no lock, so the root is checked here: raises Conflict as a lock does.
        """
        if is_read_only:
            store.require_own_root()
        self.directory = directory
        self._store = store
        self._flags = bpf_maps.READ_ONLY if is_read_only else bpf_maps.ANY
        self._maps: dict[str, bpf_maps.Map] = {}

    def map(self, name: str) -> bpf_maps.Map:
        """The map of this name. Raises NotFound, PermissionDenied or LayoutMismatch."""
        if name not in self._maps:
            opened = self.open(name)
            expected = self._store.maps[name]
            size = opened.max_entries if name in self._store.sized else expected[_MAX_ENTRIES]
            if opened.spec != (*expected[:_MAX_ENTRIES], size, *expected[_MAX_ENTRIES + 1 :]):
                raise self.mismatch(name, f"{opened.spec}, not {expected}")
            self._maps[name] = opened
        return self._maps[name]

    def find(self, name: str) -> bpf_maps.Map | None:
        """As ``map``; None where the instance has to be upgraded before it has this map."""
        # One that is open stays so when the directory gets its name, or goes.
        return self.map(name) if name in self._maps or name not in self.missing() else None

    def missing(self) -> list[str]:
        """The maps that an upgrade of this instance adds."""
        return [name for name in self._store.added if not lexists(f"{self.directory}/{name}")]

    def open_all(self) -> None:
        """Open every map: they stay open when the directory gets its name, or goes."""
        missing = self.missing()
        for name in self._store.maps:
            if name not in missing:
                self.map(name)

    def open(self, name: str) -> bpf_maps.Map:
        """The map of this name, of whatever shape. Raises as ``map``."""
        try:
            return bpf_maps.open_map(f"{self.directory}/{name}", self._flags)
        except FileNotFoundError:
            if isdir(self.directory):
                hint = "zfw upgrade adds it" if name in self._store.added else ""
                raise self.mismatch(name, "it is missing", hint) from None
            identifier = self.directory.rpartition("/")[2]
            raise NotFound(f"no such {self._store.noun}: {identifier}") from None
        except PermissionError as error:
            if isdir(f"{self.directory}/{name}"):
                raise self.mismatch(name, "it is a directory") from None
            raise_expected(error)
        except OSError as error:
            raise self.not_opened(name, error) from None

    def not_opened(self, name: str, error: OSError) -> ZfwError:
        """The error for a pin that cannot be opened.

        EINVAL and others mean that what is pinned there is of another kind. Where the system lacks
        something, the pin is as it was, and nobody shall remove it.
        """
        if error.errno in _OF_THE_SYSTEM:
            return KernelError(f"open {self.directory}/{name}", error.errno)
        return self.mismatch(name, error.strerror or str(error))

    def mismatch(self, name: str, what: str, hint: str = "") -> LayoutMismatch:
        """The error for a pin that is not what this version makes."""
        return LayoutMismatch(
            f"{self.directory}/{name} is of another version of zfw: {what}",
            hint=hint or self._store.remedy.format(directory=self.directory),
        )


def replace_pin(fd: int, path: str) -> None:
    """Pin an object at a path, in one step in the place of what is pinned there.

    A process that is killed before the rename leaves a pin with the prefix ``new_``; it goes
    first here, so that it is never in the way.
    """
    directory, _, name = path.rpartition("/")
    new = f"{directory}/{UNNAMED}{name}"
    unlink(new)
    bpf_maps.pin(fd, new)
    posix.rename(new, path)


def unlink(path: str) -> None:
    """Remove a pin, if it is there."""
    try:
        posix.unlink(path)
    except FileNotFoundError:
        pass


def remove_directory(directory: str, last: str = "") -> None:
    """Unpin all that a directory holds, ``last`` as the last, and remove it.

    Pins may be removed by hand meanwhile: the lock keeps out zfw alone.
    """
    for name in sorted(posix.listdir(directory), key=lambda name: name == last):
        unlink(f"{directory}/{name}")
    try:
        posix.rmdir(directory)
    except FileNotFoundError:
        pass


def names(directory: str, prefix: str) -> list[str]:
    """What is pinned in a directory under names with this prefix, without it; sorted."""
    return sorted(
        name.removeprefix(prefix) for name in posix.listdir(directory) if name.startswith(prefix)
    )
