# SPDX-License-Identifier: GPL-2.0-only
"""Fragments: each follows its datagram's first one, and none is read for ports it has not.

An assigned socket does not survive reassembly. "deliver" gives it back.
"""

from __future__ import annotations

import struct
from contextlib import contextmanager
from itertools import count
from typing import TYPE_CHECKING

import pytest
from scapy.layers.inet import ICMP, IP, TCP, UDP, fragment
from scapy.layers.inet6 import (
    ICMPv6EchoReply,
    ICMPv6EchoRequest,
    IPv6,
    IPv6ExtHdrDestOpt,
    IPv6ExtHdrFragment,
    PadN,
    fragment6,
)
from scapy.packet import Raw

from tests.firewall.support import flow_tables, frames, routed
from tests.firewall.support.frames import (
    CLIENT,
    GATEWAY,
    SERVICE,
    Gateway,
    datagram,
    families,
    ip,
    is_silent,
    listening,
    transparent_socket,
)

if TYPE_CHECKING:
    import socket
    from collections.abc import Iterator

    from scapy.packet import Packet

    from tests.firewall.support.routed import Router

pytestmark = pytest.mark.kernel


UDP_NUMBER, TCP_NUMBER = 17, 6
IPV = {4: IP, 6: IPv6}
# With an MTU of 1500 in three fragments, of either family.
LARGE = bytes(range(250)) * 12


# What passed once under a number passes for a while: no two datagrams share one.
numbers = count(1)


def in_fragments(packet: Packet, identification: int, size: int = 1000) -> list[Packet]:
    """A packet cut up, the first fragment first."""
    if isinstance(packet, IPv6):
        whole = IPv6(bytes(packet))  # with checksums
        header = IPv6ExtHdrFragment(nh=whole.nh, id=identification)
        payload = Raw(bytes(whole.payload))
        head = IPv6(src=whole.src, dst=whole.dst, hlim=whole.hlim)
        return fragment6(head / header / payload, size + 48)
    packet.id = identification
    return fragment(packet, size)


def later_fragment(
    destination: str,
    payload: bytes,
    identification: int,
    *,
    source: str = "",
    protocol: int = UDP_NUMBER,
    offset: int = 1,
    more: bool = False,
) -> Packet:
    """A fragment that is not a first one; ``offset`` in units of eight bytes."""
    if frames.family_of(destination) == 6:
        header = IPv6ExtHdrFragment(nh=protocol, id=identification, offset=offset, m=int(more))
        return ip(destination, source) / header / Raw(payload)
    fields = {"id": identification, "frag": offset, "proto": protocol, "flags": "MF" * more}
    return ip(destination, source, **fields) / Raw(payload)


def ask(gateway: Gateway, address: str, port: int) -> socket.socket:
    """A client sends a datagram that its stack has to cut into three."""
    client = gateway.client_socket("udp", frames.family_of(address))
    client.connect((address, port))
    client.send(LARGE)
    return client


# What the rules say


@families
def test_a_datagram_for_the_stack_arrives_whole(gateway: Gateway, family: int) -> None:
    rule = gateway.insert(GATEWAY[family], "udp", 5000)
    with transparent_socket((GATEWAY[family], 5000)) as service:
        with gateway.counts(rule_pass=1, fragment_passed=2):
            client = ask(gateway, GATEWAY[family], 5000)
        with client:
            assert service.recv(65535) == LARGE
    assert gateway.hits(rule) == 1


@contextmanager
def reassembling(gateway: Gateway, is_early: bool) -> Iterator[None]:
    """Connection tracking reassembles before the route is looked up, and so early."""
    nft = gateway.gateway.run
    if is_early:
        chain = "type filter hook prerouting priority 0; ct state new accept"
        nft("nft", "-f", "-", input=f"table inet early {{ chain pre {{ {chain}\n}}\n}}\n")
    try:
        yield
    finally:
        if is_early:
            nft("nft", "delete", "table", "inet", "early")


early = pytest.mark.parametrize("is_early", [False, True], ids=["late", "conntrack"])


@families
@early
def test_an_intercepted_datagram_reaches_the_listener(
    gateway: Gateway, is_early: bool, family: int
) -> None:
    with (
        listening("udp", family) as listener,
        transparent_socket((SERVICE[family], 5000)) as bystander,
        reassembling(gateway, is_early),
    ):
        rule = gateway.insert(SERVICE[family], "udp", 5000, to=listener.port)
        with gateway.counts(rule_intercept=3, deliver_intercept=1):
            client = ask(gateway, SERVICE[family], 5000)
        with client:
            data, _, original = listener.receive()
            assert (data, original) == (LARGE, (SERVICE[family], 5000))
            assert is_silent(client, bystander)
        assert gateway.hits(rule) == 1


@families
def test_an_intercepted_datagram_without_a_listener_is_dropped(
    gateway: Gateway, family: int
) -> None:
    with transparent_socket((SERVICE[family], 5000)) as bystander:
        gateway.insert(SERVICE[family], "udp", 5000, to=9999)
        with gateway.counts(no_listener=1, fragment_dropped=2):
            client = ask(gateway, SERVICE[family], 5000)
        with client:
            assert is_silent(client, bystander)


@families
@early
def test_an_intercepted_datagram_that_the_host_would_forward_is_dropped(
    gateway: Gateway, is_early: bool, family: int
) -> None:
    """Nothing would keep the kernel from it: the whole datagram has no socket."""
    elsewhere = {4: "203.0.113.5", 6: "2001:db8::5"}[family]
    gateway.gateway.ip(f"-{family} route add default via {CLIENT[family]}")
    gateway.gateway.sysctl(1, "ipv4/ip_forward", "ipv6/conf/all/forwarding")
    try:
        with listening("udp", family) as listener, reassembling(gateway, is_early):
            gateway.insert(elsewhere, "udp", 5000, to=listener.port)
            with gateway.counts(fragment_intercept=1, fragment_dropped=2):
                client = ask(gateway, elsewhere, 5000)
            with client:
                assert is_silent(listener.socket)
    finally:
        gateway.gateway.sysctl(0, "ipv4/ip_forward", "ipv6/conf/all/forwarding")
        gateway.gateway.ip(f"-{family} route del default")


@families
@pytest.mark.parametrize("reason", ["no_rule", "rule_deny"])
def test_what_drops_the_first_fragment_drops_the_others(
    gateway: Gateway, reason: str, family: int
) -> None:
    if reason == "rule_deny":
        gateway.insert(GATEWAY[family], "udp", 5000, deny=True)
    with transparent_socket((GATEWAY[family], 5000)) as service:
        with gateway.counts(**{reason: 1}, fragment_dropped=2):
            client = ask(gateway, GATEWAY[family], 5000)
        with client:
            assert is_silent(client, service)


@families
def test_an_established_flow_takes_fragments(gateway: Gateway, family: int) -> None:
    with (
        gateway.client_socket("udp", family, CLIENT[family]) as client,
        transparent_socket((SERVICE[family], 5000)) as connection,
    ):
        connection.connect(client.getsockname()[:2])
        client.connect((SERVICE[family], 5000))
        with gateway.counts(established=1, fragment_passed=2):
            client.send(LARGE)
        assert connection.recv(65535) == LARGE


@families
@pytest.mark.parametrize("on", [True, False], ids=["on", "off"])
def test_a_large_ping_follows_the_setting(gateway: Gateway, on: bool, family: int) -> None:
    gateway.firewall.set(["gw0"], "icmp_echo", on)
    if family == 4:
        ping, answer = ip(GATEWAY[4]) / ICMP(id=7) / Raw(bytes(1800)), ICMP
    else:
        ping, answer = ip(GATEWAY[6]) / ICMPv6EchoRequest(id=7, data=bytes(1800)), ICMPv6EchoReply
    expected = {"icmp_echo": 1, "fragment_passed": 1}
    if not on:
        expected = {"icmp_echo_off": 1, "fragment_dropped": 1}
    with gateway.capture() as heard, gateway.counts(**expected):
        gateway.send(*in_fragments(ping, next(numbers)))
        if on:
            assert heard(answer).id == 7


@families
def test_crafted_fragments_arrive_as_those_of_a_stack_do(gateway: Gateway, family: int) -> None:
    """The counterpart of the tests below, in which such fragments drop."""
    gateway.insert(GATEWAY[family], "udp", 5000)
    with transparent_socket((GATEWAY[family], 5000)) as service:
        with gateway.counts(rule_pass=1, fragment_passed=3):
            gateway.send(*in_fragments(datagram(GATEWAY[family], 5000, LARGE), next(numbers)))
        assert service.recv(65535) == LARGE


@families
def test_the_order_of_later_fragments_does_not_matter(gateway: Gateway, family: int) -> None:
    gateway.insert(GATEWAY[family], "udp", 5000)
    with transparent_socket((GATEWAY[family], 5000)) as service:
        first, *others = in_fragments(datagram(GATEWAY[family], 5000, LARGE), next(numbers))
        gateway.send(first, *reversed(others))
        assert service.recv(65535) == LARGE


@families
def test_the_first_fragment_may_come_last(gateway: Gateway, family: int) -> None:
    """To an own address, as a bond or equal-cost routes deliver them."""
    gateway.insert(GATEWAY[family], "udp", 5000)
    with transparent_socket((GATEWAY[family], 5000)) as service:
        with gateway.counts(rule_pass=1, fragment_passed=3):
            gateway.send(
                *reversed(in_fragments(datagram(GATEWAY[family], 5000, LARGE), next(numbers)))
            )
        assert service.recv(65535) == LARGE


@families
def test_later_fragments_alone_deliver_nothing(gateway: Gateway, family: int) -> None:
    """The last of them is the first fragment, and has no rule."""
    with transparent_socket((GATEWAY[family], 5001)) as service:
        with gateway.counts(no_rule=1, fragment_passed=3):
            gateway.send(
                *reversed(in_fragments(datagram(GATEWAY[family], 5001, LARGE), next(numbers)))
            )
        assert is_silent(service)


def test_an_ipv6_fragment_header_behind_others_is_found(gateway: Gateway) -> None:
    gateway.insert(GATEWAY[6], "udp", 5000)
    options = IPv6ExtHdrDestOpt(options=[PadN(optdata=bytes(4))])
    data = bytes(IPv6(bytes(datagram(GATEWAY[6], 5000, bytes(100)))).payload)
    number = next(numbers)

    def part(offset: int, payload: bytes, more: int) -> Packet:
        header = IPv6ExtHdrFragment(nh=UDP_NUMBER, id=number, offset=offset, m=more)
        return ip(GATEWAY[6]) / options / header / Raw(payload)

    with transparent_socket((GATEWAY[6], 5000)) as service:
        with gateway.counts(rule_pass=1, fragment_passed=1):
            gateway.send(part(0, data[:64], 1), part(8, data[64:], 0))
        assert service.recv(1000) == bytes(100)


@pytest.mark.parametrize("protocol", ["udp", "tcp"])
def test_an_atomic_fragment_is_a_whole_packet(gateway: Gateway, protocol: str) -> None:
    """A Fragment header with neither offset nor more fragments: RFC 6946."""
    atomic = IPv6ExtHdrFragment(id=next(numbers))
    # The client's stack refuses the answer to a SYN that it knows nothing of.
    expected = {"udp": {}, "tcp": {"established": 1}}[protocol]
    with listening(protocol, 6) as listener:
        gateway.insert(SERVICE[6], protocol, 5000, to=listener.port)
        with gateway.capture() as heard, gateway.counts(rule_intercept=1, **expected):
            if protocol == "tcp":
                gateway.send(ip(SERVICE[6]) / atomic / TCP(sport=40000, dport=5000, flags="S"))
                assert str(heard(TCP).flags) == "SA"
            else:
                ports = UDP(sport=40000, dport=5000)
                gateway.send(ip(SERVICE[6]) / atomic / ports / Raw(b"atomic"))
                assert listener.receive()[0] == b"atomic"


# What never passes


@families
@pytest.mark.parametrize("protocol", [UDP_NUMBER, TCP_NUMBER], ids=["udp", "tcp"])
@pytest.mark.parametrize("offset", [1, 2, 185, 8190])
@pytest.mark.parametrize("more", [False, True], ids=["last", "more"])
def test_a_payload_that_looks_like_ports_is_not_one(
    gateway: Gateway, protocol: int, offset: int, more: bool, family: int
) -> None:
    with listening("udp", family) as listener:
        for name in ("tcp", "udp"):
            gateway.insert(SERVICE[family], name, 80, to=listener.port)
            gateway.insert(GATEWAY[family], name, 80)
        header = struct.pack("!HHHH", 40000, 80, 16, 0) + bytes(24)
        fields = {"protocol": protocol, "offset": offset, "more": more}
        is_tiny = protocol == TCP_NUMBER and offset < 3
        expected = {"malformed": 2} if is_tiny else {"fragment_orphan": 1, "fragment_passed": 1}
        with gateway.counts(**expected):
            gateway.send(
                later_fragment(SERVICE[family], header, next(numbers), **fields),
                later_fragment(GATEWAY[family], header, next(numbers), **fields),
            )
        assert is_silent(listener.socket)
    assert not any(rule.packets for rule in gateway.firewall.rules())


@families
@pytest.mark.parametrize("protocol", [1, 2, 58, 89])
def test_a_later_fragment_of_whatever_is_an_orphan(
    gateway: Gateway, protocol: int, family: int
) -> None:
    gateway.firewall.set(["gw0"], "icmp_echo", True)
    with gateway.counts(fragment_orphan=1):
        gateway.send(later_fragment(SERVICE[family], bytes(16), next(numbers), protocol=protocol))


@families
@pytest.mark.parametrize(("source_port", "destination_port"), [(67, 68), (547, 546), (1, 22)])
def test_no_exception_is_for_a_later_fragment(
    gateway: Gateway, source_port: int, destination_port: int, family: int
) -> None:
    header = struct.pack("!HHHH", source_port, destination_port, 16, 0) + bytes(24)
    with gateway.counts(fragment_passed=2):
        gateway.send(
            later_fragment(GATEWAY[family], header, next(numbers)),
            later_fragment(GATEWAY[family], header, next(numbers), protocol=TCP_NUMBER, offset=3),
        )


@families
@pytest.mark.parametrize("field", ["source", "destination"])
def test_a_fragment_between_other_hosts_is_an_orphan(
    gateway: Gateway, field: str, family: int
) -> None:
    another = {4: "100.72.0.5", 6: "fd72::5"}[family]
    gateway.insert(another, "udp", 5000)
    gateway.insert(SERVICE[family], "udp", 5000)
    number = next(numbers)
    other = {
        "source": {"source": {4: "10.9.0.3", 6: "fd09::3"}[family]},
        "destination": {"destination": another},
    }[field]
    fields = {"destination": SERVICE[family], "identification": number} | other
    first = in_fragments(datagram(SERVICE[family], 5000, LARGE), number)[0]
    with gateway.counts(rule_pass=1, fragment_orphan=1):
        gateway.send(first, later_fragment(payload=bytes(16), offset=125, **fields))


@families
@pytest.mark.parametrize("passes", [True, False], ids=["passed", "dropped"])
def test_a_fragment_of_another_datagram_follows_what_passed_before(
    gateway: Gateway, passes: bool, family: int
) -> None:
    """Its first fragment is on a longer way; for some minutes the hosts are known."""
    gateway.insert(SERVICE[family], "udp", 5000, deny=not passes)
    first = in_fragments(datagram(SERVICE[family], 5000, LARGE), next(numbers))[0]
    orphan = later_fragment(SERVICE[family], bytes(16), next(numbers), offset=125)
    if not passes:
        with gateway.counts(rule_deny=1, fragment_orphan=1):
            gateway.send(first, orphan)
        return
    with gateway.counts(rule_pass=1, fragment_passed=1):
        gateway.send(first, orphan)
    flow_tables.expire_earlier("pairs", 599)
    with gateway.counts(fragment_passed=1):
        gateway.send(orphan)
    flow_tables.expire_earlier("pairs", 2)
    with gateway.counts(fragment_orphan=1):
        gateway.send(orphan)


def test_an_ipv4_fragment_of_another_protocol_is_an_orphan(gateway: Gateway) -> None:
    """RFC 791 counts the protocol in to what names a datagram; RFC 8200 does not."""
    gateway.insert(SERVICE[4], "udp", 5000)
    number = next(numbers)
    first = in_fragments(datagram(SERVICE[4], 5000, LARGE), number)[0]
    other = later_fragment(SERVICE[4], bytes(16), number, protocol=TCP_NUMBER, offset=125)
    with gateway.counts(rule_pass=1, fragment_orphan=1):
        gateway.send(first, other)


@families
def test_a_fragment_from_another_interface_is_an_orphan(gateway: Gateway, family: int) -> None:
    """Who was let in by one interface is not let in by all."""
    gateway.insert(SERVICE[family], "udp", 5000)
    with gateway.second_wire() as wire:
        first, second, *_ = in_fragments(datagram(SERVICE[family], 5000, LARGE), next(numbers))
        with gateway.counts(rule_pass=1, fragment_orphan=1):
            gateway.send(first)
            wire(second)


@families
def test_the_last_first_fragment_counts(gateway: Gateway, family: int) -> None:
    """Nobody gets a datagram through under the name of one that passed."""
    gateway.insert(GATEWAY[family], "udp", 5000)
    number = next(numbers)
    allowed = in_fragments(datagram(GATEWAY[family], 5000, LARGE), number)
    refused = in_fragments(datagram(GATEWAY[family], 5001, LARGE), number)
    with gateway.counts(rule_pass=1, no_rule=1, fragment_passed=1, fragment_dropped=1):
        gateway.send(allowed[0], allowed[1])
        gateway.send(refused[0], refused[1])


@families
@pytest.mark.parametrize(("protocol", "header"), [("tcp", 20), ("udp", 8)])
def test_a_first_fragment_has_the_whole_header(
    gateway: Gateway, protocol: str, header: int, family: int
) -> None:
    """Flags or length must not come with a later one: RFC 1858."""
    gateway.insert(GATEWAY[family], protocol, 0, 65535)
    number, protocol_number = next(numbers), {"tcp": TCP_NUMBER, "udp": UDP_NUMBER}[protocol]

    def first(payload: bytes) -> Packet:
        if family == 4:
            return ip(GATEWAY[4], id=number, flags="MF", proto=protocol_number) / Raw(payload)
        header_6 = IPv6ExtHdrFragment(nh=protocol_number, id=number, m=1)
        return ip(GATEWAY[6]) / header_6 / Raw(payload)

    with gateway.counts(malformed=1):
        gateway.send(first(bytes(header - 1)))
    with gateway.counts(rule_pass=1):
        gateway.send(first(bytes(header)))


def test_a_fragment_of_a_fragment_is_malformed(gateway: Gateway) -> None:
    """The stack takes none out of another: RFC 8200, section 4.1, has one header at most."""
    gateway.insert(GATEWAY[6], "udp", 5000)
    outer, inner = (IPv6ExtHdrFragment(id=next(numbers)) for _ in range(2))
    with gateway.counts(malformed=1):
        gateway.send(ip(GATEWAY[6]) / outer / inner / UDP(dport=5000) / Raw(b"data"))


# Forwarded, with a program on each interface


ASKER = {family: (address, 4000) for family, address in routed.SILENT_CLIENT.items()}
ANSWERER = {family: (address, 5000) for family, address in routed.SILENT_SERVER.items()}


@families
def test_the_first_fragment_may_come_last_to_who_has_asked(router: Router, family: int) -> None:
    """The answer's, by both interfaces; of one by the outbound filter."""
    router.let_clients_in()
    router.set("outbound_filter", True, router.inside)
    router.send(router.client, routed.datagram(ASKER[family], ANSWERER[family]))
    answer = in_fragments(routed.datagram(ANSWERER[family], ASKER[family], LARGE), next(numbers))
    with router.capture(router.client) as heard:
        router.send(router.server, *reversed(answer))
        arrived = [bytes(heard.next(IPV[family])[IPV[family]].payload) for _ in answer]
        assert arrived == [bytes(each.payload) for each in reversed(answer)]


@families
def test_fragments_alone_reach_nobody_who_has_not_asked(router: Router, family: int) -> None:
    router.let_clients_in()
    router.send(router.client, routed.datagram(ASKER[family], ANSWERER[family]))
    for source, destination in (
        (ANSWERER[family][0], routed.CLIENT[family]),
        (routed.SERVER[family], ASKER[family][0]),
    ):
        with router.counts(fragment_orphan=1):
            router.send(
                router.server,
                later_fragment(destination, bytes(16), next(numbers), source=source),
            )


@families
def test_fragments_alone_leave_by_no_outbound_filter(router: Router, family: int) -> None:
    """The inner interface knows the hosts by a first fragment, which the filter dropped."""
    router.let_clients_in()
    router.set("outbound_filter", True, router.outside)
    first = in_fragments(routed.datagram(ASKER[family], ANSWERER[family], LARGE), next(numbers))[0]
    orphan = later_fragment(
        ANSWERER[family][0], bytes(16), next(numbers), source=ASKER[family][0], offset=125
    )
    with router.counts(rule_pass=1, egress_no_rule=1, fragment_passed=1, fragment_orphan=1):
        router.send(router.client, first, orphan)


@families
def test_fragments_alone_answer_nothing_that_was_intercepted(router: Router, family: int) -> None:
    with listening("udp", family) as listener:
        router.insert(routed.ANYWHERE[family], "udp", 5000, to=listener.port)
        with router.counts(rule_intercept=1, fragment_orphan=1):
            router.send(router.client, routed.datagram(ASKER[family], ANSWERER[family]))
            router.send(
                router.server,
                later_fragment(
                    ASKER[family][0], bytes(16), next(numbers), source=ANSWERER[family][0]
                ),
            )
