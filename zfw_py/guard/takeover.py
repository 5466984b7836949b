# SPDX-License-Identifier: GPL-2.0-only
"""Takes a guard over from another build of zfw, with its DNS process, while it is in use.

1. The sockets of the old process, its log and its stderr are duplicated by pidfd_getfd(2).
2. A new process starts in the same cgroup and network namespace, with these sockets.
3. The new process ends the old one, and reads: two must never read one ring buffer. A question
   that comes meanwhile waits in its socket. If the command is killed, the new process does so
   all the same; if the new process fails before this, the old one goes on.
4. The programs are exchanged.

What was allowed, and the counters, are in the maps and stay. Lost are answers that the old
process was still waiting for, and its TCP connections: their clients ask again.
"""

from __future__ import annotations

import asyncio
import json
import os
import select
import signal
import stat
from contextlib import ExitStack
from typing import TYPE_CHECKING, NamedTuple

from zfw_py.errors import Conflict, NotFound
from zfw_py.guard import background, document, keeper, listeners, programs
from zfw_py.guard.codec import netns_key, proxies_of
from zfw_py.guard.dns.upstream import Server as Upstream
from zfw_py.guard.keeper import Kept
from zfw_py.guard.maps import STORE, NoGuards, Tables
from zfw_py.kernel import cgroup, process_sockets
from zfw_py.kernel.namespaces import enter, hold, path_of
from zfw_py.kernel.process import (
    Process,
    descriptor_path,
    files_of,
    ignores,
    open_flags,
    open_pidfd,
    parent_of,
    send_signal,
)
from zfw_py.lifecycle.programs import clear, digest_of, locked, upgrade

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from zfw_py.guard.codec import Proxy
    from zfw_py.guard.events import Lines, Teller
    from zfw_py.guard.listeners import Listeners
    from zfw_py.guard.maps import About
    from zfw_py.kernel.lock import Lock

# Signals that the process in the background ignores, and one in the foreground does not.
_IGNORED = (signal.SIGINT, signal.SIGQUIT, signal.SIGHUP, signal.SIGTSTP)
_KINDS = frozenset(("TCP", "TCPv6", "UDP", "UDPv6"))
_NULL = "/dev/null"


class Outputs(NamedTuple):
    """Where the old process writes its events; descriptors are the new process's own.

    ``log`` is the file of --log with its path. ``lines`` are those that go to stderr: none,
    or what the guard's command line asked for while that command runs.
    """

    log: tuple[int, str] | None
    lines: Lines


def take_over(identifier: str, teller_of: Callable[[Outputs], Teller]) -> bool:
    """Exchange a guard's DNS process and programs for this build's; False if they are already.

    ``teller_of`` makes what is given each event, in the new process. Raises NotFound,
    LayoutMismatch, and Conflict for a guard in the foreground, which its caller starts again.
    """
    missing = NotFound(f"no such guard: {identifier}")
    if not STORE.exists(identifier):
        raise missing
    try:
        with locked(STORE, is_exclusive=True) as lock:
            clear(programs.SYSTEM)
            if not STORE.exists(identifier):
                raise missing
            return _take_over(identifier, teller_of, lock)
    except NoGuards:
        raise missing from None


def _take_over(identifier: str, teller_of: Callable[[Outputs], Teller], lock: Lock) -> bool:
    tables = Tables(STORE.directory(identifier))
    tables.config()
    about, old = tables.about(), tables.keeper()
    if about.digest == digest_of(programs.SYSTEM):
        return False
    if about.kind != "redirect":
        if old.is_alive() and not ignores(old.pid, _IGNORED):
            raise Conflict(
                f"guard {identifier} is kept in the foreground by process {old.pid}",
                hint="end that process and start it again",
            )
        tables.open_all()
        _exchange_process(tables, about, old, teller_of, lock)
    return upgrade(programs.SYSTEM, identifier)


def _exchange_process(
    tables: Tables,
    about: About,
    old: Process,
    teller_of: Callable[[Outputs], Teller],
    lock: Lock,
) -> None:
    policy = document.decode(json.dumps(about.policy).encode(), "json")
    upstreams = [_upstream(each) for each in about.servers]
    with ExitStack() as held:
        if not old.is_alive():
            kept = Kept(tables, about, policy, upstreams, teller_of(Outputs(None, "none")))
            _start(kept, lambda: _open_anew(kept), about.proxy_cgroup, None, lock)
            return
        process = open_pidfd(old.pid)
        held.callback(os.close, process)
        taken = _sockets(old.pid, proxies_of(tables.map("proxies").items()))
        held.callback(lambda: [each.close() for each in taken])
        log, stderr = _log(old.pid), _stderr(old.pid)
        maker = None if stderr is None else open_pidfd(parent_of(old.pid))
        place, netns = cgroup.of_process(old.pid), hold(path_of(old.pid))
        for each in (log and log[0], stderr, maker, netns):
            if each is not None:
                held.callback(os.close, each)
        outputs = Outputs(log, "none" if stderr is None else about.lines)
        kept = Kept(tables, about, policy, upstreams, teller_of(outputs))

        def replace() -> list[Listeners]:
            enter(descriptor_path(netns))
            if stderr is not None:
                os.dup2(stderr, 2)
            send_signal(process, signal.SIGKILL)
            select.select([process], [], [])
            if not taken:
                return _open_anew(kept)
            for cookie in proxies_of(tables.map("proxies").items()):
                if cookie not in {each.cookie for each in taken}:
                    # Its sockets are gone: the next question there has them opened again.
                    tables.map("proxies").delete(netns_key(cookie))
            tables.write_keeper(Process.current())
            return taken

        _start(kept, replace, place, maker, lock)


def _open_anew(kept: Kept) -> list[Listeners]:
    return keeper.open_sockets(kept, cgroup.processes(kept.about.cgroup, is_recursive=True))


def _start(
    kept: Kept,
    open_sockets: Callable[[], list[Listeners]],
    place: str,
    first_maker: int | None,
    lock: Lock,
) -> None:
    """Start the new process. ``first_maker`` is a pidfd of the command that made the guard."""

    def body(ready: Callable[[], None], maker: int) -> None:
        if place:
            cgroup.move(os.getpid(), place)
        opened = open_sockets()
        end_of_maker = maker if first_maker is None else os.dup(first_maker)
        if asyncio.run(keeper.keep(kept, opened, ready, [signal.SIGTERM], end_of_maker)):
            keeper.remove_guard(kept.about.id)

    background.start(body, has_stderr=False, closes=[lock.fileno()]).let_go()


def _upstream(text: str) -> Upstream:
    address, _, port = text.rpartition(":")
    return Upstream(address.removeprefix("[").removesuffix("]"), int(port))


# The old process


def _log(pid: int) -> tuple[int, str] | None:
    """The one regular file that it appends to."""
    for number, path in files_of(pid).items():
        flags = open_flags(pid, number)
        if number > 2 and flags & (os.O_APPEND | os.O_ACCMODE) == os.O_APPEND | os.O_WRONLY:
            fd = process_sockets.take_descriptor(pid, number)
            if stat.S_ISREG(os.fstat(fd).st_mode):
                return fd, path
            os.close(fd)
    return None


def _stderr(pid: int) -> int | None:
    """Its stderr, while the command that it guards runs."""
    if files_of(pid).get(2, _NULL) == _NULL:
        return None
    return process_sockets.take_descriptor(pid, 2)


def _sockets(pid: int, proxies: Mapping[int, Proxy]) -> list[Listeners]:
    """The sockets of its proxy in each network namespace, where all of them are there."""
    found = []
    with ExitStack() as strangers:
        sockets = list(process_sockets.take_all(pid, _KINDS))
        for each in sockets:
            strangers.callback(each.close)
        for cookie, proxy in proxies.items():
            made = listeners.recognised(sockets, cookie, proxy)
            if made is not None:
                found.append(made)
        wanted = {id(each) for made in found for each in (*made.udp, *made.tcp)}
        strangers.pop_all()
        for each in sockets:
            if id(each) not in wanted:
                each.close()
    return found
