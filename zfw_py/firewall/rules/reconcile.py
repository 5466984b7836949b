# SPDX-License-Identifier: GPL-2.0-only
"""Change the rules of a prefix to what a document has."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from zfw_py.firewall.codec import PortRule, decode_prefix_key, encode_port_rule
from zfw_py.firewall.rules.edit import EditedPrefix, Inserted

if TYPE_CHECKING:
    from collections.abc import Sequence

    from zfw_py.firewall.model import Rule
    from zfw_py.firewall.rules.edit import RuleEdit

    # A rule, the own names of its interfaces, and whether it shall hold a local route.
    Wanted = tuple[Rule, tuple[str, ...], bool]


class Reconciled(NamedTuple):
    """How many rules were changed, by kind; in how many prefixes those that stay moved."""

    inserted: int
    changed: int
    deleted: int
    reordered: int


def reconcile(edit: RuleEdit, key: bytes, wanted: Sequence[Wanted]) -> Reconciled | None:
    """Make the rules of a prefix exactly these, in this order; None if they are already.

    ``key`` is a struct zfw_prefix_key. Rules that stay keep their counters, and a prefix that
    does not change is not written. Once for a prefix in an edit that has no other verbs.
    """
    prefix = edit.prefix(key)
    old_rules = [] if prefix is None else prefix.rules
    old = {rule.low_port: rule for rule in old_rules}
    rules: list[PortRule] = []
    changed = held = released = 0
    for rule, names, is_routed in wanted:
        present = old.pop(rule.key.low_port, None)
        was_routed = present is not None and present.is_routed
        port_rule = PortRule.of(
            rule,
            edit.interfaces.number_of(names) if names else 0,
            edit.slot_for(present, rule.service_id) if present else edit.new_slot(rule.service_id),
            is_routed=is_routed,
        )
        held += is_routed and not was_routed
        released += was_routed and not is_routed
        changed += present is not None and port_rule != present
        rules.append(port_rule)
    edit.freed += [gone.slot for gone in old.values()]
    released += sum(gone.is_routed for gone in old.values())
    if rules == old_rules:
        edit.prefixes.pop(key, None)
        return None
    if held or released:
        _, _, destination, _ = decode_prefix_key(key)
        edit.held += [destination] * held
        edit.released += [(destination, False)] * released
    if prefix is not None:
        prefix.rules = rules
    elif len(rules) == 1:
        edit.single[key] = encode_port_rule(rules[0])
    else:
        edit.prefixes[key] = EditedPrefix(key, rules)
    kept = {rule.low_port for rule in rules} & {rule.low_port for rule in old_rules}
    edit.inserted += [
        Inserted(rule, port_rule.slot, is_replaced=port_rule.low_port in kept)
        for (rule, _, _), port_rule in zip(wanted, rules, strict=True)
    ]
    before, after = (
        [rule.low_port for rule in some if rule.low_port in kept] for some in (old_rules, rules)
    )
    return Reconciled(len(rules) - len(kept), changed, len(old), int(before != after))
