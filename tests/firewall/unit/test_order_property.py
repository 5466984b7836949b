# SPDX-License-Identifier: GPL-2.0-only
"""The order of an edit's writes, against packets that arrive between any two of them.

The model below is written from the description: prefixes from the most specific to the least,
of each the first rule that applies. It knows nothing of unions and marks.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from hypothesis import given
from hypothesis import strategies as st

from zfw_py.firewall import codec
from zfw_py.firewall.codec import PortRule, encode_prefix_key
from zfw_py.firewall.model import RuleKey
from zfw_py.firewall.rules.order import after, before, covers, is_union, levels, union
from zfw_py.values.prefix import Prefix

if TYPE_CHECKING:
    from collections.abc import Iterator

PORTS = (1, 2, 3, 4)
INTERFACES = (0, 1)
# A chain: a packet to the first address tries all of them, in this order.
CHAIN = [
    encode_prefix_key(RuleKey(Prefix.parse(to), "udp", 1, source=Prefix.parse(from_)))
    for to in ("10.1.1.1", "10.1.1.0/24", "10.0.0.0/8")
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
                    draw(st.integers(0, 2 ** len(INTERFACES) - 1)),
                    0,
                    draw(st.integers(0, 2)),
                    0,
                    0,
                )
            )
            for low in lows
        ]
    return found


def action(rules: Rules, port: int, interface: int | None) -> int | None:
    """What becomes of a packet; no interface: lists of interfaces do not count."""
    for key in CHAIN:
        for rule in rules.get(key, ()):
            if rule.low_port <= port <= rule.high_port and (
                interface is None or rule.interface_set >> interface & 1
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
            for interface in (None, *INTERFACES):
                expected = (action(old, port, interface), action(new, port, interface))
                assert action(now, port, interface) in expected


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
