# SPDX-License-Identifier: GPL-2.0-only
"""What keeps a guard: answers DNS, tells what was decided, and sees when nobody is left.

It holds nothing open that the guard needs to be closed: if it dies, programs and
rules stay where they are, and DNS fails.
"""

from __future__ import annotations

import asyncio
import os
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING, NamedTuple

from zfw_py.errors import ZfwError
from zfw_py.guard import background, layout, listeners
from zfw_py.guard.codec import Event
from zfw_py.guard.dns.proxy import Proxy
from zfw_py.guard.dns.upstream import check_upstreams
from zfw_py.guard.events import TRANSPORTS, Recorder
from zfw_py.guard.maps import STORE
from zfw_py.guard.programs import SYSTEM, is_gone
from zfw_py.kernel import cgroup
from zfw_py.kernel.libbpf import RingBuffer
from zfw_py.kernel.netns_cookie import netns_cookie
from zfw_py.kernel.process import Process
from zfw_py.lifecycle.programs import clear, locked, remove

if TYPE_CHECKING:
    import signal
    from collections.abc import Callable, Iterable, Iterator

    from zfw_py.guard.dns.proxy import Asked
    from zfw_py.guard.dns.upstream import Server
    from zfw_py.guard.events import Teller
    from zfw_py.guard.listeners import Listeners
    from zfw_py.guard.maps import About, Tables
    from zfw_py.guard.model import Policy

# Expired addresses are forgotten, and a guard or a cgroup that is gone is noticed, this often.
_SWEEP = 30.0  # seconds
_GONE = 1.0
# A wake-up costs whoever is guarded more than all else about an event. The first of several is
# told at once, the others after so long: the ring buffer wakes nobody while it holds some.
_BURST = 0.02
# So many events, and then it is the turn of all else: more may come than can be told.
_AT_ONCE = layout.EVENT_BYTES // layout.EVENT_SIZE
# Looking into a network namespace takes a thread, and whoever is guarded causes it.
_FOLLOW_AGAIN = 1.0  # seconds
_MOST_FOLLOWED = 4096


class Kept(NamedTuple):
    """A guard, and whom to tell. ``policy`` is None for a redirect to somebody else's proxy."""

    tables: Tables
    about: About
    policy: Policy | None
    upstreams: list[Server]
    teller: Teller


def open_sockets(kept: Kept, pids: Iterable[int]) -> list[Listeners]:
    """Open the proxy's sockets where these processes are, and say so to the programs.

    To be called before anything is redirected, and from where upstream is asked. Raises
    UsageError for an upstream server that is the proxy itself, KernelError.
    """
    # Nobody is there yet: whoever comes is most likely to be where we are.
    opened = listeners.open_for(pids) or [listeners.open_here()]
    with ExitStack() as undo:
        for each in opened:
            undo.callback(each.close)
            kept.tables.write_proxy(each.cookie, each.proxy)
        own = netns_cookie()
        here = (each for each in opened if each.cookie == own)
        check_upstreams(kept.upstreams, [end for each in here for end in each.addresses()])
        kept.tables.write_keeper(Process.current())
        undo.pop_all()
    return opened


async def keep(
    kept: Kept,
    opened: list[Listeners],
    ready: Callable[[], None],
    stops: Iterable[signal.Signals],
    maker: int | None = None,
) -> bool:
    """Keep a guard until one of these signals comes, or until it is gone or of no more use.

    ``ready`` is called once all is running. At the end of the descriptor ``maker`` its
    maker has ended or needs stderr no more; what becomes of the guard is the maker's
    affair until then. True if nobody is left to be guarded: then the guard is to be
    removed.
    """
    return await _Keeper(kept, opened, maker).run(ready, stops)


def remove_guard(identifier: str) -> None:
    """Remove a guard of which ``keep`` says that nobody is left."""
    with locked(STORE, is_exclusive=True):
        clear(SYSTEM)
        remove(SYSTEM, identifier)


class _Keeper:
    def __init__(self, kept: Kept, opened: list[Listeners], maker: int | None) -> None:
        self._kept = kept
        self._maker = maker
        self._ring: RingBuffer | None = None
        self._proxy: Proxy | None = None
        is_log_only = False
        if kept.policy is not None:
            is_log_only = kept.policy.is_log_only
            self._proxy = Proxy(
                ports_of_name=kept.policy.ports_of_name,
                is_blocked_name=kept.policy.is_blocked_name,
                upstreams=kept.upstreams,
                admit=kept.tables.admit,
                report=self._on_question,
                is_log_only=is_log_only,
            )
        self._recorder = Recorder(kept.about.cgroup, is_log_only=is_log_only)
        self._opened = opened
        self._here = {each.cookie: each for each in opened}
        self._followed: dict[int, float] = {}
        self._stop = asyncio.Event()
        self._is_of_no_use = False
        self._failure: BaseException | None = None

    async def run(self, ready: Callable[[], None], stops: Iterable[signal.Signals]) -> bool:
        loop = asyncio.get_running_loop()
        for each in self._opened:
            self._serve(each)
        for number in stops:
            loop.add_signal_handler(number, self._stop.set)
        with ExitStack() as open_until_the_end:
            self._ring = ring = open_until_the_end.enter_context(
                RingBuffer(self._kept.tables.map("events").fd, self._on_event)
            )
            population = open_until_the_end.enter_context(
                cgroup.Population(self._kept.about.cgroup)
            )
            loop.add_reader(population.fileno(), self._guarded(self._on_change), population)
            if self._maker is not None:
                loop.add_reader(self._maker, self._guarded(self._on_end_of_maker), population)
            tasks = [
                loop.create_task(self._take_events(ring)),
                loop.create_task(self._sweep(population)),
            ]
            ready()
            try:
                if self._proxy is None:
                    await self._stop.wait()
                else:
                    await self._proxy.run(self._stop)
            finally:
                for task in tasks:
                    task.cancel()
                loop.remove_reader(ring.fileno())
                loop.remove_reader(population.fileno())
                await asyncio.gather(*tasks, return_exceptions=True)
            ring.consume(_AT_ONCE)
        if self._failure is not None:
            raise self._failure
        return self._is_of_no_use

    def _serve(self, opened: Listeners) -> None:
        if self._proxy is None:
            return
        by_family = {each.family: each for each in opened.tcp}
        for udp in opened.udp:
            # One of TCP a family, beside the first of UDP.
            self._proxy.serve(udp, by_family.pop(udp.family, None))

    def _guarded(self, function: Callable[..., object]) -> Callable[..., None]:
        """A callback whose failure ends the keeper, and is raised there."""

        def call(*arguments: object) -> None:
            try:
                function(*arguments)
            except BaseException as error:  # noqa: BLE001 - raised by run()
                self._failure = self._failure or error
                self._stop.set()

        return call

    # What is told

    async def _take_events(self, ring: RingBuffer) -> None:
        loop = asyncio.get_running_loop()
        has_some = asyncio.Event()
        while True:
            loop.add_reader(ring.fileno(), has_some.set)
            await has_some.wait()
            loop.remove_reader(ring.fileno())
            has_some.clear()
            self._guarded(ring.consume)(_AT_ONCE)
            await asyncio.sleep(_BURST)

    def _on_event(self, data: bytes) -> None:
        event = Event.decode(data)
        self._kept.teller.tell(self._recorder.of_event(event))
        if event.reason == "no_proxy" and self._proxy is not None:
            self._follow(event.pid, event.netns_cookie)

    def _on_question(self, asked: Asked) -> None:
        self._recorder.remember(asked.name, asked.addresses)
        if asked.verdict == "allow" and not self._kept.teller.has_all:
            return
        # What was decided before this question is told before it.
        if self._ring is not None:
            self._ring.consume(_AT_ONCE)
        protocol = TRANSPORTS[asked.transport]
        address, port = asked.client
        askers = (
            self._kept.tables.asker(cookie, port, protocol, is_ipv6=":" in address)
            for cookie in self._here
        )
        self._kept.teller.tell(self._recorder.of_question(asked, next(filter(None, askers), None)))

    def _follow(self, pid: int, cookie: int) -> None:
        """Somebody asked where we are not, or not for that family: be there for the next time.

        That is in a network namespace that is new to us, or whose loopback was not up.
        """
        now = asyncio.get_running_loop().time()
        if now - self._followed.get(cookie, -_FOLLOW_AGAIN) < _FOLLOW_AGAIN:
            return
        if len(self._followed) >= _MOST_FOLLOWED:
            self._followed.clear()
        self._followed[cookie] = now
        # There may be no descriptors, or no room in the table: perhaps the next time.
        with suppress(ZfwError, OSError):
            path = listeners.namespace_of(cookie, self._likely(pid))
            if path is None:
                return
            opened = listeners.open_in(path)
            known = self._here.get(cookie)
            if known is not None and len(opened.udp) <= len(known.udp):
                opened.close()
                return
            try:
                self._kept.tables.write_proxy(cookie, opened.proxy)
            except OSError:
                opened.close()
                raise
            self._serve(opened)
            self._here[cookie] = opened

    def _likely(self, pid: int) -> Iterator[int]:
        """Who may be where this process is, which is told by its id in the initial PID namespace.

        It may have ended, or have another id here.
        """
        yield pid
        yield from cgroup.processes(self._kept.about.cgroup, is_recursive=True)

    # When it ends

    def _on_end_of_maker(self, population: cgroup.Population) -> None:
        if self._maker is not None:
            asyncio.get_running_loop().remove_reader(self._maker)
            os.close(self._maker)
            self._maker = None
            background.release_stderr()
            self._on_change(population)

    def _on_change(self, population: cgroup.Population) -> None:
        is_populated = population.is_populated()
        if self._maker is not None:
            return
        if not STORE.exists(self._kept.about.id):
            self._stop.set()  # taken away
        elif not is_populated and (self._kept.about.is_cgroup_ours or is_gone(self._kept.about)):
            self._is_of_no_use = True
            self._stop.set()

    async def _sweep(self, population: cgroup.Population) -> None:
        loop = asyncio.get_running_loop()
        swept = loop.time()
        while True:
            await asyncio.sleep(_GONE)
            # Whoever removes a guard, or an empty cgroup, makes no event of it.
            self._guarded(self._on_change)(population)
            if loop.time() - swept >= _SWEEP:
                swept = loop.time()
                self._guarded(self._kept.tables.forget_expired)()
