# SPDX-License-Identifier: GPL-2.0-only
"""Changes the mappings in force, atomically: all of a change takes effect with one word.

put_in_force, killed after     leaves                                who cleans up
1 the old state is checked     the old mappings
2 destinations created         and unused destinations               the next change, step 1
3 idle table filled            and a filled idle table               the next change, step 3
4 ``active`` written           the new mappings, and unused          the next change, step 1
                               destinations and counters
5 unused things removed        the new mappings
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from zfw_py.errors import Conflict, MapFull, ZfwError
from zfw_py.steer import adoption, codec, layout, programs
from zfw_py.steer.model import MAX_MAPPINGS, AddressTarget
from zfw_py.steer.segments import table_of
from zfw_py.steer.state import successor

if TYPE_CHECKING:
    from collections.abc import Callable, Container, Iterable, Sequence

    from zfw_py.kernel.process import Process
    from zfw_py.steer.maps import Maps
    from zfw_py.steer.model import Mapping
    from zfw_py.steer.sockets import SocketSnapshot
    from zfw_py.steer.state import Destination, State


def put_in_force(
    maps: Maps,
    old: State,
    pairs: Sequence[tuple[Mapping, Process | None]],
    scan: Callable[[], SocketSnapshot],
) -> State:
    """Replace the mappings of ``old`` by ``pairs``; the new state. The caller holds the lock.

    ``scan`` returns the sockets of the network namespace, and counts them in ``listeners``.
    Raises Conflict if a process or unit listens on several addresses, MapFull, KernelError; then
    ``old`` stays in force.
    """
    if len(pairs) > MAX_MAPPINGS:
        raise MapFull(f"{len(pairs)} mappings; {MAX_MAPPINGS} at most")
    new = successor(old, pairs, layout.TARGETS)
    if new is None:
        raise MapFull(
            f"more than {layout.TARGETS} targets, with those that this change removes",
            hint="remove some mappings first" if old.mappings else None,
        )
    table = table_of([each.mapping for each in new.mappings])
    # 1. Of a writer that was killed.
    maps.remove_unused(old)
    fresh = {
        each: number for each, number in new.destinations.items() if each not in old.destinations
    }
    gone = {
        each: number for each, number in old.destinations.items() if each not in new.destinations
    }
    created = []
    try:
        # 2. A destination has its sockets before the first packet is led to it.
        if _needs_all_events(new):
            _set_event_flag(maps, is_on=True)
        for destination, number in fresh.items():
            created.append((destination, number))
            maps.create_destination(destination, number)
        _supply(maps, new, fresh, scan)
        # 3.
        filled = maps.fill(new, table)
    except BaseException:
        for destination, number in created:
            maps.remove_destination(destination, number)
        _set_event_flag(maps, is_on=_needs_all_events(old))
        raise
    # 4. The new mappings are in force.
    maps.switch(filled)
    # 5. No packet is led to the old ones any more.
    for destination, number in gone.items():
        maps.remove_destination(destination, number)
    _set_event_flag(maps, is_on=_needs_all_events(new))
    stay = {each.id for each in new.mappings}
    maps.remove_counters(each.id for each in old.mappings if each.id not in stay)
    programs.share(maps.directory)
    return new


def _supply(
    maps: Maps, new: State, fresh: Container[Destination], scan: Callable[[], SocketSnapshot]
) -> None:
    """Insert sockets into new destinations, and into those that no kernel hook supplies."""
    wanting = {
        each: number
        for each, number in new.destinations.items()
        if each in fresh or not each.is_supplied_by_kernel
    }
    if not wanting:
        return
    snapshot = scan()
    for destination, number in wanting.items():
        try:
            adoption.adopt(maps, destination, number, snapshot)
        except ZfwError:
            # A problem of an old destination is shown by the listing, and stops no change.
            if destination in fresh:
                raise


def _needs_all_events(state: State) -> bool:
    """Whether the manager needs events of sockets that are on no target's address."""
    return any(not isinstance(each.target, AddressTarget) for each in state.destinations)


def _set_event_flag(maps: Maps, *, is_on: bool) -> None:
    config = programs.check_version(maps)
    flags = layout.TELL_ALL if is_on else 0
    if config.flags != flags:
        maps.map("config").update(codec.ZERO, config._replace(flags=flags).encode())


def without_dead_runs(state: State) -> list[tuple[Mapping, Process | None]]:
    """The mappings of a state, without those whose ``zfw steer run`` was killed."""
    runs = {each.run for each in state.mappings}
    ended = {run for run in runs if run is not None and not run.is_alive()}
    return [(each.mapping, each.run) for each in state.mappings if each.run not in ended]


def check_unique(pairs: Iterable[tuple[Mapping, Process | None]], added: Iterable[Mapping]) -> None:
    """Raise Conflict if an added mapping has the protocol, prefix and ports of another one."""
    taken = {
        (mapping.key.protocol, prefix, mapping.key.ports): mapping
        for mapping, _ in pairs
        for prefix in mapping.key.prefixes
    }
    for mapping in added:
        for prefix in mapping.key.prefixes:
            key = (mapping.key.protocol, prefix, mapping.key.ports)
            other = taken.get(key)
            if other is not None:
                label = f", of label {other.label}" if other.label else ""
                raise Conflict(
                    f"{mapping.key} is steered already, to {other.target}{label}",
                    hint=f"zfw steer remove {other.key.protocol} {other.key.address_text}"
                    f" {other.key.ports}",
                )
            taken[key] = mapping
