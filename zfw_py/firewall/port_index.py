# SPDX-License-Identifier: GPL-2.0-only
"""The rules of one prefix, overlaps resolved into disjoint port intervals. Pure."""

from __future__ import annotations

from _bisect import insort_right

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from zfw_py.firewall.codec import Interval, PortRule


def resolve(
    rules: Sequence[PortRule], members_of: Callable[[int], int]
) -> tuple[list[Interval], int]:
    """Disjoint intervals (low_port, high_port, index into rules), sorted by port.

    Where the winner depends on the interface, an interval stands once for each
    candidate, in order of entry: the first rule that covers it and is not limited
    to its interfaces (it wins where interface lists do not count) and each one
    that names an interface no earlier candidate names. ``members_of`` turns an
    interface set's number into a bitmap of its names. Also returns the most
    candidates that an interval has.
    """
    if len(rules) == 1:
        return [(rules[0].low_port, rules[0].high_port, 0)], 1
    changes: dict[int, tuple[list[int], list[int]]] = {}
    for index, rule in enumerate(rules):
        changes.setdefault(rule.low_port, ([], []))[0].append(index)
        changes.setdefault(rule.high_port + 1, ([], []))[1].append(index)

    has_sets = any(rule.interface_set for rule in rules)
    intervals: list[Interval] = []
    open_candidates: tuple[int, ...] = ()
    open_low = 0
    most = 0
    active: list[int] = []
    for port in sorted(changes):
        starting, ending = changes[port]
        for index in ending:
            active.remove(index)
        for index in starting:
            insort_right(active, index)
        if not has_sets or not active:
            candidates = tuple(active[:1])
        else:
            kept = []
            named = 0
            is_any_found = False
            for index in active:
                members = members_of(rules[index].interface_set)
                is_first_for_any = not (is_any_found or rules[index].is_limited)
                if is_first_for_any or members & ~named:
                    kept.append(index)
                    named |= members
                    is_any_found |= is_first_for_any
            candidates = tuple(kept)
        if candidates == open_candidates:
            continue
        intervals += [(open_low, port - 1, index) for index in open_candidates]
        most = max(most, len(open_candidates))
        open_candidates, open_low = candidates, port
    return intervals, most


def shadowed(rules: Sequence[PortRule], intervals: Sequence[Interval]) -> set[int]:
    """The indexes of the rules that no interval leads to: they can never match."""
    return set(range(len(rules))) - {index for _, _, index in intervals}
