# SPDX-License-Identifier: GPL-2.0-only
"""The pinned maps of one network namespace, checked against the compiled layout. Hot."""

from __future__ import annotations

from os.path import exists

from zfw_py.errors import NotFound, NotInstalled, PermissionDenied, raise_expected
from zfw_py.firewall import layout
from zfw_py.firewall.codec import (
    State,
    encode_barrier,
    encode_lengths,
    from_u32,
    precedence_of,
    u32,
)
from zfw_py.kernel import bpf_maps
from zfw_py.kernel.own_netns import netns_cookie
from zfw_py.lifecycle.store import ROOT, Pins, Store

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

ZERO = u32(0)
_MAX_ENTRIES = 3  # index into a map's five numbers


STORE = Store(
    ROOT,
    layout.MAPS,
    noun="firewall",
    remedy="zfw detach --all of that version removes it",
    absent=lambda: NotInstalled(
        "no firewall in this network namespace", hint="zfw attach IFACE starts one"
    ),
    added=(
        *("added_reasons", "cpus", "latest_promise", "listeners", "pairs", "promises"),
        "questions",
    ),
)


class Maps(Pins):
    """The maps, each opened at its first use, under the lock while the object is entered."""

    def __init__(
        self,
        *,
        is_writer: bool,
        directory: str | None = None,
        build: Callable[[str], None] | None = None,
    ) -> None:
        """For the caller's network namespace. Nothing is opened yet.

        ``build`` creates and publishes the directory if there is none, under the lock.
        """
        super().__init__(STORE, directory or STORE.directory(netns_cookie()))
        self._build = build
        self._is_writer = is_writer
        # Whether ``build`` has just created the directory.
        self.is_new = False
        self._lock = STORE.lock(is_exclusive=is_writer)
        self._inner: dict[tuple[str, int], bpf_maps.Map] = {}

    def __enter__(self) -> Maps:
        """Take the lock. Raises NotInstalled, PermissionDenied, LayoutMismatch or Busy.

        A writer checks every map before it changes the first.
        """
        try:
            self._lock.__enter__()
        except FileNotFoundError:
            raise STORE.absent() from None
        except PermissionError:
            raise PermissionDenied(f"cannot open {ROOT}: needs root") from None
        try:
            if self._build is not None and not exists(self.directory):
                self._build(self.directory)
                self.is_new = True
            version = self.state().abi_version
            if version != layout.ABI_VERSION:
                raise self.mismatch("state", f"version {version}, not {layout.ABI_VERSION}")
            if self._is_writer:
                self.open_all()
        except BaseException as error:
            self.__exit__(type(error), error, error.__traceback__)
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Release the lock; an OSError of the block is raised as a ZfwError."""
        self._lock.__exit__(kind, error, trace)
        if isinstance(error, OSError):
            raise_expected(error)

    def open(self, name: str) -> bpf_maps.Map:
        """As ``Pins.open``, but NotInstalled where there is no firewall."""
        try:
            return super().open(name)
        except NotFound:
            raise STORE.absent() from None

    def ports(self, size_class: int) -> bpf_maps.Map:
        """The map with the port indexes of a size class, which is not the inline one."""
        return self.map("ports_medium" if size_class == layout.SIZE_MEDIUM else "ports_large")

    def inner(self, name: str, index: int = 0) -> bpf_maps.Map | None:
        """The map at this index of a map of maps, or None if there is none yet."""
        if (name, index) in self._inner:
            return self._inner[name, index]
        opened = self.open_inner(name, index)
        if opened is not None:
            self._inner[name, index] = opened
        return opened

    def open_inner(self, name: str, index: int) -> bpf_maps.Map | None:
        """As ``inner``, but the caller's alone: many rules need more maps than a process may open.

        It is closed when the caller drops it.
        """
        number = self.map(name).lookup(u32(index))
        if number is None:
            return None
        opened = bpf_maps.open_map_by_id(from_u32(number))
        expected = layout.INNER_MAPS[name]
        if opened.spec[:_MAX_ENTRIES] != expected[:_MAX_ENTRIES]:
            raise self.mismatch(name, f"{opened.spec}, not {expected}")
        return opened

    @staticmethod
    def create_inner(name: str, max_entries: int | None = None) -> bpf_maps.Map:
        """A new map for a map of maps, of the usual size or another."""
        kind, key_size, value_size, usual, flags = layout.INNER_MAPS[name]
        return bpf_maps.create_map((kind, key_size, value_size, max_entries or usual, flags), name)

    def new_inner(self, name: str, index: int = 0) -> bpf_maps.Map:
        """Put a new map at this index; the programs and this object drop the old one.

        The kernel waits until no program uses the old one: about 10 ms.
        """
        created = self.create_inner(name)
        self.put_inner(name, index, created)
        return created

    def put_inner(self, name: str, index: int, inner: bpf_maps.Map) -> None:
        """Put a map at this index."""
        self.map(name).update(u32(index), u32(inner.fd))
        self._inner[name, index] = inner

    def drop_inner(self, name: str, index: int) -> None:
        """Remove the map at this index."""
        self.map(name).delete(u32(index))
        self._inner.pop((name, index), None)

    def write_lengths(self, table: int, pairs: set[tuple[int, int]]) -> None:
        """Make these the active pairs of prefix lengths of a table, in the order of look-ups."""
        lengths, number = self.map("lengths"), u32(table)
        old = lengths.lookup(number) or bytes(layout.LENGTHS_SIZE)
        for value in encode_lengths(old, sorted(pairs, key=precedence_of, reverse=True)):
            lengths.update(number, value)

    def bar(self, table: int) -> None:
        """Have the programs drop packets whose search in this table began before."""
        lengths, number = self.map("lengths"), u32(table)
        lengths.update(number, encode_barrier(lengths.lookup(number) or bytes(layout.LENGTHS_SIZE)))

    def state(self) -> State:
        """What writers agree on."""
        data = self.map("state").lookup(ZERO)
        if data is None:
            raise self.mismatch("state", "it is empty")
        return State.decode(data)

    def write_state(self, state: State) -> None:
        """Write what writers agree on."""
        self.map("state").update(ZERO, state.encode())

    @property
    def prefixes(self) -> bpf_maps.Map:
        """The hash map of prefixes."""
        inner = self.inner("prefixes")
        if inner is None:
            raise self.mismatch("prefixes", "it is empty")
        return inner
