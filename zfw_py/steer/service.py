# SPDX-License-Identifier: GPL-2.0-only
"""``Steering``: change, read and end the steering of a network namespace."""

from __future__ import annotations

import os
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from zfw_py.errors import (
    Conflict,
    NotFound,
    NotInstalled,
    PermissionDenied,
    UsageError,
    ZfwError,
)
from zfw_py.kernel.namespaces import call_in, hold
from zfw_py.kernel.own_netns import netns_cookie
from zfw_py.kernel.process import descriptor_path, start_time
from zfw_py.lifecycle.programs import clear, locked, make_root, remove
from zfw_py.steer import adoption, edit, listing, programs
from zfw_py.steer.activation import passed_sockets
from zfw_py.steer.maps import STORE, Maps
from zfw_py.steer.model import (
    AddressTarget,
    Entry,
    Mapping,
    MappingKey,
    ProcessTarget,
    mappings_of,
)
from zfw_py.steer.sockets import PROTOCOL_NUMBERS, SocketSnapshot
from zfw_py.steer.state import Destination
from zfw_py.values.structured import DocumentError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from zfw_py.kernel.process import Process
    from zfw_py.steer.listing import MappingStatus, SteeringStatus
    from zfw_py.steer.state import ActiveMapping, State

_Result = TypeVar("_Result")


class Applied(NamedTuple):
    """The result of ``Steering.apply``: numbers of mappings; ``pending`` have no socket."""

    added: int
    changed: int
    removed: int
    unchanged: int
    pending: int


class Steering:
    """The steering of one network namespace: its mappings, and the programs that apply them.

        from zfw_py import AddressTarget, Mapping, MappingKey, Steering

        steering = Steering("/run/netns/web")
        key = MappingKey.parse("tcp", "192.0.2.0/24", "443")
        steering.add([Mapping.make(key, AddressTarget.parse("127.0.0.1:8443"))])
        print(steering.mappings()[0].state)  # "pending" until a daemon listens there
        steering.remove(key)

    The first change attaches the programs, ``detach`` removes them. The object holds the
    network namespace open, and nothing else between two calls. ``cookie`` is the namespace's.
    A change is atomic: after an error the mappings are as before. Changes need root; members
    of the group ``zfw`` may call ``mappings`` and ``status``.
    """

    def __init__(self, netns: str | None = None) -> None:
        """``netns``: a path, such as /run/netns/NAME; None: the caller's own namespace.

        Raises NotFound, UsageError if the path is no network namespace, PermissionDenied.
        """
        self._fd = hold(netns)
        self.cookie = call_in(descriptor_path(self._fd), netns_cookie) if netns else netns_cookie()

    def __del__(self) -> None:
        if (fd := getattr(self, "_fd", -1)) >= 0:
            os.close(fd)
            self._fd = -1

    # Changing

    def add(self, mappings: Sequence[Mapping], run: Process | None = None) -> list[MappingStatus]:
        """Add mappings, all or none; their state. ``run``: the process that holds them.

        Raises Conflict if a key exists already, or a process or unit listens on several
        addresses, MapFull, PermissionDenied, KernelError, VerifierError.
        """
        return self._add(mappings, run)

    def add_registered(
        self, make: Callable[[AddressTarget], Mapping], key: MappingKey
    ) -> list[MappingStatus]:
        """Add mappings to the sockets that systemd passed to this process, one for each family.

        ``make`` returns the mapping to an address: the next socket there takes over. Raises as
        ``add``, UsageError if no socket of the key's protocol was passed, and Conflict if there
        are several of a family.
        """
        protocol = PROTOCOL_NUMBERS[key.protocol]
        families = {prefix.family for prefix in key.prefixes}
        passed = [each for each in passed_sockets() if each.protocol == protocol]
        try:
            by_family: dict[int, AddressTarget] = {}
            for each in passed:
                target = AddressTarget(each.address, each.port)
                other = by_family.setdefault(target.family, target)
                if other != target:
                    raise Conflict(
                        f"--register: several {key.protocol} sockets were passed:"
                        f" {other}, {target}",
                        hint="--to ADDR:PORT names one",
                    )
            targets = [each for family, each in by_family.items() if family in families]
            # An IPv6 socket may accept IPv4 as well.
            targets = targets or list(by_family.values())
            if not targets:
                raise UsageError(f"--register: no {key.protocol} socket was passed")

            def finish(maps: Maps, state: State) -> None:
                for each in passed:
                    destination = Destination(key.protocol, AddressTarget(each.address, each.port))
                    number = state.destinations.get(destination)
                    if number is not None and not maps.sockets_of(number):
                        adoption.insert(maps, number, each.socket)

            return self._add([make(target) for target in targets], None, finish)
        finally:
            for each in passed:
                each.socket.close()

    def apply(self, mappings: Sequence[Mapping]) -> Applied:
        """Replace all mappings, but not those that a ``zfw steer run`` holds.

        The keys must differ from each other. An equal mapping keeps its sockets and counters.
        Raises as ``add``.
        """
        with self._writing() as maps:
            old = maps.state()
            of_runs = [pair for pair in edit.without_dead_runs(old) if pair[1] is not None]
            edit.check_unique(of_runs, mappings)
            own = {each.mapping.key: each.mapping for each in old.mappings if each.run is None}
            pairs = [*of_runs, *((mapping, None) for mapping in mappings)]
            new = self._put_in_force(maps, old, pairs)
            keys = {mapping.key for mapping in mappings}
            unchanged = sum(own.get(mapping.key) == mapping for mapping in mappings)
            changed = sum(mapping.key in own for mapping in mappings) - unchanged
            empty = {each for each in new.destinations.values() if not maps.sockets_of(each)}
            return Applied(
                added=len(mappings) - unchanged - changed,
                changed=changed,
                removed=len(own.keys() - keys),
                unchanged=unchanged,
                pending=sum(each.target in empty for each in new.mappings if each.run is None),
            )

    def apply_entries(self, entries: list[Entry], name: str) -> Applied:
        """``apply`` the entries of a document; ``name`` is its name in errors.

        Raises as ``apply``, and UsageError for an entry that makes no mapping.
        """
        pids = {each.to_pid for each in entries if each.to_pid is not None}
        started = {pid: start_time(pid) or 0 for pid in pids if pid > 0}
        try:
            mappings = mappings_of(entries, started)
        except DocumentError as error:
            raise UsageError(f"{name}: {error.message}") from None
        return self.apply(mappings)

    def remove(self, key: MappingKey) -> list[Mapping]:
        """Remove the mapping of a key, and return it. Raises NotFound, NotInstalled.

        A key of any address also finds a mapping of all addresses of one family; Conflict if
        there is one for each family.
        """
        with self._changing() as maps:
            old = maps.state()
            found = [each for each in old.mappings if each.mapping.key == key]
            if not found and key.prefix is None:
                keys = [key._replace(prefix=prefix) for prefix in key.prefixes]
                found = [each for each in old.mappings if each.mapping.key in keys]
                if len(found) > 1:
                    raise Conflict(f"{key}: both 0.0.0.0/0 and ::/0 are steered; name one of them")
            if not found:
                raise NotFound(f"no such mapping: {key}")
            return self._remove(maps, old, found)

    def remove_all(self, label: str | None = None) -> list[Mapping]:
        """Remove all mappings, or those of a label, and return them.

        Raises NotInstalled, and NotFound if no mapping has the label.
        """
        with self._changing() as maps:
            old = maps.state()
            found = [each for each in old.mappings if label in (None, each.mapping.label)]
            if label is not None and not found:
                raise NotFound(f"no mapping has this label: {label}")
            return self._remove(maps, old, found)

    def remove_run(self, run: Process) -> None:
        """Remove the mappings that a ``zfw steer run`` holds."""
        try:
            with self._changing() as maps:
                old = maps.state()
                self._remove(maps, old, [each for each in old.mappings if each.run == run])
        except NotInstalled:
            pass

    def upgrade(self) -> bool:
        """Exchange the programs of another build for this one's: all, or on an error none.

        False if they are this build's. Mappings and counters stay. Raises NotInstalled,
        LayoutMismatch, KernelError, VerifierError.
        """
        self._check_installed()
        with locked(STORE, is_exclusive=True):
            clear(programs.SYSTEM)
            return programs.upgrade(Maps(STORE.directory(self.cookie)), self._namespace)

    def detach(self) -> int:
        """Remove all mappings and programs, also another version's; the number of mappings.

        Raises NotInstalled. Open connections stay.
        """
        self._check_installed()
        with locked(STORE, is_exclusive=True):
            maps = Maps(STORE.directory(self.cookie))
            try:
                old = maps.state()
                count = len(old.mappings)
                # All mappings end at the same time; the programs are detached one by one.
                self._put_in_force(maps, old, [])
            except ZfwError:
                count = 0  # of another version
            clear(programs.SYSTEM)
            if not remove(programs.SYSTEM, self.cookie):
                raise STORE.absent()
        return count

    # Reading

    def mappings(self) -> list[MappingStatus]:
        """The state of all mappings; [] if no program is attached. Raises LayoutMismatch, Busy."""
        try:
            with self._reading() as maps:
                state = listing.read_state(maps)
                return listing.mappings(maps, state, state.mappings, self.snapshot)
        except NotInstalled:
            return []

    def status(self) -> SteeringStatus:
        """The state of programs, manager and error counters. Raises NotInstalled."""
        with self._reading() as maps:
            return listing.status(self._namespace, maps)

    def snapshot(self, maps: Maps | None = None) -> SocketSnapshot:
        """The listening sockets of the namespace. Raises KernelError.

        With ``maps`` those that the kernel has not counted yet are counted in ``listeners``.
        """
        return self._call(SocketSnapshot if maps is None else lambda: programs.scan(maps))

    def process_target(self, pid: int) -> ProcessTarget:
        """The target of a process that lives. Raises UsageError, NotFound."""
        started = start_time(ProcessTarget.of(pid, 0).pid)
        if started is None:
            raise NotFound(f"no such process: {pid}")
        return ProcessTarget(pid, started)

    # Locks and steps

    @property
    def _namespace(self) -> programs.Namespace:
        return programs.Namespace(self.cookie, self._fd, self._call)

    def _call(self, function: Callable[[], _Result]) -> _Result:
        """Call a function from within the network namespace."""
        if netns_cookie() == self.cookie:
            return function()
        return call_in(descriptor_path(self._fd), function)

    @contextmanager
    def _writing(self) -> Iterator[Maps]:
        """Hold the lock, with this build's programs attached. Raises as ``programs.install``."""
        make_root(STORE)
        with locked(STORE, is_exclusive=True):
            maps = Maps(STORE.directory(self.cookie))
            clear(programs.SYSTEM)
            if os.path.isdir(maps.directory):
                programs.check_version(maps)
                programs.upgrade(maps, self._namespace)
            else:
                maps = programs.install(self._namespace)
            yield maps

    @contextmanager
    def _changing(self) -> Iterator[Maps]:
        """``_writing``, but NotInstalled instead of attaching programs."""
        self._check_installed()
        with self._writing() as maps:
            yield maps

    @contextmanager
    def _reading(self) -> Iterator[Maps]:
        """Hold the lock, shared; a caller who is not root cannot open it, and reads without."""
        self._check_installed()
        with locked(STORE, is_exclusive=False) if os.geteuid() == 0 else nullcontext():
            maps = Maps(STORE.directory(self.cookie))
            programs.check_version(maps)
            yield maps

    def _check_installed(self) -> None:
        if not STORE.exists(self.cookie):
            if os.geteuid() != 0 and not os.access(os.path.dirname(STORE.directory(0)), os.X_OK):
                raise PermissionDenied(
                    f"needs root, or membership of the group {programs.GROUP} if there is one"
                )
            raise STORE.absent()

    def _add(
        self,
        mappings: Sequence[Mapping],
        run: Process | None,
        finish: Callable[[Maps, State], None] = lambda _maps, _state: None,
    ) -> list[MappingStatus]:
        with self._writing() as maps:
            old = maps.state()
            before = edit.without_dead_runs(old)
            edit.check_unique(before, mappings)
            pairs = [*before, *((mapping, run) for mapping in mappings)]
            new = self._put_in_force(maps, old, pairs)
            finish(maps, new)
            wanted = set(mappings)
            added = [each for each in new.mappings if each.mapping in wanted and each.run == run]
            return listing.mappings(maps, new, added, self.snapshot)

    def _remove(self, maps: Maps, old: State, gone: Sequence[ActiveMapping]) -> list[Mapping]:
        if gone:
            removed = {each.mapping for each in gone}
            pairs = [pair for pair in edit.without_dead_runs(old) if pair[0] not in removed]
            self._put_in_force(maps, old, pairs)
        return [each.mapping for each in gone]

    def _put_in_force(
        self, maps: Maps, old: State, pairs: Sequence[tuple[Mapping, Process | None]]
    ) -> State:
        return edit.put_in_force(maps, old, pairs, lambda: self.snapshot(maps))
