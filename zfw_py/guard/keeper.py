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

from zfw_py.abi.guard_codec import Event
from zfw_py.errors import KernelError, NotFound, ZfwError
from zfw_py.guard import listeners, processes
from zfw_py.guard.records import TRANSPORTS, Recorder
from zfw_py.kernel import cgroup
from zfw_py.kernel.libbpf import RingBuffer

if TYPE_CHECKING:
    import signal
    from collections.abc import Callable, Iterable

    from zfw_py.guard.dns.proxy import Asked, Proxy
    from zfw_py.guard.listeners import Listeners
    from zfw_py.guard.records import Record
    from zfw_py.guard.tables import Tables

# Expired addresses are forgotten, and a cgroup that may go is looked for, this often.
_SWEEP = 30.0  # seconds
_GONE = 1.0


class Kept(NamedTuple):
    """What a keeper needs. ``make_proxy`` is None for a redirect to somebody else's proxy."""

    tables: Tables
    path: str
    opened: list[Listeners]
    make_proxy: Callable[[Callable[[Asked], None]], Proxy] | None
    is_log_only: bool
    is_done_when_empty: bool
    tell: Callable[[Record], None]


async def keep(kept: Kept, ready: Callable[[], None], stops: Iterable[signal.Signals]) -> bool:
    """Keep a guard until one of these signals comes, or until it is of no more use.

    ``ready`` is called once all is running. True if nobody is left in the cgroup
    and the guard is done with it, or the cgroup is gone.
    """
    return await _Keeper(kept).run(ready, stops)


class _Keeper:
    def __init__(self, kept: Kept) -> None:
        self._kept = kept
        self._recorder = Recorder(kept.path, is_log_only=kept.is_log_only)
        self._proxy = None if kept.make_proxy is None else kept.make_proxy(self._on_question)
        self._cookies = {each.cookie for each in kept.opened}
        self._stop = asyncio.Event()
        self._is_of_no_use = False
        self._failure: BaseException | None = None

    async def run(self, ready: Callable[[], None], stops: Iterable[signal.Signals]) -> bool:
        loop = asyncio.get_running_loop()
        for each in self._kept.opened:
            self._serve(each)
        for number in stops:
            loop.add_signal_handler(number, self._stop.set)
        with ExitStack() as open_until_the_end:
            ring = open_until_the_end.enter_context(
                RingBuffer(self._kept.tables.map("events").fd, self._on_event)
            )
            population = open_until_the_end.enter_context(cgroup.Population(self._kept.path))
            loop.add_reader(ring.fileno(), self._guarded(ring.consume))
            loop.add_reader(population.fileno(), self._guarded(self._on_change), population)
            sweeping = loop.create_task(self._sweep(population))
            self._kept.tables.write_keeper(processes.this_process())
            ready()
            try:
                if self._proxy is None:
                    await self._stop.wait()
                else:
                    await self._proxy.run(self._stop)
            finally:
                sweeping.cancel()
                loop.remove_reader(ring.fileno())
                loop.remove_reader(population.fileno())
                await asyncio.gather(sweeping, return_exceptions=True)
            ring.consume()
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

    def _guarded(self, function: Callable[..., None]) -> Callable[..., None]:
        """A callback whose failure ends the keeper, and is raised there."""

        def call(*arguments: object) -> None:
            try:
                function(*arguments)
            except BaseException as error:  # noqa: BLE001 - raised by run()
                self._failure = self._failure or error
                self._stop.set()

        return call

    # What is told

    def _on_event(self, data: bytes) -> None:
        event = Event.decode(data)
        self._kept.tell(self._recorder.of_event(event))
        if event.reason == "no_proxy" and event.netns_cookie not in self._cookies:
            self._follow(event.pid, event.netns_cookie)

    def _on_question(self, asked: Asked) -> None:
        self._recorder.remember(asked.name, asked.addresses)
        protocol = TRANSPORTS[asked.transport]
        address, port = asked.client
        askers = (
            self._kept.tables.asker(cookie, port, protocol, is_ipv6=":" in address)
            for cookie in self._cookies
        )
        self._kept.tell(self._recorder.of_question(asked, next(filter(None, askers), None)))

    def _follow(self, pid: int, cookie: int) -> None:
        """Somebody asked in a network namespace that is new to us: be there for the next time."""
        self._cookies.add(cookie)
        path = f"/proc/{pid}/ns/net"
        # The process may have ended, its id be another's, and its namespace have no loopback.
        with suppress(ZfwError):
            if self._proxy is None or listeners.cookie_in(path) != cookie:
                return
            opened = listeners.open_in(path)
            self._serve(opened)
            try:
                self._kept.tables.write_proxy(cookie, opened.proxy)
            except OSError as error:
                raise KernelError("another network namespace", error.errno or 0) from error

    # When it ends

    def _on_change(self, population: cgroup.Population) -> None:
        if population.is_populated():
            return
        if self._kept.is_done_when_empty or not os.path.isdir(self._kept.path):
            self._is_of_no_use = True
            self._stop.set()

    async def _sweep(self, population: cgroup.Population) -> None:
        loop = asyncio.get_running_loop()
        swept = loop.time()
        while True:
            await asyncio.sleep(_GONE)
            # Whoever removes an empty cgroup makes no event of it.
            self._guarded(self._on_change)(population)
            if loop.time() - swept >= _SWEEP:
                swept = loop.time()
                self._guarded(self._forget)()

    def _forget(self) -> None:
        with suppress(NotFound):
            self._kept.tables.forget_expired()
