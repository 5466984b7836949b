# SPDX-License-Identifier: GPL-2.0-only
"""The state of a steering: its mappings and destinations, and their bytes in msgpack. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import msgspec

from zfw_py.kernel.process import Process  # noqa: TC001 - msgspec reads the annotations
from zfw_py.steer.model import (
    PROTOCOLS,
    AddressTarget,
    Mapping,
    MappingKey,
    Ports,
    ProcessTarget,
    Protocol,
    UnitTarget,
)
from zfw_py.values.prefix import Prefix

if TYPE_CHECKING:
    from collections.abc import Iterable

    from zfw_py.steer.model import Target


class Destination(NamedTuple):
    """A target of one protocol: in the kernel a number, and up to eight sockets.

    ``port``: only for UDP to a process or unit, whose sockets on other ports are other
    destinations; else None.
    """

    protocol: Protocol
    target: Target
    port: int | None = None

    @classmethod
    def of(cls, mapping: Mapping) -> Destination:
        """The destination of a mapping."""
        port = None
        if mapping.key.protocol == "udp" and not isinstance(mapping.target, AddressTarget):
            port = mapping.key.ports.low
        return cls(mapping.key.protocol, mapping.target, port)

    @property
    def is_supplied_by_kernel(self) -> bool:
        """Whether ``adopt`` inserts its sockets as they listen; no process is needed then."""
        return self.protocol == "tcp" and isinstance(self.target, AddressTarget)

    def __str__(self) -> str:
        text = f"{self.protocol} {self.target}"
        return text if self.port is None else f"{text} port {self.port}"


class ActiveMapping(NamedTuple):
    """A mapping in force. ``id``: of its counters. ``target``: the number of its destination."""

    id: int
    mapping: Mapping
    target: int
    run: Process | None = None  # the ``zfw steer run`` that holds it


class State(NamedTuple):
    """All mappings in force and their destinations; ``next_...`` are the next numbers to give."""

    mappings: tuple[ActiveMapping, ...] = ()
    destinations: dict[Destination, int] = {}  # noqa: RUF012 - never changed
    next_id: int = 1
    next_target: int = 0

    def encode(self) -> bytes:
        """The state in msgpack."""
        runs = list(dict.fromkeys(each.run for each in self.mappings if each.run is not None))
        numbers = {run: number for number, run in enumerate(runs, 1)}
        return msgspec.msgpack.encode(
            _State(
                self.next_id,
                self.next_target,
                runs,
                [
                    _pack_destination(number, destination)
                    for destination, number in self.destinations.items()
                ],
                [
                    _pack_mapping(each, numbers[each.run] if each.run else 0)
                    for each in self.mappings
                ],
            )
        )

    @classmethod
    def decode(cls, data: bytes) -> State:
        """The inverse of ``encode``. Raises msgspec.DecodeError, LookupError, ValueError."""
        read = msgspec.msgpack.decode(data, type=_State)
        destinations = {_destination(each): each.number for each in read.destinations}
        targets = {number: destination.target for destination, number in destinations.items()}
        runs = [None, *read.runs]
        return cls(
            tuple(
                ActiveMapping(each.id, _mapping(each, targets), each.target, runs[each.run])
                for each in read.mappings
            ),
            destinations,
            read.next_id,
            read.next_target,
        )


class _Destination(msgspec.Struct, array_like=True):
    number: int
    protocol: int  # index into PROTOCOLS
    address: bytes
    address_port: int
    pid: int
    start_time: int
    unit: str
    port: int | None


class _ActiveMapping(msgspec.Struct, array_like=True):
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
    destinations: list[_Destination]
    mappings: list[_ActiveMapping]


def _pack_destination(number: int, destination: Destination) -> _Destination:
    address, address_port, pid, started, unit = b"", 0, 0, 0, ""
    match destination.target:
        case AddressTarget():
            address, address_port = destination.target
        case ProcessTarget():
            pid, started = destination.target
        case UnitTarget():
            (unit,) = destination.target
    protocol = PROTOCOLS.index(destination.protocol)
    port = destination.port
    return _Destination(number, protocol, address, address_port, pid, started, unit, port)


def _destination(each: _Destination) -> Destination:
    target: Target
    if each.unit:
        target = UnitTarget(each.unit)
    elif each.pid:
        target = ProcessTarget(each.pid, each.start_time)
    else:
        target = AddressTarget(each.address, each.address_port)
    return Destination(PROTOCOLS[each.protocol], target, each.port)


def _pack_mapping(each: ActiveMapping, run: int) -> _ActiveMapping:
    mapping = each.mapping
    key = mapping.key
    prefix = key.prefix
    return _ActiveMapping(
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


def _mapping(each: _ActiveMapping, targets: dict[int, Target]) -> Mapping:
    prefix = Prefix(each.family, each.address, each.length) if each.family else None
    key = MappingKey(PROTOCOLS[each.protocol], prefix, Ports(each.low, each.high))
    return Mapping(key, targets[each.target], each.label, each.is_override, each.is_fallthrough)


def successor(
    old: State, wanted: Iterable[tuple[Mapping, Process | None]], most_targets: int
) -> State | None:
    """The state with these mappings instead of those of ``old``.

    None if ``old`` and the new state together have more than ``most_targets`` destinations. An
    unchanged mapping keeps its id, a destination its number. Free numbers are given in turn:
    a packet may still be on its way to a number that was freed just now.
    """
    before = {(each.mapping, each.run): each.id for each in old.mappings}
    next_id, next_target = old.next_id, old.next_target
    pairs = list(wanted)
    needed = dict.fromkeys(Destination.of(mapping) for mapping, _ in pairs)
    # Numbers of destinations that this change removes are in use until after the switch.
    taken = set(old.destinations.values())
    if len(taken) + len(needed.keys() - old.destinations.keys()) > most_targets:
        return None
    destinations = {each: number for each, number in old.destinations.items() if each in needed}
    for destination in needed:
        if destination not in destinations:
            while next_target in taken:
                next_target = (next_target + 1) % most_targets
            destinations[destination] = next_target
            taken.add(next_target)
            next_target = (next_target + 1) % most_targets
    mappings = []
    for mapping, run in pairs:
        number = before.get((mapping, run))
        if number is None:
            number, next_id = next_id, next_id % 0xFFFFFFFF + 1
        mappings.append(ActiveMapping(number, mapping, destinations[Destination.of(mapping)], run))
    return State(tuple(mappings), destinations, next_id, next_target)
