# SPDX-License-Identifier: GPL-2.0-only
"""``Guard``: create, upgrade, read and remove guards."""

from __future__ import annotations

import os
import signal
from contextlib import ExitStack, contextmanager, suppress
from typing import TYPE_CHECKING

from zfw_py.errors import Conflict, LayoutMismatch, NotFound, UsageError, ZfwError
from zfw_py.guard import background, cgroups, command, instance, listing, programs, supervisor
from zfw_py.guard.codec import Proxy
from zfw_py.guard.events import NO_EVENTS
from zfw_py.guard.instance import new_manifest, remove_if_there, upstreams_of
from zfw_py.guard.maps import STORE, Maps
from zfw_py.guard.takeover import take_over
from zfw_py.guard.target import GuardTarget
from zfw_py.guard.watcher import watch
from zfw_py.kernel import cgroup
from zfw_py.kernel.process import tree_of
from zfw_py.lifecycle.programs import digest_of
from zfw_py.values.prefix import mapped_address

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from zfw_py.guard.background import Background, Report
    from zfw_py.guard.events import EventSink
    from zfw_py.guard.foreign_sockets import ForeignSocket
    from zfw_py.guard.leaving import Leaver
    from zfw_py.guard.listeners import Listeners
    from zfw_py.guard.listing import GuardStatus
    from zfw_py.guard.maps import Manifest
    from zfw_py.guard.model import Policy
    from zfw_py.guard.supervisor import GuardContext
    from zfw_py.guard.takeover import Outputs
    from zfw_py.guard.user import User
    from zfw_py.guard.watcher import Run
    from zfw_py.kernel.lock import Lock
    from zfw_py.values.endpoint import Server


class Guard:
    """One guard, by its id: programs, maps and a policy on one cgroup.

        from zfw_py import Guard, GuardTarget, Policy

        policy = Policy.parse(allow=["example.com:443"], block=["10.0.0.0/8"])
        guard = Guard.attach(GuardTarget.of_cgroup("/sys/fs/cgroup/build"), policy)
        print(guard.id, guard.status().decisions)
        guard.detach()

    The object holds nothing open, and several processes may use the same guard at once.
    ``id``: eight hexadecimal digits. ``foreign_sockets``: sockets outside of the guard's reach
    that processes of the cgroup held when ``attach`` or ``redirect`` created it. ``leavers``:
    processes that may move out of the cgroup. All methods need
    root and raise ZfwError; one that fails has changed nothing.
    """

    def __init__(
        self,
        identifier: str,
        foreign_sockets: Sequence[ForeignSocket] = (),
        leavers: Sequence[Leaver] = (),
    ) -> None:
        """A guard that exists; the first method that is called raises NotFound if it does not."""
        self.id = identifier
        self.foreign_sockets = list(foreign_sockets)
        self.leavers = list(leavers)

    # Creating

    @classmethod
    def attach(cls, target: GuardTarget, policy: Policy, sink: EventSink = NO_EVENTS) -> Guard:
        """Guard a cgroup. A supervisor in the background answers its DNS and logs its events.

        If it ends, its watcher starts it again.

        ``sink`` is called in the supervisor. If a guard of another build of zfw has the same
        cgroup and policy, that one is upgraded instead. Raises NotFound, Conflict if the cgroup
        is guarded already or another program forbids ours, UsageError, KernelError,
        VerifierError.
        """
        older = _of_another_build(target, policy)
        if older is not None and take_over(older, lambda _: sink):
            return cls(older)
        upstreams = upstreams_of(policy)
        manifest = new_manifest("attach", target, upstreams, policy)
        start = _supervisor_of(target, has_stderr=False)
        with instance.created(manifest, policy, upstreams, sink, start) as (context, process):
            guard = _occupied(target, context.manifest)
            process.release()
            return guard

    @staticmethod
    def attach_in_foreground(
        target: GuardTarget, policy: Policy, sink: EventSink, on_ready: Callable[[Guard], None]
    ) -> None:
        """Guard a cgroup, with the calling process as the supervisor, until a signal.

        SIGINT, SIGTERM and SIGHUP remove the guard. ``on_ready`` is called once it is in force; an
        error afterwards leaves the guard without DNS. Raises as ``attach``.
        """
        upstreams = upstreams_of(policy)
        manifest = new_manifest("attach", target, upstreams, policy)
        here = cgroup.of_process(os.getpid())
        with ExitStack() as at_end:

            def start(context: GuardContext, _: Lock) -> list[Listeners]:
                at_end.callback(_move_back, here)
                _move_to_place(context.manifest)
                opened = _open_sockets(context, target)
                for each in opened:
                    at_end.callback(each.close)
                return opened

            failure: BaseException | None = None
            with instance.created(manifest, policy, upstreams, sink, start) as (context, opened):
                guard = _occupied(target, context.manifest)
                is_ready = False

                def ready() -> None:
                    nonlocal is_ready
                    on_ready(guard)
                    is_ready = True

                try:
                    supervisor.supervise(context, opened, ready, _end_signals())
                except BaseException as error:
                    if not is_ready:
                        raise
                    failure = error
            # A guard that was in force stays, without DNS: its processes must not run unguarded.
            if failure is not None:
                raise failure
            remove_if_there(manifest.id)

    @classmethod
    def redirect(cls, target: GuardTarget, servers: Sequence[Server]) -> Guard:
        """Send a cgroup's DNS queries to these servers, at most one a family; no policy.

        No process stays. Queries to a server of a family without one are denied. Raises as
        ``attach``.
        """
        with _redirected(target, servers, NO_EVENTS) as (_, guard):
            return guard

    @staticmethod
    def redirect_in_foreground(
        target: GuardTarget,
        servers: Sequence[Server],
        sink: EventSink,
        on_ready: Callable[[Guard], None],
    ) -> None:
        """Redirect a cgroup's DNS and log each redirect, until a signal removes the guard."""
        with _redirected(target, servers, sink) as (context, guard):
            supervisor.supervise(context, [], lambda: on_ready(guard), _end_signals())
        remove_if_there(guard.id)

    @staticmethod
    def run(
        arguments: Sequence[str],
        policy: Policy,
        sink: EventSink,
        warn: Callable[[str], None],
        user: User | None = None,
    ) -> int:
        """Run a command that is guarded from its first instruction; its waitpid(2) status.

        Processes that the command leaves running stay guarded; the supervisor removes the guard
        after the last of them. ``sink`` is called in the supervisor, ``warn`` in this process.
        Raises command.NotStarted, and as ``attach``.
        """
        target = GuardTarget(_place_for(user), is_created=True)
        upstreams = upstreams_of(policy)
        manifest = new_manifest("run", target, upstreams, policy, sink.lines)
        start = _supervisor_of(target, has_stderr=True)
        with ExitStack() as running:
            with instance.created(manifest, policy, upstreams, sink, start) as (_, process):
                for foreign in _inherited_sockets(manifest.cgroup):
                    warn(f"{foreign}; the command inherits it")

                is_warned = False

                def on_child() -> None:
                    # The watcher's end. The supervisor, which is its child, may end later.
                    nonlocal is_warned
                    if not is_warned and process.has_ended() and _lacks_supervisor(manifest.id):
                        is_warned = True
                        warn("the guard's process has ended: DNS fails from now on")

                status = running.enter_context(
                    command.run(arguments, manifest.cgroup, user, on_child)
                )
            # From here on an error must not remove the guard from processes that are in it.
            try:
                _remove_if_empty(manifest, warn)
            except ZfwError as error:
                # Not raised: the status is the command's.
                warn(f"guard {manifest.id} was not removed: {error}")
            process.release()
        return status

    # Reading

    def status(self) -> GuardStatus:
        """The state of this guard. Raises NotFound, LayoutMismatch."""
        return listing.status(self.id)

    @staticmethod
    def all() -> tuple[list[GuardStatus], list[LayoutMismatch]]:
        """All guards of the machine, the oldest first; an error for each of another layout."""
        return listing.guards()

    # Changing and removing

    def upgrade(self, sink_of: Callable[[Outputs], EventSink] = lambda _: NO_EVENTS) -> bool:
        """Exchange programs and supervisor of another build for this build's, while in use.

        False if they are this build's; a supervisor that has died is replaced all the same. Policy,
        counters and resolved addresses stay. ``sink_of`` is called in the new supervisor with the
        outputs of the old one. Raises NotFound, LayoutMismatch, Conflict for a guard in the
        foreground, KernelError, VerifierError.
        """
        return take_over(self.id, sink_of)

    def detach(self) -> None:
        """Remove the guard: programs, maps, supervisor, and the cgroups created for it.

        Its processes run on, unguarded. Raises NotFound, LayoutMismatch.
        """
        instance.remove(self.id)

    @staticmethod
    def detach_all() -> tuple[list[str], list[LayoutMismatch]]:
        """Remove all guards; the ids of those removed, and an error for each of another layout."""
        removed, errors = [], []
        for identifier in sorted(STORE.identifiers()):
            try:
                instance.remove(identifier)
                removed.append(identifier)
            except NotFound:
                continue  # another process has removed it
            except LayoutMismatch as error:
                errors.append(error)
        return removed, errors


# The supervisor


def _move_to_place(manifest: Manifest) -> None:
    """Move to the supervisor's cgroup."""
    if manifest.proxy_cgroup:
        cgroup.move(os.getpid(), manifest.proxy_cgroup)


def _open_sockets(context: GuardContext, target: GuardTarget) -> list[Listeners]:
    """Open sockets in the namespaces of the clients."""
    if target.moved_pid is not None:
        tree = tree_of(target.moved_pid)
        return supervisor.open_sockets(context, [each.pid for each in tree])
    pids = cgroup.processes(context.manifest.cgroup, is_recursive=True)
    return supervisor.open_sockets(context, pids)


def _supervisor_of(
    target: GuardTarget, *, has_stderr: bool
) -> Callable[[GuardContext, Lock], Background]:
    """A function that starts a supervisor in the background, and its watcher."""

    def start(context: GuardContext, lock: Lock) -> Background:
        def begin(run: Run) -> None:
            run(_open_sockets(context, target), None)

        def body(report: Report, creator: int) -> None:
            _move_to_place(context.manifest)
            watch(context, begin, report, creator)

        # A process with a copy of the lock's descriptor would hold the lock.
        return background.start(body, has_stderr=has_stderr, closes=[lock.fileno()])

    return start


def _lacks_supervisor(identifier: str) -> bool:
    """Whether a guard is there without a supervisor; an upgrade may have exchanged it."""
    with suppress(LayoutMismatch, NotFound):
        return not Maps(STORE.directory(identifier)).supervisor().is_alive()
    return False


def _move_back(path: str) -> None:
    if cgroup.of_process(os.getpid()) != path:
        with suppress(NotFound):
            cgroup.move(os.getpid(), path)


def _end_signals() -> list[signal.Signals]:
    """The signals that end a guard in the foreground, without those that nohup(1) ignores."""
    several = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    return [each for each in several if signal.getsignal(each) != signal.SIG_IGN]


# Creating


def _occupied(target: GuardTarget, manifest: Manifest) -> Guard:
    """Move the target's processes in, and look for sockets that processes hold from elsewhere."""
    if target.moved_pid is not None:
        cgroups.move_tree(target.moved_pid, manifest.cgroup)
    # Imported here: pyroute2 takes 150 ms, which `run` does not need.
    from zfw_py.guard.foreign_sockets import foreign_sockets
    from zfw_py.guard.leaving import leavers

    # Supervisors of nested guards hold sockets from other cgroups by design.
    supervisors = programs.supervisor_pids()
    pids = cgroup.processes(manifest.cgroup, is_recursive=True)
    pids = [pid for pid in pids if pid not in supervisors]
    sockets = foreign_sockets(pids, manifest.cgroup)
    return Guard(manifest.id, sockets, leavers(pids, manifest.cgroup))


def _of_another_build(target: GuardTarget, policy: Policy) -> str | None:
    """The id of a guard of the same cgroup and policy that another build of zfw created."""
    if target.is_created:
        return None
    wanted = (cgroup.identifier(target.cgroup), "attach", policy.as_object())
    for identifier in STORE.identifiers():
        with suppress(LayoutMismatch, NotFound):
            manifest = Maps(STORE.directory(identifier)).manifest()
            found = (manifest.cgroup_id, manifest.kind, manifest.policy)
            if found == wanted and manifest.digest != digest_of(programs.SYSTEM):
                return identifier
    return None


def _proxy_of(servers: Sequence[Server]) -> Proxy:
    fields: dict[str, bytes | tuple[int, ...]] = {}
    for server in servers:
        if f"ipv{server.family}" in fields:
            raise UsageError(f"--dns-to: two servers of one family: {server}")
        fields[f"ipv{server.family}"] = mapped_address(server.family, server.address)
        fields[f"ipv{server.family}_ports"] = (server.port,)
    return Proxy(**fields)  # type: ignore[arg-type]


@contextmanager
def _redirected(
    target: GuardTarget, servers: Sequence[Server], sink: EventSink
) -> Iterator[tuple[GuardContext, Guard]]:
    proxy = _proxy_of(servers)
    manifest = new_manifest("redirect", target, servers)

    def start(context: GuardContext, _: Lock) -> None:
        context.maps.write_proxy(0, proxy)

    with instance.created(manifest, None, [], sink, start) as (context, _):
        yield context, _occupied(target, context.manifest)


# Running a command


def _place_for(user: User | None) -> str:
    """The cgroup for the guard's own: the caller's, or one that the user may not write to.

    Raises Conflict if the command would leave a guard around the caller.
    """
    here = cgroup.of_process(os.getpid())
    if user is None or user.uid == 0:
        return here
    place = cgroups.beyond(here, user.uid, user.groups())
    if place is None:
        raise Conflict(f"{user.name} may move processes out of every cgroup around {here}")
    for each in cgroups.between(here, place):
        guard = programs.guard_of(each)
        if guard is not None:
            raise Conflict(
                f"{user.name} may move processes out of {each}, which guard {guard} guards",
                hint="start it in a cgroup that this user may not write to",
            )
    return place


def _remove_if_empty(manifest: Manifest, warn: Callable[[str], None]) -> None:
    try:
        left = len(cgroup.processes(manifest.cgroup, is_recursive=True))
    except NotFound:
        left = 0
    if left:
        count = f"{left} process{'es' * (left != 1)}"
        warn(f"guard {manifest.id} stays for {count} that the command has left running")
    else:
        remove_if_there(manifest.id)


def _inherited_sockets(path: str) -> list[ForeignSocket]:
    """Sockets that a command inherits from this process, such as a stdin that is a socket."""
    inodes = command.inheritable_sockets()
    if not inodes:
        return []
    from zfw_py.guard.foreign_sockets import foreign_sockets

    held = foreign_sockets([os.getpid()], path)
    return [foreign for foreign in held if foreign.socket.inode in inodes]
