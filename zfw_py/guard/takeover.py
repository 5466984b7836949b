# SPDX-License-Identifier: GPL-2.0-only
"""Takes a guard over from another build of zfw: exchanges its supervisor and its programs in use.

1. The command holds the lock, and forks a new watcher.
2. The new watcher duplicates the old supervisor's listening sockets, log, stderr and creator pipe
   by pidfd_getfd(2), moves to its cgroup and network namespace, and forks the new supervisor. The
   old one still answers.
3. Once all is running, the new supervisor writes its identity to the map, kills the old one, and
   waits for its end. Two processes never read one ring buffer. Queries wait in the sockets. The
   old one's watcher finds another supervisor in the map, and ends.
4. The command exchanges the programs.

killed after  leaves                                healed by
1, 2          the old supervisor
3             the new supervisor, the old programs  the next upgrade; a new process if it was killed
4             the upgraded guard

Policy, counters and resolved addresses are in the maps and stay. Lost are queries that the old
supervisor was still asking upstream, and its TCP connections: their clients ask again.
"""

from __future__ import annotations

import json
import os
import select
import signal
import stat
from typing import TYPE_CHECKING, NamedTuple

from msgspec.structs import replace

from zfw_py.errors import Conflict, NotFound, raise_expected
from zfw_py.guard import background, cgroups, document, layout, listeners, programs
from zfw_py.guard.codec import proxies_of
from zfw_py.guard.maps import STORE, Maps, NoGuards
from zfw_py.guard.supervisor import GuardContext, open_sockets
from zfw_py.guard.watcher import drop_others, watch
from zfw_py.kernel import cgroup, process_sockets
from zfw_py.kernel.namespaces import enter, path_of
from zfw_py.kernel.process import (
    Process,
    files_of,
    has_same_files,
    ignores,
    open_flags,
    open_pidfd,
    send_signal,
)
from zfw_py.lifecycle.programs import clear, digest_of, locked, upgrade
from zfw_py.values.endpoint import Endpoint

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from zfw_py.guard.background import Report
    from zfw_py.guard.codec import Proxy
    from zfw_py.guard.events import EventSink, Lines
    from zfw_py.guard.listeners import Listeners
    from zfw_py.guard.maps import Manifest
    from zfw_py.guard.watcher import Run
    from zfw_py.kernel.lock import Lock

# A supervisor in the background ignores these signals; one in the foreground does not.
_IGNORED = (signal.SIGINT, signal.SIGQUIT, signal.SIGHUP, signal.SIGTSTP)
_KINDS = frozenset(("TCP", "TCPv6", "UDP", "UDPv6"))


class Outputs(NamedTuple):
    """Where the old supervisor writes its events.

    ``log``: a descriptor of the file of --log, and its path; duplicate the descriptor to keep it.
    ``lines``: what goes to stderr, while the command of ``zfw guard run`` runs; else "none".
    """

    log: tuple[int, str] | None
    lines: Lines


def take_over(identifier: str, sink_of: Callable[[Outputs], EventSink]) -> bool:
    """Exchange a guard's supervisor and programs for this build's; False if they are already.

    A guard of this build whose supervisor has died gets a new one.

    ``sink_of`` is called in the new supervisor. Raises NotFound, LayoutMismatch, Conflict for a
    guard in the foreground, KernelError, VerifierError.
    """
    missing = NotFound(f"no such guard: {identifier}")
    if not STORE.exists(identifier):
        raise missing
    try:
        with locked(STORE, is_exclusive=True) as lock:
            clear(programs.SYSTEM)
            if not STORE.exists(identifier):
                raise missing
            return _take_over(identifier, sink_of, lock)
    except NoGuards:
        raise missing from None


def _take_over(identifier: str, sink_of: Callable[[Outputs], EventSink], lock: Lock) -> bool:
    maps = Maps(STORE.directory(identifier))
    maps.config()
    manifest, old = maps.manifest(), maps.supervisor()
    is_current = manifest.digest == digest_of(programs.SYSTEM)
    if is_current and (manifest.kind == "redirect" or old.is_alive()):
        return False
    if manifest.kind != "redirect":
        if old.is_alive() and not ignores(old.pid, _IGNORED):
            raise Conflict(
                f"guard {identifier} runs in the foreground, as process {old.pid}",
                hint="end that process and start it again",
            )
        maps.open_all()
        _exchange_supervisor(maps, old, sink_of, lock)
    return is_current or upgrade(programs.SYSTEM, identifier)


def _exchange_supervisor(
    maps: Maps, old: Process, sink_of: Callable[[Outputs], EventSink], lock: Lock
) -> None:
    manifest = maps.manifest()
    policy = document.decode(json.dumps(manifest.policy).encode(), "json")
    upstreams = [_upstream(each) for each in manifest.servers]

    def body(report: Report, creator: int) -> None:
        try:
            process = _open_alive(old)
            proxies = proxies_of(maps.map("proxies").items())
            opened: list[Listeners] = []
            outputs = Outputs(None, "none")
            place = manifest.proxy_cgroup
            has_own_files = not manifest.is_dns_fixed
            if process is not None:
                opened = _sockets(old.pid, proxies)
                for each in opened:
                    maps.write_listeners(each)
                outputs, creator = _outputs(old.pid, manifest, creator)
                place = cgroup.of_process(old.pid)
                if not has_same_files(old.pid):
                    has_own_files = False
                    maps.write_manifest(replace(manifest, is_dns_fixed=True))
                enter(path_of(old.pid))
                os.close(process)
            elif not place and cgroups.is_within(cgroup.of_process(os.getpid()), manifest.cgroup):
                raise Conflict(
                    f"guard {manifest.id} has no process, and zfw is in the guarded cgroup",
                    hint="upgrade it from a process outside of that cgroup",
                )
            if place:
                cgroup.move(os.getpid(), place)
            context = GuardContext(
                maps, manifest, policy, upstreams, sink_of(outputs), has_own_files
            )
            if outputs.log is not None:
                os.close(outputs.log[0])
        except OSError as error:
            raise_expected(error)

        def begin(run: Run) -> None:
            serving = opened

            def on_ready() -> None:
                flags = maps.config().flags & ~layout.TELL_ALL
                maps.write_config(flags | layout.TELL_ALL * context.sink.wants_all)
                process = _open_alive(old)
                if process is not None:
                    send_signal(process, signal.SIGKILL)
                    select.select([process], [], [])  # readable once the process has ended
                    os.close(process)
                # Namespaces whose sockets were not recognised.
                drop_others(maps, serving)

            try:
                if not serving:
                    pids = cgroup.processes(manifest.cgroup, is_recursive=True)
                    serving = open_sockets(context, pids)
                run(serving, on_ready)
            except BaseException:
                if old.is_alive():
                    maps.write_supervisor(old)
                    for cookie, proxy in proxies.items():
                        maps.write_proxy(cookie, proxy)
                raise

        watch(context, begin, report, creator, opened)

    background.start(body, has_stderr=False, closes=[lock.fileno()]).release()


def _upstream(text: str) -> Endpoint:
    address, _, port = text.rpartition(":")
    return Endpoint(address.removeprefix("[").removesuffix("]"), int(port))


# The old supervisor


def _open_alive(process: Process) -> int | None:
    """A pidfd of a process; None if it has ended. It may end after the pidfd was opened."""
    if not process.is_alive():
        return None
    try:
        pidfd = open_pidfd(process.pid)
    except ProcessLookupError:
        return None
    # Again: before it was opened, the kernel may have reused the pid.
    if process.is_alive():
        return pidfd
    os.close(pidfd)
    return None


def _outputs(pid: int, manifest: Manifest, creator: int) -> tuple[Outputs, int]:
    """The outputs, and the pipe that ends with the command that created the guard.

    While a command of ``zfw guard run`` runs, the old supervisor reads such a pipe. It replaces
    ``creator``, and the old one's stderr ours.
    """
    log: tuple[int, str] | None = None
    pipe: int | None = None
    for number, path in files_of(pid).items():
        if number <= 2:
            continue
        if path.startswith("pipe:") and manifest.kind == "run" and pipe is None:
            pipe = process_sockets.take_descriptor(pid, number)
        elif path.startswith("/") and log is None and open_flags(pid, number) & os.O_APPEND:
            fd = process_sockets.take_descriptor(pid, number)
            if stat.S_ISREG(os.fstat(fd).st_mode):
                log = fd, path
            else:
                os.close(fd)
    if pipe is None:
        return Outputs(log, "none"), creator
    os.close(creator)
    stderr = process_sockets.take_descriptor(pid, 2)
    os.dup2(stderr, 2)
    os.close(stderr)
    return Outputs(log, manifest.lines), pipe


def _sockets(pid: int, proxies: Mapping[int, Proxy]) -> list[Listeners]:
    """Duplicates of the proxy's sockets, for each network namespace where all are recognised."""
    sockets = list(process_sockets.take_all(pid, _KINDS))
    found = [
        each
        for cookie, proxy in proxies.items()
        if (each := listeners.recognised(sockets, cookie, proxy)) is not None
    ]
    wanted = {id(one) for each in found for one in (*each.udp, *each.tcp)}
    for one in sockets:
        if id(one) not in wanted:
            one.close()
    return found
