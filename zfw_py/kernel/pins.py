# SPDX-License-Identifier: GPL-2.0-only
"""A directory of pinned maps and links, and the lock on all of a system's.

Each map is checked against its compiled layout as it is opened.
"""

from __future__ import annotations

import errno
import os
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, NamedTuple, TypeVar

import msgspec

from zfw_py.errors import LayoutMismatch, NotFound, raise_expected
from zfw_py.kernel import bpf, bpffs
from zfw_py.kernel.lock import Lock

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from zfw_py.errors import ZfwError

_Document = TypeVar("_Document", bound=msgspec.Struct)

_ZERO = bytes(4)
_ARRAY = 2
_MAX_ENTRIES = 3  # index into a map's five numbers


@contextmanager
def locked(root: str, absent: ZfwError, *, is_exclusive: bool) -> Iterator[None]:
    """Hold the lock on all of a system's state; an OSError from within becomes one of ours.

    Raises ``absent`` where there never was any, PermissionDenied, Busy.
    """
    lock = Lock(root, is_exclusive=is_exclusive)
    try:
        lock.__enter__()
    except FileNotFoundError:
        raise absent from None
    except OSError as error:
        raise_expected(error)
    try:
        yield
    except OSError as error:
        raise_expected(error)
    finally:
        lock.__exit__(None, None, None)


def make_root(root: str) -> None:
    """Make the directory of a system's state. Raises PermissionDenied or KernelError."""
    try:
        bpffs.make_root()
        with suppress(FileExistsError):
            os.mkdir(root, 0o700)
    except OSError as error:
        raise_expected(error)


def detach(pin: str) -> None:
    """Take the program of a pinned link off, if there is such; the pin stays. Raises OSError."""
    try:
        link = bpf.open_pin(pin)
    except FileNotFoundError:
        return
    try:
        # Unpinned alone it would stay for a moment.
        bpf.detach_link(link)
    except OSError as error:
        # ENOLINK: what it was on is gone.
        if error.errno not in (errno.ENOLINK, errno.ENOENT):
            raise
    finally:
        os.close(link)


class Kind(NamedTuple):
    """What the pins of a system are: ``maps`` is its layout's MAPS.

    ``noun`` is what a directory is of, as in "no such guard"; ``remedy`` says how another
    version's are removed, {directory}. Those of ``sized`` have any number of entries.
    """

    maps: Mapping[str, tuple[int, int, int, int, int]]
    noun: str
    remedy: str
    sized: frozenset[str] = frozenset()


class Pins:
    """The maps in a directory, opened as they are asked for."""

    def __init__(self, directory: str, kind: Kind, *, is_read_only: bool = False) -> None:
        """``is_read_only``: for who may only read them."""
        self.directory = directory
        self._flags = bpf.READ_ONLY if is_read_only else bpf.ANY
        self._kind = kind
        self._maps: dict[str, bpf.Map] = {}

    def map(self, name: str) -> bpf.Map:
        """The map of this name. Raises NotFound, PermissionDenied or LayoutMismatch."""
        if name not in self._maps:
            opened = self.open(name)
            expected = self._kind.maps[name]
            size = opened.max_entries if name in self._kind.sized else expected[_MAX_ENTRIES]
            if opened.spec != (*expected[:_MAX_ENTRIES], size, *expected[_MAX_ENTRIES + 1 :]):
                raise self.mismatch(name, f"{opened.spec}, not {expected}")
            self._maps[name] = opened
        return self._maps[name]

    def open_all(self) -> None:
        """Open them all: they stay at hand when the directory gets its name, or goes."""
        for name in self._kind.maps:
            self.map(name)

    def open(self, name: str) -> bpf.Map:
        """The map of this name, whatever it is. Raises as ``map``."""
        try:
            return bpf.open_map(f"{self.directory}/{name}", self._flags)
        except FileNotFoundError:
            if os.path.isdir(self.directory):
                raise self.mismatch(name, "it is missing") from None
            identifier = self.directory.rpartition("/")[2]
            raise NotFound(f"no such {self._kind.noun}: {identifier}") from None
        except PermissionError as error:
            raise_expected(error)
        except OSError as error:
            raise self.mismatch(name, error.strerror or str(error)) from None

    def mismatch(self, name: str, what: str) -> LayoutMismatch:
        """The error for a pin that is not what this version makes."""
        return LayoutMismatch(
            f"{self.directory}/{name} is of another version of zfw: {what}",
            hint=self._kind.remedy.format(directory=self.directory),
        )

    def write_document(self, name: str, document: msgspec.Struct) -> None:
        """Pin a document as JSON, in a map of its size. Once: it is not changed after."""
        data = msgspec.json.encode(document)
        made = bpf.create_map((_ARRAY, len(_ZERO), len(data), 1, 0), name)
        made.update(_ZERO, data)
        bpf.pin(made.fd, f"{self.directory}/{name}")

    def document(self, name: str, kind: type[_Document]) -> _Document:
        """A document that was pinned. Raises LayoutMismatch if it is no such."""
        opened = self.open(name)
        if (opened.type, opened.key_size) != (_ARRAY, len(_ZERO)):
            raise self.mismatch(name, f"{opened.spec}")
        try:
            return msgspec.json.decode(opened.lookup(_ZERO) or b"", type=kind)
        except msgspec.DecodeError as error:
            raise self.mismatch(name, str(error)) from None
