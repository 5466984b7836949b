# SPDX-License-Identifier: GPL-2.0-only
"""The tables' look-up finds the mapping that an independent reading of the rules finds."""

from __future__ import annotations

from ipaddress import ip_address
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zfw_py.errors import MapFull
from zfw_py.steer import segments as steer_table
from zfw_py.steer.model import ANY_PORT, Mapping, MappingKey, Ports, UnitTarget
from zfw_py.steer.segments import table_of
from zfw_py.values.prefix import Prefix

TARGET = UnitTarget("a.service")

ports = st.one_of(
    st.just(ANY_PORT),
    st.integers(1, 12).map(lambda port: Ports(port, port)),
    st.tuples(st.integers(1, 12), st.integers(1, 12)).map(lambda two: Ports(*sorted(two))),
)
prefixes = st.one_of(
    st.none(),
    st.builds(lambda value, length: Prefix(4, bytes((value, 0, 0, 0)), length),
              st.sampled_from([0x00, 0x40, 0x80, 0xC0]), st.integers(0, 2)),
    st.builds(lambda value, length: Prefix(6, bytes((value, *bytes(15))), length),
              st.sampled_from([0x00, 0x40, 0x80, 0xC0]), st.integers(0, 2)),
)  # fmt: skip
keys = st.builds(MappingKey, st.sampled_from(["tcp", "udp"]), prefixes, ports)


def covers(key: MappingKey, protocol: str, address: bytes, port: int) -> bool:
    family = 4 if len(address) == 4 else 6
    return (
        key.protocol == protocol
        and key.ports.low <= port <= key.ports.high
        and any(
            each.family == family and Prefix(family, address, each.length) == each
            for each in key.prefixes
        )
    )


def expected(mappings: list[Mapping], protocol: str, address: bytes, port: int) -> set[int]:
    """Which mapping counts, by the words of the manual; several where they say the same."""

    def rank(key: MappingKey) -> tuple:
        group = 2 if key.ports.is_any else 0 if key.ports.is_one else 1
        length = key.prefix.length if key.prefix else 0
        return group, -length, key.ports.high - key.ports.low, key.ports.low

    found = [
        (rank(each.key), index)
        for index, each in enumerate(mappings)
        if covers(each.key, protocol, address, port)
    ]
    return {index for ranked, index in found if ranked == min(found)[0]}


def looked_up(table: steer_table.Table, protocol: str, address: bytes, port: int) -> int | None:
    """As the program in the kernel does it."""
    segment = [
        each.number
        for each in table.segments
        if each.protocol == protocol and each.low <= port <= each.high
    ]
    assert len(segment) <= 1
    family = 4 if len(address) == 4 else 6
    for port_class, value in (("port", port), ("range", segment[0] if segment else 0), ("any", 0)):
        matching = [
            each
            for each in table.elements
            if (each.protocol, each.port_class, each.port) == (protocol, port_class, value)
            and each.prefix.family == family
            and Prefix(family, address, each.prefix.length) == each.prefix
            and (port_class != "range" or value)
        ]
        if matching:
            longest = max(each.prefix.length for each in matching)
            (winner,) = [each for each in matching if each.prefix.length == longest]
            return winner.number
    return None


def distinct(found: list[MappingKey]) -> list[Mapping]:
    taken: set[tuple] = set()
    made = []
    for key in found:
        parts = {(key.protocol, each, key.ports) for each in key.prefixes}
        if not parts & taken:
            taken |= parts
            made.append(Mapping(key, TARGET))
    return made


@given(st.lists(keys, max_size=14).map(distinct))
def test_the_most_specific_mapping_is_found(mappings: list[Mapping]) -> None:
    table = table_of(mappings)
    for protocol in ("tcp", "udp"):
        for address in (bytes((1, 0, 0, 0)), bytes((0x80, 0, 0, 1)), bytes((0xC1, *bytes(15)))):
            for port in range(14):
                wanted = expected(mappings, protocol, address, port)
                found = looked_up(table, protocol, address, port)
                assert (found in wanted) if wanted else found is None, (
                    protocol, ip_address(address), port
                )  # fmt: skip


@given(st.lists(keys, max_size=20).map(distinct))
def test_segments_are_disjoint_and_no_element_stands_twice(mappings: list[Mapping]) -> None:
    table = table_of(mappings)
    places = [each[:4] for each in table.elements]
    assert len(set(places)) == len(places)
    for protocol in ("tcp", "udp"):
        mine = sorted(each for each in table.segments if each.protocol == protocol)
        assert sorted(each.number for each in mine) == list(range(1, len(mine) + 1))
        assert all(one.high < other.low for one, other in pairwise(mine))


def test_ranges_that_come_to_too_much(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(steer_table, "MAX_ELEMENTS", 100)
    many = [
        Mapping(
            MappingKey("tcp", Prefix(4, bytes((10, 0, 0, number)), 32), Ports(number + 1, 500)),
            TARGET,
        )
        for number in range(20)
    ]
    with pytest.raises(MapFull, match="100 at most"):
        table_of(many)
    assert len(table_of(many[:5]).elements) == 15
