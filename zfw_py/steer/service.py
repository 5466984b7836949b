# SPDX-License-Identifier: GPL-2.0-only
"""Steering in a network namespace: what the command line and other programs call."""

from __future__ import annotations

import os
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeVar

from zfw_py.errors import (
    Busy,
    Conflict,
    KernelError,
    LayoutMismatch,
    NotFound,
    NotInstalled,
    PermissionDenied,
    UsageError,
    ZfwError,
)
from zfw_py.kernel import bpf_links
from zfw_py.kernel.lock import holder_of
from zfw_py.kernel.namespaces import call_in, hold
from zfw_py.kernel.netns_cookie import netns_cookie
from zfw_py.kernel.process import Process, descriptor_path, start_time
from zfw_py.lifecycle import manifest
from zfw_py.lifecycle.programs import clear, locked, make_root, remove
from zfw_py.steer import adoption, edit, programs
from zfw_py.steer.activation import passed_sockets
from zfw_py.steer.codec import Counter
from zfw_py.steer.layout import TARGET_SOCKETS
from zfw_py.steer.listing import Applied, Held, Listed, Status
from zfw_py.steer.maps import STORE, Tables
from zfw_py.steer.model import (
    AddressTarget,
    Entry,
    Key,
    Mapping,
    ProcessTarget,
    mappings_of,
    parse_process_target,
)
from zfw_py.steer.sockets import PROTOCOL_NUMBERS, Surroundings, chosen
from zfw_py.steer.state import Place
from zfw_py.values.structured import DocumentError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from zfw_py.steer.sockets import Listener
    from zfw_py.steer.state import State, Steered

_Result = TypeVar("_Result")
_AGAIN = 5  # times, that a reader without the lock reads while others write


class Steering:
    """A network namespace's: the caller's own, or that of a file such as /run/netns/NAME."""

    def __init__(self, netns: str | None = None) -> None:
        """Raises NotFound, UsageError if it is no network namespace, PermissionDenied."""
        self._fd = hold(netns)
        self.cookie = call_in(descriptor_path(self._fd), netns_cookie) if netns else netns_cookie()

    def __del__(self) -> None:
        if (fd := getattr(self, "_fd", -1)) >= 0:
            os.close(fd)
            self._fd = -1

    def call(self, function: Callable[[], _Result]) -> _Result:
        """Call a function from within the network namespace."""
        if netns_cookie() == self.cookie:
            return function()
        return call_in(descriptor_path(self._fd), function)

    def look(self, tables: Tables | None = None) -> Surroundings:
        """What listens there; with ``tables`` the kernel takes note of it as well.

        Raises KernelError.
        """
        return self.call(Surroundings if tables is None else lambda: programs.scan(tables))

    # Changing

    @contextmanager
    def writing(self) -> Iterator[Tables]:
        """Hold the lock, with programs of ours attached. Raises as ``programs.install``."""
        make_root(STORE)
        with locked(STORE, is_exclusive=True):
            namespace = programs.Namespace(self.cookie, self._fd, self.call)
            tables = Tables(STORE.directory(self.cookie))
            clear(programs.SYSTEM)
            if os.path.isdir(tables.directory):
                programs.check_version(tables)
                programs.upgrade(tables, namespace)
            else:
                tables = programs.install(namespace)
            yield tables

    @contextmanager
    def changing(self) -> Iterator[Tables]:
        """The same where something is attached already, else NotInstalled."""
        self._check_installed()
        with self.writing() as tables:
            yield tables

    def upgrade(self) -> bool:
        """Exchange programs of another build of zfw; False if they are this one's.

        Raises NotInstalled where nothing is steered, and as ``lifecycle.programs.upgrade``.
        """
        self._check_installed()
        with locked(STORE, is_exclusive=True):
            clear(programs.SYSTEM)
            tables = Tables(STORE.directory(self.cookie))
            return programs.upgrade(tables, programs.Namespace(self.cookie, self._fd, self.call))

    def add(self, mappings: Sequence[Mapping], run: Process | None = None) -> list[Listed]:
        """Steer these too, all or none; how each is.

        Raises Conflict if one is there already, or its target has several sockets, MapFull.
        """
        return self._added(mappings, run)

    def _added(
        self,
        mappings: Sequence[Mapping],
        run: Process | None,
        finish: Callable[[Tables, State], None] = lambda _tables, _state: None,
    ) -> list[Listed]:
        with self.writing() as tables:
            old = tables.state()
            before = edit.of_the_living(old)
            edit.check_free(before, mappings)
            pairs = [*before, *((mapping, run) for mapping in mappings)]
            new = self._put_in_force(tables, old, pairs)
            finish(tables, new)
            wanted = set(mappings)
            return self._listed(
                tables,
                new,
                [each for each in new.steered if each.mapping in wanted and each.run == run],
            )

    def _put_in_force(
        self, tables: Tables, old: State, pairs: Sequence[tuple[Mapping, Process | None]]
    ) -> State:
        return edit.put_in_force(tables, old, pairs, lambda: self.look(tables))

    def add_registered(self, made: Callable[[AddressTarget], Mapping], key: Key) -> list[Listed]:
        """Steer to the sockets that systemd passed to this process, one a family.

        Each is known by its address: what listens there after it takes over. Raises
        UsageError, Conflict naming them if there are several of a family.
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
            # An IPv6 socket may take IPv4 as well.
            targets = targets or list(by_family.values())
            if not targets:
                raise UsageError(f"--register: no {key.protocol} socket was passed")

            def finish(tables: Tables, state: State) -> None:
                for each in passed:
                    place = Place(key.protocol, AddressTarget(each.address, each.port))
                    number = state.places.get(place)
                    if number is not None and not tables.sockets_of(number):
                        adoption.put(tables, number, each.socket)

            return self._added([made(target) for target in targets], None, finish)
        finally:
            for each in passed:
                each.socket.close()

    def process_target(self, pid: int) -> ProcessTarget:
        """A process that lives. Raises UsageError, NotFound."""
        started = start_time(parse_process_target(pid, 0).pid)
        if started is None:
            raise NotFound(f"no such process: {pid}")
        return ProcessTarget(pid, started)

    def remove_key(self, key: Key) -> list[Mapping]:
        """Steer no longer by this mapping. Raises NotFound.

        A key of any address is also that of a mapping for all addresses of one family, if
        it is the only one; else Conflict.
        """
        with self.changing() as tables:
            old = tables.state()
            found = [each for each in old.steered if each.mapping.key == key]
            if not found and key.prefix is None:
                prefixes = key.prefixes
                found = [
                    each
                    for each in old.steered
                    if each.mapping.key._replace(prefix=None) == key
                    and each.mapping.key.prefix in prefixes
                ]
                if len(found) > 1:
                    raise Conflict(f"{key}: both 0.0.0.0/0 and ::/0 are steered; name one of them")
            if not found:
                raise NotFound(f"no such mapping: {key}")
            return self._remove(tables, old, found)

    def remove_all(self, label: str | None = None) -> list[Mapping]:
        """Steer by none of these any more: all of a label, or all. Raises NotFound for a label."""
        with self.changing() as tables:
            old = tables.state()
            found = [each for each in old.steered if label in (None, each.mapping.label)]
            if label is not None and not found:
                raise NotFound(f"no mapping has this label: {label}")
            return self._remove(tables, old, found)

    def remove_run(self, run: Process) -> None:
        """Take away what a run holds."""
        try:
            with self.changing() as tables:
                old = tables.state()
                self._remove(tables, old, [each for each in old.steered if each.run == run])
        except NotInstalled:
            pass

    def _remove(self, tables: Tables, old: State, gone: Sequence[Steered]) -> list[Mapping]:
        if gone:
            removed = {each.mapping for each in gone}
            pairs = [pair for pair in edit.of_the_living(old) if pair[0] not in removed]
            self._put_in_force(tables, old, pairs)
        return [each.mapping for each in gone]

    def apply_entries(self, entries: list[Entry], name: str) -> Applied:
        """Make all mappings equal to a document's, but for those that a run holds.

        Raises UsageError naming the document, Conflict, MapFull; then nothing is changed.
        """
        pids = {each.to_pid for each in entries if each.to_pid is not None}
        started = {pid: start_time(pid) or 0 for pid in pids if pid > 0}
        try:
            mappings = mappings_of(entries, started)
        except DocumentError as error:
            raise UsageError(f"{name}: {error.message}") from None
        return self.apply(mappings)

    def apply(self, mappings: Sequence[Mapping]) -> Applied:
        """The same of mappings whose keys differ."""
        with self.writing() as tables:
            old = tables.state()
            held = [pair for pair in edit.of_the_living(old) if pair[1] is not None]
            edit.check_free(held, mappings)
            own = {each.mapping.key: each.mapping for each in old.steered if each.run is None}
            pairs = [*held, *((mapping, None) for mapping in mappings)]
            new = self._put_in_force(tables, old, pairs)
            keys = {mapping.key for mapping in mappings}
            kept = sum(own.get(mapping.key) == mapping for mapping in mappings)
            changed = sum(mapping.key in own for mapping in mappings) - kept
            empty = {number for number in new.places.values() if not tables.sockets_of(number)}
            return Applied(
                added=len(mappings) - kept - changed,
                changed=changed,
                removed=len(own.keys() - keys),
                kept=kept,
                pending=sum(each.target in empty for each in new.steered if each.run is None),
            )

    def detach(self) -> int:
        """End all steering of the namespace; how many mappings there were.

        Raises NotInstalled. Also takes off what another version has attached.
        """
        self._check_installed()
        with locked(STORE, is_exclusive=True):
            tables = Tables(STORE.directory(self.cookie))
            try:
                old = tables.state()
                count = len(old.steered)
                # At once; the programs go one by one.
                self._put_in_force(tables, old, [])
            except ZfwError:
                count = 0  # of another version
            clear(programs.SYSTEM)
            if not remove(programs.SYSTEM, self.cookie):
                raise STORE.absent()
        return count

    # Looking

    def _check_installed(self) -> None:
        if not os.path.isdir(STORE.directory(self.cookie)):
            if os.geteuid() != 0 and not os.access(os.path.dirname(STORE.directory(0)), os.X_OK):
                raise PermissionDenied(
                    f"needs root, or membership of the group {programs.GROUP} if there is one"
                )
            raise STORE.absent()

    @contextmanager
    def reading(self) -> Iterator[Tables]:
        """What is pinned, while nobody writes; others than root do without the lock."""
        self._check_installed()
        if os.geteuid() != 0:
            tables = Tables(STORE.directory(self.cookie))
            programs.check_version(tables)
            yield tables
            return
        with locked(STORE, is_exclusive=False):
            tables = Tables(STORE.directory(self.cookie))
            programs.check_version(tables)
            yield tables

    def listed(self) -> list[Listed]:
        """All mappings as they are; none where nothing is attached."""
        try:
            with self.reading() as tables:
                state = self._state(tables)
                return self._listed(tables, state, state.steered)
        except NotInstalled:
            return []

    def _state(self, tables: Tables) -> State:
        """What is in force; a writer may exchange it under a reader without the lock."""
        for _ in range(_AGAIN):
            before = tables.active()
            try:
                found = tables.state()
            except LayoutMismatch:
                # It goes with the table that it was read for.
                if tables.active() == before:
                    raise
                continue
            if os.geteuid() == 0 or tables.active() == before:
                return found
        raise Busy("others change what is steered all the time")

    def _listed(self, tables: Tables, state: State, steered: Sequence[Steered]) -> list[Listed]:
        counters = tables.counters()
        if not steered:
            return []
        places = {number: place for place, number in state.places.items()}
        around = self.look()
        shown = {
            number: self._shown(tables, places[number], number, around)
            for number in dict.fromkeys(each.target for each in steered)
        }
        made = []
        for each in steered:
            held, problem = shown[each.target]
            if each.run is not None and not each.run.is_alive():
                problem = "its zfw steer run was killed: it goes with the next change"
            made.append(
                Listed(
                    mapping=each.mapping,
                    run_pid=each.run.pid if each.run else None,
                    state="steering" if held else "pending",
                    problem=problem,
                    sockets=held,
                    counters=counters.get(each.id, Counter(0, 0, 0)),
                )
            )
        return made

    def _shown(
        self, tables: Tables, place: Place, number: int, around: Surroundings
    ) -> tuple[list[Held], str]:
        """A target's sockets, the newest first, and what to know of them."""
        known = around.by_cookie()
        held: list[Held] = []
        for cookie in tables.sockets_of(number):
            listener = known.get(cookie)
            if listener is not None:
                # Each is the current one for what those before it do not take.
                is_current = not any(listener.families <= each.listener.families for each in held)
                held.append(Held(listener, around.holders_of(listener), is_current))
        try:
            listening = around.of_target(place.protocol, place.target, place.port)
            for family in (4, 6):
                chosen(listening, place.target, family)
        except Conflict as error:
            return held, error.message
        except ZfwError:
            listening = []
        known_now = {each.cookie: tables.listening(each.cookie) for each in listening}
        if any(each is not None and each.is_mptcp for each in known_now.values()):
            return held, "an MPTCP socket listens there, which cannot be steered to"
        return held, _problem(place, held, listening)

    def status(self) -> Status:
        """What is attached, and how it does. Raises NotInstalled."""
        with self.reading() as tables:
            state = self._state(tables)
            about = manifest.read(tables, programs.About)
            empty = {number for number in state.places.values() if not tables.sockets_of(number)}
            attached = programs.attached(self.cookie) if os.geteuid() == 0 else []
            warnings = []
            if not about.is_whole:
                warnings.append(
                    f"daemons outside of the cgroup {about.cgroup} are not followed:"
                    " this is not the root of all cgroups"
                )
            order, own = self._order()
            if os.geteuid() == 0 and own not in order:
                warnings.append("the program that steers was detached by somebody else")
            elif order and order.index(own) > 0:
                warnings.append("what another program has chosen a socket for is not steered")
            return Status(
                cookie=self.cookie,
                programs=attached,
                program_id=own,
                order=order,
                mappings=len(state.steered),
                pending=sum(each.target in empty for each in state.steered),
                targets=len(state.places),
                manager_pid=holder_of(tables.directory),
                troubles=tables.troubles(),
                warnings=warnings,
            )

    def _order(self) -> tuple[list[int], int]:
        """The sk_lookup programs here in their order, and ours; none for who may not ask."""
        if os.geteuid() != 0:
            return [], 0
        try:
            return bpf_links.attached_to_netns(self._fd, bpf_links.SK_LOOKUP), programs.program_id(
                self.cookie
            )
        except OSError as error:
            raise KernelError("list the sk_lookup programs", error.errno or 0) from error


def _problem(place: Place, held: Sequence[Held], listening: Sequence[Listener]) -> str:
    unused = {each.cookie for each in listening} - {each.listener.cookie for each in held}
    if not held:
        if isinstance(place.target, ProcessTarget) and not Process(*place.target).is_alive():
            return "its process has ended"
        if unused:
            return "its socket was not taken; zfw steer run does"
        return ""
    groups: list[set[int]] = []
    for each in held:
        pids = set(each.pids)
        if pids and not any(pids & group for group in groups):
            groups.append(pids)
    if len(groups) > 1:
        return f"{len(groups)} daemons listen there, and the newest has it"
    if unused and len(held) < TARGET_SOCKETS and place.protocol == "udp":
        return "a newer socket was not taken; zfw steer run does"
    return ""
