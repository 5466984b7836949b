# SPDX-License-Identifier: GPL-2.0-only
"""Guards: made and taken away. What the command line and other programs call."""

from __future__ import annotations

import asyncio
import os
import resource
import signal
import time
from contextlib import ExitStack, contextmanager, suppress
from stat import S_ISSOCK
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from msgspec.structs import replace

from zfw_py.errors import LayoutMismatch, NotFound, UsageError, ZfwError
from zfw_py.guard import background, cgroups, command, keeper, programs
from zfw_py.guard.codec import Proxy as ProxyEntry
from zfw_py.guard.dns.upstream import Server as Upstream
from zfw_py.guard.dns.upstream import system_upstreams
from zfw_py.guard.events import Teller
from zfw_py.guard.keeper import Kept
from zfw_py.guard.maps import STORE, About, NoGuards, Tables
from zfw_py.guard.takeover import take_over
from zfw_py.kernel import cgroup
from zfw_py.kernel.process import inheritable_descriptors
from zfw_py.lifecycle.programs import clear, collect, digest_of, locked, make_root, remove
from zfw_py.values.prefix import mapped_address

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from zfw_py.guard.background import Background
    from zfw_py.guard.events import Lines
    from zfw_py.guard.foreign_sockets import ForeignSocket
    from zfw_py.guard.listeners import Listeners
    from zfw_py.guard.model import Policy
    from zfw_py.kernel.lock import Lock
    from zfw_py.values.endpoint import Server

_Started = TypeVar("_Started")


class Target(NamedTuple):
    """What is to be guarded: a cgroup, or with ``is_ours`` one that is to be made in it.

    ``moved_pid`` is the process that is to be put there.
    """

    cgroup: str
    is_ours: bool = False
    moved_pid: int | None = None


class Made(NamedTuple):
    """A guard that is in force, and the sockets in it that it does not reach."""

    id: str
    cgroup: str
    foreign: list[ForeignSocket]


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
        return Target(path, is_ours=True, moved_pid=pid)
    if cgroup.is_root(path):
        raise UsageError(
            f"process {pid} is in the root cgroup, which is everybody's",
            hint="--move puts it into a cgroup of its own",
        )
    return Target(path)


# Making


@contextmanager
def _made(
    about: About,
    policy: Policy | None,
    upstreams: list[Upstream],
    teller: Teller,
    start: Callable[[Kept, Lock], _Started],
) -> Iterator[tuple[Kept, _Started]]:
    """Put a guard in force; should the body fail, take it away again.

    ``start`` gets going what answers its DNS, before anything is redirected there.
    """
    # Of many prefixes it takes long, and others may want the lock.
    rules = None if policy is None else programs.Rules.of(policy)
    make_root(STORE)
    background.fill_stdio()
    made: list[tuple[Kept, _Started]] = []
    try:
        with locked(STORE, is_exclusive=True) as lock:
            collect(programs.SYSTEM)

            def begin(tables: Tables, about: About) -> None:
                kept = Kept(tables, about, policy, upstreams, teller)
                made.append((kept, start(kept, lock)))

            programs.install(_beside(about), rules, begin, tells_all=teller.has_all)
        yield made[0]
    except BaseException:
        _forget(about.id)
        raise


def _about(
    kind: str,
    target: Target,
    servers: Iterable[object],
    policy: Policy | None = None,
    lines: Lines = "none",
) -> About:
    identifier = programs.new_identifier()
    path = target.cgroup
    if target.is_ours:
        path = cgroups.guarded_in(path, identifier)
    return About(
        id=identifier,
        kind=kind,
        cgroup=path,
        cgroup_id=0 if target.is_ours else cgroup.identifier(path),
        is_cgroup_ours=target.is_ours,
        proxy_cgroup="",
        created=time.time(),
        servers=[str(server) for server in servers],
        policy={} if policy is None else policy.as_object(),
        lines=lines,
    )


def _beside(about: About) -> About:
    """A guard whose process would be where it must not be has a cgroup for it.

    In what is guarded, its own questions would come back to it. And outside of guards
    around this one, what they allow would be asked past them, and they would not know
    the addresses when the packets come.
    """
    if about.kind != "attach":
        return about  # a redirect asks nobody, and a command's guard is made where it has to be
    if about.is_cgroup_ours:
        above: str | None = os.path.dirname(about.cgroup)
        is_inside = False
    else:
        above = cgroup.parent(about.cgroup)
        is_inside = cgroups.is_within(cgroup.of_process(os.getpid()), about.cgroup)
    if not is_inside and (above is None or not programs.has_guards_at(above)):
        return about
    if above is None:
        raise UsageError(
            f"{about.cgroup}: zfw is in it, and the cgroup around it cannot be seen from here"
        )
    return replace(about, proxy_cgroup=cgroups.proxy_in(above, about.id))


def _upstreams(policy: Policy) -> list[Upstream]:
    if not policy.dns_upstreams:
        return system_upstreams()
    return [Upstream(server.address_text, server.port) for server in policy.dns_upstreams]


def _open(kept: Kept, target: Target) -> list[Listeners]:
    """Be where the guard's process has to be, and open its sockets for those who will ask."""
    if kept.about.proxy_cgroup:
        cgroup.move(os.getpid(), kept.about.proxy_cgroup)
    if target.moved_pid is not None:
        return keeper.open_sockets(kept, [target.moved_pid])
    return keeper.open_sockets(kept, cgroup.processes(kept.about.cgroup, is_recursive=True))


def _start(kept: Kept, lock: Lock, target: Target, *, has_stderr: bool) -> Background:
    """Start the guard's process. The terminal's signals are not for it."""

    def body(ready: Callable[[], None], maker: int) -> None:
        # A question takes a descriptor, and a network namespace ten.
        _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
        _keep(kept, _open(kept, target), ready, [signal.SIGTERM], maker)

    # Who holds its descriptor holds the lock.
    return background.start(body, has_stderr=has_stderr, closes=[lock.fileno()])


def _keep(
    kept: Kept,
    opened: list[Listeners],
    ready: Callable[[], None],
    stops: Iterable[signal.Signals],
    maker: int | None = None,
) -> None:
    if asyncio.run(keeper.keep(kept, opened, ready, stops, maker)):
        keeper.remove_guard(kept.about.id)


def _entered(target: Target, about: About) -> Made:
    """Let the process in that is to be moved, and look at what those within hold already."""
    if target.moved_pid is not None:
        cgroup.move(target.moved_pid, about.cgroup)
    # Netlink takes 150 ms to import, and a command has nobody to look at.
    from zfw_py.guard.foreign_sockets import foreign_sockets

    # The processes of guards within have sockets from elsewhere, and have to.
    keepers = programs.keeper_pids()
    pids = [pid for pid in cgroup.processes(about.cgroup, is_recursive=True) if pid not in keepers]
    return Made(about.id, about.cgroup, foreign_sockets(pids, about.cgroup))


def attach(target: Target, policy: Policy, teller: Teller) -> Made:
    """Guard a cgroup; a process in the background answers its DNS and tells what is decided.

    ``teller`` is called there. Raises NotFound, Conflict, UsageError, KernelError; then
    nothing is changed.
    """
    older = _older(target, policy)
    if older is not None and take_over(older.id, lambda _: teller):
        return Made(older.id, older.cgroup, [])
    upstreams = _upstreams(policy)
    about = _about("attach", target, upstreams, policy)
    with _made(
        about,
        policy,
        upstreams,
        teller,
        lambda kept, lock: _start(kept, lock, target, has_stderr=False),
    ) as (kept, keeping):
        made = _entered(target, kept.about)
        keeping.let_go()
        return made


def _older(target: Target, policy: Policy) -> About | None:
    """A guard of the same target and policy that another build of zfw made."""
    if target.is_ours:
        return None
    wanted = cgroup.identifier(target.cgroup)
    for identifier in STORE.identifiers():
        with suppress(LayoutMismatch, NotFound):
            about = Tables(STORE.directory(identifier)).about()
            if (about.cgroup_id, about.kind, about.policy) == (
                wanted,
                "attach",
                policy.as_object(),
            ) and about.digest != digest_of(programs.SYSTEM):
                return about
    return None


def attach_here(
    target: Target,
    policy: Policy,
    teller: Teller,
    on_made: Callable[[Made], None],
) -> None:
    """The same in the foreground: until SIGINT, SIGTERM or SIGHUP, and then it is taken away."""
    upstreams = _upstreams(policy)
    about = _about("attach", target, upstreams, policy)
    here = cgroup.of_process(os.getpid())
    with ExitStack() as at_end:

        def open_here(kept: Kept, _: Lock) -> list[Listeners]:
            at_end.callback(_go_back, here)
            opened = _open(kept, target)
            for each in opened:
                at_end.callback(each.close)
            return opened

        with _made(about, policy, upstreams, teller, open_here) as (kept, opened):
            made = _entered(target, kept.about)
            _keep(kept, opened, lambda: on_made(made), _ends())
        _forget(about.id)


def _go_back(path: str) -> None:
    if cgroup.of_process(os.getpid()) != path:
        with suppress(NotFound):
            cgroup.move(os.getpid(), path)


def _ends() -> list[signal.Signals]:
    """The signals that end what is in the foreground; nohup(1) and others ignore some for it."""
    several = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    return [each for each in several if signal.getsignal(each) != signal.SIG_IGN]


def _redirect_entry(servers: Sequence[Server]) -> ProxyEntry:
    fields: dict[str, bytes | tuple[int, ...]] = {}
    for server in servers:
        if f"ipv{server.family}" in fields:
            raise UsageError(f"--dns-to: two servers of one family: {server}")
        fields[f"ipv{server.family}"] = mapped_address(server.family, server.address)
        fields[f"ipv{server.family}_ports"] = (server.port,)
    return ProxyEntry(**fields)  # type: ignore[arg-type]


@contextmanager
def _redirected(
    target: Target, servers: Sequence[Server], teller: Teller
) -> Iterator[tuple[Kept, Made]]:
    entry = _redirect_entry(servers)
    about = _about("redirect", target, servers)
    with _made(about, None, [], teller, lambda kept, _: kept.tables.write_proxy(0, entry)) as (
        kept,
        _,
    ):
        yield kept, _entered(target, kept.about)


def redirect(target: Target, servers: Sequence[Server]) -> Made:
    """Send a cgroup's DNS to servers of the user's, one a family. Nothing has to be kept.

    DNS of a family without a server is refused.
    """
    with _redirected(target, servers, Teller(lambda _: None, has_all=False)) as (_, made):
        return made


def redirect_here(
    target: Target,
    servers: Sequence[Server],
    teller: Teller,
    on_made: Callable[[Made], None],
) -> None:
    """The same in the foreground: tells what is redirected until a signal takes it away."""
    with _redirected(target, servers, teller) as (kept, made):
        _keep(kept, [], lambda: on_made(made), _ends())
    _forget(made.id)


# Running a command


def run(
    arguments: Sequence[str],
    policy: Policy,
    teller: Teller,
    note: Callable[[str], None],
    user: command.User | None = None,
) -> int:
    """Run a command that is guarded from its first instruction; what waitpid(2) says of it.

    What it leaves running stays guarded; a process in the background keeps the guard
    until the last of it has ended. ``teller`` is called there, ``note`` here, with
    what a user should know. Raises command.NotStarted and as ``attach`` does.
    """
    target = Target(cgroup.of_process(os.getpid()), is_ours=True)
    upstreams = _upstreams(policy)
    with ExitStack() as running:
        with _made(
            _about("run", target, upstreams, policy, teller.lines),
            policy,
            upstreams,
            teller,
            lambda kept, lock: _start(kept, lock, target, has_stderr=True),
        ) as (kept, keeping):
            about = kept.about
            for foreign in _inherited(about.cgroup):
                note(f"{foreign}; the command inherits it")

            def on_child() -> None:
                if keeping.has_just_ended() and _has_no_process(about.id):
                    note("the guard's process has ended: DNS fails from now on")

            status = running.enter_context(command.run(arguments, about.cgroup, user, on_child))
        # From here on the guard is not to be taken away from those who are in it.
        try:
            _leave(about, note)
        except ZfwError as error:
            # The status is the command's.
            note(f"guard {about.id} is not taken away: {error}")
        keeping.let_go()
    return status


def _has_no_process(identifier: str) -> bool:
    """Whether a guard is there and its process is not; another build's may have its place."""
    with suppress(LayoutMismatch, NotFound):
        return not Tables(STORE.directory(identifier)).keeper().is_alive()
    return False


def _leave(about: About, note: Callable[[str], None]) -> None:
    try:
        left = len(cgroup.processes(about.cgroup, is_recursive=True))
    except NotFound:
        left = 0
    if left:
        count = f"{left} process{'es' * (left != 1)}"
        note(f"guard {about.id} stays for {count} that the command has left running")
    else:
        _forget(about.id)


def _inherited(path: str) -> list[ForeignSocket]:
    """Sockets that a command gets from us, such as a stdin that is one."""
    handed_on = _inheritable_sockets()
    if not handed_on:
        return []
    from zfw_py.guard.foreign_sockets import foreign_sockets

    held = foreign_sockets([os.getpid()], path)
    return [foreign for foreign in held if foreign.socket.inode in handed_on]


def _inheritable_sockets() -> set[int]:
    """The inode numbers of sockets that stay open in the command that is executed."""
    opened = map(os.fstat, inheritable_descriptors())
    return {status.st_ino for status in opened if S_ISSOCK(status.st_mode)}


# Taking away


def _forget(identifier: str) -> None:
    """Take a guard away, if nobody else has done so."""
    with suppress(NotFound):
        detach(identifier)


def detach(identifier: str) -> None:
    """Take a guard away: programs, rules, its process, and the cgroup if it was made for it.

    Raises NotFound, LayoutMismatch if another version made it.
    """
    directory = STORE.directory(identifier)
    missing = NotFound(f"no such guard: {identifier}")
    try:
        with locked(STORE, is_exclusive=True):
            if not os.path.isdir(directory):
                raise missing
            tables = Tables(directory)
            tables.config()
            process = tables.keeper()
            clear(programs.SYSTEM)
            remove(programs.SYSTEM, identifier)
    except NoGuards:
        raise missing from None
    # Not with the lock: its process may want it too, to take itself away.
    process.end()


def detach_all() -> tuple[list[str], list[LayoutMismatch]]:
    """Take all guards away: the ids of those that are, and what is to be said of the others.

    Raises PermissionDenied.
    """
    gone, foreign = [], []
    for identifier in sorted(STORE.identifiers()):
        try:
            detach(identifier)
            gone.append(identifier)
        except NotFound:
            continue  # somebody else did
        except LayoutMismatch as error:
            foreign.append(error)
    return gone, foreign
