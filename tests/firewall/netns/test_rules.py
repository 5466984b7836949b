# SPDX-License-Identifier: GPL-2.0-only
"""Which rule a packet meets: longest destination, then longest source, then order of entry."""

from __future__ import annotations

from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

import pytest

from tests.firewall.support import frames
from tests.firewall.support.frames import (
    AFTERWARDS,
    CLIENT,
    EVERYWHERE,
    GATEWAY,
    PROTOCOLS,
    SERVICE,
    Gateway,
    datagram,
    families,
    ip,
    listening,
)
from tests.support.netns import Network
from zfw_py import Insert, Prefix, Rule, RuleKey, RuleNotFound

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.firewall.support.listeners import Listener

pytestmark = pytest.mark.kernel

protocols = pytest.mark.parametrize("protocol", PROTOCOLS)

# The client's second address.
SECOND = {4: "10.9.0.3", 6: "fd09::3"}


@pytest.fixture
def second_address(gateway: Gateway) -> Iterator[None]:
    """The client has two addresses of each family."""
    for family, length in ((4, 24), (6, 64)):
        gateway.client.add_addresses("eth0", f"{SECOND[family]}/{length}")
        gateway.gateway.add_neighbour("gw0", SECOND[family], gateway.client_mac)
    yield
    for family, length in ((4, 24), (6, 64)):
        address = f"{SECOND[family]}/{length}"
        gateway.client.run("ip", "address", "del", address, "dev", "eth0")
        gateway.gateway.run("ip", "neighbour", "del", SECOND[family], "dev", "gw0")


@contextmanager
def several(count: int, family: int, protocol: str = "udp") -> Iterator[list[Listener]]:
    """So many listeners, to see which one is meant."""
    with ExitStack() as stack:
        yield [stack.enter_context(listening(protocol, family)) for _ in range(count)]


# Prefixes


NESTED = {
    4: ["0.0.0.0/0", "100.64.0.0/10", "100.72.0.0/16", "100.72.0.0/24", "100.72.0.4/32"],
    6: ["::/0", "fd72::/16", "fd72::/64", "fd72::/125", "fd72::4/128"],
}
# One address for each of them, in no longer one.
WITHIN = {
    4: ["172.20.1.1", "100.65.0.1", "100.72.9.1", "100.72.0.5", "100.72.0.4"],
    6: [GATEWAY[6], "fd72:9::1", "fd72::9", "fd72::5", "fd72::4"],
}


@families
@protocols
@pytest.mark.parametrize("order", [1, -1], ids=["longest last", "longest first"])
def test_the_longest_destination_wins(
    gateway: Gateway, order: int, protocol: str, family: int
) -> None:
    with several(5, family, protocol) as listeners:
        for prefix, listener in list(zip(NESTED[family], listeners, strict=True))[::order]:
            gateway.insert(prefix, protocol, 80, to=listener.port)
        for address, listener in zip(WITHIN[family], listeners, strict=True):
            with gateway.counts(rule_intercept=1, **AFTERWARDS[protocol]):
                gateway.talks(listener, address, 80)
    assert [rule.packets for rule in gateway.firewall.rules()] == [1] * 5


@families
def test_each_length_takes_its_turn_as_longer_ones_go(gateway: Gateway, family: int) -> None:
    with several(5, family) as listeners:
        rules = [
            gateway.insert(prefix, "udp", 80, to=listener.port)
            for prefix, listener in zip(NESTED[family], listeners, strict=True)
        ]
        for rule, listener in reversed(list(zip(rules, listeners, strict=True))):
            gateway.talks(listener, SERVICE[family], 80)
            gateway.firewall.delete(rule.rule.key)
        gateway.is_dropped("udp", SERVICE[family], 80, "no_rule")


@families
def test_a_prefix_without_the_port_falls_through_to_a_shorter_one(
    gateway: Gateway, family: int
) -> None:
    """Through all of them: not the first three alone."""
    destinations = {
        4: [f"100.72.0.0/{length}" for length in range(10, 31)] + ["100.72.0.4/31", "100.72.0.4"],
        6: [f"fd72::/{length}" for length in range(16, 126, 5)] + ["fd72::4/127", "fd72::4"],
    }[family]
    with several(1, family) as (listener,):
        for destination in destinations:
            gateway.insert(destination, "udp", 1, 79, deny=True)
        wanted = gateway.insert(EVERYWHERE[family], "udp", 80, to=listener.port)
        with gateway.counts(rule_intercept=1):
            gateway.talks(listener, SERVICE[family], 80)
        assert gateway.hits(wanted) == 1
        gateway.is_dropped("udp", SERVICE[family], 79, "rule_deny")
        gateway.is_dropped("udp", SERVICE[family], 81, "no_rule")


@families
def test_every_length_of_a_destination_can_be_in_use(gateway: Gateway, family: int) -> None:
    bits = {4: 32, 6: 128}[family]
    with several(1, family) as (listener,):
        edits = []
        for length in range(bits + 1):
            key = RuleKey(Prefix.parse(SERVICE[family], length), "udp", 1000 + length)
            edits.append(Insert(Rule(key, tproxy_port=listener.port)))
        gateway.firewall.apply(edits)
        for length in (0, 1, bits // 2, bits - 1, bits):
            gateway.talks(listener, SERVICE[family], 1000 + length)
        gateway.is_dropped("udp", SERVICE[family], 999, "no_rule")


@families
def test_the_longest_source_wins_within_a_destination(
    gateway: Gateway, second_address: None, family: int
) -> None:
    exact = {4: f"{SECOND[4]}/32", 6: f"{SECOND[6]}/128"}[family]
    subnet = {4: "10.9.0.0/24", 6: "fd09::/64"}[family]
    elsewhere = {4: "192.0.2.0/24", 6: "2001:db8::/32"}[family]
    with several(3, family) as (of_second, of_subnet, of_nobody):
        gateway.insert(SERVICE[family], "udp", 80, to=of_nobody.port, source=elsewhere)
        gateway.insert(SERVICE[family], "udp", 80, to=of_subnet.port, source=subnet)
        gateway.insert(SERVICE[family], "udp", 80, to=of_second.port, source=exact)
        gateway.talks(of_subnet, SERVICE[family], 80, CLIENT[family])
        gateway.talks(of_second, SERVICE[family], 80, SECOND[family])


@families
def test_the_destination_counts_before_the_source(
    gateway: Gateway, second_address: None, family: int
) -> None:
    wider = {4: "100.72.0.0/16", 6: "fd72::/64"}[family]
    with several(2, family) as (by_destination, by_source):
        gateway.insert(SERVICE[family], "udp", 80, to=by_destination.port)
        gateway.insert(wider, "udp", 80, to=by_source.port, source=CLIENT[family])
        gateway.talks(by_destination, SERVICE[family], 80)


@families
def test_a_source_that_does_not_match_falls_through(
    gateway: Gateway, second_address: None, family: int
) -> None:
    wider = {4: "100.72.0.0/16", 6: "fd72::/64"}[family]
    with several(2, family) as (of_second, of_anybody):
        gateway.insert(SERVICE[family], "udp", 80, to=of_second.port, source=SECOND[family])
        gateway.is_dropped("udp", SERVICE[family], 80, "no_rule", source=CLIENT[family])
        gateway.insert(wider, "udp", 80, to=of_anybody.port)
        gateway.talks(of_second, SERVICE[family], 80, SECOND[family])
        gateway.talks(of_anybody, SERVICE[family], 80, CLIENT[family])


@families
def test_rules_of_one_destination_and_two_sources_are_two(
    gateway: Gateway, second_address: None, family: int
) -> None:
    with several(2, family) as (of_second, of_anybody):
        special = gateway.insert(
            SERVICE[family], "udp", 80, to=of_second.port, source=SECOND[family]
        )
        general = gateway.insert(SERVICE[family], "udp", 80, to=of_anybody.port)
        gateway.firewall.delete(special.rule.key)
        gateway.talks(of_anybody, SERVICE[family], 80, SECOND[family])
        gateway.firewall.delete(general.rule.key)
        gateway.is_dropped("udp", SERVICE[family], 80, "no_rule", source=SECOND[family])


@pytest.mark.parametrize(
    ("given", "canonical", "address"),
    [
        ("100.72.3.4/16", "100.72.0.0/16", "100.72.200.1"),
        ("172.20.1.255/12", "172.16.0.0/12", "172.20.0.1"),
        ("fd72::abcd/64", "fd72::/64", "fd72::1"),
    ],
)
@pytest.mark.parametrize("spelling", ["given", "canonical"])
def test_host_bits_do_not_matter(
    gateway: Gateway, given: str, canonical: str, address: str, spelling: str
) -> None:
    family = frames.family_of(given)
    with several(1, family, "tcp") as (listener,):
        gateway.insert(given, "tcp", 80, to=listener.port)
        gateway.talks(listener, address, 80)
        (rule,) = gateway.firewall.rules()
        assert str(rule.key.destination) == canonical
        prefix = Prefix.parse({"given": given, "canonical": canonical}[spelling])
        gateway.firewall.delete(RuleKey(prefix, "tcp", 80))
        gateway.is_dropped("tcp", address, 80, "no_rule")


def test_an_ipv6_rule_takes_any_ipv4_source_for_any(gateway: Gateway) -> None:
    """As routers give it, with every rule."""
    with listening("tcp", 6) as listener:
        gateway.insert(SERVICE[6], "tcp", 443, to=listener.port, source="0.0.0.0/0")
        gateway.talks(listener, SERVICE[6], 443)


# Ports


@families
@protocols
@pytest.mark.parametrize(
    ("low", "high"), [(0, 0), (0, 65535), (80, 80), (79, 81), (1024, 65535), (65535, 65535)]
)
def test_a_range_has_two_ends(
    gateway: Gateway, protocol: str, low: int, high: int, family: int
) -> None:
    gateway.insert(SERVICE[family], protocol, low, high, deny=True)
    layer = {"tcp": frames.TCP, "udp": frames.UDP}[protocol]

    def send(*ports: int) -> None:
        gateway.send(*(ip(SERVICE[family]) / layer(dport=port, sport=40000) for port in ports))

    with gateway.counts(rule_deny=2):
        send(low, high)
    outside = [port for port in (low - 1, high + 1) if 0 <= port <= 65535]
    if outside:
        with gateway.counts(no_rule=len(outside)):
            send(*outside)


@families
def test_the_order_of_entry_counts_among_overlapping_ranges(gateway: Gateway, family: int) -> None:
    with several(3, family) as (first, second, third):
        gateway.insert(SERVICE[family], "udp", 100, 200, to=first.port)
        gateway.insert(SERVICE[family], "udp", 150, 250, to=second.port)
        shadowed = gateway.insert(SERVICE[family], "udp", 160, 170, to=third.port)
        assert shadowed.is_shadowed
        for port, listener in ((100, first), (165, first), (200, first), (201, second)):
            gateway.talks(listener, SERVICE[family], port)
        gateway.firewall.delete(RuleKey(Prefix.parse(SERVICE[family]), "udp", 100))
        for port, listener in ((165, second), (170, second), (250, second)):
            gateway.talks(listener, SERVICE[family], port)
        gateway.firewall.delete(RuleKey(Prefix.parse(SERVICE[family]), "udp", 150))
        gateway.talks(third, SERVICE[family], 165)


@families
def test_a_narrow_deny_works_where_it_came_first_or_is_more_specific(
    gateway: Gateway, family: int
) -> None:
    wider = {4: "100.72.0.0/16", 6: "fd72::/64"}[family]
    with several(1, family) as (listener,):
        gateway.insert(wider, "udp", 25, deny=True)
        gateway.insert(wider, "udp", 1, 1000, to=listener.port)
        gateway.insert(SERVICE[family], "udp", 26, deny=True)
        gateway.is_dropped("udp", SERVICE[family], 25, "rule_deny")
        gateway.is_dropped("udp", SERVICE[family], 26, "rule_deny")
        gateway.talks(listener, SERVICE[family], 27)


@families
def test_a_specific_pass_is_an_exception_from_a_wide_intercept(
    gateway: Gateway, family: int
) -> None:
    with several(1, family) as (listener,), listening("udp", family, 0, SERVICE[family]) as own:
        gateway.insert(EVERYWHERE[family], "udp", 1, 65535, to=listener.port)
        gateway.insert(SERVICE[family], "udp", own.port)
        gateway.talks(own, SERVICE[family], own.port)
        other = own.port - 1
        gateway.talks(listener, SERVICE[family], other)


@families
@pytest.mark.parametrize("count", [4, 5, 101, 122, 123, 1000, 2040])
def test_any_number_of_ranges_fits_into_a_prefix(gateway: Gateway, count: int, family: int) -> None:
    """With gaps between: each range has two ports, and one is left out."""
    key = Prefix.parse(SERVICE[family])
    with several(2, family) as (even, odd):
        edits = [
            Insert(
                Rule(
                    RuleKey(key, "udp", 100 + 3 * number),
                    101 + 3 * number,
                    tproxy_port=(even, odd)[number % 2].port,
                )
            )
            for number in range(count)
        ]
        gateway.firewall.apply(edits)
        probed = sorted({0, 1, count // 2, count - 2, count - 1})
        for number in probed:
            low, listener = 100 + 3 * number, (even, odd)[number % 2]
            with gateway.counts(rule_intercept=2, no_rule=2):
                for port in (low - 1, low, low + 1, low + 2):
                    gateway.send(datagram(SERVICE[family], port))
            assert [listener.receive()[2][1] for _ in range(2)] == [low, low + 1]
    rules = gateway.firewall.rules()
    assert len(rules) == count
    hits = [(number, rule.packets) for number, rule in enumerate(rules) if rule.packets]
    assert hits == [(number, 2) for number in probed]


@families
def test_ranges_inserted_one_by_one_all_work(gateway: Gateway, family: int) -> None:
    """The prefix outgrows its element on the way, and shrinks back."""
    with several(1, family) as (listener,):
        for number in range(130):
            gateway.insert(SERVICE[family], "udp", 1000 + number, to=listener.port)
        for port in (1000, 1003, 1004, 1121, 1122, 1129):
            gateway.talks(listener, SERVICE[family], port)
        for number in range(3, 130):
            gateway.firewall.delete(RuleKey(Prefix.parse(SERVICE[family]), "udp", 1000 + number))
        gateway.talks(listener, SERVICE[family], 1002)
        gateway.is_dropped("udp", SERVICE[family], 1003, "no_rule")


@families
def test_many_prefixes(gateway: Gateway, family: int) -> None:
    """More than a thousand, and the one that is meant is found."""
    with several(2, family) as (meant, others):
        edits = []
        for number in range(1500):
            text = {4: f"100.80.{number // 250}.{number % 250}", 6: f"fd72:1::{number:x}"}[family]
            edits.append(
                Insert(Rule(RuleKey(Prefix.parse(text), "udp", 80), tproxy_port=others.port))
            )
        gateway.firewall.apply(edits)
        gateway.insert(SERVICE[family], "udp", 80, to=meant.port)
        gateway.talks(meant, SERVICE[family], 80)
        gateway.talks(others, {4: "100.80.5.249", 6: "fd72:1::5db"}[family], 80)
        assert sum(rule.packets for rule in gateway.firewall.rules()) == 2


# Interfaces


# Whether the interface looks at the interfaces of all rules, or of limited ones alone.
per_interface = pytest.mark.parametrize("per_interface", [False, True])


@families
@protocols
@per_interface
def test_a_rule_that_names_interfaces_counts_on_these_alone(
    gateway: Gateway, per_interface: bool, protocol: str, family: int
) -> None:
    gateway.firewall.set(["gw0"], "per_interface_rules", per_interface)
    with several(1, family, protocol) as (listener,):
        gateway.insert(SERVICE[family], protocol, 80, to=listener.port, interfaces=("lo",))
        gateway.is_dropped(protocol, SERVICE[family], 80, "no_rule")
        gateway.insert(SERVICE[family], protocol, 80, to=listener.port, interfaces=("gw0",))
        gateway.talks(listener, SERVICE[family], 80)
        (rule,) = gateway.firewall.rules()
        assert (rule.interfaces, rule.is_limited) == (("gw0", "lo"), True)
        gateway.firewall.delete(rule.key, ("gw0",))
        gateway.is_dropped(protocol, SERVICE[family], 80, "no_rule")


@families
def test_a_rule_of_the_lan_lets_nothing_of_the_wan_in(gateway: Gateway, family: int) -> None:
    """Neither interface has a setting of its own; each has rules of its own all the same."""
    with gateway.second_wire() as wire:
        gateway.insert(EVERYWHERE[family], "udp", 0, 65535, interfaces=("gw0",))
        gateway.insert(SERVICE[family], "udp", 80, deny=True, interfaces=("gw1",))
        with gateway.counts(rule_pass=2):
            gateway.send(datagram(SERVICE[family], 80), datagram(SERVICE[family], 81))
        with gateway.counts(rule_deny=1, no_rule=1):
            wire(datagram(SERVICE[family], 80))
            wire(datagram(SERVICE[family], 81))


def test_a_name_that_has_no_row_is_not_the_first_name(gateway: Gateway) -> None:
    """The program knows an interface without a row by no name, whichever number names have."""
    gateway.insert(SERVICE[4], "udp", 80, interfaces=("gw0",))
    gateway.insert(SERVICE[4], "udp", 81)
    packets = [datagram(SERVICE[4], port) for port in (80, 81)]
    with interfaces(gateway, "up1"):
        found = [
            gateway.firewall.explain(bytes(gateway.framed(packet)), "up1").reason
            for packet in packets
        ]
        assert found == ["no_rule", "rule_pass"]


@families
def test_a_rule_of_the_classic_grammar_counts_on_others_unless_that_is_set(
    gateway: Gateway, family: int
) -> None:
    def insert(name: str, to: int) -> None:
        gateway.insert(SERVICE[family], "udp", 80, to=to, interfaces=(name,), limited=False)

    with several(1, family) as (listener,):
        insert("lo", listener.port)
        (rule,) = gateway.firewall.rules()
        assert (rule.interfaces, rule.is_limited) == (("lo",), False)
        gateway.talks(listener, SERVICE[family], 80)
        gateway.firewall.set(["gw0"], "per_interface_rules", True)
        gateway.is_dropped("udp", SERVICE[family], 80, "no_rule")
        insert("gw0", listener.port)
        gateway.talks(listener, SERVICE[family], 80)


def test_the_last_insert_says_whether_a_rule_is_limited(gateway: Gateway) -> None:
    for name, limited in (("lo", False), ("gw0", True), ("lo", False)):
        gateway.insert(SERVICE[4], "udp", 80, interfaces=(name,), limited=limited)
        (rule,) = gateway.firewall.rules()
        assert rule.is_limited == limited
    gateway.insert(SERVICE[4], "udp", 80, interfaces=("gw0",))
    gateway.insert(SERVICE[4], "udp", 80)
    (rule,) = gateway.firewall.rules()
    assert (rule.interfaces, rule.is_limited) == ((), False)


@families
def test_a_rule_without_interfaces_is_for_none_of_them(gateway: Gateway, family: int) -> None:
    gateway.firewall.set(["gw0"], "per_interface_rules", True)
    with several(1, family) as (listener,):
        gateway.insert(SERVICE[family], "udp", 80, to=listener.port)
        gateway.is_dropped("udp", SERVICE[family], 80, "no_rule")


@families
@per_interface
def test_another_interfaces_rule_hides_neither_later_nor_shorter_ones(
    gateway: Gateway, per_interface: bool, family: int
) -> None:
    gateway.firewall.set(["gw0"], "per_interface_rules", per_interface)
    wider = {4: "100.72.0.0/16", 6: "fd72::/64"}[family]
    with several(3, family) as (theirs, ours, shorter):
        gateway.insert(SERVICE[family], "udp", 1, 100, to=theirs.port, interfaces=("lo",))
        gateway.insert(SERVICE[family], "udp", 50, 60, to=ours.port, interfaces=("gw0",))
        gateway.insert(wider, "udp", 1, 100, to=shorter.port, interfaces=("gw0",))
        gateway.talks(ours, SERVICE[family], 55)
        gateway.talks(shorter, SERVICE[family], 70)
        # The same in a port index of another size.
        for number in range(10):
            gateway.insert(SERVICE[family], "udp", 200 + number, interfaces=("lo",))
        gateway.talks(ours, SERVICE[family], 55)
        gateway.talks(shorter, SERVICE[family], 70)


@contextmanager
def interfaces(gateway: Gateway, *names: str) -> Iterator[None]:
    """More interfaces of the gateway, that nothing is attached to."""
    lines = "".join(f"link add {name} type veth peer name {name}-peer\n" for name in names)
    gateway.gateway.run("ip", "-batch", "-", input=lines)
    try:
        yield
    finally:
        lines = "".join(f"link del {name}\n" for name in names)
        gateway.gateway.run("ip", "-batch", "-", input=lines)
        gateway.firewall.refresh()


@families
def test_a_rule_can_name_any_number_of_interfaces(gateway: Gateway, family: int) -> None:
    gateway.firewall.set(["gw0"], "per_interface_rules", True)
    names = ("up1", "up2", "up3", "up4")
    with interfaces(gateway, *names), several(1, family) as (listener,):
        gateway.insert(SERVICE[family], "udp", 80, to=listener.port, interfaces=(*names, "gw0"))
        gateway.talks(listener, SERVICE[family], 80)
        (rule,) = gateway.firewall.rules()
        assert rule.interfaces == ("gw0", *names)


def test_interfaces_given_one_by_one_are_a_union_and_go_one_by_one(gateway: Gateway) -> None:
    gateway.firewall.set(["gw0"], "per_interface_rules", True)
    with several(1, 4) as (listener,), interfaces(gateway, "up1"):
        for name in ("up1", "gw0"):
            inserted = gateway.insert(SERVICE[4], "udp", 80, to=listener.port, interfaces=(name,))
        gateway.talks(listener, SERVICE[4], 80)
        assert gateway.firewall.rules()[0].interfaces == ("gw0", "up1")
        gateway.firewall.delete(inserted.rule.key, ("gw0",))
        gateway.is_dropped("udp", SERVICE[4], 80, "no_rule")
        assert gateway.firewall.rules()[0].interfaces == ("up1",)
        gateway.firewall.delete(inserted.rule.key, ("up1",))
        assert gateway.firewall.rules() == []
        with pytest.raises(RuleNotFound):
            gateway.firewall.delete(inserted.rule.key, ("up1",))


@families
@per_interface
def test_each_interface_has_its_own_rules(
    gateway: Gateway, per_interface: bool, family: int
) -> None:
    with gateway.second_wire() as wire:
        gateway.firewall.set(["gw0", "gw1"], "per_interface_rules", per_interface)
        gateway.insert(SERVICE[family], "udp", 80, deny=True, interfaces=("gw0",))
        gateway.insert(SERVICE[family], "udp", 81, deny=True, interfaces=("gw1",))
        packets = [datagram(SERVICE[family], port) for port in (80, 81)]
        with gateway.counts(rule_deny=1, no_rule=1):
            gateway.send(*packets)
        with gateway.counts(rule_deny=1, no_rule=1):
            for packet in packets:
                wire(packet)
    assert [rule.packets for rule in gateway.firewall.rules()] == [1, 1]


def test_a_rule_follows_the_interfaces_name(gateway: Gateway) -> None:
    """Deleted and made again, with another index."""
    with gateway.second_wire():
        gateway.firewall.set(["gw1"], "per_interface_rules", True)
        gateway.insert(SERVICE[4], "udp", 80, deny=True, interfaces=("gw1",))
    with gateway.second_wire() as wire, gateway.counts(rule_deny=1, no_rule=1):
        wire(datagram(SERVICE[4], 80))
        wire(datagram(SERVICE[4], 81))


def test_settings_are_an_interfaces_own(gateway: Gateway) -> None:
    with gateway.second_wire() as wire:
        gateway.firewall.set(["gw1"], "ipv6", False)
        with gateway.counts(no_rule=1, ipv6_off=1):
            gateway.send(datagram(SERVICE[6], 80))
            wire(datagram(SERVICE[6], 80))


@families
def test_an_egress_rule_lets_nothing_in(gateway: Gateway, family: int) -> None:
    key = RuleKey(Prefix.parse(EVERYWHERE[family]), "udp", 0, direction="egress")
    gateway.firewall.insert(Rule(key, 65535))
    gateway.is_dropped("udp", SERVICE[family], 80, "no_rule")


def test_a_deny_that_the_ssh_exception_stands_before_says_what_to_type(gateway: Gateway) -> None:
    firewall = gateway.firewall
    own, other = Prefix.parse(GATEWAY[4]), Prefix.parse("198.51.100.7")
    warning = (
        f"TCP port 22 of {Network.interface}'s own addresses passes before all rules:"
        f" zfw set {Network.interface} --ssh off"
    )
    for prefix, low, high in ((own, 22, 22), (own, 1, 1024), (Prefix.parse("0.0.0.0/0"), 0, 65535)):
        denied = Rule(RuleKey(prefix, "tcp", low), high, deny=True)
        assert firewall.insert(denied).warnings() == [warning]
    for silent in (
        Rule(RuleKey(other, "tcp", 22), deny=True),
        Rule(RuleKey(own, "tcp", 2000), 3000, deny=True),
        Rule(RuleKey(own, "udp", 22), deny=True),
        Rule(RuleKey(own, "tcp", 22)),
    ):
        assert firewall.insert(silent).warnings() == []
    firewall.set([Network.interface], "ssh", False)
    assert firewall.insert(Rule(RuleKey(own, "tcp", 22), deny=True)).warnings() == []
    firewall.set([Network.interface], "ssh", True)


def test_a_classic_rule_that_names_interfaces_says_where_it_counts_all_the_same(
    gateway: Gateway,
) -> None:
    firewall = gateway.firewall
    key = RuleKey(Prefix.parse("198.51.100.7"), "tcp", 80)

    def classic(name: str) -> Rule:
        return Rule(key, interfaces=(name,), limited=False)

    assert firewall.insert(Rule(key, interfaces=("lo",))).warnings() == []
    (warning,) = firewall.insert(classic("lo")).warnings()
    assert warning == (
        f"rule {key} pass counts on {Network.interface} too, which does not look at the interfaces"
        f" of rules: zfw set {Network.interface} --per-interface-rules on"
    )
    firewall.set([Network.interface], "per_interface_rules", True)
    assert firewall.insert(classic("lo")).warnings() == []
    firewall.set([Network.interface], "per_interface_rules", False)
    assert firewall.insert(classic(Network.interface)).warnings() == []
