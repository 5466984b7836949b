# SPDX-License-Identifier: GPL-2.0-only
"""Keeps a container redirected: each time that it starts, its namespace is another one.

Whatever this makes it takes away again as it ends.
"""

from __future__ import annotations

import asyncio
import os
import threading
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING

from zfw_py.containers import Watch
from zfw_py.docker_dns import service as redirects
from zfw_py.docker_dns.codec import Event
from zfw_py.docker_dns.events import Reader, change
from zfw_py.docker_dns.maps import STORE, Tables
from zfw_py.errors import NotFound, ZfwError
from zfw_py.kernel.libbpf import RingBuffer
from zfw_py.kernel.process import start_time

if TYPE_CHECKING:
    import signal
    from collections.abc import Awaitable, Callable, Iterable

    from zfw_py.containers import Container, Happening
    from zfw_py.docker_dns.events import Change, Kind, Query
    from zfw_py.docker_dns.maps import About
    from zfw_py.docker_dns.model import Redirect

# What fails is tried again, and what is there looked at, this often.
_AGAIN = 1.0  # seconds
_CHECK = 2.0


def watch(
    name: str,
    asked: Redirect,
    making: redirects.Making,
    tell: Callable[[Query | Change], None],
    stops: Iterable[signal.Signals],
) -> None:
    """Redirect a container, now if it runs and whenever it starts, until a signal comes.

    Ends as well when somebody else takes the redirect away. Raises what keeps the first
    redirect from being made, and ZfwError for an engine that stays away; later ones are
    told and tried again.
    """
    asyncio.run(_Watcher(name, asked, making._replace(is_watched=True), tell).run(stops))


class _Watcher:
    def __init__(
        self,
        name: str,
        asked: Redirect,
        making: redirects.Making,
        tell: Callable[[Query | Change], None],
    ) -> None:
        self._name = name
        self._asked = asked
        self._making = making
        self._tell = tell
        self._source = Watch(name)
        # What is to be done next; None: nothing more.
        self._steps: asyncio.Queue[Callable[[], Awaitable[None]] | None] = asyncio.Queue()
        self._container: Container | None = None
        self._start_time: int | None = None
        self._about: About | None = None
        self._ring: RingBuffer | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._has_begun = False
        self._last_failure = ""
        self._failure: BaseException | None = None

    async def run(self, stops: Iterable[signal.Signals]) -> None:
        self._loop = asyncio.get_running_loop()
        for number in stops:
            self._loop.add_signal_handler(number, self._steps.put_nowait, None)
        listening = threading.Thread(target=self._listen)
        listening.start()
        try:
            while (step := await self._steps.get()) is not None:
                await step()
                self._come_back()
        finally:
            self._source.close()
            listening.join()
            self._take_away()
        if self._failure is not None:
            raise self._failure

    def _listen(self) -> None:
        """In a thread of its own, which waits for the engine."""
        try:
            for happening in self._source:
                self._loop.call_soon_threadsafe(
                    self._steps.put_nowait, partial(self._on_happening, happening)
                )
        except BaseException as error:  # noqa: BLE001 - raised by run()
            self._loop.call_soon_threadsafe(self._fail, error)

    def _fail(self, error: BaseException) -> None:
        self._failure = self._failure or error
        self._steps.put_nowait(None)

    def _come_back(self) -> None:
        """Look again in a while."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._about is not None:
            self._timer = self._loop.call_later(_CHECK, self._steps.put_nowait, self._check)
        elif self._container is not None:
            self._timer = self._loop.call_later(_AGAIN, self._steps.put_nowait, self._begin)

    def _say(self, kind: Kind, words: str) -> None:
        identifier = self._about.id if self._about else ""
        self._tell(change(self._name, identifier, kind, words))

    async def _on_happening(self, happening: Happening) -> None:
        match happening.kind:
            case "lost":
                self._say("lost", f"{happening.reason}; waiting for it")
            case "back":
                self._say("back", "the container engine is back")
            case "absent":
                if not self._has_begun:
                    self._say("absent", f"{happening.reason}; waiting for its start")
                elif self._container is not None:
                    self._say("ended", f"{happening.reason}; waiting for its next start")
                self._has_begun, self._container = True, None
                self._take_away()
            case "runs" if happening.container not in (None, self._container):
                self._container = happening.container
                self._start_time = start_time(happening.container.pid)
                self._take_away()
                await self._begin()

    async def _begin(self) -> None:
        """Redirect the container, or have it tried again."""
        if self._container is None or self._about is not None or self._has_ended():
            return
        target = redirects.of_container(self._container)
        try:
            # In a thread: it may wait for a server that does not answer.
            about = await asyncio.to_thread(redirects.redirect, target, self._asked, self._making)
            if self._has_ended():
                # It was another process's namespace, perhaps.
                redirects.remove(about.id)
                return
        except ZfwError as error:
            if self._has_ended():
                return
            if not self._has_begun:
                raise
            if error.message != self._last_failure:
                self._last_failure = error.message
                self._say("failed", f"{error.message}; trying again")
            return
        self._about = about
        self._has_begun, self._last_failure = True, ""
        self._read_events(about)
        self._say("redirected", f"redirected to {about.server}")

    def _has_ended(self) -> bool:
        """Whether the container's process has: the engine tells soon, and its id is another's."""
        container = self._container
        return container is None or start_time(container.pid) != self._start_time

    def _read_events(self, about: About) -> None:
        reader = Reader(self._name, about.id)
        # Kept: the descriptor goes with the map, and the map with its tables.
        self._tables = Tables(STORE.directory(about.id))
        ring = RingBuffer(
            self._tables.map("events").fd,
            lambda data: self._tell(reader.of_event(Event.decode(data))),
        )

        def consume() -> None:
            try:
                ring.consume()
            except BaseException as error:  # noqa: BLE001 - raised by run()
                self._fail(error)

        self._ring = ring
        self._loop.add_reader(ring.fileno(), consume)

    async def _check(self) -> None:
        """Look whether the redirect is as it was made."""
        about = self._about
        if about is None:
            return
        if not os.path.isdir(STORE.directory(about.id)):
            self._say("removed", "somebody else has taken the redirect away")
            self._steps.put_nowait(None)
        elif (problem := redirects.problem(about)) and not self._has_ended():
            self._say("broken", f"{problem}; redirecting again")
            self._take_away()
            await self._begin()

    def _take_away(self) -> None:
        """The redirect that there is, if there is one."""
        about, self._about = self._about, None
        ring, self._ring = self._ring, None
        if ring is not None:
            self._loop.remove_reader(ring.fileno())
            with ring:
                ring.consume()
        if about is not None:
            # Somebody else may have removed it, or collected it as its namespace was gone.
            with suppress(NotFound):
                redirects.remove(about.id)
