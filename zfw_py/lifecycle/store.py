# SPDX-License-Identifier: GPL-2.0-only
"""Where a system pins its state: one directory on bpffs for each instance. Hot.

An instance is a network namespace's firewall, redirect or steering, or a guard. Its
directory is built without a name and published by one rename. Under the lock, a directory
without a name was therefore left by a process that was killed.
"""

from __future__ import annotations

import posix
from os.path import isdir

from zfw_py.errors import NotFound, raise_expected
from zfw_py.kernel.lock import Lock

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping

    from zfw_py.errors import ZfwError

    # Type, key size, value size, max_entries, flags.
    MapSpec = tuple[int, int, int, int, int]

ROOT = "/sys/fs/bpf/zfw"

# Prefix of what is not published yet, or no longer: directories, and pins within one. No
# identifier has an underscore.
UNNAMED = "new_"


def _is_number(name: str) -> bool:
    return name.isascii() and name.isdigit()


class Store:
    """The pin directories of one system.

    ``root`` has the directories of all instances. ``maps`` has the expected shape of each map
    by its name, as in the generated layout. ``noun`` names an instance in errors ("no such
    guard"). ``remedy`` is the hint where pins of another version are in the way, with
    ``{directory}``. Maps in ``sized`` may have any ``max_entries``. ``absent`` is raised where
    no instance was ever made. Identifiers are numbers (a namespace's cookie) unless
    ``is_identifier`` says otherwise.
    """

    __slots__ = ("absent", "is_identifier", "maps", "noun", "remedy", "root", "sized")

    def __init__(
        self,
        root: str,
        maps: Mapping[str, MapSpec],
        *,
        noun: str,
        remedy: str,
        absent: Callable[[], ZfwError],
        sized: Collection[str] = (),
        is_identifier: Callable[[str], bool] = _is_number,
    ) -> None:
        self.root = root
        self.maps = maps
        self.noun = noun
        self.remedy = remedy
        self.absent = absent
        self.sized = sized
        self.is_identifier = is_identifier

    def directory(self, identifier: str | int) -> str:
        """The directory of an instance, whether it exists or not. Raises NotFound for a bad id."""
        name = str(identifier)
        if not self.is_identifier(name):
            raise NotFound(f"no such {self.noun}: {name!r}")
        return f"{self.root}/{name}"

    def exists(self, identifier: str | int) -> bool:
        """Whether an instance is published. Raises NotFound for a bad id."""
        return isdir(self.directory(identifier))

    def identifiers(self) -> list[str]:
        """The instances that are published, in no order; none where there is no root.

        Raises PermissionDenied.
        """
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
        """The lock on all instances of the system; FileNotFoundError as it is entered: no root."""
        return Lock(self.root, is_exclusive=is_exclusive)

    def make_root(self) -> None:
        """Mount bpffs where it is missing; make the root, mode 0700. Raises OSError."""
        from zfw_py.kernel.bpffs import mount

        mount()
        for path in dict.fromkeys((ROOT, self.root)):
            try:
                posix.mkdir(path, 0o700)
            except FileExistsError:
                pass

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
