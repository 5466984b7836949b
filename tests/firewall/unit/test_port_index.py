# SPDX-License-Identifier: GPL-2.0-only
"""The rules of a prefix made into intervals: worked examples."""

from __future__ import annotations

import pytest

from zfw_py.firewall.codec import PortRule
from zfw_py.firewall.layout import RULE_NAMED
from zfw_py.firewall.port_index import resolve, shadowed

# What interface sets stand for, as bitmaps; set 0 names none.
MEMBERS = {0: 0b000, 1: 0b001, 2: 0b010, 3: 0b011, 4: 0b100, 7: 0b111}


def rule(low: int, high: int, interface_set: int = 0, flags: int = 0) -> PortRule:
    return PortRule((low, high, 0, interface_set, 0, 1, flags, 0))


def limited(low: int, high: int, interface_set: int) -> PortRule:
    return rule(low, high, interface_set, RULE_NAMED)


def intervals_of(*rules: PortRule) -> list[tuple[int, int, int]]:
    return resolve(rules, MEMBERS.__getitem__)[0]


@pytest.mark.parametrize(
    ("rules", "intervals"),
    [
        pytest.param([(22, 22)], [(22, 22, 0)], id="one"),
        pytest.param([(0, 65535)], [(0, 65535, 0)], id="all ports"),
        pytest.param([(80, 90), (10, 20)], [(10, 20, 1), (80, 90, 0)], id="apart: by port"),
        pytest.param([(10, 19), (20, 30)], [(10, 19, 0), (20, 30, 1)], id="side by side"),
        pytest.param([(10, 20), (15, 30)], [(10, 20, 0), (21, 30, 1)], id="the first wins"),
        pytest.param([(15, 30), (10, 20)], [(10, 14, 1), (15, 30, 0)], id="the lower is later"),
        pytest.param([(10, 30), (15, 20)], [(10, 30, 0)], id="covered"),
        pytest.param(
            [(15, 20), (10, 30)], [(10, 14, 1), (15, 20, 0), (21, 30, 1)], id="a hole for the first"
        ),
        pytest.param([(10, 20), (10, 20)], [(10, 20, 0)], id="twice"),
        pytest.param(
            [(0, 0), (65535, 65535), (0, 65535)],
            [(0, 0, 0), (1, 65534, 2), (65535, 65535, 1)],
            id="the ends",
        ),
        pytest.param(
            [(1, 2), (2, 3), (3, 4), (1, 4)], [(1, 2, 0), (3, 3, 1), (4, 4, 2)], id="a chain"
        ),
    ],
)
def test_without_interfaces_the_first_rule_that_covers_a_port_has_it(
    rules: list[tuple[int, int]], intervals: list[tuple[int, int, int]]
) -> None:
    assert intervals_of(*(rule(low, high) for low, high in rules)) == intervals


def test_no_rules_make_no_intervals() -> None:
    assert resolve([], MEMBERS.__getitem__) == ([], 0)


def test_a_later_rule_that_names_another_interface_stays_a_candidate() -> None:
    assert intervals_of(rule(10, 20, 1), rule(10, 20, 2)) == [(10, 20, 0), (10, 20, 1)]


def test_a_later_rule_that_names_no_other_interface_can_never_win() -> None:
    assert intervals_of(rule(10, 20, 3), rule(10, 20, 1)) == [(10, 20, 0)]
    assert intervals_of(rule(10, 20, 1), rule(10, 20, 2), rule(10, 20, 3)) == [
        (10, 20, 0),
        (10, 20, 1),
    ]


def test_a_rule_without_interfaces_hides_none_that_names_one() -> None:
    """It wins where lists do not count, and matches nowhere else."""
    assert intervals_of(rule(10, 20), rule(10, 20, 1)) == [(10, 20, 0), (10, 20, 1)]


def test_a_later_rule_without_interfaces_can_never_win() -> None:
    assert intervals_of(rule(10, 20, 1), rule(10, 20)) == [(10, 20, 0)]


def test_behind_limited_rules_the_first_that_is_not_limited_stays_a_candidate() -> None:
    assert intervals_of(limited(10, 20, 1), rule(10, 20)) == [(10, 20, 0), (10, 20, 1)]
    assert intervals_of(limited(10, 20, 3), rule(10, 20, 1), rule(10, 20)) == [
        (10, 20, 0),
        (10, 20, 1),
    ]
    assert intervals_of(rule(10, 20), limited(10, 20, 1), rule(10, 20, 1)) == [
        (10, 20, 0),
        (10, 20, 1),
    ]


def test_candidates_change_where_a_rule_begins_or_ends() -> None:
    assert intervals_of(rule(10, 20, 1), rule(15, 30, 2)) == [
        (10, 14, 0),
        (15, 20, 0),
        (15, 20, 1),
        (21, 30, 1),
    ]


def test_the_most_candidates_of_an_interval_are_told() -> None:
    rules = [rule(1, 9, 1), rule(2, 8, 2), rule(3, 7, 4), rule(100, 200, 7)]
    assert resolve(rules, MEMBERS.__getitem__)[1] == 3


def test_a_rule_that_no_interval_leads_to_is_shadowed() -> None:
    rules = [rule(10, 20), rule(15, 30), rule(12, 25), rule(40, 50)]
    intervals, _ = resolve(rules, MEMBERS.__getitem__)
    assert shadowed(rules, intervals) == {2}


def test_n_overlapping_ranges_make_no_more_than_2n_less_1_intervals() -> None:
    """As many as the port indexes have room for (FW_LARGE_INTERVALS)."""
    # Nested, the innermost first: each but the first is seen on both of its sides.
    rules = [rule(1000 - i, 1000 + i) for i in range(100)]
    assert len(intervals_of(*rules)) == 199
