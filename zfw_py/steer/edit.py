# SPDX-License-Identifier: GPL-2.0-only
"""From what is steered to what shall be: all of it with one word, or on an error nothing.

A new target is there, with the sockets that listen already, before the first packet looks
for it; an old one goes when none does any more. The state that is pinned beside a table
comes into force with it: a writer that is killed leaves what was, and perhaps targets that
nobody leads to, which the next one removes.
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
    from zfw_py.steer.maps import Tables
    from zfw_py.steer.model import Mapping
    from zfw_py.steer.sockets import Surroundings
    from zfw_py.steer.state import Place, State


def put_in_force(
    tables: Tables,
    old: State,
    pairs: Sequence[tuple[Mapping, Process | None]],
    look: Callable[[], Surroundings],
) -> State:
    """Steer so; the caller holds the lock. ``look`` takes a look into the network namespace.

    Raises Conflict where a process or unit has several sockets, MapFull, KernelError.
    """
    if len(pairs) > MAX_MAPPINGS:
        raise MapFull(f"{len(pairs)} mappings; {MAX_MAPPINGS} at most")
    new = successor(old, pairs, layout.TARGETS)
    if new is None:
        raise MapFull(
            f"more than {layout.TARGETS} targets, with those that go",
            hint="remove some mappings first" if old.steered else None,
        )
    table = table_of([each.mapping for each in new.steered])
    tables.forget_strangers(old)
    fresh = {place: number for place, number in new.places.items() if place not in old.places}
    gone = {place: number for place, number in old.places.items() if place not in new.places}
    made = []
    try:
        if _needs_all(new):
            _tell_all(tables, is_on=True)
        for place, number in fresh.items():
            made.append((place, number))
            tables.make_target(place, number)
        _supply(tables, new, fresh, look)
        filled = tables.fill(new, table)
    except BaseException:
        for place, number in made:
            tables.remove_target(place, number)
        _tell_all(tables, is_on=_needs_all(old))
        raise
    # From here on it is so. Whoever is interrupted leaves what the next change removes.
    tables.switch(filled)
    for place, number in gone.items():
        tables.remove_target(place, number)
    _tell_all(tables, is_on=_needs_all(new))
    kept = {each.id for each in new.steered}
    tables.forget_counters(each.id for each in old.steered if each.id not in kept)
    programs.share(tables.directory)
    return new


def _supply(
    tables: Tables, new: State, fresh: Container[Place], look: Callable[[], Surroundings]
) -> None:
    """Give targets their sockets: those that are new, and those that the kernel gives none."""
    wanting = {
        place: number
        for place, number in new.places.items()
        if place in fresh or not place.is_kept_by_kernel
    }
    if not wanting:
        return
    around = look()
    for place, number in wanting.items():
        try:
            adoption.adopt(tables, place, number, around)
        except ZfwError:
            # Of the others it is told in a listing.
            if place in fresh:
                raise


def _needs_all(state: State) -> bool:
    """Whether listeners on any address may be a target's."""
    return any(not isinstance(place.target, AddressTarget) for place in state.places)


def _tell_all(tables: Tables, *, is_on: bool) -> None:
    config = programs.check_version(tables)
    flags = layout.TELL_ALL if is_on else 0
    if config.flags != flags:
        tables.map("config").update(codec.ZERO, config._replace(flags=flags).encode())


def of_the_living(state: State) -> list[tuple[Mapping, Process | None]]:
    """What stays: mappings of a run that was killed go with the next change."""
    runs = {each.run for each in state.steered}
    ended = {run for run in runs if run is not None and not run.is_alive()}
    return [(each.mapping, each.run) for each in state.steered if each.run not in ended]


def check_free(pairs: Iterable[tuple[Mapping, Process | None]], added: Iterable[Mapping]) -> None:
    """Raise Conflict if one is there already, or overlaps one by its families."""
    taken = {
        (mapping.key.protocol, prefix, mapping.key.ports): mapping
        for mapping, _ in pairs
        for prefix in mapping.key.prefixes
    }
    for mapping in added:
        for prefix in mapping.key.prefixes:
            place = (mapping.key.protocol, prefix, mapping.key.ports)
            other = taken.get(place)
            if other is not None:
                label = f", of label {other.label}" if other.label else ""
                raise Conflict(
                    f"{mapping.key} is steered already, to {other.target}{label}",
                    hint=f"zfw steer remove {other.key.protocol} {other.key.address_text}"
                    f" {other.key.ports}",
                )
            taken[place] = mapping
