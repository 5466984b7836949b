# SPDX-License-Identifier: GPL-2.0-only
"""The pins in an instance's directory: maps that are checked against the layout. Hot."""

from __future__ import annotations

import posix
from os.path import isdir

from zfw_py.errors import LayoutMismatch, NotFound, raise_expected
from zfw_py.kernel import bpf_maps
from zfw_py.lifecycle.store import UNNAMED

TYPE_CHECKING = False
if TYPE_CHECKING:
    from zfw_py.lifecycle.store import Store

_MAX_ENTRIES = 3  # index into a map's shape


class Pins:
    """The maps in a directory, opened and checked as they are asked for."""

    def __init__(self, store: Store, directory: str, *, is_read_only: bool = False) -> None:
        """Nothing is opened yet. ``is_read_only``: for a caller that may only read the maps."""
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

    def open_all(self) -> None:
        """Open every map: they stay open when the directory gets its name, or goes."""
        for name in self._store.maps:
            self.map(name)

    def open(self, name: str) -> bpf_maps.Map:
        """The map of this name, of whatever shape. Raises as ``map``."""
        try:
            return bpf_maps.open_map(f"{self.directory}/{name}", self._flags)
        except FileNotFoundError:
            if isdir(self.directory):
                raise self.mismatch(name, "it is missing") from None
            identifier = self.directory.rpartition("/")[2]
            raise NotFound(f"no such {self._store.noun}: {identifier}") from None
        except PermissionError as error:
            if isdir(f"{self.directory}/{name}"):
                raise self.mismatch(name, "it is a directory") from None
            raise_expected(error)
        except OSError as error:
            # EINVAL and others: what is pinned there is no map.
            raise self.mismatch(name, error.strerror or str(error)) from None

    def mismatch(self, name: str, what: str) -> LayoutMismatch:
        """The error for a pin that is not what this version makes."""
        return LayoutMismatch(
            f"{self.directory}/{name} is of another version of zfw: {what}",
            hint=self._store.remedy.format(directory=self.directory),
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
