# SPDX-License-Identifier: GPL-2.0-only
"""What is steered in a network namespace, and as which bytes that is pinned. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import msgspec

from zfw_py.kernel.process import Process  # noqa: TC001 - msgspec reads the annotations
from zfw_py.steer.model import (
    PROTOCOLS,
    AddressTarget,
    Key,
    Mapping,
    Ports,
    ProcessTarget,
    Protocol,
    UnitTarget,
)
from zfw_py.values.prefix import Prefix

if TYPE_CHECKING:
    from collections.abc import Iterable

    from zfw_py.steer.model import Target


class Place(NamedTuple):
    """What a target is in the kernel: one a protocol, and of UDP's processes and units one a port.

    ``port`` is None where the target itself has one, or any of its sockets will do.
    """

    protocol: Protocol
    target: Target
    port: int | None = None

    @classmethod
    def of(cls, mapping: Mapping) -> Place:
        """A mapping's."""
        port = None
        if mapping.key.protocol == "udp" and not isinstance(mapping.target, AddressTarget):
            port = mapping.key.ports.low
        return cls(mapping.key.protocol, mapping.target, port)

    @property
    def is_kept_by_kernel(self) -> bool:
        """Whether the kernel's own hooks put its sockets there, and no process is needed."""
        return self.protocol == "tcp" and isinstance(self.target, AddressTarget)

    def __str__(self) -> str:
        text = f"{self.protocol} {self.target}"
        return text if self.port is None else f"{text} port {self.port}"


class Steered(NamedTuple):
    """A mapping that is in force. ``id`` is that of its counters, ``target`` its target's."""

    id: int
    mapping: Mapping
    target: int
    run: Process | None = None  # the ``zfw steer run`` that holds it


class State(NamedTuple):
    """All of it. ``next_id`` and ``next_target`` were not given last."""

    steered: tuple[Steered, ...] = ()
    places: dict[Place, int] = {}  # noqa: RUF012 - never changed
    next_id: int = 1
    next_target: int = 0

    def encode(self) -> bytes:
        """As ``decode`` reads it."""
        runs = list(dict.fromkeys(each.run for each in self.steered if each.run is not None))
        numbers = {run: number for number, run in enumerate(runs, 1)}
        return msgspec.msgpack.encode(
            _State(
                self.next_id,
                self.next_target,
                runs,
                [_place_bytes(number, place) for place, number in self.places.items()],
                [
                    _steered_bytes(each, numbers[each.run] if each.run else 0)
                    for each in self.steered
                ],
            )
        )

    @classmethod
    def decode(cls, data: bytes) -> State:
        """Raises msgspec.DecodeError for what ``encode`` did not make."""
        read = msgspec.msgpack.decode(data, type=_State)
        places = {_place(each): each.number for each in read.places}
        targets = {number: place.target for place, number in places.items()}
        runs = [None, *read.runs]
        return cls(
            tuple(
                Steered(each.id, _mapping(each, targets[each.target]), each.target, runs[each.run])
                for each in read.steered
            ),
            places,
            read.next_id,
            read.next_target,
        )


class _Place(msgspec.Struct, array_like=True):
    number: int
    protocol: int  # index into PROTOCOLS
    address: bytes
    address_port: int
    pid: int
    start_time: int
    unit: str
    port: int | None


class _Steered(msgspec.Struct, array_like=True):
    id: int
    target: int
    run: int  # from 1; 0: none
    protocol: int
    family: int  # 0: both
    address: bytes
    length: int
    low: int
    high: int
    label: str
    is_override: bool
    is_fallthrough: bool


class _State(msgspec.Struct, array_like=True):
    next_id: int
    next_target: int
    runs: list[Process]  # each a ``zfw steer run`` that holds mappings
    places: list[_Place]
    steered: list[_Steered]


def _place_bytes(number: int, place: Place) -> _Place:
    address, address_port, pid, started, unit = b"", 0, 0, 0, ""
    match place.target:
        case AddressTarget():
            address, address_port = place.target
        case ProcessTarget():
            pid, started = place.target
        case UnitTarget():
            (unit,) = place.target
    protocol = PROTOCOLS.index(place.protocol)
    return _Place(number, protocol, address, address_port, pid, started, unit, place.port)


def _place(each: _Place) -> Place:
    target: Target
    if each.unit:
        target = UnitTarget(each.unit)
    elif each.pid:
        target = ProcessTarget(each.pid, each.start_time)
    else:
        target = AddressTarget(each.address, each.address_port)
    return Place(PROTOCOLS[each.protocol], target, each.port)


def _steered_bytes(each: Steered, run: int) -> _Steered:
    mapping = each.mapping
    key = mapping.key
    prefix = key.prefix
    return _Steered(
        each.id,
        each.target,
        run,
        PROTOCOLS.index(key.protocol),
        prefix.family if prefix else 0,
        prefix.address if prefix else b"",
        prefix.length if prefix else 0,
        key.ports.low,
        key.ports.high,
        mapping.label,
        mapping.is_override,
        mapping.is_fallthrough,
    )


def _mapping(each: _Steered, target: Target) -> Mapping:
    prefix = Prefix(each.family, each.address, each.length) if each.family else None
    key = Key(PROTOCOLS[each.protocol], prefix, Ports(each.low, each.high))
    return Mapping(key, target, each.label, each.is_override, each.is_fallthrough)


def successor(
    old: State, wanted: Iterable[tuple[Mapping, Process | None]], most_targets: int
) -> State | None:
    """What follows when these are in force, and no others.

    None if there are too many targets, those that go included. A mapping that stays as it
    is keeps its id, a target its number. Numbers that are free are given in turn, so that
    one that was just freed is not another's at once.
    """
    before = {(each.mapping, each.run): each.id for each in old.steered}
    next_id, next_target = old.next_id, old.next_target
    pairs = list(wanted)
    needed = dict.fromkeys(Place.of(mapping) for mapping, _ in pairs)
    # Those of targets that go are free only when nothing leads there any more.
    taken = set(old.places.values())
    if len(taken) + len(needed.keys() - old.places.keys()) > most_targets:
        return None
    places = {place: number for place, number in old.places.items() if place in needed}
    for place in needed:
        if place not in places:
            while next_target in taken:
                next_target = (next_target + 1) % most_targets
            places[place] = next_target
            taken.add(next_target)
            next_target = (next_target + 1) % most_targets
    steered = []
    for mapping, run in pairs:
        number = before.get((mapping, run))
        if number is None:
            number, next_id = next_id, next_id % 0xFFFFFFFF + 1
        steered.append(Steered(number, mapping, places[Place.of(mapping)], run))
    return State(tuple(steered), places, next_id, next_target)
