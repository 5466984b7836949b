# SPDX-License-Identifier: GPL-2.0-only
"""Redirects a container at each of its starts, because a new start has a new namespace.

A redirect that the watcher created is removed at its end.
"""

from __future__ import annotations

import asyncio
import threading
from contextlib import suppress
from functools import partial
from time import time
from typing import TYPE_CHECKING

from zfw_py.containers import Watch
from zfw_py.docker_dns import programs
from zfw_py.docker_dns.codec import Event
from zfw_py.docker_dns.events import Change, Reader
from zfw_py.docker_dns.listing import problem
from zfw_py.docker_dns.maps import STORE, Maps
from zfw_py.docker_dns.service import DnsRedirect
from zfw_py.errors import NotFound, ZfwError
from zfw_py.kernel.libbpf import RingBuffer
from zfw_py.kernel.process import start_time

if TYPE_CHECKING:
    import signal
    from collections.abc import Awaitable, Callable, Iterable

    from zfw_py.containers import Container, ContainerEvent
    from zfw_py.docker_dns.events import Kind, Query
    from zfw_py.docker_dns.maps import Manifest
    from zfw_py.docker_dns.model import Redirect
    from zfw_py.docker_dns.service import RedirectOptions

_RETRY = 1.0  # seconds until a redirect that failed is tried again
_CHECK = 1.0  # seconds between checks of a redirect


def watch(
    name: str,
    asked: Redirect,
    options: RedirectOptions,
    emit: Callable[[Query | Change], None],
    stops: Iterable[signal.Signals],
) -> None:
    """Redirect a container, now if it runs and at each start, until one of ``stops`` arrives.

    Also returns when another process removed the redirect. ``emit`` gets each record. Raises
    the error of the first ``DnsRedirect.create``, and ZfwError if the engine stays away for two
    minutes. Later errors of ``create`` are emitted, and it is tried again.
    """
    asyncio.run(_Watcher(name, asked, options._replace(is_watched=True), emit).run(stops))


class _Watcher:
    def __init__(
        self,
        name: str,
        asked: Redirect,
        options: RedirectOptions,
        emit: Callable[[Query | Change], None],
    ) -> None:
        self._name = name
        self._asked = asked
        self._options = options
        self._emit = emit
        self._source = Watch(name)
        # The steps to run, in order; None ends the loop.
        self._steps: asyncio.Queue[Callable[[], Awaitable[None]] | None] = asyncio.Queue()
        self._container: Container | None = None
        self._start_time: int | None = None
        self._manifest: Manifest | None = None
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
                self._set_timer()
        finally:
            self._source.close()
            listening.join()
            self._remove()
        if self._failure is not None:
            raise self._failure

    def _listen(self) -> None:
        """Queue a step for each event of the engine; runs in a thread, because reading blocks."""
        try:
            for event in self._source:
                self._loop.call_soon_threadsafe(
                    self._steps.put_nowait, partial(self._on_event, event)
                )
        except BaseException as error:  # noqa: BLE001 - raised by run()
            self._loop.call_soon_threadsafe(self._fail, error)

    def _fail(self, error: BaseException) -> None:
        self._failure = self._failure or error
        self._steps.put_nowait(None)

    def _set_timer(self) -> None:
        """Schedule the next check of the redirect, or the next try to create it."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._manifest is not None:
            self._timer = self._loop.call_later(_CHECK, self._steps.put_nowait, self._check)
        elif self._container is not None:
            self._timer = self._loop.call_later(_RETRY, self._steps.put_nowait, self._begin)

    def _emit_change(self, kind: Kind, text: str) -> None:
        identifier = self._manifest.id if self._manifest else ""
        self._emit(Change(time(), self._name, identifier, kind, text))

    async def _on_event(self, event: ContainerEvent) -> None:
        match event.kind:
            case "lost":
                self._emit_change("lost", f"{event.reason}; waiting for it")
            case "back":
                self._emit_change("back", "the container engine is back")
            case "absent":
                if not self._has_begun:
                    self._emit_change("absent", f"{event.reason}; waiting for its start")
                elif self._container is not None:
                    self._emit_change("ended", f"{event.reason}; waiting for its next start")
                self._has_begun, self._container = True, None
                self._remove()
            case "runs" if event.container not in (None, self._container):
                before, self._container = self._container, event.container
                if before is not None and before[1:] == event.container[1:]:
                    self._rename(event.container.name)
                    return
                self._start_time = start_time(event.container.pid)
                self._remove()
                await self._begin()

    def _rename(self, name: str) -> None:
        if self._manifest is not None:
            with suppress(NotFound):  # the next check ends the watch
                self._manifest = programs.rename(self._manifest.id, name)
        self._emit_change("renamed", f"the container is called {name} now")

    async def _begin(self) -> None:
        """Redirect the container; after an error the timer tries again."""
        if self._container is None or self._manifest is not None or self._has_ended():
            return
        try:
            redirect = DnsRedirect.of_container(self._container)
            # In a thread, because it may wait for a server that does not answer.
            manifest = await asyncio.to_thread(redirect.create, self._asked, self._options)
            if self._has_ended():
                # The process id may have been another process's by then.
                redirect.remove()
                return
        except ZfwError as error:
            if self._has_ended():
                return
            if not self._has_begun:
                raise
            if error.message != self._last_failure:
                self._last_failure = error.message
                self._emit_change("failed", f"{error.message}; trying again")
            return
        self._manifest = manifest
        self._has_begun, self._last_failure = True, ""
        self._read_events(manifest)
        self._emit_change("redirected", f"redirected to {manifest.server}")

    def _has_ended(self) -> bool:
        """Whether the container's first process has ended; the engine's event follows."""
        container = self._container
        return container is None or start_time(container.pid) != self._start_time

    def _read_events(self, manifest: Manifest) -> None:
        reader = Reader(self._name, manifest.id)
        # An attribute, because the descriptor is closed when the object is collected.
        self._maps = Maps(STORE.directory(manifest.id))
        ring = RingBuffer(
            self._maps.map("events").fd,
            lambda data: self._emit(reader.of_event(Event.decode(data))),
        )

        def consume() -> None:
            try:
                ring.consume()
            except BaseException as error:  # noqa: BLE001 - raised by run()
                self._fail(error)

        self._ring = ring
        self._loop.add_reader(ring.fileno(), consume)

    async def _check(self) -> None:
        """End if the redirect was removed; create it again if it does not work."""
        manifest = self._manifest
        if manifest is None:
            return
        if not STORE.exists(manifest.id):
            self._emit_change("removed", "the redirect was removed by another process; exiting")
            self._steps.put_nowait(None)
        elif (why := problem(manifest)) and not self._has_ended():
            self._emit_change("broken", f"{why}; redirecting again")
            self._remove()
            await self._begin()

    def _remove(self) -> None:
        """Remove the redirect, if there is one, after its last events."""
        manifest, self._manifest = self._manifest, None
        ring, self._ring = self._ring, None
        if ring is not None:
            self._loop.remove_reader(ring.fileno())
            with ring:
                ring.consume()
        if manifest is not None:
            # Another process may have removed it, or collected it if its namespace is gone.
            with suppress(NotFound):
                DnsRedirect.remove_id(manifest.id)
