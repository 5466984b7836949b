# SPDX-License-Identifier: GPL-2.0-only
"""The order of an edit's writes: each packet meets its rule of before or its rule of after. Pure.

A packet tries prefixes from the most specific to the least, and takes the first rule that
applies. A writer replaces one prefix at a time. Deleting a deny before the pass around it would
let packets through that both rule sets drop.

- An edit that only adds writes the most specific prefix first: a packet that meets a new rule
  has met all new rules before it.
- An edit that only removes writes the least specific prefix first, for the same reason.
- Any other edit is written twice. First each changed prefix gets its ``union``, the new rules and
  behind them the old ones that go, most specific first. Then each gets its new rules, least
  specific first.

The proof, for one packet: let A be the first prefix with an old rule for it, and B the first with
a new one. In the first pass the prefixes up to some point have their union, the others their old
rules. If A and B lie behind that point, the packet takes the old rule of A. Else it takes the
union's rule in the first of A and B, which is the new rule if that is B, and the old rule of A
otherwise. The second pass is the same, with the new rules in place of the old ones.

Rules of a union are marked, so that the next writer can complete or undo the edit of a killed one.
"""

from __future__ import annotations

from zfw_py.firewall import layout
from zfw_py.firewall.codec import PortRule, level_of, precedence_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

_MARKS = layout.RULE_COMING | layout.RULE_LEAVING


def levels(keys: Iterable[bytes], *, most_specific_first: bool) -> list[list[bytes]]:
    """The struct fw_prefix_key of an edit, those of equal lengths together, in order.

    A packet tries at most one prefix of each pair of lengths, so the order within a level is
    of no account.
    """
    by_level: dict[bytes, list[bytes]] = {}
    for key in keys:
        by_level.setdefault(level_of(key), []).append(key)
    in_order = sorted(by_level, key=precedence_of, reverse=most_specific_first)
    return [by_level[level] for level in in_order]


def covers(
    some: Sequence[PortRule], others: Sequence[PortRule], members_of: Callable[[int], int]
) -> bool:
    """Whether one of ``some`` applies to each packet that one of ``others`` applies to.

    It compares rules of the same low port only: False may mean that it cannot tell.
    """
    by_port = {rule.low_port: rule for rule in some}
    for other in others:
        rule = by_port.get(other.low_port)
        if rule is None or rule.high_port < other.high_port:
            return False
        if rule.is_limited and not other.is_limited:
            return False
        if rule.interface_set != other.interface_set and (
            members_of(other.interface_set) & ~members_of(rule.interface_set)
        ):
            return False
    return True


def union(old: Sequence[PortRule], new: Sequence[PortRule]) -> list[PortRule]:
    """The new rules, and behind them the old ones that are not among these; all marked."""
    places = {rule: place for place, rule in enumerate(old, 1)}
    rules = []
    for rule in new:
        place = places.pop(rule, 0)
        rules.append(rule.marked(0 if place else layout.RULE_COMING, place))
    return rules + [rule.marked(layout.RULE_LEAVING, place) for rule, place in places.items()]


def is_union(rules: Sequence[PortRule]) -> bool:
    """Whether the rules are marked."""
    return any(rule.flags & _MARKS or rule.old_place for rule in rules)


def before(rules: Sequence[PortRule]) -> list[PortRule]:
    """The old rules of a union."""
    old = [rule for rule in rules if not rule.flags & layout.RULE_COMING]
    return [_unmarked(rule) for rule in sorted(old, key=lambda rule: rule.old_place)]


def after(rules: Sequence[PortRule]) -> list[PortRule]:
    """The new rules of a union."""
    return [_unmarked(rule) for rule in rules if not rule.flags & layout.RULE_LEAVING]


def _unmarked(rule: PortRule) -> PortRule:
    return PortRule((*rule[:6], rule.flags & ~_MARKS, 0))
