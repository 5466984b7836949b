# SPDX-License-Identifier: GPL-2.0-only
"""Guards: made, listed, taken away. What the command line and other programs call."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from contextlib import contextmanager
from stat import S_ISSOCK
from typing import TYPE_CHECKING, NamedTuple

from zfw_py.abi.guard_codec import Proxy as ProxyEntry
from zfw_py.errors import NotFound, UsageError
from zfw_py.guard import attach as attachment
from zfw_py.guard import background, command, listeners, processes
from zfw_py.guard.dns.proxy import Proxy
from zfw_py.guard.dns.upstream import Server as Upstream
from zfw_py.guard.dns.upstream import check_upstreams, system_upstreams
from zfw_py.guard.keeper import Kept, keep
from zfw_py.guard.tables import About, Tables, directory_of, identifiers, locked, make_root
from zfw_py.kernel import cgroup
from zfw_py.kernel.netns import netns_cookie

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from zfw_py.guard.foreign_sockets import ForeignSocket
    from zfw_py.guard.listeners import Listeners
    from zfw_py.guard.records import Record
    from zfw_py.model.policy import Policy, Server

_GUARD_CGROUP = "zfw-guard-"
_PROXY_CGROUP = "zfw-proxy-"
_MAPPED = b"\0" * 10 + b"\xff\xff"
_ENDS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Target(NamedTuple):
    """What is to be guarded: a cgroup, or a process in a cgroup yet to be made beneath it."""

    cgroup: str
    moved_pid: int | None = None


class Made(NamedTuple):
    """A guard that is in force, and the sockets in it that it does not reach."""

    id: str
    cgroup: str
    foreign: list[ForeignSocket]


class Status(NamedTuple):
    """A guard as it is. ``problem`` says what is wrong with it, and is empty if nothing is.

    ``learnt`` counts addresses of names that may be reached now; ``lost`` events
    that nobody took in time.
    """

    about: About
    keeper_pid: int | None
    problem: str
    processes: int
    learnt: int
    decisions: dict[str, dict[str, int]]
    lost: int


def of_cgroup(path: str) -> Target:
    """A cgroup by its path. Raises NotFound, UsageError."""
    resolved = cgroup.resolve(path)
    if cgroup.is_root(resolved):
        raise UsageError(f"{path}: the root cgroup is everybody's, and is not guarded")
    return Target(resolved)


def of_process(pid: int, *, is_moved: bool) -> Target:
    """The cgroup of a process, or with ``is_moved`` one of its own.

    Raises NotFound, and UsageError for a process in the root cgroup.
    """
    path = cgroup.of_process(pid)
    if is_moved:
        return Target(path, pid)
    if cgroup.is_root(path):
        raise UsageError(
            f"process {pid} is in the root cgroup, which is everybody's",
            hint="--move puts it into a cgroup of its own",
        )
    return Target(path)


# Making


class _New(NamedTuple):
    """A guard that has just been put in force."""

    tables: Tables
    about: About
    policy: Policy | None
    opened: list[Listeners]
    upstreams: list[Upstream]

    def keep(
        self,
        tell: Callable[[Record], None],
        ready: Callable[[], None],
        stops: Iterable[signal.Signals],
    ) -> None:
        """Keep it until a signal comes, or until it is of no more use and has been removed."""
        kept = Kept(
            tables=self.tables,
            path=self.about.cgroup,
            opened=self.opened,
            make_proxy=None if self.policy is None else self._proxy,
            is_log_only=self.policy is not None and self.policy.is_log_only,
            is_done_when_empty=self.about.kind == "run",
            tell=tell,
        )
        if asyncio.run(keep(kept, ready, stops)):
            with locked(is_exclusive=True):
                attachment.remove(self.about.id)

    def release(self) -> None:
        """Close the proxy's sockets here: they are its process's alone, and end with it."""
        for each in self.opened:
            each.close()

    def _proxy(self, report: Callable[..., None]) -> Proxy:
        assert self.policy is not None  # noqa: S101 - what the caller just asked
        return Proxy(
            ports_of_name=self.policy.ports_of_name,
            is_blocked_name=self.policy.is_blocked_name,
            upstreams=self.upstreams,
            admit=self.tables.admit,
            report=report,
            is_log_only=self.policy.is_log_only,
        )

    def join_enclosing(self) -> None:
        """Ask upstream from within the guards around this one, if there are any.

        Else what they allow would be asked past them, and they would not know the
        addresses when the packets come.
        """
        if self.about.proxy_cgroup:
            cgroup.move(os.getpid(), self.about.proxy_cgroup)


@contextmanager
def _made(
    kind: str,
    path_of: Callable[[str], str],
    policy: Policy | None,
    proxies_of: Callable[[str], tuple[list[Listeners], dict[int, ProxyEntry]]],
    servers: Sequence[str],
    upstreams: list[Upstream],
    *,
    is_cgroup_ours: bool,
) -> Iterator[_New]:
    """Put a guard in force; should the body fail, take it away again.

    ``path_of`` gives the cgroup for an id, and makes it if it is to be ours.
    """
    make_root()
    identifier = attachment.new_identifier()
    opened: list[Listeners] = []
    try:
        with locked(is_exclusive=True):
            attachment.collect()
            path = path_of(identifier)
            try:
                opened, proxies = proxies_of(path)
                check_upstreams(upstreams, _own_addresses(opened))
                about = About(
                    id=identifier,
                    kind=kind,
                    cgroup=path,
                    cgroup_id=cgroup.identifier(path),
                    is_cgroup_ours=is_cgroup_ours,
                    proxy_cgroup=_proxy_cgroup(kind, path, identifier),
                    created=time.time(),
                    servers=list(servers),
                    policy={} if policy is None else policy.as_object(),
                )
                tables = attachment.install(about, policy, proxies)
            except BaseException:
                if is_cgroup_ours:
                    attachment.remove_cgroup(path)
                raise
        new = _New(tables, about, policy, opened, upstreams)
        try:
            yield new
        except BaseException:
            with locked(is_exclusive=True):
                attachment.remove(identifier)
            raise
    finally:
        for each in opened:
            each.close()


def _own_addresses(opened: Iterable[Listeners]) -> list[tuple[str, int]]:
    own = netns_cookie()
    return [end for each in opened if each.cookie == own for end in each.addresses()]


def _proxy_cgroup(kind: str, path: str, identifier: str) -> str:
    """Where the proxy of a guard within others has to be. Run from there, it is there."""
    if kind != "attach" or not attachment.guards_around(path):
        return ""
    return cgroup.create(os.path.dirname(path), f"{_PROXY_CGROUP}{identifier}")


def _upstreams(policy: Policy) -> list[Upstream]:
    if not policy.dns_upstreams:
        return system_upstreams()
    return [Upstream(server.address_text, server.port) for server in policy.dns_upstreams]


@contextmanager
def _attached(target: Target, policy: Policy) -> Iterator[tuple[_New, Made]]:
    upstreams = _upstreams(policy)
    with _made(
        "attach",
        _path_of(target),
        policy,
        lambda path: _listening(_pids(target, path)),
        [str(server) for server in upstreams],
        upstreams,
        is_cgroup_ours=target.moved_pid is not None,
    ) as new:
        yield new, _entered(target, new.about)


def _path_of(target: Target) -> Callable[[str], str]:
    if target.moved_pid is None:
        return lambda _: target.cgroup
    return lambda identifier: cgroup.create(target.cgroup, f"{_GUARD_CGROUP}{identifier}")


def _pids(target: Target, path: str) -> list[int]:
    if target.moved_pid is not None:
        return [target.moved_pid]
    return cgroup.processes(path, is_recursive=True)


def _listening(pids: Sequence[int]) -> tuple[list[Listeners], dict[int, ProxyEntry]]:
    # Nobody is there yet: whoever comes is most likely to be where we are.
    opened = listeners.open_for(pids) or [listeners.open_here()]
    return opened, {each.cookie: each.proxy for each in opened}


def _entered(target: Target, about: About) -> Made:
    """Let the process in that is to be moved, and look at what those within hold already."""
    if target.moved_pid is not None:
        cgroup.move(target.moved_pid, about.cgroup)
    # Netlink takes 150 ms to import, and a command has nobody to look at.
    from zfw_py.guard.foreign_sockets import foreign_sockets

    pids = cgroup.processes(about.cgroup, is_recursive=True)
    return Made(about.id, about.cgroup, foreign_sockets(pids, about.cgroup))


def attach(target: Target, policy: Policy, tell: Callable[[Record], None]) -> Made:
    """Guard a cgroup; a process in the background answers its DNS and tells what is decided.

    ``tell`` is called there. Raises NotFound, Conflict, UsageError, KernelError; then
    nothing is changed.
    """
    with _attached(target, policy) as (new, made):

        def body(ready: Callable[[], None], _terminal: int) -> None:
            new.join_enclosing()
            new.keep(tell, ready, [signal.SIGTERM])

        background.start(body, has_stderr=False).let_go()
        new.release()
        return made


def attach_here(
    target: Target,
    policy: Policy,
    tell: Callable[[Record], None],
    on_made: Callable[[Made], None],
) -> None:
    """The same in the foreground: until SIGINT, SIGTERM or SIGHUP, and then it is taken away."""
    with _attached(target, policy) as (new, made):
        new.join_enclosing()
        new.keep(tell, lambda: on_made(made), _ENDS)
    _forget(made.id)


@contextmanager
def _redirected(target: Target, servers: Sequence[Server]) -> Iterator[tuple[_New, Made]]:
    entry = _redirect_entry(servers)
    with _made(
        "redirect",
        _path_of(target),
        None,
        lambda _: ([], {0: entry}),
        [str(server) for server in servers],
        [],
        is_cgroup_ours=target.moved_pid is not None,
    ) as new:
        yield new, _entered(target, new.about)


def _redirect_entry(servers: Sequence[Server]) -> ProxyEntry:
    fields: dict[str, bytes | tuple[int, ...]] = {}
    for server in servers:
        if f"ipv{server.family}" in fields:
            raise UsageError(f"--dns-to: two servers of one family: {server}")
        fields[f"ipv{server.family}"] = (
            server.address if server.family == 6 else _MAPPED + server.address
        )
        fields[f"ipv{server.family}_ports"] = (server.port,)
    return ProxyEntry(**fields)  # type: ignore[arg-type]


def redirect(target: Target, servers: Sequence[Server]) -> Made:
    """Send a cgroup's DNS to servers of the user's, one a family. Nothing has to be kept.

    DNS of a family without a server is refused.
    """
    with _redirected(target, servers) as (_, made):
        return made


def redirect_here(
    target: Target,
    servers: Sequence[Server],
    tell: Callable[[Record], None],
    on_made: Callable[[Made], None],
) -> None:
    """The same in the foreground: tells what is redirected until a signal takes it away."""
    with _redirected(target, servers) as (new, made):
        new.keep(tell, lambda: on_made(made), _ENDS)
    _forget(made.id)


# Running a command


def run(
    arguments: Sequence[str],
    policy: Policy,
    tell: Callable[[Record], None],
    note: Callable[[str], None],
    user: command.User | None = None,
) -> int:
    """Run a command that is guarded from its first instruction; what waitpid(2) says of it.

    What it leaves running stays guarded; a process in the background keeps the guard
    until the last of it has ended. ``tell`` is called there, ``note`` here, with
    what a user should know. Raises command.NotStarted and as ``attach`` does.
    """
    own = cgroup.of_process(os.getpid())
    upstreams = _upstreams(policy)
    with _made(
        "run",
        lambda identifier: cgroup.create(own, f"{_GUARD_CGROUP}{identifier}"),
        policy,
        lambda _: _listening([]),
        [str(server) for server in upstreams],
        upstreams,
        is_cgroup_ours=True,
    ) as new:
        for foreign in _inherited(new.about.cgroup):
            note(f"{foreign}; the command inherits it")
        keeping = background.start(
            lambda ready, terminal: _keep_command(new, tell, ready, terminal), has_stderr=True
        )
        new.release()

        def on_other_end(pid: int) -> None:
            # It ends by itself when nobody is left, perhaps before we see that the command has.
            if pid == keeping.pid and _left(new.about.cgroup):
                note("the guard's process has ended: DNS fails from now on")

        try:
            status = command.run(arguments, new.about.cgroup, user, on_other_end)
        finally:
            keeping.let_go()
    left = _left(new.about.cgroup)
    if left:
        note(f"guard {new.about.id} stays for {left} that the command has left running")
    else:
        _forget(new.about.id)
    return status


def _keep_command(
    new: _New, tell: Callable[[Record], None], ready: Callable[[], None], terminal: int
) -> None:
    def ready_and_watching() -> None:
        loop = asyncio.get_running_loop()

        def on_end_of_maker() -> None:
            loop.remove_reader(terminal)
            background.release_stderr()

        loop.add_reader(terminal, on_end_of_maker)
        ready()

    # The terminal's signals are the command's.
    new.keep(tell, ready_and_watching, [signal.SIGTERM])


def _inherited(path: str) -> list[ForeignSocket]:
    """Sockets that a command gets from us, such as a stdin that is one."""
    handed_on = _inheritable_sockets()
    if not handed_on:
        return []
    from zfw_py.guard.foreign_sockets import foreign_sockets

    held = foreign_sockets([os.getpid()], path)
    return [foreign for foreign in held if foreign.socket.inode in handed_on]


def _inheritable_sockets() -> set[int]:
    """The inode numbers of sockets that stay open in what we execute."""
    found = set()
    for name in os.listdir("/proc/self/fd"):
        try:
            if os.get_inheritable(int(name)):
                status = os.fstat(int(name))
                if S_ISSOCK(status.st_mode):
                    found.add(status.st_ino)
        except OSError:
            pass  # the listing's own
    return found


def _left(path: str) -> str:
    try:
        count = len(cgroup.processes(path, is_recursive=True))
    except NotFound:
        return ""
    return f"{count} process{'es' * (count != 1)}" if count else ""


# Taking away


def _forget(identifier: str) -> None:
    """Take a guard away, if nobody else has done so."""
    try:
        detach(identifier)
    except NotFound:
        pass


def detach(identifier: str) -> None:
    """Take a guard away: programs, rules, its process, and the cgroup if it was made for it.

    Raises NotFound.
    """
    directory = directory_of(identifier)
    missing = NotFound(f"no such guard: {identifier}")
    try:
        with locked(is_exclusive=True):
            if not os.path.isdir(directory):
                raise missing
            # While the lock is held it cannot take itself away as well.
            processes.end(Tables(directory).keeper())
            attachment.remove(identifier)
    except FileNotFoundError:
        raise missing from None


def detach_all() -> list[str]:
    """Take all guards away; their ids."""
    found = identifiers()
    for identifier in found:
        _forget(identifier)
    return found


# Looking


def guards() -> list[Status]:
    """All guards, the oldest first."""
    try:
        with locked(is_exclusive=False):
            found = [_status(Tables(directory_of(identifier))) for identifier in identifiers()]
    except FileNotFoundError:
        return []
    return sorted(found, key=lambda status: status.about.created)


def _status(tables: Tables) -> Status:
    about = tables.about()
    tables.config()
    keeper = tables.keeper()
    is_kept = processes.is_alive(keeper)
    problem, count = "", 0
    try:
        is_there = cgroup.identifier(about.cgroup) == about.cgroup_id
        count = len(cgroup.processes(about.cgroup, is_recursive=True)) if is_there else 0
    except NotFound:
        is_there = False
    if not is_there:
        problem = "its cgroup is gone"
    elif not is_kept and about.kind != "redirect":
        problem = "its process has died: DNS fails, the rest is judged as before"
    return Status(
        about=about,
        keeper_pid=keeper.pid if is_kept else None,
        problem=problem,
        processes=count,
        learnt=len({address for address, _ in tables.learnt()}),
        decisions=tables.decisions(),
        lost=tables.lost(),
    )
