# SPDX-License-Identifier: GPL-2.0-only
"""The port index against a model that looks at every rule for every port.

Ports and interfaces are few here, so that ranges and lists overlap; the ends of
the range of ports are among them.
"""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

from hypothesis import given
from hypothesis import strategies as st

from zfw_py.firewall import layout
from zfw_py.firewall.codec import PortRule
from zfw_py.firewall.port_index import resolve, shadowed

if TYPE_CHECKING:
    from zfw_py.firewall.codec import Interval

INTERFACES = range(4)
PORTS = [0, 1, 2, 3, 10, 11, 12, 20, 65533, 65534, 65535]


def members_of(number: int) -> int:
    """The set of this number is that of its bits."""
    return number


@st.composite
def rule_lists(draw: st.DrawFn, sets: st.SearchStrategy[int]) -> list[PortRule]:
    rules = []
    for slot in range(draw(st.integers(1, 8))):
        low, high = sorted((draw(st.sampled_from(PORTS)), draw(st.sampled_from(PORTS))))
        members = draw(sets)
        flags = layout.RULE_NAMED if members and draw(st.booleans()) else 0
        rules.append(PortRule((low, high, 0, members, slot, 1, flags, 0)))
    return rules


without_interfaces = rule_lists(st.just(0))
with_interfaces = rule_lists(st.integers(0, 2 ** len(INTERFACES) - 1))


# An interface, and whether it has the setting per-interface-rules; 4 is one that no rule names.
SEEN_BY = [(interface, setting) for interface in (*INTERFACES, 4) for setting in (False, True)]


def applies(rule: PortRule, interface: int, is_per_interface: bool) -> bool:
    looks_at_names = is_per_interface or bool(rule.flags & layout.RULE_NAMED)
    return not looks_at_names or bool(rule.interface_set >> interface & 1)


def wins(rules: list[PortRule], port: int, interface: int, is_per_interface: bool) -> int | None:
    """The model: the first rule in order of entry that applies."""
    for index, rule in enumerate(rules):
        if rule.low_port <= port <= rule.high_port and applies(rule, interface, is_per_interface):
            return index
    return None


def found(
    rules: list[PortRule],
    intervals: list[Interval],
    port: int,
    interface: int,
    is_per_interface: bool,
) -> int | None:
    """What the program does: it goes through the candidates of the port, in order."""
    for low, high, index in intervals:
        if low <= port <= high and applies(rules[index], interface, is_per_interface):
            return index
    return None


@given(with_interfaces)
def test_every_port_on_every_interface_finds_the_rule_that_wins(rules: list[PortRule]) -> None:
    intervals, _ = resolve(rules, members_of)
    for port in {p for rule in rules for end in rule[:2] for p in (end - 1, end, end + 1)}:
        if 0 <= port <= 65535:
            for seen_by in SEEN_BY:
                assert found(rules, intervals, port, *seen_by) == wins(rules, port, *seen_by)


@given(without_interfaces)
def test_without_interfaces_intervals_are_disjoint_sorted_and_as_few_as_can_be(
    rules: list[PortRule],
) -> None:
    intervals, most = resolve(rules, members_of)
    assert most == 1
    assert len(intervals) <= 2 * len(rules) - 1
    for (_, high, index), (low, _, next_index) in pairwise(intervals):
        assert high < low
        assert high + 1 < low or index != next_index


@given(with_interfaces)
def test_candidates_of_one_interval_follow_each_other_in_order_of_entry(
    rules: list[PortRule],
) -> None:
    """The binary search needs them sorted by port; the scan needs them together."""
    intervals, most = resolve(rules, members_of)
    counts: dict[tuple[int, int], int] = {}
    for low, high, _ in intervals:
        counts[low, high] = counts.get((low, high), 0) + 1
    assert most == max(counts.values())
    assert intervals == sorted(intervals)
    for (_, high), (low, _) in pairwise(counts):
        assert high < low


@given(with_interfaces)
def test_no_candidate_is_there_for_nothing(rules: list[PortRule]) -> None:
    """Each wins somewhere in its interval: 256 candidates go further without the others."""
    intervals, _ = resolve(rules, members_of)
    for low, _, index in intervals:
        assert index in {wins(rules, low, *seen_by) for seen_by in SEEN_BY}


@given(with_interfaces)
def test_a_rule_is_shadowed_if_and_only_if_it_wins_nowhere(rules: list[PortRule]) -> None:
    intervals, _ = resolve(rules, members_of)
    winners = {
        wins(rules, port, *seen_by)
        # A winner changes only where a rule begins or has ended.
        for port in {p for rule in rules for p in (rule.low_port, rule.high_port + 1)}
        for seen_by in SEEN_BY
    }
    assert shadowed(rules, intervals) == set(range(len(rules))) - winners
