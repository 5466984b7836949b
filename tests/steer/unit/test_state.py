# SPDX-License-Identifier: GPL-2.0-only
"""What is steered, as pinned bytes and back, and which numbers its successor gives."""

from __future__ import annotations

import msgspec
import pytest

from zfw_py.kernel.process import Process
from zfw_py.steer.model import (
    AddressTarget,
    Mapping,
    MappingKey,
    Ports,
    ProcessTarget,
    UnitTarget,
)
from zfw_py.steer.state import Destination, State, successor
from zfw_py.values.prefix import Prefix

RUN = Process(7, 99)


def tcp(port: int, target: object = None, **options: object) -> Mapping:
    key = MappingKey("tcp", Prefix.any(4), Ports(port, port))
    return Mapping(key, target or AddressTarget.parse(f"127.0.0.1:{port}"), **options)


def after(old: State, *pairs: tuple[Mapping, Process | None], most: int = 8) -> State:
    new = successor(old, pairs, most)
    assert new is not None
    return new


def test_all_that_there_is_comes_back() -> None:
    mappings = [
        tcp(1, label="a", is_override=True),
        tcp(2, UnitTarget("a.service"), is_fallthrough=True),
        Mapping(MappingKey("udp", None, Ports(53, 53)), UnitTarget("a.service")),
        Mapping(
            MappingKey("udp", Prefix.parse("2001:db8::/32"), Ports(53, 53)), ProcessTarget(3, 4)
        ),
        Mapping(
            MappingKey("tcp", Prefix.parse("10.0.0.0/8"), Ports(0, 65535)), ProcessTarget(3, 4)
        ),
    ]
    state = after(State(), *((each, None) for each in mappings), (tcp(9), RUN))
    assert State.decode(state.encode()) == state
    assert [each.mapping for each in state.mappings] == [*mappings, tcp(9)]
    assert state.mappings[-1].run == RUN


@pytest.mark.parametrize("data", [b"", b"\x00", msgspec.msgpack.encode([1, 2, 3])])
def test_what_nobody_wrote(data: bytes) -> None:
    with pytest.raises(msgspec.DecodeError):
        State.decode(data)


def test_mappings_share_a_target_and_a_udp_process_has_one_a_port() -> None:
    unit = UnitTarget("a.service")
    udp = [Mapping(MappingKey("udp", None, Ports(port, port)), unit) for port in (53, 54)]
    assert len({Destination.of(each) for each in (tcp(1, unit), tcp(2, unit), *udp)}) == 3


def test_what_stays_keeps_its_numbers() -> None:
    first = after(State(), (tcp(1), None), (tcp(2), None))
    second = after(first, (tcp(2), None), (tcp(3), None))
    assert second.mappings[0] == first.mappings[1]
    assert {each.id for each in second.mappings} & {first.mappings[0].id} == set()
    # The same for somebody else is another mapping, to the same target.
    third = after(second, (tcp(2), RUN))
    assert third.mappings[0].target == second.mappings[0].target
    assert third.mappings[0].id not in {each.id for each in second.mappings}


def test_a_number_that_is_free_is_not_given_at_once() -> None:
    state = State()
    given = []
    for port in range(1, 12):
        state = after(state, (tcp(port), None))
        given.append(state.mappings[0].target)
    assert given == [0, 1, 2, 3, 4, 5, 6, 7, 0, 1, 2]


def test_as_many_targets_as_there_can_be() -> None:
    full = after(State(), *((tcp(port), None) for port in range(1, 9)))
    assert sorted(full.destinations.values()) == list(range(8))
    # Those that go have their numbers for as long as packets may be led there.
    assert successor(full, [(tcp(11), None)], 8) is None
    less = after(full, *((tcp(port), None) for port in range(1, 8)))
    assert after(less, (tcp(11), None)).destinations == {Destination.of(tcp(11)): 7}
    assert successor(State(), [(tcp(port), None) for port in range(1, 10)], 8) is None
