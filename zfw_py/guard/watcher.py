# SPDX-License-Identifier: GPL-2.0-only
"""The watcher: starts a guard's supervisor, and starts it again if it ends while the guard exists.

The watcher holds duplicates of the supervisor's sockets. So no other process can bind their ports
meanwhile, and queries wait in the sockets for the next supervisor. Policy, counters and resolved
addresses are in maps. Lost are the cache, queries that were being asked upstream, and TCP
connections.

The first end is mended at once. Where supervisors end soon after their start, the watcher waits
before each further one, for a minute at most. The manifest says how often it was needed.

The watcher reads no packet and no event. If it is killed, its supervisor goes on without one.
"""

from __future__ import annotations

import os
import select
import signal
import syslog
import time
from typing import TYPE_CHECKING

from msgspec.structs import replace

from zfw_py.errors import LayoutMismatch, NotFound, ZfwError
from zfw_py.guard import background, held_sockets
from zfw_py.guard.codec import netns_key, proxies_of
from zfw_py.guard.held_sockets import HeldSockets, Sender
from zfw_py.guard.maps import STORE, Maps, NoGuards
from zfw_py.guard.supervisor import open_sockets, supervise
from zfw_py.kernel import cgroup
from zfw_py.kernel.process import open_pidfd
from zfw_py.lifecycle.programs import locked

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Iterable

    from zfw_py.guard.background import Report
    from zfw_py.guard.listeners import Listeners
    from zfw_py.guard.supervisor import GuardContext

    # Runs the supervisor on these sockets; calls the function, if any, right before it is ready.
    Run = Callable[[list[Listeners], Callable[[], None] | None], None]

# Seconds before a supervisor is started, by how many have ended soon before.
_PAUSES = (0, 1, 2, 4, 8, 16, 32, 60)
# A supervisor that ran for so long has not ended soon.
_STEADY = 60.0
_LOOK_INTERVAL = 1.0


def watch(
    context: GuardContext,
    begin: Callable[[Run], None],
    report: Report,
    creator: int,
    held: Iterable[Listeners] = (),
) -> None:
    """Start a supervisor, report, and keep it running until the guard is removed or taken over.

    ``begin`` is called in the first supervisor; it opens the sockets and calls its argument.
    ``creator`` is a pipe that ends when the command that created the guard has ended or needs
    stderr no longer. ``held`` are sockets that the watcher holds from the beginning. Raises
    ZfwError if the first supervisor fails before it is ready.
    """
    _Watcher(context, creator, HeldSockets(held)).watch(begin, report)


def drop_others(maps: Maps, opened: Iterable[Listeners]) -> None:
    """Send no query to sockets of namespaces without any here: the next query opens new ones."""
    served = {each.cookie for each in opened}
    for cookie in proxies_of(maps.map("proxies").items()):
        if cookie not in served:
            maps.map("proxies").delete(netns_key(cookie))


class _Watcher:
    def __init__(self, context: GuardContext, creator: int, held: HeldSockets) -> None:
        self._context = context
        self._creator: int | None = creator
        self._held = held
        self._end: socket.socket  # to the supervisor
        self._pid = 0
        self._process = context.maps.supervisor()
        self._started = 0.0
        self._ended_soon = 0

    def watch(self, begin: Callable[[Run], None], report: Report) -> None:
        self._start(self._context, begin, report.descriptors)
        report.ready()
        while True:
            reason = self._wait()
            soon = time.monotonic() - self._started < _STEADY
            self._ended_soon = self._ended_soon + 1 if soon else 1
            while True:
                if not self._pause(_PAUSES[min(self._ended_soon, len(_PAUSES)) - 1]):
                    return
                try:
                    if not self._start_again(reason):
                        return
                    break
                except NoGuards:
                    return
                except ZfwError as error:
                    reason = str(error)
                    self._log(f"cannot start its DNS process: {reason}")
                    self._ended_soon += 1

    def _log(self, text: str) -> None:
        syslog.syslog(syslog.LOG_ERR, f"zfw guard: guard {self._context.manifest.id}: {text}")

    def _start(
        self, context: GuardContext, begin: Callable[[Run], None], closes: Iterable[int]
    ) -> None:
        """Fork a supervisor; return when it is ready. Raises ZfwError."""
        end, its_end = held_sockets.pair()

        def body(report: Report) -> None:
            def run(opened: list[Listeners], on_ready: Callable[[], None] | None = None) -> None:
                def ready() -> None:
                    if on_ready is not None:
                        on_ready()
                    report.ready()

                sender = Sender(its_end)
                supervise(context, opened, ready, [signal.SIGTERM], self._creator, sender)

            begin(run)

        with its_end:
            try:
                self._pid = background.fork(body, [*closes, end.fileno()])
            except BaseException:
                end.close()
                raise
        self._end = end
        self._context = context
        self._process = context.maps.supervisor()
        self._started = time.monotonic()

    def _wait(self) -> str:
        """Wait until the supervisor has ended, and receive its sockets; how it ended."""
        process = open_pidfd(self._pid)
        poll = select.poll()
        poll.register(process, select.POLLIN)
        poll.register(self._end, select.POLLIN)
        while True:
            if self._creator is not None:
                poll.register(self._creator, 0)
            ready = {fd for fd, _ in poll.poll()}
            if self._creator is not None and self._creator in ready:
                poll.unregister(self._creator)
                self._release_creator(self._creator)
            if self._end.fileno() in ready and not self._held.receive(self._end):
                poll.unregister(self._end)
            if process in ready:
                break
        os.close(process)
        while self._held.receive(self._end):
            pass
        self._end.close()
        code = os.waitstatus_to_exitcode(os.waitpid(self._pid, 0)[1])
        return f"exit code {code}" if code >= 0 else f"signal {-code}"

    def _release_creator(self, creator: int) -> None:
        os.close(creator)
        self._creator = None
        background.release_stderr()

    def _pause(self, seconds: float) -> bool:
        """Wait before the next supervisor; False if none is needed any more."""
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            if not self._is_watched():
                return False
            poll = select.poll()
            if self._creator is not None:
                poll.register(self._creator, 0)
            if poll.poll(min(left, _LOOK_INTERVAL) * 1000) and self._creator is not None:
                self._release_creator(self._creator)
        return True

    def _is_watched(self) -> bool:
        """Whether the guard exists, and this watcher's supervisor was its last one."""
        identifier = self._context.manifest.id
        try:
            return (
                STORE.exists(identifier)
                and Maps(STORE.directory(identifier)).supervisor() == self._process
            )
        except (LayoutMismatch, NotFound):
            return False  # removed meanwhile, or exchanged by another version

    def _start_again(self, reason: str) -> bool:
        """Start the next supervisor under the lock; False if none is needed any more."""
        with locked(STORE, is_exclusive=True) as lock:
            if not self._is_watched():
                return False
            maps = Maps(STORE.directory(self._context.manifest.id))
            before = maps.manifest()
            manifest = replace(
                before, restarts=before.restarts + 1, restarted=time.time(), ended=reason
            )
            maps.write_manifest(manifest)
            maps.open_all()
            context = self._context._replace(maps=maps, manifest=manifest)
            self._log(f"its DNS process has ended ({reason}), and is started again")
            opened = self._held.listeners(proxies_of(maps.map("proxies").items()))
            self._start(context, lambda run: _begin_again(context, opened, run), [lock.fileno()])
        return True


def _begin_again(context: GuardContext, opened: list[Listeners], run: Run) -> None:
    """In a new supervisor: take the place of the last one, and its sockets."""
    place = context.manifest.proxy_cgroup
    if place and cgroup.of_process(os.getpid()) != place:
        # A guard that was created around this one moved the last supervisor there.
        cgroup.move(os.getpid(), place)
    drop_others(context.maps, opened)
    if not opened:
        clients = cgroup.processes(context.manifest.cgroup, is_recursive=True)
        opened = open_sockets(context, clients)
    run(opened, None)
