# SPDX-License-Identifier: GPL-2.0-only
"""The manager: inserts the sockets that no kernel hook can insert, at each event of a listener.

These are UDP sockets, and the sockets of processes and units. A ring buffer has one consumer,
so a manager holds the lock on the steering's directory, and other managers wait for it. If a
manager is killed, all mappings stay in force; the next change removes those that it held.
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
from zfw_py.steer.maps import STORE, Maps
from zfw_py.steer.model import AddressTarget, ProcessTarget
from zfw_py.steer.sockets import PROTOCOL_NAMES
from zfw_py.values.endpoint import Endpoint

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from zfw_py.steer.model import Mapping, Target
    from zfw_py.steer.service import Steering
    from zfw_py.steer.sockets import SocketSnapshot
    from zfw_py.steer.state import Destination

# Between checks for what causes no event: the end of the steering, and lost events.
_CHECK = 2.0  # seconds
_END, _TURN = b"e", b"t"
_KINDS = {
    "tcp": frozenset(("TCP", "TCPv6")),
    "udp": frozenset(("UDP", "UDPv6")),
}


def run(
    steering: Steering,
    mappings: Sequence[Mapping],
    log: Callable[[str], None],
    stops: Iterable[signal.Signals],
) -> None:
    """Add mappings, manage all destinations until one of ``stops`` arrives, then remove them.

    Also returns when another process detached the steering. ``log`` gets each line of text.
    Raises as ``Steering.add``, Busy, KernelError.
    """
    own = Process.current()
    # Also if there are no mappings: it attaches the programs.
    for listed in steering.add(mappings, own):
        log(f"{listed.mapping}: {listed.state}")
    try:
        _Manager(steering, log).run(stops)
    finally:
        steering.remove_run(own)


class _Manager:
    def __init__(self, steering: Steering, log: Callable[[str], None]) -> None:
        self._steering = steering
        self._log = log
        self._directory = STORE.directory(steering.cookie)
        self._maps = Maps(self._directory)
        self._last_errors: dict[Destination, str] = {}
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
            # wait_for() blocks, so it has a thread, which no signal interrupts. A daemon thread:
            # it ends with the process.
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
                ring = held.enter_context(RingBuffer(self._maps.map("events").fd, self._on_event))
                selector.register(ring.fileno(), selectors.EVENT_READ)
                self._begin(ring)
            if ring is not None and ring.fileno() in ready:
                ring.consume()
            if monotonic() - checked < _CHECK:
                continue
            checked = monotonic()
            if not os.path.isdir(self._directory):
                self._log("steering was removed by another process; exiting")
                return
            if self._is_managing:
                with suppress(Busy, NotInstalled):  # the next check tries again, or ends us
                    self._supply_after_loss()

    def _begin(self, ring: RingBuffer) -> None:
        # Earlier events are out of date: the scan finds the sockets that exist now.
        ring.consume()
        self._lost = self._count_lost()
        self._supply_all()
        self._is_managing = True
        self._log("managing")

    def _supply_after_loss(self) -> None:
        """Scan again if the kernel lost an event, or could not count or adopt a listener."""
        lost = self._count_lost()
        if lost != self._lost:
            self._lost = lost
            self._supply_all()

    def _count_lost(self) -> int:
        errors = self._maps.errors()
        return sum(errors.get(name, 0) for name in ("events", "adoption", "listeners"))

    def _supply_all(self) -> None:
        with locked(STORE, is_exclusive=False):
            if not os.path.isdir(self._directory):
                return
            snapshot = self._steering.snapshot(self._maps)
            for destination, number in self._maps.state().destinations.items():
                self._supply(destination, number, snapshot)

    def _supply(self, destination: Destination, number: int, snapshot: SocketSnapshot) -> None:
        try:
            for adopted in adoption.adopt(self._maps, destination, number, snapshot):
                pids = "+".join(map(str, adopted.pids))
                self._log(f"{destination}: adopted {adopted.listener} of process {pids}")
        except ZfwError as error:
            if self._last_errors.get(destination) != error.message:
                self._last_errors[destination] = error.message
                self._log(f"{destination}: {error.message}")
        else:
            self._last_errors.pop(destination, None)

    # Events

    def _on_event(self, data: bytes) -> None:
        event = Event.decode(data)
        if not self._is_managing:
            return
        try:
            with locked(STORE, is_exclusive=False):
                destinations = self._maps.state().destinations
                if event.kind == "came":
                    self._on_came(event, destinations)
                else:
                    self._on_left(event, destinations)
        except NotInstalled:
            pass  # the next check returns
        except ZfwError as error:
            # An error with one socket must not stop the work for the others.
            self._log(error.message)

    def _on_came(self, event: Event, destinations: dict[Destination, int]) -> None:
        at, process = event.listener.at, _process_text(event)
        protocol = PROTOCOL_NAMES[at.protocol]
        for destination, number in destinations.items():
            if destination.protocol != protocol or destination.port not in (None, at.port):
                continue
            if isinstance(destination.target, AddressTarget):
                if number != event.target:
                    continue
                if event.listener.is_mptcp:
                    self._log(f"{destination}: {process} listens by MPTCP: not adopted")
                    continue
                if event.is_adopted:
                    self._log(f"{destination}: the kernel adopted the socket of {process}")
                    continue
            elif not _is_of_target(destination.target, event.listener.pid):
                continue
            self._insert(destination, number, event)

    def _insert(self, destination: Destination, number: int, event: Event) -> None:
        others = self._others(destination, number, event)
        if others:
            self._log(f"{destination}: it listens on several: {', '.join(others)}; not adopted")
            return
        present = self._maps.sockets_of(number)
        if present[:1] == [event.cookie]:
            return  # a scan, because of an earlier event, has adopted it
        if len(present) == layout.TARGET_SOCKETS:
            # Some daemons bind a socket for each client and connect it at once. Such sockets must
            # not replace the one that new clients need.
            self._supply(destination, number, self._steering.snapshot())
            return
        kinds = _KINDS[destination.protocol]
        held = process_sockets.take(event.listener.pid, event.cookie, kinds=kinds)
        if held is None:
            # Its process has another id in our PID namespace, or passed the socket on, or ended.
            self._supply(destination, number, self._steering.snapshot())
            return
        # While our duplicate is open, a daemon that ends leaves its port in use.
        with held:
            is_inserted = adoption.insert(self._maps, number, held)
        if is_inserted:
            self._log(f"{destination}: adopted the socket of {_process_text(event)}")

    def _others(self, destination: Destination, number: int, event: Event) -> list[str]:
        """The addresses of a process or unit if it listens on several; [] if on one."""
        if isinstance(destination.target, AddressTarget):
            return []
        at = event.listener.at
        ends = {str(Endpoint.from_mapped(at.address, at.port))}
        for cookie in self._maps.sockets_of(number):
            known = self._maps.listening(cookie)
            if known is not None and known.family == event.listener.family:
                ends.add(str(Endpoint.from_mapped(known.at.address, known.at.port)))
        return sorted(ends) if len(ends) > 1 else []

    def _on_left(self, event: Event, destinations: dict[Destination, int]) -> None:
        protocol = PROTOCOL_NAMES[event.listener.at.protocol]
        for destination, number in destinations.items():
            if destination.protocol != protocol:
                continue
            if isinstance(destination.target, AddressTarget) and number != event.target:
                continue
            if not self._maps.sockets_of(number):
                # A target may have more sockets than slots: insert those that still listen.
                self._supply(destination, number, self._steering.snapshot())


class _Waking:
    """A pipe by which signals and a thread wake the loop."""

    def __init__(self) -> None:
        self.woken, self._wake = os.pipe()
        self._lock = threading.RLock()  # a signal handler may interrupt its holder

    def write(self, what: bytes) -> None:
        with self._lock:
            if self._wake >= 0:
                os.write(self._wake, what)

    def close(self) -> None:
        with self._lock:
            os.close(self.woken)
            os.close(self._wake)
            # The number may become another file's.
            self._wake = -1


def _end_by(stops: Iterable[signal.Signals], waking: _Waking, held: ExitStack) -> None:
    """Have signals wake the loop until ``held`` is closed."""
    for number in stops:
        before = signal.signal(number, lambda *_: waking.write(_END))
        held.callback(signal.signal, number, before)


def _wait_for_turn(turn: int, waking: _Waking) -> None:
    with suppress(OSError):  # closed: the loop has ended
        wait_for(turn)
        waking.write(_TURN)


def _is_of_target(target: Target, pid: int) -> bool:
    """Whether a process is the target, or belongs to the unit that is the target."""
    if isinstance(target, ProcessTarget):
        return target.pid == pid and Process(*target).is_alive()
    if isinstance(target, AddressTarget):
        return False
    try:
        return pid in units.processes_of(target.unit)
    except ZfwError:
        return False


def _process_text(event: Event) -> str:
    listener = event.listener
    return f"process {listener.pid} ({listener.command})"
