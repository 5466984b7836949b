# SPDX-License-Identifier: GPL-2.0-only
"""Many rules, and maps that are full."""

from __future__ import annotations

import resource
from itertools import combinations, islice
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.firewall.support import frames
from tests.firewall.support.contents import (
    HERE,
    INTERFACE,
    Contents,
    datagram,
    fill,
    key,
    listing,
    rule,
)
from tests.support.netns import Namespace
from zfw_py import Firewall, Insert, MapFull, Prefix, Rule, RuleKey
from zfw_py.cli.app import main
from zfw_py.firewall import layout

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.firewall.support.frames import Gateway

pytestmark = pytest.mark.kernel


def test_many_rules_do_not_need_as_many_descriptors(gateway: Gateway) -> None:
    """A process may have 1,024; each 4,096 rules have two maps."""
    count = 40 * layout.SEGMENT_SLOTS
    used = len(list(Path("/proc/self/fd").iterdir()))
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    # Segments of one kind are open together while they are made; and all the other maps.
    resource.setrlimit(resource.RLIMIT_NOFILE, (used + 40 + len(layout.MAPS) + 8, hard))
    try:
        fill([rule(1, 1, Prefix(4, n.to_bytes(4, "big"), 32)) for n in range(count)])
        assert len(gateway.firewall.rules()) == count
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_a_hundred_thousand_rules_come_and_go(gateway: Gateway) -> None:
    """More than the first map of prefixes holds: a larger one takes its place, with all of them."""
    count = 100_000
    fill([rule(7, destination=HERE, service_id="first")])
    address = int.from_bytes(Prefix.parse("10.128.0.0").address, "big")
    many = [
        rule(i % 60000, destination=Prefix(4, (address + i).to_bytes(4, "big"), 32))
        for i in range(count)
    ]
    fill(many)
    rules = gateway.firewall.rules()
    assert len(rules) == count + 1
    assert rules[-1].service_id == "first"
    assert {str(each.key) for each in rules[:-1]} == {str(each.key) for each in many}
    Contents().check()
    for i in (0, 16383, 16384, 65535, count - 1):
        packet = datagram(i % 60000, many[i].key.destination)
        assert gateway.firewall.explain(packet, INTERFACE).reason == "rule_pass"
    assert gateway.firewall.flush() == count + 1
    contents = Contents()
    contents.check()
    assert contents.prefixes == {}
    packet = datagram(0, many[0].key.destination)
    assert gateway.firewall.explain(packet, INTERFACE).reason == "no_rule"


def refused(action: Callable[[], object], match: str) -> None:
    """A limit is reached: MapFull of one line, and nothing is changed.

    Names and sets that no rule mentions may have come: they go when room is needed.
    """
    old = listing()
    before = Contents()
    with pytest.raises(MapFull, match=match) as full:
        action()
    assert "\n" not in full.value.message
    assert listing() == old
    after = Contents()
    after.check()
    assert (after.prefixes, after.ports) == (before.prefixes, before.ports)


def test_a_prefix_takes_2040_ranges_and_not_one_more(gateway: Gateway) -> None:
    """Overlapping ones at that, which make the most intervals: 2N - 1."""
    assert layout.LARGE_RULES == 2040
    middle = 30000
    fill([rule(middle - i, middle + i) for i in range(2040)])
    contents = Contents()
    contents.check()
    (entries,) = [contents.rules_of(prefix_key) for prefix_key in contents.prefixes]
    for i in (0, 1, 1000, 2039):
        for port in (middle - i, middle + i):
            decision = gateway.firewall.explain(datagram(port), INTERFACE)
            assert decision.slot == entries[i].slot
    refused(lambda: gateway.firewall.insert(rule(1)), "2040")
    gateway.firewall.insert(rule(middle, service_id="changed"))
    gateway.firewall.delete(key(middle))
    gateway.firewall.insert(rule(1))


def test_every_pair_of_ipv4_lengths_may_be_in_use(gateway: Gateway) -> None:
    pairs = [(d, s) for d in range(33) for s in range(33)]
    assert len(pairs) == layout.MAX_LENGTHS == 1089
    fill(
        Rule(
            RuleKey(
                Prefix.parse("192.0.2.1", destination_length),
                "udp",
                destination_length * 33 + source_length,
                source=Prefix.parse(frames.CLIENT[4], source_length),
            )
        )
        for destination_length, source_length in pairs
    )
    contents = Contents()
    contents.check()
    assert len(contents.lengths[1]) == 1089
    # Each has a port of its own: the packet falls through all that are longer.
    for port in (0, 1, 33, 500, 1088):
        assert gateway.firewall.explain(datagram(port), INTERFACE).reason == "rule_pass"
    assert gateway.firewall.explain(datagram(1089), INTERFACE).reason == "no_rule"


def test_ipv6_has_more_pairs_than_a_table_takes(gateway: Gateway) -> None:
    pairs = list(islice(((d, s) for d in range(129) for s in range(129)), layout.MAX_LENGTHS + 1))
    fd = bytes.fromhex("fd") + bytes([255]) * 15
    edits = [
        Insert(Rule(RuleKey(Prefix(6, fd, d), "udp", 1, source=Prefix(6, fd, s)))) for d, s in pairs
    ]
    gateway.firewall.apply(edits[:-1])
    refused(lambda: gateway.firewall.apply(edits[-1:]), "1089")
    # Another table has pairs of its own, and one that is free again can be used.
    gateway.firewall.insert(rule(1))
    gateway.firewall.delete(edits[0].rule.key)
    gateway.firewall.apply(edits[-1:])
    Contents().check()


@pytest.fixture(scope="module")
def crowded(_private_bpffs: None) -> Iterator[tuple[Namespace, list[str]]]:
    """A namespace with more interfaces than names may be known; attached to lo."""
    made = Namespace()
    count = layout.MAX_INTERFACE_NAMES // 2 + 8
    lines = [f"link add x{i} type veth peer name y{i}" for i in range(count)]
    made.run("ip", "-batch", "-", input="\n".join(lines))
    with made.entered():
        Firewall().attach("lo", "ingress")
    yield made, [f"{side}{i}" for i in range(count) for side in "xy"]
    with made.entered():
        Firewall().detach_all()
    made.close()


@pytest.fixture
def interfaces(crowded: tuple[Namespace, list[str]]) -> Iterator[list[str]]:
    """The test is there, with the interfaces' names; there is no rule."""
    namespace, names = crowded
    with namespace.entered():
        Firewall().flush()
        yield names


def test_1024_interface_names_may_be_known(
    crowded: tuple[Namespace, list[str]], interfaces: list[str]
) -> None:
    firewall = Firewall()
    namespace, _ = crowded
    free = layout.MAX_INTERFACE_NAMES - 1  # lo is attached
    fill(
        rule(port, interfaces=interfaces[port : min(port + 64, free - 1)])
        for port in range(0, free - 1, 64)
    )
    assert len(Contents().names) == layout.MAX_INTERFACE_NAMES - 1
    one, _, other = interfaces[free - 1 :][:3]
    refused(lambda: firewall.insert(rule(9000, interfaces=(one, other))), "1024")
    firewall.insert(rule(9000, interfaces=(one,)))
    refused(lambda: firewall.insert(rule(9001, interfaces=(other,))), other)
    refused(lambda: firewall.set([other], "icmp_echo", True), other)
    # A name that no rule mentions makes room when its interface is gone.
    firewall.delete(key(9000))
    namespace.run("ip", "link", "del", one)
    firewall.refresh()
    firewall.insert(rule(9001, interfaces=(other,)))
    assert listing()[-1][5] == (other,)


def all_sets(names: list[str]) -> list[tuple[str, ...]]:
    """The sets of ten names are as many as there can be: 2^10 - 1."""
    sets = [some for size in range(1, 11) for some in combinations(sorted(names[:10]), size)]
    assert len(sets) == layout.MAX_INTERFACE_SETS - 1
    return sets


def test_1023_sets_of_interfaces_may_be_in_use(interfaces: list[str]) -> None:
    sets = all_sets(interfaces)
    fill(rule(port, interfaces=some) for port, some in enumerate(sets))
    assert [row[5] for row in listing()] == sets
    refused(lambda: Firewall().insert(rule(5000, interfaces=interfaces[10:11])), "1023")
    # A set that is in use already takes no room.
    Firewall().insert(rule(5000, interfaces=sets[0]))


def test_sets_that_no_rule_has_any_more_are_collected(interfaces: list[str]) -> None:
    sets = all_sets(interfaces)
    fill(rule(port, interfaces=some) for port, some in enumerate(sets))
    for port in (100, 200):
        Firewall().delete(key(port))
    # One of the two sets again, and in the same batch a new one, for which room is made.
    new = tuple(interfaces[10:11])
    Firewall().apply([Insert(rule(5000, interfaces=sets[100])), Insert(rule(5001, interfaces=new))])
    rows = {row[0]: row[5] for row in listing()}
    assert rows[str(key(5000))] == sets[100]
    assert rows[str(key(5001))] == new
    for port in (0, 99, 101, 1022):
        assert rows[str(key(port))] == sets[port]


def test_one_port_takes_as_many_candidates_as_there_is_room_for(interfaces: list[str]) -> None:
    """Rules for one port that differ in their interfaces; each has its own first port.

    From each such port on there is a candidate more, and each candidate is an interval.
    """
    firewall = Firewall()
    most = max(n for n in range(1, 257) if n * (n + 1) // 2 <= layout.LARGE_INTERVALS)
    assert most < layout.MAX_CANDIDATES
    fill(rule(i, 300, interfaces=(name,)) for i, name in enumerate(interfaces[:most]))
    last, first_without = interfaces[most - 1], interfaces[most]
    refused(lambda: firewall.insert(rule(299, 300, interfaces=(first_without,))), "interfaces")
    # Where it names none that an earlier one does not name, it is no candidate.
    assert firewall.insert(rule(299, 300, interfaces=interfaces[:9])).is_shadowed

    for name in (last, first_without):
        firewall.set([name], "per_interface_rules", True)
    contents = Contents()
    (entries,) = [contents.rules_of(prefix_key) for prefix_key in contents.prefixes]
    assert firewall.explain(datagram(300), last).slot == entries[most - 1].slot
    assert firewall.explain(datagram(300), first_without).reason == "no_rule"
    for name in (last, first_without):
        firewall.set([name], "per_interface_rules", False)


@pytest.mark.timeout(300)
def test_more_addresses_than_fit_are_refused_before_anything_is_written(
    namespace: Namespace, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every command that would write them, with one line; the firewall goes on as it was."""
    namespace.add_veth("few0", "few1")
    namespace.add_veth("many0", "many1")
    room = layout.MAPS["addresses"][3]
    Firewall().attach("few0")
    batch = [f"address add 10.{n >> 16}.{n >> 8 & 255}.{n & 255}/32 dev many0" for n in range(room)]
    namespace.run("ip", "-batch", "-", input="\n".join(batch))
    Firewall().insert(Rule(RuleKey(Prefix.parse("192.0.2.1"), "tcp", 1)))
    namespace.ip("address add 172.16.0.1/32 dev few0")
    before = Firewall().save()
    refused = (
        f"zfw: the interfaces that the firewall knows have {room + 1} addresses, and {room} fit"
        " into its table\n"
    )
    insert = ["insert", "-c", "192.0.2.2", "-p", "tcp", "-l", "1"]
    for command in (
        ["attach", "many0"],
        ["set", "many0", "--ipv6", "on"],
        [*insert, "-N", "many0"],
    ):
        capsys.readouterr()
        assert main(command) == 7
        assert capsys.readouterr() == ("", refused)
        assert Firewall().save() == before
    assert main(insert) == 0, "of interfaces that the firewall does not know, any number"
    namespace.ip("address del 172.16.0.1/32 dev few0")
    assert main(["attach", "many0"]) == 0
    namespace.ip("address add 172.16.0.1/32 dev few0")
    before = Firewall().save()
    for command in (["delete", *insert[1:]], ["flush", "--yes"], ["set", "few0", "--ssh", "off"]):
        capsys.readouterr()
        assert main(command) == 7
        assert capsys.readouterr() == ("", refused)
        assert Firewall().save() == before
    assert main(["detach", "many0"]) == 0
