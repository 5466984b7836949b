# SPDX-License-Identifier: GPL-2.0-only
"""Rules for this host's own addresses, own4 and own6: which addresses these are, and when."""

from __future__ import annotations

import socket
from contextlib import contextmanager
from socket import if_nametoindex
from typing import TYPE_CHECKING

import pytest

from tests.firewall.support.contents import Contents
from tests.firewall.support.faults import watch_each_write
from tests.firewall.support.following import Follower
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
    listening,
)
from tests.support.waiting import wait_until
from zfw_py import OWN4, OWN6, Delete, Firewall, Insert, MapFull, Prefix, Rule, RuleKey
from zfw_py.firewall import layout
from zfw_py.firewall.explain import explain
from zfw_py.firewall.maps import Maps

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support.netns import Namespace

pytestmark = pytest.mark.kernel

protocols = pytest.mark.parametrize("protocol", PROTOCOLS)

OWN = {4: "own4", 6: "own6"}
# Addresses that the gateway does not have at first, of no subnet of its interfaces; all are
# local by a route, as a router's boot scripts add it.
MORE = {4: "100.72.0.77", 6: "fd72::77"}
SINGLE = {4: 32, 6: 128}
# What contains GATEWAY and is the next wider prefix.
WIDER = {4: f"{GATEWAY[4]}/31", 6: f"{GATEWAY[6]}/127"}


@contextmanager
def has(gateway: Gateway, address: str, device: str) -> Iterator[None]:
    """The gateway has an address; the firewall has been brought up to date."""
    text = f"{address}/{SINGLE[6 if ':' in address else 4]}"
    gateway.gateway.run("ip", "address", "add", text, "dev", device)
    gateway.firewall.refresh()
    try:
        yield
    finally:
        gateway.gateway.run("ip", "address", "del", text, "dev", device)
        gateway.firewall.refresh()


def counts_for(gateway: Gateway, family: int, address: str) -> bool:
    """Whether a deny of own addresses drops a packet to this address; all others pass."""
    packet = bytes(gateway.framed(datagram(address, 53)))
    reason = gateway.firewall.explain(packet, "gw0").reason
    assert reason in ("rule_deny", "rule_pass")
    return reason == "rule_deny"


@pytest.fixture
def denied(gateway: Gateway) -> None:
    """Of both families: own addresses are denied, all others pass."""
    for family in (4, 6):
        gateway.insert(OWN[family], "udp", 1, 65535, deny=True)
        gateway.insert(EVERYWHERE[family], "udp", 1, 65535)


# What a rule for them does


@families
@protocols
def test_a_pass_keeps_the_hosts_own_services_from_a_wide_intercept(
    gateway: Gateway, protocol: str, family: int
) -> None:
    with (
        listening(protocol, family) as proxy,
        listening(protocol, family, 53, GATEWAY[family]) as service,
    ):
        gateway.insert(EVERYWHERE[family], protocol, 1, 65535, to=proxy.port)
        gateway.talks(proxy, GATEWAY[family], 53)
        own = gateway.insert(OWN[family], protocol, 53)
        with gateway.counts(rule_pass=1, **AFTERWARDS[protocol]):
            gateway.talks(service, GATEWAY[family], 53)
        assert gateway.hits(own) == 1
        gateway.talks(proxy, SERVICE[family], 53)
        gateway.talks(proxy, GATEWAY[family], 54)
        gateway.firewall.delete(own.rule.key)
        gateway.talks(proxy, GATEWAY[family], 53)


@families
@protocols
def test_a_deny_drops_what_a_wide_pass_would_let_to_the_host(
    gateway: Gateway, protocol: str, family: int
) -> None:
    with listening(protocol, family, 80, SERVICE[family]) as elsewhere:
        gateway.insert(EVERYWHERE[family], protocol, 1, 65535)
        gateway.insert(OWN[family], protocol, 80, deny=True)
        gateway.is_dropped(protocol, GATEWAY[family], 80, "rule_deny")
        gateway.talks(elsewhere, SERVICE[family], 80)


@families
@protocols
def test_an_intercept_takes_packets_to_the_host_and_no_others(
    gateway: Gateway, protocol: str, family: int
) -> None:
    with (
        listening(protocol, family) as proxy,
        listening(protocol, family, 80, GATEWAY[family]),
    ):
        gateway.insert(OWN[family], protocol, 80, to=proxy.port)
        with gateway.counts(rule_intercept=1, **AFTERWARDS[protocol]):
            gateway.talks(proxy, GATEWAY[family], 80)
        gateway.is_dropped(protocol, SERVICE[family], 80, "no_rule")


@families
@protocols
def test_beside_a_packet_socket_an_intercept_takes_them_all_the_same(
    gateway: Gateway, protocol: str, family: int
) -> None:
    """There the kernel asks the program "deliver"."""
    ethertype = {4: 0x0800, 6: 0x86DD}[family]
    with (
        listening(protocol, family) as proxy,
        listening(protocol, family, 80, GATEWAY[family]),
        socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ethertype)),
    ):
        gateway.insert(OWN[family], protocol, 80, to=proxy.port)
        with gateway.counts(rule_intercept=1, deliver_intercept=1, **AFTERWARDS[protocol]):
            gateway.talks(proxy, GATEWAY[family], 80)


# Which rule comes first


@families
def test_a_single_address_goes_before_them_and_all_others_behind(
    gateway: Gateway, family: int
) -> None:
    host = Prefix.parse(CLIENT[family])
    reasons = []
    for destination, source, kind in (
        (EVERYWHERE[family], "", {}),
        (WIDER[family], str(host), {"deny": True}),
        (OWN[family], "", {}),
        (OWN[family], str(host), {"deny": True}),
        (GATEWAY[family], "", {}),
        (GATEWAY[family], str(host), {"deny": True}),
    ):
        gateway.insert(destination, "udp", 53, source=source, **kind)  # type: ignore[arg-type]
        packet = bytes(gateway.framed(datagram(GATEWAY[family], 53)))
        reasons.append(gateway.firewall.explain(packet, "gw0").reason)
    assert reasons == ["rule_pass", "rule_deny"] * 3
    Contents().check()


@families
def test_without_the_port_they_fall_through_to_a_wider_prefix(
    gateway: Gateway, family: int
) -> None:
    gateway.insert(OWN[family], "udp", 50, 52, deny=True)
    gateway.insert(OWN[family], "udp", 54, 60, deny=True, source=f"{CLIENT[family]}/31"[:-1] + "0")
    wide = gateway.insert(WIDER[family], "udp", 1, 65535)
    with gateway.counts(rule_pass=1, rule_deny=1):
        gateway.send(datagram(GATEWAY[family], 53), datagram(GATEWAY[family], 51))
    assert gateway.hits(wide) == 1


@families
@pytest.mark.parametrize("count", [3, 4, 5, 122, 123, 500])
def test_they_have_as_many_rules_as_any_prefix(gateway: Gateway, count: int, family: int) -> None:
    """In the element itself, in a medium and in a large port index."""
    own = OWN4 if family == 4 else OWN6
    gateway.firewall.apply(
        [Insert(Rule(RuleKey(own, "udp", 1000 + 2 * n), deny=n % 2 == 1)) for n in range(count)]
    )
    gateway.insert(EVERYWHERE[family], "udp", 1001)
    last = 1000 + 2 * (count - 1)
    with gateway.counts(rule_pass=2, rule_deny=1, no_rule=1):
        ports = (1000, 1001, last - 2 * (count % 2), last + 2)
        gateway.send(*(datagram(GATEWAY[family], port) for port in ports))


def test_rules_for_them_behind_a_hundred_lengths_are_found(gateway: Gateway) -> None:
    """And many sources of their own: a search takes several calls."""
    edits = [
        Insert(Rule(RuleKey(to, "udp", 1, source=Prefix.parse(CLIENT[4], length)), deny=True))
        for length in range(33)
        for to in (OWN4, Prefix.parse(GATEWAY[4]), Prefix.parse(GATEWAY[4], 31))
    ]
    gateway.firewall.apply([*edits, Insert(Rule(RuleKey(Prefix.any(4), "udp", 2)))])
    last = Rule(RuleKey(OWN4, "udp", 3))
    gateway.firewall.insert(last)
    with gateway.counts(rule_deny=1, rule_pass=2, no_rule=1):
        gateway.send(*(datagram(GATEWAY[4], port) for port in (1, 2, 3)), datagram(SERVICE[4], 3))


@families
def test_they_may_be_limited_to_an_interface(gateway: Gateway, family: int) -> None:
    gateway.insert(OWN[family], "udp", 53, interfaces=("gw0",))
    gateway.insert(OWN[family], "udp", 54, interfaces=("lo",))
    with gateway.counts(rule_pass=1, no_rule=1):
        gateway.send(datagram(GATEWAY[family], 53), datagram(GATEWAY[family], 54))


# Which addresses these are


@pytest.mark.usefixtures("denied")
@families
@pytest.mark.parametrize("device", ["gw0", "lo", "other0"])
def test_an_address_of_any_interface_is_own(gateway: Gateway, device: str, family: int) -> None:
    """The kernel takes a packet by whichever interface it comes; other0 is not known to zfw."""
    gateway.gateway.add_veth("other0", "other1")
    try:
        assert counts_for(gateway, family, GATEWAY[family])
        assert not counts_for(gateway, family, MORE[family])
        with has(gateway, MORE[family], device):
            assert counts_for(gateway, family, MORE[family])
        assert not counts_for(gateway, family, MORE[family])
    finally:
        gateway.gateway.run("ip", "link", "del", "other0")


@pytest.mark.usefixtures("denied")
@families
def test_what_only_a_route_makes_local_is_not_own(gateway: Gateway, family: int) -> None:
    """A router's local routes are what its intercepts are for."""
    assert not counts_for(gateway, family, SERVICE[family])


@pytest.mark.usefixtures("denied")
@families
@pytest.mark.parametrize("by", ["bind", "route"])
def test_what_zfw_made_local_is_not_own(gateway: Gateway, by: str, family: int) -> None:
    prefix = Prefix.parse({4: "198.51.100.9", 6: "fd99::9"}[family])
    rule = Rule(RuleKey(prefix, "tcp", 80))
    if by == "bind":
        gateway.firewall.bind(prefix)
    else:
        assert gateway.firewall.insert(rule, route=True).warnings() == []
    try:
        shown = gateway.gateway.run("ip", "address", "show", "dev", "lo").stdout
        assert prefix.address_text in shown
        assert not counts_for(gateway, family, prefix.address_text)
    finally:
        if by == "bind":
            gateway.firewall.unbind(prefix)
        else:
            gateway.firewall.delete(rule.key)


@pytest.mark.usefixtures("denied")
@families
def test_an_own_address_that_is_bound_as_well_stays_own(gateway: Gateway, family: int) -> None:
    prefix = Prefix.parse(MORE[family])
    for device in ("lo", "gw0"):
        with has(gateway, MORE[family], device):
            gateway.firewall.bind(prefix)
            assert counts_for(gateway, family, MORE[family])
            gateway.firewall.unbind(prefix)
            assert counts_for(gateway, family, MORE[family])


@pytest.mark.usefixtures("denied")
def test_an_own_ipv4_address_in_an_ipv6_packet_is_not_own(gateway: Gateway) -> None:
    assert counts_for(gateway, 4, GATEWAY[4])
    assert not counts_for(gateway, 6, f"::ffff:{GATEWAY[4]}")
    assert not counts_for(gateway, 6, "::")
    assert not counts_for(gateway, 6, "::ffff:0.0.0.0")


def test_addresses_that_do_not_fit_are_refused_with_the_rule(namespace: Namespace) -> None:
    """The firewall goes on as it was; without a rule for them, any number is fine."""
    room = layout.MAPS["addresses"][3]
    namespace.add_veth("many0", "many1")
    namespace.add_veth("few0", "few1")
    firewall = Firewall()
    firewall.attach("few0")
    namespace.ip("address add 172.16.0.1/32 dev few0")
    batch = [f"address add 10.{n >> 16}.{n >> 8 & 255}.{n & 255}/32 dev many0" for n in range(room)]
    namespace.run("ip", "-batch", "-", input="\n".join(batch))
    firewall.insert(Rule(RuleKey(Prefix.any(4), "udp", 1)))
    before = firewall.save()
    with pytest.raises(MapFull, match="rules for own addresses need"):
        firewall.insert(Rule(RuleKey(OWN4, "udp", 1)))
    assert firewall.save() == before
    Contents().check()
    firewall.insert(Rule(RuleKey(Prefix.any(4), "udp", 2)))
    firewall.detach_all()


# While addresses change


@pytest.mark.usefixtures("denied")
@families
def test_a_new_address_counts_after_any_writing_command(gateway: Gateway, family: int) -> None:
    """Until then the packet has the rule that it had before, whichever action own ones have."""
    address = f"{MORE[family]}/{SINGLE[family]}"
    gateway.gateway.run("ip", "address", "add", address, "dev", "lo")
    try:
        assert not counts_for(gateway, family, MORE[family])
        status = gateway.firewall.status()
        (found,) = [each for each in status.differences if each.interface == OWN[family]]
        assert str(found) == f"{OWN[family]}: its addresses are out of date: zfw follow --once"
        gateway.insert("192.0.2.1", "tcp", 1)
        assert counts_for(gateway, family, MORE[family])
        assert gateway.firewall.status().differences == []
    finally:
        gateway.gateway.run("ip", "address", "del", address, "dev", "lo")
    assert counts_for(gateway, family, MORE[family])
    gateway.insert("192.0.2.1", "tcp", 2)
    assert not counts_for(gateway, family, MORE[family])


@pytest.mark.usefixtures("denied")
@families
def test_with_the_follower_it_counts_soon(gateway: Gateway, family: int) -> None:
    address = f"{MORE[family]}/{SINGLE[family]}"
    with Follower(gateway.gateway):
        gateway.gateway.run("ip", "address", "add", address, "dev", "lo")
        assert wait_until(lambda: counts_for(gateway, family, MORE[family]))
        gateway.gateway.run("ip", "address", "del", address, "dev", "lo")
        assert wait_until(lambda: not counts_for(gateway, family, MORE[family]))


@families
@pytest.mark.parametrize("back", [False, True])
def test_a_rule_of_an_address_becomes_one_of_own_addresses_without_a_gap(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch, family: int, *, back: bool
) -> None:
    """Also where the firewall does not know yet that the address is own: no follower runs."""
    own: Prefix = OWN4 if family == 4 else OWN6
    single = Prefix.parse(MORE[family])
    packet = bytes(gateway.framed(datagram(MORE[family], 53)))
    first, second = (own, single) if back else (single, own)

    def key(destination: Prefix) -> RuleKey:
        return RuleKey(destination, "udp", 53)

    def reason() -> str:
        # Without the lock, which the writer has.
        return explain(Maps(is_writer=False), packet, if_nametoindex("gw0")).reason

    gateway.insert(EVERYWHERE[family], "udp", 1, 65535)
    text = f"{MORE[family]}/{SINGLE[family]}"
    gateway.gateway.run("ip", "address", "add", text, "dev", "lo")
    try:
        gateway.firewall.insert(Rule(key(first), deny=True))
        assert reason() == "rule_deny"
        if not back:
            gateway.gateway.run("ip", "address", "del", text, "dev", "lo")
            gateway.firewall.refresh()
            gateway.gateway.run("ip", "address", "add", text, "dev", "lo")
        found = watch_each_write(monkeypatch, reason)
        gateway.firewall.apply([Delete(key(first)), Insert(Rule(key(second), deny=True))])
        assert set(found) <= {"rule_deny", "rules_changing"}
        assert len(found) > 4
        assert reason() == "rule_deny"
    finally:
        gateway.gateway.run("ip", "address", "del", text, "dev", "lo")


# What is said of them


def test_they_are_listed_saved_and_restored(gateway: Gateway) -> None:
    for family in (4, 6):
        gateway.insert(OWN[family], "udp", 53)
        gateway.insert(OWN[family], "tcp", 22, deny=True, source=f"{CLIENT[family]}")
    listed = [str(rule.key) for rule in gateway.firewall.rules()]
    assert listed == [
        "ingress udp own4 port 53",
        f"ingress tcp own4 from {CLIENT[4]}/32 port 22",
        "ingress udp own6 port 53",
        f"ingress tcp own6 from {CLIENT[6]}/128 port 22",
    ]
    assert [rule.key.destination for rule in gateway.firewall.rules(destination=OWN4)] == [
        OWN4,
        OWN4,
    ]
    saved = gateway.firewall.save()
    assert {entry.destination for entry in saved.rules} == {"own4", "own6"}
    gateway.firewall.flush()
    assert gateway.firewall.restore(saved).inserted == 4
    assert gateway.firewall.save() == saved
    assert not gateway.firewall.restore(saved).is_changed
    packet = bytes(gateway.framed(datagram(GATEWAY[4], 53)))
    assert gateway.firewall.explain(packet, "gw0").reason == "rule_pass"
    Contents().check()


def test_a_local_route_for_them_is_not_needed(gateway: Gateway) -> None:
    inserted = gateway.firewall.insert(Rule(RuleKey(OWN4, "udp", 53)), route=True)
    assert inserted.warnings() == ["no local route is made: own4 is local already"]
    assert not gateway.firewall.rules()[0].is_routed


@families
def test_a_deny_of_ssh_says_that_ssh_passes_before_it(gateway: Gateway, family: int) -> None:
    (warning,) = gateway.insert(OWN[family], "tcp", 22, deny=True).warnings()
    assert warning == (
        "TCP port 22 of gw0's own addresses passes before all rules: zfw set gw0 --ssh off"
    )
