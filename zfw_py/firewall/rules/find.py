# SPDX-License-Identifier: GPL-2.0-only
"""Find the rules of a prefix's element, or all that there are."""

from __future__ import annotations

from zfw_py.firewall import codec, layout

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from zfw_py.firewall.codec import PortRule
    from zfw_py.firewall.maps import Maps


def settled(rules: list[PortRule], progress: int) -> list[PortRule]:
    """The rules that the next writer leaves of those that a killed one wrote (enum fw_progress)."""
    if progress == layout.PROGRESS_NONE:
        return rules
    from zfw_py.firewall.rules.order import after, before, is_union

    if not is_union(rules):
        return rules
    return after(rules) if progress == layout.PROGRESS_FORWARD else before(rules)


def rules_of(maps: Maps, element: bytes) -> tuple[bytes, list[PortRule]]:
    """The key of a prefix's element, and its rules in order of entry."""
    key, size_class, rules = codec.decode_prefix(element)
    if size_class != layout.SIZE_INLINE:
        ports = maps.ports(size_class).lookup(key)
        rules = [] if ports is None else codec.decode_ports(ports, size_class)
    return key, rules


def port_rules(maps: Maps) -> Iterator[tuple[bytes, int, list[PortRule]]]:
    """Every prefix key with its size class and its rules in order of entry."""
    longer = {}
    for key, value in maps.prefixes.items():
        _, size_class, rules = codec.decode_prefix(value)
        if size_class == layout.SIZE_INLINE:
            yield key, size_class, rules
        else:
            longer[key] = size_class
    for key, size_class in longer.items():
        data = maps.ports(size_class).lookup(key)
        if data is not None:
            yield key, size_class, codec.decode_ports(data, size_class)
