# SPDX-License-Identifier: GPL-2.0-only
"""The supervisor: a guard's process, which runs the DNS proxy and logs the guard's events.

It ends at a signal, or when the guard was removed. If the guarded cgroup is gone, or was created
for the guard and is empty, it removes the guard and ends. If it is killed, programs and maps stay
as they are: everything but DNS is enforced as before, and its watcher starts it again.
"""

from __future__ import annotations

import asyncio
import os
import syslog
import traceback
from contextlib import ExitStack
from typing import TYPE_CHECKING, NamedTuple

from dns.rcode import NXDOMAIN, REFUSED

from zfw_py.guard import background, layout, listeners
from zfw_py.guard.codec import Event
from zfw_py.guard.dns.proxy import Proxy
from zfw_py.guard.dns.upstream import check_upstreams
from zfw_py.guard.events import EventBuilder
from zfw_py.guard.maps import STORE
from zfw_py.guard.namespaces import Namespaces
from zfw_py.guard.programs import SYSTEM, is_gone
from zfw_py.kernel import cgroup
from zfw_py.kernel.libbpf import RingBuffer
from zfw_py.kernel.own_netns import netns_cookie
from zfw_py.kernel.process import Process
from zfw_py.lifecycle.programs import clear, locked, remove

if TYPE_CHECKING:
    import signal
    from collections.abc import Callable, Iterable

    from zfw_py.guard.dns.proxy import AnsweredQuery
    from zfw_py.guard.events import EventSink
    from zfw_py.guard.held_sockets import Sender
    from zfw_py.guard.listeners import Listeners
    from zfw_py.guard.maps import Manifest, Maps
    from zfw_py.guard.model import Policy
    from zfw_py.values.endpoint import Endpoint

# How often expired addresses are removed, namespaces without clients are left, and how often the
# supervisor checks whether the guard or its cgroup is gone.
_EXPIRE_INTERVAL = 30.0  # seconds
_RELEASE_INTERVAL = 10.0
_CHECK_INTERVAL = 1.0
# Waking this process costs a guarded program more than all else about an event. The kernel sends
# no wake-up while the ring buffer holds events, so wait this long before it is emptied again.
_BATCH_DELAY = 0.02
# Events of one batch; then the DNS proxy gets its turn. Programs may add events faster than the
# sink takes them.
_BATCH = layout.EVENT_BYTES // layout.EVENT_SIZE
_BUG_LINE_INTERVAL = 60.0  # seconds


class GuardContext(NamedTuple):
    """A guard's maps, manifest, policy (None for a redirect), upstream servers and event sink.

    ``has_own_files``: this process sees the files of the command that created the guard.
    """

    maps: Maps
    manifest: Manifest
    policy: Policy | None
    upstreams: list[Endpoint]
    sink: EventSink
    has_own_files: bool = True


def open_sockets(context: GuardContext, pids: Iterable[int]) -> list[Listeners]:
    """Open the DNS proxy's sockets in the network namespaces of these processes.

    Writes their ports to the map ``proxies``. Call it before the programs are attached, from the
    namespace where upstream servers are asked. Raises UsageError for an upstream server that is the
    proxy itself, KernelError.
    """
    # No process yet: the first one most likely starts in our own namespace.
    opened = listeners.open_for(pids) or [listeners.open_here()]
    with ExitStack() as undo:
        for each in opened:
            undo.callback(each.close)
            context.maps.write_listeners(each)
        own = netns_cookie()
        here = (each for each in opened if each.cookie == own)
        check_upstreams(context.upstreams, [end for each in here for end in each.addresses()])
        undo.pop_all()
    return opened


def supervise(
    context: GuardContext,
    opened: list[Listeners],
    ready: Callable[[], None],
    stops: Iterable[signal.Signals],
    creator: int | None = None,
    sender: Sender | None = None,
) -> None:
    """Run the supervisor until one of the signals ``stops``, or until the guard is of no use.

    ``ready`` is called once all is running, and the map names the caller as the supervisor.
    ``creator`` is a pipe that ends when the command that created the guard has ended or needs
    stderr no longer; until then that command is responsible for removing the guard. ``sender``
    leads to the watcher, if there is one.
    """
    if asyncio.run(_Supervisor(context, opened, creator, sender).run(ready, stops)):
        with locked(STORE, is_exclusive=True):
            clear(SYSTEM)
            remove(SYSTEM, context.manifest.id)


class _Supervisor:
    def __init__(
        self,
        context: GuardContext,
        opened: list[Listeners],
        creator: int | None,
        sender: Sender | None,
    ) -> None:
        self._context = context
        self._creator = creator
        self._sender = sender
        self._ring: RingBuffer | None = None
        self._proxy: Proxy | None = None
        is_log_only = False
        if context.policy is not None:
            is_log_only = context.policy.is_log_only
            self._proxy = Proxy(
                ports_of_name=context.policy.ports_of_name,
                is_blocked_name=context.policy.is_blocked_name,
                admit=context.maps.admit,
                report=self._on_query,
                on_bug=self._on_bug,
                is_log_only=is_log_only,
                least_lifetime=context.policy.least_lifetime,
                refusal=REFUSED if context.policy.refuse == "refused" else NXDOMAIN,
            )
        self._events = EventBuilder(context.manifest.cgroup, is_log_only=is_log_only)
        self._opened = opened
        self._namespaces: Namespaces | None = None
        self._denied: dict[str, int] = {}
        self._bugs = 0
        self._next_bug_line = 0.0
        self._stop = asyncio.Event()
        self._is_of_no_use = False
        self._failure: BaseException | None = None

    async def run(self, ready: Callable[[], None], stops: Iterable[signal.Signals]) -> bool:
        """Return True if the guard is of no use any more and has to be removed."""
        loop = asyncio.get_running_loop()
        if self._proxy is not None:
            self._context.maps.track_resolved()
            self._namespaces = Namespaces(self._context, self._proxy, self._sender)
            for each in self._opened:
                self._namespaces.serve(each)
        for number in stops:
            loop.add_signal_handler(number, self._stop.set)
        with ExitStack() as open_until_the_end:
            self._ring = ring = open_until_the_end.enter_context(
                RingBuffer(self._context.maps.map("events").fd, self._on_event)
            )
            population = open_until_the_end.enter_context(
                cgroup.Population(self._context.manifest.cgroup)
            )
            loop.add_reader(population.fileno(), self._guarded(self._check), population)
            if self._creator is not None:
                loop.add_reader(self._creator, self._guarded(self._on_end_of_creator), population)
            tasks = [
                loop.create_task(self._read_events(ring)),
                loop.create_task(self._check_regularly(population)),
            ]
            self._context.maps.write_supervisor(Process.current())
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
            ring.consume(_BATCH)
            self._count_denied()
            if self._namespaces is not None:
                self._namespaces.close()
        if self._failure is not None:
            raise self._failure
        return self._is_of_no_use

    def _guarded(self, function: Callable[..., object]) -> Callable[..., None]:
        """Wrap a callback: if it raises, the supervisor stops and ``run`` raises the exception."""

        def call(*arguments: object) -> None:
            try:
                function(*arguments)
            except BaseException as error:  # noqa: BLE001 - raised by run()
                self._failure = self._failure or error
                self._stop.set()

        return call

    # Events

    async def _read_events(self, ring: RingBuffer) -> None:
        loop = asyncio.get_running_loop()
        has_some = asyncio.Event()
        while True:
            loop.add_reader(ring.fileno(), has_some.set)
            await has_some.wait()
            loop.remove_reader(ring.fileno())
            has_some.clear()
            self._guarded(ring.consume)(_BATCH)
            await asyncio.sleep(_BATCH_DELAY)

    def _on_bug(self, bug: BaseException) -> None:
        """Log an error in zfw that cost one query or event: the first one of each minute."""
        now = asyncio.get_running_loop().time()
        self._bugs += 1
        if now >= self._next_bug_line:
            self._next_bug_line = now + _BUG_LINE_INTERVAL
            text = "".join(traceback.format_exception(bug))
            syslog.syslog(syslog.LOG_CRIT, f"zfw guard: error {self._bugs}: {text}")

    def _on_event(self, data: bytes) -> None:
        try:
            self._take_event(data)
        except Exception as bug:  # noqa: BLE001 - costs this event
            self._on_bug(bug)

    def _take_event(self, data: bytes) -> None:
        event = Event.decode(data)
        self._context.sink.emit(self._events.from_kernel(event))
        if event.reason == "no_proxy" and self._namespaces is not None:
            self._namespaces.follow(event.pid, event.netns_cookie)

    def _on_query(self, query: AnsweredQuery) -> None:
        self._events.remember(query.name, query.addresses)
        if query.verdict == "deny" or query.reason == "internal_error":
            self._denied[query.reason] = self._denied.get(query.reason, 0) + 1
        if query.verdict == "allow" and not self._context.sink.wants_all:
            return
        # Keep the log in order: first the decisions that came before this query.
        if self._ring is not None:
            self._ring.consume(_BATCH)
        client = None
        if self._namespaces is not None:
            client = self._namespaces.client(query.client, query.transport)
        self._context.sink.emit(self._events.from_query(query, client))

    def _count_denied(self) -> None:
        """Count the denials of the last second in the map."""
        counts, self._denied = self._denied, {}
        if counts:
            self._context.maps.count_dns(counts)

    # The end

    def _on_end_of_creator(self, population: cgroup.Population) -> None:
        if self._creator is not None:
            asyncio.get_running_loop().remove_reader(self._creator)
            os.close(self._creator)
            self._creator = None
            background.release_stderr()
            self._check(population)

    def _check(self, population: cgroup.Population) -> None:
        """Stop if the guard was removed, or is of no use any more."""
        is_populated = population.is_populated()
        if self._creator is not None:
            return
        manifest = self._context.manifest
        if not STORE.exists(manifest.id):
            self._stop.set()
        elif not is_populated and (manifest.is_cgroup_ours or is_gone(manifest)):
            self._is_of_no_use = True
            self._stop.set()

    async def _check_regularly(self, population: cgroup.Population) -> None:
        loop = asyncio.get_running_loop()
        released = expired = loop.time()
        while True:
            await asyncio.sleep(_CHECK_INTERVAL)
            # The removal of a guard, or of an empty cgroup, causes no event.
            self._guarded(self._check)(population)
            self._guarded(self._count_denied)()
            if self._namespaces is not None and loop.time() - released >= _RELEASE_INTERVAL:
                released = loop.time()
                self._guarded(self._namespaces.release_unused)()
            if loop.time() - expired >= _EXPIRE_INTERVAL:
                expired = loop.time()
                self._guarded(self._context.maps.remove_expired)()
