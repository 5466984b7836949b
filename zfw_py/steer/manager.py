# SPDX-License-Identifier: GPL-2.0-only
"""Keeps targets supplied with sockets, as the kernel tells who begins to listen.

TCP listeners on a target's address are taken in the kernel. The rest is taken here: UDP
sockets, and those of processes and units. Of several managers the one that holds the lock
on the namespace's directory reads the events, which can be read once; the others wait for
the lock. A manager that is killed leaves steering as it is, and its mappings to the next
change.
"""

from __future__ import annotations

import os
import selectors
import signal
import threading
from contextlib import ExitStack, suppress
from time import monotonic
from typing import TYPE_CHECKING

from zfw_py.errors import Busy, NotInstalled, ZfwError
from zfw_py.kernel import process_sockets
from zfw_py.kernel.libbpf import RingBuffer
from zfw_py.kernel.lock import wait_for
from zfw_py.kernel.process import Process
from zfw_py.lifecycle.programs import locked
from zfw_py.steer import adoption, layout, units
from zfw_py.steer.codec import Event
from zfw_py.steer.maps import STORE, Tables
from zfw_py.steer.model import AddressTarget, ProcessTarget
from zfw_py.steer.sockets import PROTOCOL_NUMBERS
from zfw_py.values.endpoint import Endpoint

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from zfw_py.steer.model import Mapping, Target
    from zfw_py.steer.service import Steering
    from zfw_py.steer.sockets import Surroundings
    from zfw_py.steer.state import Place

# That all steering has ended makes no event, nor does an event that was lost.
_CHECK = 2.0  # seconds
_END, _TURN = b"e", b"t"
_NAMES = {number: name for name, number in PROTOCOL_NUMBERS.items()}
_KINDS = {
    "tcp": frozenset(("TCP", "TCPv6")),
    "udp": frozenset(("UDP", "UDPv6")),
}


def run(
    steering: Steering,
    mappings: Sequence[Mapping],
    tell: Callable[[str], None],
    stops: Iterable[signal.Signals],
) -> None:
    """Steer by these for as long as this runs, and manage all targets, until a signal comes.

    Ends as well when somebody ends all steering of the namespace. Raises as
    ``Steering.add``, and what keeps it from managing.
    """
    own = Process.current()
    # Also without mappings: what is to be managed has to be attached.
    for listed in steering.add(mappings, own):
        tell(f"{listed.mapping}: {listed.state}")
    try:
        _Manager(steering, tell).run(stops)
    finally:
        steering.remove_run(own)


class _Manager:
    def __init__(self, steering: Steering, tell: Callable[[str], None]) -> None:
        self._steering = steering
        self._tell = tell
        self._directory = STORE.directory(steering.cookie)
        self._tables = Tables(self._directory)
        self._pending: dict[Place, str] = {}
        self._lost = 0
        self._is_managing = False

    def run(self, stops: Iterable[signal.Signals]) -> None:
        with ExitStack() as held:
            waking = _Waking()
            held.callback(waking.close)
            _end_by(stops, waking, held)
            turn = os.open(self._directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            held.callback(os.close, turn)
            selector = held.enter_context(selectors.DefaultSelector())
            selector.register(waking.woken, selectors.EVENT_READ)
            # Where no signal reaches it; it ends with the process at the latest.
            threading.Thread(target=_wait_for_turn, args=(turn, waking), daemon=True).start()
            self._serve(selector, waking.woken, held)

    def _serve(self, selector: selectors.BaseSelector, woken: int, held: ExitStack) -> None:
        ring: RingBuffer | None = None
        checked = monotonic()
        while True:
            ready = {each.fd for each, _ in selector.select(_CHECK)}
            if woken in ready:
                if os.read(woken, 1) != _TURN:
                    return
                ring = held.enter_context(RingBuffer(self._tables.map("events").fd, self._on_event))
                selector.register(ring.fileno(), selectors.EVENT_READ)
                self._begin(ring)
            if ring is not None and ring.fileno() in ready:
                ring.consume()
            if monotonic() - checked < _CHECK:
                continue
            checked = monotonic()
            if not os.path.isdir(self._directory):
                self._tell("somebody has ended all steering here")
                return
            if self._is_managing:
                with suppress(Busy, NotInstalled):  # for a while, and from now on
                    self._look_again()

    def _begin(self, ring: RingBuffer) -> None:
        # What came before: sockets that are here are found, and the others are gone.
        ring.consume()
        self._lost = self._troubles()
        self._supply_all()
        self._is_managing = True
        self._tell("managing")

    def _look_again(self) -> None:
        """What the kernel could not tell or take."""
        lost = self._troubles()
        if lost != self._lost:
            self._lost = lost
            self._supply_all()

    def _troubles(self) -> int:
        found = self._tables.troubles()
        return sum(found.get(name, 0) for name in ("events", "adoption", "listeners"))

    def _supply_all(self) -> None:
        with locked(STORE, is_exclusive=False):
            if not os.path.isdir(self._directory):
                return
            around = self._steering.look(self._tables)
            for place, number in self._tables.state().places.items():
                self._supply(place, number, around)

    def _supply(self, place: Place, number: int, around: Surroundings) -> None:
        try:
            for adopted in adoption.adopt(self._tables, place, number, around):
                pids = "+".join(map(str, adopted.pids))
                self._tell(f"{place}: took {adopted.listener} of process {pids}")
        except ZfwError as error:
            if self._pending.get(place) != error.message:
                self._pending[place] = error.message
                self._tell(f"{place}: {error.message}")
        else:
            self._pending.pop(place, None)

    # Events

    def _on_event(self, data: bytes) -> None:
        event = Event.decode(data)
        if not self._is_managing:
            return
        try:
            with locked(STORE, is_exclusive=False):
                places = self._tables.state().places
                if event.kind == "came":
                    self._on_came(event, places)
                else:
                    self._on_left(event, places)
        except NotInstalled:
            pass  # the next check ends us
        except ZfwError as error:
            # One socket that cannot be had is no reason to leave all others.
            self._tell(error.message)

    def _on_came(self, event: Event, places: dict[Place, int]) -> None:
        at = event.listener.at
        protocol = _NAMES[at.protocol]
        for place, number in places.items():
            if place.protocol != protocol or place.port not in (None, at.port):
                continue
            if isinstance(place.target, AddressTarget):
                if number != event.target:
                    continue
                if event.listener.is_mptcp:
                    self._tell(f"{place}: {_whose(event)} listens by MPTCP, which is not steered")
                    continue
                if event.is_adopted:
                    self._tell(f"{place}: the kernel took the one of {_whose(event)}")
                    continue
            elif not _has(place.target, event.listener.pid):
                continue
            self._take(place, number, event)

    def _take(self, place: Place, number: int, event: Event) -> None:
        others = self._others(place, number, event)
        if others:
            self._tell(f"{place}: it listens on several: {', '.join(others)}; not taken")
            return
        if len(self._tables.sockets_of(number)) == layout.TARGET_SOCKETS:
            # Some daemons bind a socket for each client, and connect it at once: these must
            # not push out the one that all others come to.
            self._supply(place, number, self._steering.look())
            return
        held = process_sockets.take(event.listener.pid, event.cookie, kinds=_KINDS[place.protocol])
        if held is None:
            # It has another id where we are, or has handed it on, or it is gone by now.
            self._supply(place, number, self._steering.look())
            return
        # For as long as we have it too, a daemon that ends leaves its port in use.
        with held:
            is_taken = adoption.put(self._tables, number, held)
        if is_taken:
            self._tell(f"{place}: took the one of {_whose(event)}")

    def _others(self, place: Place, number: int, event: Event) -> list[str]:
        """Where a process or unit listens besides, if that leaves open which is meant."""
        if isinstance(place.target, AddressTarget):
            return []
        at = event.listener.at
        ends = {str(Endpoint.from_mapped(at.address, at.port))}
        for cookie in self._tables.sockets_of(number):
            known = self._tables.listening(cookie)
            if known is not None and known.family == event.listener.family:
                ends.add(str(Endpoint.from_mapped(known.at.address, known.at.port)))
        return sorted(ends) if len(ends) > 1 else []

    def _on_left(self, event: Event, places: dict[Place, int]) -> None:
        protocol = _NAMES[event.listener.at.protocol]
        for place, number in places.items():
            if place.protocol != protocol:
                continue
            if isinstance(place.target, AddressTarget) and number != event.target:
                continue
            if not self._tables.sockets_of(number):
                # Of more than there is room for, some may listen still.
                self._supply(place, number, self._steering.look())


class _Waking:
    """A pipe by which signals and a thread wake the loop, until it is closed."""

    def __init__(self) -> None:
        self.woken, self._wake = os.pipe()
        self._lock = threading.RLock()  # a signal may come while we hold it

    def say(self, what: bytes) -> None:
        with self._lock:
            if self._wake >= 0:
                os.write(self._wake, what)

    def close(self) -> None:
        with self._lock:
            os.close(self.woken)
            os.close(self._wake)
            # Another file's by and by.
            self._wake = -1


def _end_by(stops: Iterable[signal.Signals], waking: _Waking, held: ExitStack) -> None:
    """Have signals wake us until all that is held is let go."""
    for number in stops:
        before = signal.signal(number, lambda *_: waking.say(_END))
        held.callback(signal.signal, number, before)


def _wait_for_turn(turn: int, waking: _Waking) -> None:
    with suppress(OSError):  # closed: it has ended
        wait_for(turn)
        waking.say(_TURN)


def _has(target: Target, pid: int) -> bool:
    """Whether a process is the one, or of the unit, that a target means."""
    if isinstance(target, ProcessTarget):
        return target.pid == pid and Process(*target).is_alive()
    if isinstance(target, AddressTarget):
        return False
    try:
        return pid in units.processes_of(target.unit)
    except ZfwError:
        return False


def _whose(event: Event) -> str:
    listener = event.listener
    return f"process {listener.pid} ({listener.command})"
