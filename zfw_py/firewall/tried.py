# SPDX-License-Identifier: GPL-2.0-only
"""The search for a packet's rule, step by step, as ``fw_find_rule()`` takes it.

The program's own answer is the decision. What is found here explains it, and counts only where
both find the same rule: the caller compares them. The caller holds the lock.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from zfw_py.firewall import codec, layout
from zfw_py.firewall.interfaces import is_own_address
from zfw_py.firewall.rules.find import rules_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from zfw_py.firewall.codec import PortRule
    from zfw_py.firewall.interfaces import Interfaces
    from zfw_py.firewall.maps import Maps

# Prefixes of other sources can be found by reading all prefixes alone. With more than so many
# that takes longer than the rest of the command.
MOST_READ = 50_000
# Ports that a reason lists.
_MOST_PORTS = 4

_PROTOCOLS = {"tcp": "udp", "udp": "tcp"}


class Place(NamedTuple):
    """The properties of an interface that the search depends on."""

    ifindex: int
    settings: int
    name_id: int

    @property
    def is_per_interface(self) -> bool:
        """Whether only rules that name the interface apply."""
        return bool(self.settings & layout.SETTING_PER_INTERFACE_RULES)


class Sought(NamedTuple):
    """What a rule has to match. Addresses are 16 bytes each, IPv4 mapped into IPv6."""

    direction: str
    family: int
    protocol: str  # "tcp" or "udp"
    source: bytes
    destination: bytes
    port: int


class Tried(NamedTuple):
    """A prefix that comes before the rule that matched, and why none of its rules did."""

    prefix: str
    source: str
    why: str


# A prefix's place in the order of look-ups, see codec.precedence_of(), and why it did not match.
_Other = tuple[tuple[int, ...], Tried]


class Search(NamedTuple):
    """The result: the rule's prefix key and the rule, or None twice.

    ``is_complete`` is False where prefixes of other sources were not looked for.
    """

    key: bytes | None
    rule: PortRule | None
    tried: list[Tried]
    is_complete: bool


def place_of(maps: Maps, ifindex: int) -> Place:
    """The row of an interface; one without a row has the strictest settings."""
    value = maps.map("interfaces").lookup(codec.u32(ifindex % layout.INTERFACE_ROWS))
    row = codec.decode_interface(value) if value else (0, 0, 0, 0)
    if row[0] != ifindex:
        return Place(ifindex, layout.SETTING_OUTBOUND_FILTER, layout.MAX_INTERFACE_NAMES)
    return Place(ifindex, row[1], row[2])


def search(maps: Maps, interfaces: Interfaces, place: Place, sought: Sought) -> Search:
    """The rule for a packet, and what comes before it and does not match."""
    others: list[_Other] = []
    key = rule = None
    winner: tuple[int, ...] = (-1, -1)
    for lengths, found, rules in _levels(maps, sought):
        on_port = [each for each in rules if each.low_port <= sought.port <= each.high_port]
        rule = next((each for each in on_port if _applies(interfaces, place, each)), None)
        if rule is not None:
            key, winner = found, lengths
            break
        why = _other_interfaces(interfaces, on_port) if on_port else _other_ports(rules)
        others.append((lengths, _tried(found, why)))
    others += _other_protocol(maps, interfaces, place, sought, winner)
    near, is_complete = _other_sources(maps, interfaces, place, sought, winner)
    others += near
    others.sort(key=lambda each: each[0], reverse=True)
    return Search(key, rule, [each for _, each in others], is_complete)


def _levels(maps: Maps, sought: Sought) -> Iterator[tuple[tuple[int, ...], bytes, list[PortRule]]]:
    """The prefixes of a table that cover both addresses, in the order of look-ups.

    Each with its place in that order, the greatest first, and with its rules.
    """
    table = codec.table_of(sought.direction, sought.family, sought.protocol)
    lengths = maps.map("lengths").lookup(codec.u32(table))
    for pair in codec.decode_lengths(lengths) if lengths else ():
        key = codec.encode_covering_key(table, sought.destination, sought.source, pair)
        if codec.is_own_key(key) and not _is_own(maps, sought):
            continue
        element = maps.prefixes.lookup(key)
        if element is not None:
            yield codec.precedence_of(pair), key, rules_of(maps, element)[1]


def _is_own(maps: Maps, sought: Sought) -> bool:
    return is_own_address(maps, sought.family, sought.destination)


def _applies(interfaces: Interfaces, place: Place, rule: PortRule) -> bool:
    return not (place.is_per_interface or rule.flags & layout.RULE_NAMED) or bool(
        interfaces.members_of(rule.interface_set) >> place.name_id & 1
    )


def _matches(interfaces: Interfaces, place: Place, port: int, rules: list[PortRule]) -> bool:
    return any(
        each.low_port <= port <= each.high_port and _applies(interfaces, place, each)
        for each in rules
    )


def _other_protocol(
    maps: Maps, interfaces: Interfaces, place: Place, sought: Sought, winner: tuple[int, ...]
) -> list[_Other]:
    """Rules that would match but for their protocol."""
    other = _PROTOCOLS[sought.protocol]
    return [
        (lengths, _tried(key, f"its rule is for {other}"))
        for lengths, key, rules in _levels(maps, sought._replace(protocol=other))
        if lengths > winner and _matches(interfaces, place, sought.port, rules)
    ]


def _other_sources(
    maps: Maps, interfaces: Interfaces, place: Place, sought: Sought, winner: tuple[int, ...]
) -> tuple[list[_Other], bool]:
    """Rules that would match but for their source; and whether they were looked for."""
    table = codec.table_of(sought.direction, sought.family, sought.protocol)
    any_source = 96 if sought.family == 4 else 0
    lengths = maps.map("lengths").lookup(codec.u32(table))
    pairs = codec.decode_lengths(lengths) if lengths else []
    if not any(codec.precedence_of(pair) > winner and pair[1] > any_source for pair in pairs):
        return [], True
    counts = maps.map("length_counts").items()
    if sum(codec.from_u32(value) for _, value in counts) > MOST_READ:
        return [], False
    found = []
    for key, element in maps.prefixes.items():
        pair = codec.precedence_of(codec.lengths_of(key))
        if (
            codec.table_number_of(key) != table
            or pair <= winner
            or codec.covers_source(key, sought.source)
        ):
            continue
        if not (
            _is_own(maps, sought)
            if codec.is_own_key(key)
            else codec.covers_destination(key, sought.destination)
        ):
            continue
        if _matches(interfaces, place, sought.port, rules_of(maps, element)[1]):
            found.append((pair, _tried(key, "the packet's source is another")))
    return found, True


def _tried(key: bytes, why: str) -> Tried:
    _, _, destination, source = codec.decode_prefix_key(key)
    return Tried(str(destination), str(source), why)


def _other_ports(rules: list[PortRule]) -> str:
    shown = [
        str(each.low_port)
        if each.low_port == each.high_port
        else f"{each.low_port}-{each.high_port}"
        for each in sorted(rules)[:_MOST_PORTS]
    ]
    if len(rules) > _MOST_PORTS:
        shown.append(f"{len(rules) - _MOST_PORTS} more")
    is_one = len(rules) == 1 and rules[0].low_port == rules[0].high_port
    return f"its {'port is' if is_one else 'ports are'} {', '.join(shown)}"


def _other_interfaces(interfaces: Interfaces, rules: list[PortRule]) -> str:
    names = sorted({name for each in rules for name in interfaces.names_of(each.interface_set)})
    if not names:
        return "it names no interface, and this one has per-interface-rules"
    return f"it is for {', '.join(names)} alone"
