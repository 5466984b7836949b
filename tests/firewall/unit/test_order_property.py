# SPDX-License-Identifier: GPL-2.0-only
"""The order of an edit's writes, against packets that arrive between any two of them.

The model below is written from the description: prefixes from the most specific to the least,
of each the first rule that applies. It knows nothing of unions and marks.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from hypothesis import given
from hypothesis import strategies as st

from zfw_py.firewall import codec, layout
from zfw_py.firewall.codec import PortRule, encode_prefix_key
from zfw_py.firewall.model import RuleKey, parse_destination
from zfw_py.firewall.rules.order import after, before, covers, is_union, levels, union
from zfw_py.values.prefix import Prefix

if TYPE_CHECKING:
    from collections.abc import Iterator

PORTS = (1, 2, 3, 4)
INTERFACES = (0, 1)
# A chain: a packet to the first address, which is an own one, tries all of them, in this order.
CHAIN = [
    encode_prefix_key(
        RuleKey(parse_destination(to, None, "", ""), "udp", 1, source=Prefix.parse(from_))
    )
    for to in ("10.1.1.1", "own4", "10.1.1.0/24", "10.0.0.0/8")
    for from_ in ("192.0.2.1", "0.0.0.0/0")
]
Rules = dict[bytes, list[PortRule]]


@st.composite
def rule_sets(draw: st.DrawFn) -> Rules:
    found: Rules = {}
    for key in draw(st.sets(st.sampled_from(CHAIN))):
        lows = draw(st.lists(st.sampled_from(PORTS), min_size=1, max_size=3, unique=True))
        found[key] = [
            PortRule(
                (
                    low,
                    draw(st.integers(low, max(PORTS))),
                    0,
                    members := draw(st.integers(0, 2 ** len(INTERFACES) - 1)),
                    0,
                    draw(st.integers(0, 2)),
                    layout.RULE_NAMED if members and draw(st.booleans()) else 0,
                    0,
                )
            )
            for low in lows
        ]
    return found


# An interface, and whether it has the setting per-interface-rules; 2 is one that no rule names.
SEEN_BY = [(interface, setting) for interface in (*INTERFACES, 2) for setting in (False, True)]


def action(rules: Rules, port: int, interface: int, is_per_interface: bool) -> int | None:
    """What becomes of a packet that arrives at an interface."""
    for key in CHAIN:
        for rule in rules.get(key, ()):
            if rule.low_port <= port <= rule.high_port and (
                not (is_per_interface or rule.flags & layout.RULE_NAMED)
                or rule.interface_set >> interface & 1
            ):
                return rule.action
    return None


def members_of(number: int) -> int:
    return number


def states(old: Rules, new: Rules) -> Iterator[Rules]:
    """The rules after each write of an edit."""
    now = dict(old)
    yield now
    changed = [key for key in CHAIN if old.get(key) != new.get(key)]
    pairs = [(old.get(key, []), new.get(key, [])) for key in changed]
    only_adds = all(covers(after_, before_, members_of) for before_, after_ in pairs)
    only_removes = all(covers(before_, after_, members_of) for before_, after_ in pairs)
    if not only_adds and not only_removes:
        for level in levels(changed, most_specific_first=True):
            for key in level:
                now = {**now, key: union(old.get(key, []), new.get(key, []))}
                yield now
    for level in levels(changed, most_specific_first=only_adds):
        for key in level:
            now = {**now, key: new.get(key, [])}
            yield now


@given(rule_sets(), rule_sets())
def test_each_packet_meets_its_rule_of_before_or_of_after(old: Rules, new: Rules) -> None:
    for now in states(old, new):
        for port in PORTS:
            for seen_by in SEEN_BY:
                expected = (action(old, port, *seen_by), action(new, port, *seen_by))
                assert action(now, port, *seen_by) in expected


@given(rule_sets(), st.data())
def test_what_covers_applies_to_each_packet_that_is_covered(
    rules: Rules, data: st.DataObject
) -> None:
    """The rules and the same with one of them changed: so that one often covers the other."""
    for some in rules.values():
        index = data.draw(st.integers(0, len(some) - 1))
        low, high, *rest = some[index]
        rest[1] = data.draw(st.integers(0, 2 ** len(INTERFACES) - 1))
        rest[4] = layout.RULE_NAMED if rest[1] and data.draw(st.booleans()) else 0
        high = data.draw(st.integers(low, max(PORTS)))
        others = [*some[:index], PortRule((low, high, *rest)), *some[index + 1 :]]
        for a, b in ((some, others), (others, some)):
            if covers(a, b, members_of):
                for port in PORTS:
                    for seen_by in SEEN_BY:
                        if action({CHAIN[0]: b}, port, *seen_by) is not None:
                            assert action({CHAIN[0]: a}, port, *seen_by) is not None


@given(rule_sets(), rule_sets())
def test_a_union_holds_the_rules_of_before_and_of_after(old: Rules, new: Rules) -> None:
    for key in CHAIN:
        both = union(old.get(key, []), new.get(key, []))
        assert before(both) == old.get(key, [])
        assert after(both) == new.get(key, [])
        assert is_union(both) == bool(both)
        assert not is_union(old.get(key, []))


def test_a_level_is_a_pair_of_lengths_and_the_most_specific_is_first() -> None:
    assert levels(reversed(CHAIN), most_specific_first=True) == [[key] for key in CHAIN]
    assert levels(CHAIN, most_specific_first=False) == [[key] for key in reversed(CHAIN)]
    assert len({codec.level_of(key) for key in CHAIN}) == len(CHAIN)
