# SPDX-License-Identifier: GPL-2.0-only
"""Converts mappings to elements of a table: port ranges are cut into disjoint segments. Pure.

``lookup`` makes at most three look-ups for a packet, each for the longest prefix:

1. with the packet's port;
2. with the number of the segment that the port is in;
3. with port 0, for mappings of any port.

Of several ranges that contain a port the longest prefix decides, then the narrowest range, then
the lowest.
"""

from __future__ import annotations

from bisect import bisect_left
from typing import TYPE_CHECKING, Literal, NamedTuple

from zfw_py.errors import MapFull
from zfw_py.steer.model import PROTOCOLS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from zfw_py.steer.model import Mapping, Ports, Protocol
    from zfw_py.values.prefix import Prefix

Class = Literal["port", "range", "any"]

MAX_ELEMENTS = 1 << 20


class Element(NamedTuple):
    """An element of the trie. ``number``: the index of the mapping, from 0.

    ``port``: the port, the number of the segment, or 0, depending on ``port_class``.
    """

    protocol: Protocol
    port_class: Class
    port: int
    prefix: Prefix
    number: int


class Segment(NamedTuple):
    """The ports from ``low`` to ``high`` of one protocol; ``number`` is 1 or more."""

    protocol: Protocol
    low: int
    high: int
    number: int


class Table(NamedTuple):
    """The elements and segments of a table."""

    elements: list[Element]
    segments: list[Segment]


def table_of(mappings: Sequence[Mapping]) -> Table:
    """The table of mappings whose keys differ. Raises MapFull if it has too many elements."""
    elements: list[Element] = []
    segments: list[Segment] = []
    for protocol in PROTOCOLS:
        ranges: list[tuple[int, Mapping]] = []
        for index, mapping in enumerate(mappings):
            key = mapping.key
            if key.protocol != protocol:
                continue
            if key.ports.is_any:
                elements += [Element(protocol, "any", 0, each, index) for each in key.prefixes]
            elif key.ports.is_one:
                elements += [
                    Element(protocol, "port", key.ports.low, each, index) for each in key.prefixes
                ]
            else:
                ranges.append((index, mapping))
        _add_ranges(protocol, ranges, elements, segments)
        if len(elements) > MAX_ELEMENTS:
            raise MapFull(
                f"the mappings come to {len(elements)} elements; {MAX_ELEMENTS} at most",
                hint="ranges of ports that overlap are cut into segments, each an element",
            )
    return Table(elements, segments)


def _add_ranges(
    protocol: Protocol,
    ranges: list[tuple[int, Mapping]],
    elements: list[Element],
    segments: list[Segment],
) -> None:
    starts = sorted(
        {start for _, each in ranges for start in (each.key.ports.low, each.key.ports.high + 1)}
    )
    # setdefault() below keeps the first range of a segment and prefix: the narrowest.
    ranges.sort(key=lambda each: _width_and_low(each[1].key.ports))
    winners: dict[tuple[int, Prefix], int] = {}
    for index, mapping in ranges:
        ports = mapping.key.ports
        for place in range(bisect_left(starts, ports.low), bisect_left(starts, ports.high + 1)):
            for prefix in mapping.key.prefixes:
                winners.setdefault((place, prefix), index)
        if len(winners) > MAX_ELEMENTS:
            break
    numbers = {
        place: number for number, place in enumerate(sorted({each for each, _ in winners}), 1)
    }
    elements += [
        Element(protocol, "range", numbers[place], prefix, index)
        for (place, prefix), index in winners.items()
    ]
    segments += [
        Segment(protocol, starts[place], starts[place + 1] - 1, number)
        for place, number in numbers.items()
    ]


def _width_and_low(ports: Ports) -> tuple[int, int]:
    return ports.high - ports.low, ports.low
