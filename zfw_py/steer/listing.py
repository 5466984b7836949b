# SPDX-License-Identifier: GPL-2.0-only
"""Reads the mappings, sockets and counters of a steering, and checks them; changes nothing."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Literal, NamedTuple

from zfw_py.errors import Busy, Conflict, KernelError, LayoutMismatch, ZfwError
from zfw_py.kernel import bpf_links
from zfw_py.kernel.lock import holder_of
from zfw_py.kernel.process import Process
from zfw_py.lifecycle.manifest import read as read_manifest
from zfw_py.steer import layout, programs
from zfw_py.steer.codec import Counter
from zfw_py.steer.layout import TARGET_SOCKETS
from zfw_py.steer.model import ProcessTarget
from zfw_py.steer.sockets import chosen

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from zfw_py.steer.maps import Maps
    from zfw_py.steer.model import Mapping
    from zfw_py.steer.sockets import Listener, SocketSnapshot
    from zfw_py.steer.state import ActiveMapping, Destination, State

_TRIES = 5  # of a reader without the lock, while writers change the state


class TargetSocket(NamedTuple):
    """A socket of a target, with the ids of the processes that have it open.

    ``is_current``: for a family of packets it is the newest, which gets new connections.
    """

    listener: Listener
    pids: list[int]
    is_current: bool


class MappingStatus(NamedTuple):
    """The state of one mapping.

    ``run_pid``: the ``zfw steer run`` that holds it, or None. ``state``: "pending" if its
    target has no socket. ``problem``: one line of text, empty if there is none. ``sockets``:
    the newest first.
    """

    mapping: Mapping
    run_pid: int | None
    state: Literal["steering", "pending"]
    problem: str
    sockets: list[TargetSocket]
    counters: Counter


class SteeringStatus(NamedTuple):
    """The state of a network namespace's steering.

    ``programs``: names of the attached programs. ``order``: the ids of all sk_lookup programs
    of the namespace, in the order in which the kernel runs them; ``program_id`` is ours. Only
    root gets these three. ``pending``: mappings without a socket. ``manager_pid``: the
    ``zfw steer run`` that manages, or None. ``errors``: how often each error of the layout's
    TROUBLES occurred, without zeros. ``is_detached``: another process has detached the program
    that steers; False for callers who are not root.
    """

    cookie: int
    programs: list[str]
    program_id: int
    order: list[int]
    mappings: int
    pending: int
    targets: int
    manager_pid: int | None
    errors: dict[str, int]
    warnings: list[str]
    is_detached: bool


def read_state(maps: Maps) -> State:
    """The state in force. Raises LayoutMismatch, and Busy if writers change it all the time.

    A caller who is not root has no lock: the state is its own only if ``active`` stays equal.
    """
    for _ in range(_TRIES):
        before = maps.active()
        try:
            found = maps.state()
        except LayoutMismatch:
            # A writer removes the pin of a state after it has switched to another.
            if maps.active() == before:
                raise
            continue
        if os.geteuid() == 0 or maps.active() == before:
            return found
    raise Busy("other processes change the mappings all the time")


def mappings(
    maps: Maps,
    state: State,
    active: Sequence[ActiveMapping],
    take_snapshot: Callable[[], SocketSnapshot],
) -> list[MappingStatus]:
    """The state of each of these mappings of ``state``. Raises KernelError."""
    counters = maps.counters()
    if not active:
        return []
    by_number = {number: destination for destination, number in state.destinations.items()}
    snapshot = take_snapshot()
    sockets_of = {
        number: _sockets(maps, by_number[number], number, snapshot)
        for number in dict.fromkeys(each.target for each in active)
    }
    made = []
    for each in active:
        sockets, problem = sockets_of[each.target]
        if each.run is not None and not each.run.is_alive():
            problem = "its zfw steer run was killed: the next change removes it"
        made.append(
            MappingStatus(
                mapping=each.mapping,
                run_pid=each.run.pid if each.run else None,
                state="steering" if sockets else "pending",
                problem=problem,
                sockets=sockets,
                counters=counters.get(each.id, Counter(0, 0, 0)),
            )
        )
    return made


def _sockets(
    maps: Maps, destination: Destination, number: int, snapshot: SocketSnapshot
) -> tuple[list[TargetSocket], str]:
    """The sockets of a destination, the newest first, and its problem."""
    known = snapshot.by_cookie()
    sockets: list[TargetSocket] = []
    for cookie in maps.sockets_of(number):
        listener = known.get(cookie)
        if listener is not None:
            # An older socket gets only packets of families that no newer one accepts.
            is_current = not any(listener.families <= each.listener.families for each in sockets)
            sockets.append(TargetSocket(listener, snapshot.holders_of(listener), is_current))
    try:
        listening = snapshot.of_target(destination.protocol, destination.target, destination.port)
        for family in (4, 6):
            chosen(listening, destination.target, family)
    except Conflict as error:
        return sockets, error.message
    except ZfwError:
        listening = []
    entries = [maps.listening(each.cookie) for each in listening]
    if any(each is not None and each.is_mptcp for each in entries):
        return sockets, "an MPTCP socket listens there, which cannot be steered to"
    return sockets, _problem(destination, sockets, listening)


def _problem(
    destination: Destination, sockets: Sequence[TargetSocket], listening: Sequence[Listener]
) -> str:
    target = destination.target
    unused = {each.cookie for each in listening} - {each.listener.cookie for each in sockets}
    if not sockets:
        if isinstance(target, ProcessTarget) and not Process(*target).is_alive():
            return "its process has ended"
        return "its socket is not adopted; zfw steer run adopts it" if unused else ""
    groups: list[set[int]] = []
    for each in sockets:
        pids = set(each.pids)
        if pids and not any(pids & group for group in groups):
            groups.append(pids)
    if len(groups) > 1:
        return f"{len(groups)} daemons listen there; the newest gets the connections"
    if unused and len(sockets) < TARGET_SOCKETS and destination.protocol == "udp":
        return "a newer socket is not adopted; zfw steer run adopts it"
    return ""


def status(namespace: programs.Namespace, maps: Maps) -> SteeringStatus:
    """The state of a steering. Raises LayoutMismatch, KernelError."""
    state = read_state(maps)
    manifest = read_manifest(maps, programs.Manifest)
    empty = {number for number in state.destinations.values() if not maps.sockets_of(number)}
    is_root = os.geteuid() == 0
    order, own = _lookup_order(namespace) if is_root else ([], 0)
    warnings = []
    if not manifest.is_whole:
        warnings.append(
            f"daemons outside of the cgroup {manifest.cgroup} are not followed:"
            " this is not the root of all cgroups"
        )
    is_detached = is_root and own not in order
    if is_detached:
        warnings.append("the program lookup was detached by another process: nothing is steered")
    elif order and order.index(own) > 0:
        warnings.append("connections for which another program chooses a socket are not steered")
    if is_root:
        warnings.extend(
            f"user {each} has {layout.SHARE} listeners: no more are recorded of one user,"
            " and its others keep no connections"
            for each in maps.exhausted()
        )
        if maps.has_unrecorded():
            warnings.append(
                "more sockets listen than can be recorded: connections to some addresses are"
                " left to the kernel's own look-up, until some have closed"
            )
    return SteeringStatus(
        cookie=namespace.cookie,
        programs=programs.attached(namespace.cookie) if is_root else [],
        program_id=own,
        order=order,
        mappings=len(state.mappings),
        pending=sum(each.target in empty for each in state.mappings),
        targets=len(state.destinations),
        manager_pid=holder_of(maps.directory),
        errors=maps.errors(),
        warnings=warnings,
        is_detached=is_detached,
    )


def _lookup_order(namespace: programs.Namespace) -> tuple[list[int], int]:
    """The ids of the namespace's sk_lookup programs in their order, and our program's id."""
    try:
        order = bpf_links.attached_to_netns(namespace.fd, bpf_links.SK_LOOKUP)
    except OSError as error:
        raise KernelError("list the sk_lookup programs", error.errno or 0) from error
    return order, programs.program_id(namespace.cookie)
