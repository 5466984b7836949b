# SPDX-License-Identifier: GPL-2.0-only
"""The outbound filter: what leaves needs an egress rule, or answers what came in."""

from __future__ import annotations

import socket
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

import pytest
from scapy.layers.inet import TCP, UDP
from scapy.layers.l2 import ARP, Ether
from scapy.packet import Raw

from tests.firewall.support import flow_tables
from tests.firewall.support.answers import GROUP, link_local_of, use_groups
from tests.firewall.support.frames import (
    FAMILIES,
    PROTOCOLS,
    SOCKET_FAMILY,
    SOME,
    exchange,
    families,
    is_silent,
    listening,
    transparent_socket,
)
from tests.firewall.support.routed import (
    ANYWHERE,
    CLIENT,
    ECHO_REPLY,
    INSIDE_GATEWAY,
    OUTSIDE_GATEWAY,
    PORT,
    SERVER,
    SILENT_CLIENT,
    SILENT_SERVER,
    Router,
    attempt,
    bound,
    conversation,
    datagram,
    ip,
    ping,
    segment,
    serving,
)
from tests.support.netns import RoutedNetwork
from zfw_py import Firewall

if TYPE_CHECKING:
    from collections.abc import Iterator

    from scapy.packet import Packet

pytestmark = pytest.mark.kernel

protocols = pytest.mark.parametrize("protocol", PROTOCOLS)

# An address that the gateway takes for itself: what a listener of its own intercepts.
SERVICE = {4: "100.72.0.4", 6: "fd72::4"}


@pytest.fixture(autouse=True)
def filtering(router: Router) -> None:
    """The outside interface filters what leaves, clients inside may send anything to us."""
    router.let_clients_in()
    router.set("outbound_filter", True, router.outside)
    for family in FAMILIES:
        place = ("local", SERVICE[family], "dev", "lo")
        router.gateway.run("ip", "route", "replace", *place)


def let_out(
    router: Router, protocol: str, destination: str, low: int = PORT, **more: object
) -> None:
    """Insert an egress rule; of the outside interface, unless others are named."""
    more.setdefault("interfaces", (router.outside,))
    router.insert(destination, protocol, low, direction="egress", **more)  # type: ignore[arg-type]


def is_transport(frame: Packet) -> bool:
    return TCP in frame or UDP in frame


def is_kept_in(
    router: Router, protocol: str, address: str, port: int = PORT, **counts: int
) -> None:
    """A client's SYN or datagram comes in and does not leave again."""
    expected = {"rule_pass": 1, **(counts or {"egress_no_rule": 1})}
    with (
        router.capture(router.server) as heard,
        router.counts(**expected),
        attempt(protocol, router.client, address, port) as asker,
    ):
        assert is_silent(asker)
        assert not heard.has(is_transport)


# Rules


@families
@protocols
def test_nothing_leaves_without_a_rule(router: Router, protocol: str, family: int) -> None:
    is_kept_in(router, protocol, SERVER[family])
    with (
        router.counts(egress_no_rule=1),
        bound(router.gateway, protocol, family) as own,
    ):
        own.setblocking(False)
        own.connect_ex((SERVER[family], PORT))
        if protocol == "udp":
            own.send(b"a datagram of our own")


@families
@protocols
def test_what_a_rule_lets_out_is_answered(router: Router, protocol: str, family: int) -> None:
    let_out(router, protocol, SERVER[family])
    with (
        router.counts(rule_pass=SOME, egress=SOME, flow=SOME),
        conversation(protocol, router.client, router.server, SERVER[family]) as talk,
    ):
        talk.talks()
    rule = next(rule for rule in router.firewall.rules(direction="egress"))
    # Only what begins the flow is judged by the rule.
    assert rule.packets == 1
    is_kept_in(router, protocol, SERVER[family], PORT + 1)


@families
@protocols
def test_the_hosts_own_flow_needs_a_rule_too(router: Router, protocol: str, family: int) -> None:
    let_out(router, protocol, SERVER[family])
    with conversation(protocol, router.gateway, router.server, SERVER[family]) as own:
        own.talks()


@families
@protocols
def test_the_longest_prefix_decides(router: Router, protocol: str, family: int) -> None:
    net, host = {4: ("10.8.0.0/16", "10.8.0.2/32"), 6: ("fd08::/16", "fd08::2/128")}[family]
    let_out(router, protocol, ANYWHERE[family], 0, high=65535)
    let_out(router, protocol, net, deny=True)
    is_kept_in(router, protocol, SERVER[family], rule_deny=1)
    let_out(router, protocol, host)
    with conversation(protocol, router.client, router.server, SERVER[family]) as talk:
        talk.talks()
    router.firewall.flush(direction="egress")
    let_out(router, protocol, ANYWHERE[family], 0, high=65535)
    let_out(router, protocol, net, PORT + 1, deny=True)
    # A prefix without a rule for the port hands on to the next shorter one.
    with conversation(protocol, router.client, router.server, SERVER[family], source_port=4001):
        pass


@families
@protocols
def test_a_rule_may_ask_for_a_source(router: Router, protocol: str, family: int) -> None:
    other = {4: "10.9.0.64/26", 6: "fd09::40/122"}[family]
    let_out(router, protocol, SERVER[family], source=other)
    is_kept_in(router, protocol, SERVER[family])
    let_out(router, protocol, SERVER[family], source=CLIENT[family])
    let_out(
        router,
        protocol,
        SERVER[family],
        source={4: "10.9.0.0/24", 6: "fd09::/64"}[family],
        deny=True,
    )
    with conversation(protocol, router.client, router.server, SERVER[family]) as talk:
        talk.talks()


@families
@protocols
def test_ranges_end_where_they_end(router: Router, protocol: str, family: int) -> None:
    let_out(router, protocol, SERVER[family], PORT, high=PORT + 2)
    let_out(router, protocol, SERVER[family], PORT + 1, high=PORT + 9, deny=True)
    for port in (PORT, PORT + 1, PORT + 2):
        with conversation(protocol, router.client, router.server, SERVER[family], port):
            pass
    is_kept_in(router, protocol, SERVER[family], PORT + 3, rule_deny=1)
    is_kept_in(router, protocol, SERVER[family], PORT - 1)
    is_kept_in(router, protocol, SERVER[family], PORT + 10)


@families
@protocols
def test_an_egress_rule_is_of_its_interfaces(router: Router, protocol: str, family: int) -> None:
    let_out(router, protocol, SERVER[family], interfaces=(router.inside,))
    is_kept_in(router, protocol, SERVER[family])
    router.firewall.flush(direction="egress")
    let_out(router, protocol, SERVER[family], interfaces=(router.outside,))
    with conversation(protocol, router.client, router.server, SERVER[family]) as talk:
        talk.talks()


@families
@protocols
def test_a_rule_of_the_other_direction_says_nothing(
    router: Router, protocol: str, family: int
) -> None:
    router.insert(SERVER[family], protocol, PORT)
    is_kept_in(router, protocol, SERVER[family])
    let_out(router, protocol, CLIENT[family])
    with router.counts(no_rule=1), attempt(protocol, router.server, CLIENT[family]) as asker:
        assert is_silent(asker)


@families
@protocols
def test_a_flow_goes_on_when_its_rule_is_deleted(
    router: Router, protocol: str, family: int
) -> None:
    let_out(router, protocol, SERVER[family])
    with conversation(protocol, router.client, router.server, SERVER[family]) as talk:
        router.firewall.flush(direction="egress")
        talk.talks()
        with attempt(protocol, router.client, SERVER[family]) as another:
            assert is_silent(another)
        talk.talks()
    is_kept_in(router, protocol, SERVER[family])


@families
@protocols
def test_a_flow_goes_on_when_the_filter_is_turned_on(
    router: Router, protocol: str, family: int
) -> None:
    router.set("outbound_filter", False, router.outside)
    with conversation(protocol, router.client, router.server, SERVER[family]) as talk:
        router.set("outbound_filter", True, router.outside)
        talk.talks()
        talk.talks()
    is_kept_in(router, protocol, SERVER[family], PORT + 1)


@families
@protocols
def test_a_flow_of_the_host_goes_on_when_the_filter_is_turned_on(
    router: Router, protocol: str, family: int
) -> None:
    router.set("outbound_filter", False, router.outside)
    with conversation(protocol, router.gateway, router.server, SERVER[family]) as talk:
        router.set("outbound_filter", True, router.outside)
        talk.talks()


@families
@protocols
def test_an_admitted_flow_goes_on_when_the_filter_is_turned_on(
    router: Router, protocol: str, family: int
) -> None:
    """Its first packets came before anything that came in was remembered."""
    router.set("outbound_filter", False, router.outside)
    router.insert(CLIENT[family], protocol, PORT, interfaces=(router.outside,))
    with conversation(protocol, router.server, router.client, CLIENT[family]) as talk:
        router.set("outbound_filter", True, router.outside)
        talk.talks()
        talk.talks()


# Answers


@families
@protocols
def test_answers_of_a_listener_leave(router: Router, protocol: str, family: int) -> None:
    """Intercepted: the rule lets in, and what the listener answers needs none."""
    with (
        listening(protocol, family) as listener,
        bound(router.server, protocol, family) as asker,
        router.counts(
            rule_intercept=SOME, flow=SOME, **({"established": SOME} if protocol == "tcp" else {})
        ),
    ):
        router.insert(SERVICE[family], protocol, 80, to=listener.port, interfaces=(router.outside,))
        asker.connect((SERVICE[family], 80))
        if protocol == "tcp":
            with listener.accept() as connection:
                exchange(asker, connection)
        else:
            asker.send(b"question")
            data, address, original = listener.receive()
            assert (data, original) == (b"question", (SERVICE[family], 80))
            with transparent_socket(original) as reply:
                reply.sendto(b"answer", address)
            assert asker.recv(100) == b"answer"


@families
@protocols
def test_answers_of_the_host_leave(router: Router, protocol: str, family: int) -> None:
    router.insert(OUTSIDE_GATEWAY[family], protocol, PORT, interfaces=(router.outside,))
    with conversation(protocol, router.server, router.gateway, OUTSIDE_GATEWAY[family]) as talk:
        talk.talks()
        flow = router.flow(protocol)
        assert flow is not None
        assert (flow.is_admitted_in, flow.is_admitted_out) == (True, False)


@families
@protocols
def test_answers_of_a_server_inside_leave(router: Router, protocol: str, family: int) -> None:
    router.insert(CLIENT[family], protocol, PORT, interfaces=(router.outside,))
    with conversation(protocol, router.server, router.client, CLIENT[family]) as talk:
        talk.talks()
    # What was let in may answer, and begin nothing.
    is_kept_in(router, protocol, SERVER[family])


@families
@protocols
def test_both_interfaces_may_filter(router: Router, protocol: str, family: int) -> None:
    router.set("outbound_filter", True, router.inside)
    router.set("per_interface_rules", True, router.inside)
    let_out(router, protocol, SERVER[family], interfaces=(router.outside,))
    with conversation(protocol, router.client, router.server, SERVER[family]) as talk:
        talk.talks()
    # The other way in by a rule of the outside, and out by none of the inside.
    router.insert(CLIENT[family], protocol, PORT, interfaces=(router.outside,))
    with (
        router.counts(rule_pass=1, egress_no_rule=1),
        attempt(protocol, router.server, CLIENT[family]) as asker,
    ):
        assert is_silent(asker)
    let_out(router, protocol, CLIENT[family], interfaces=(router.inside,))
    with conversation(protocol, router.server, router.client, CLIENT[family], source_port=4002):
        pass


def ask(asker: socket.socket, address: str) -> None:
    """Ask somebody, and wait for what comes back."""
    asker.connect((address, PORT))
    asker.send(b"anybody?")
    asker.recv(1)


@families
def test_a_refusal_leaves_where_the_question_came_in(router: Router, family: int) -> None:
    """Nobody listens: TCP's RST, and UDP's error, are answers as well."""
    for protocol, expected in (
        ("tcp", {"rule_pass": 1, "flow": 1}),
        ("udp", {"rule_pass": 1, "icmp_error": 1}),
    ):
        router.insert(OUTSIDE_GATEWAY[family], protocol, PORT, interfaces=(router.outside,))
        with (
            bound(router.server, protocol, family) as asker,
            router.counts(**expected),
            pytest.raises(ConnectionRefusedError),
        ):
            ask(asker, OUTSIDE_GATEWAY[family])


@families
def test_an_answer_has_to_be_one(router: Router, family: int) -> None:
    """What a server inside sends to others, or from another port, has no rule."""
    router.insert(SILENT_CLIENT[family], "udp", PORT, interfaces=(router.outside,))
    asker, answerer = (SILENT_SERVER[family], 4000), (SILENT_CLIENT[family], PORT)
    router.send(router.server, datagram(asker, answerer))
    with router.counts(rule_pass=3, flow=2, egress_no_rule=3):
        router.send(
            router.client,
            datagram(answerer, asker),
            datagram((SILENT_CLIENT[family], PORT + 1), asker),
            datagram((CLIENT[family], PORT), asker),
            datagram(answerer, (SILENT_SERVER[family], 4001)),
        )


@families
def test_a_tcp_answer_has_to_be_one(router: Router, family: int) -> None:
    """A SYN in the other direction on the same ports begins a flow of its own."""
    router.insert(SILENT_CLIENT[family], "tcp", PORT, interfaces=(router.outside,))
    asker, answerer = (SILENT_SERVER[family], 4000), (SILENT_CLIENT[family], PORT)
    router.send(router.server, segment(asker, answerer, "S", 1000))
    with router.capture(router.server) as heard:
        with router.counts(rule_pass=1, egress_no_rule=1):
            router.send(router.client, segment(answerer, asker, "S", 7000))
        with router.counts(flow_invalid=1):
            # It acknowledges what was never sent.
            router.send(router.client, segment(answerer, asker, "SA", 7000, 5000))
        assert not heard.has(is_transport)
        with router.counts(flow=2):
            router.send(router.client, segment(answerer, asker, "SA", 7000, 1001))
        assert heard.has(is_transport)
    assert router.state() == "answered"


# Exceptions


@families
def test_ssh_is_answered(router: Router, family: int) -> None:
    with (
        router.counts(ssh=SOME),
        conversation("tcp", router.server, router.gateway, OUTSIDE_GATEWAY[family], 22) as talk,
    ):
        talk.talks()
    router.set("ssh", False, router.outside)
    with (
        router.counts(no_rule=1),
        attempt("tcp", router.server, OUTSIDE_GATEWAY[family], 22) as asker,
    ):
        assert is_silent(asker)


@families
def test_the_ssh_exception_begins_nothing(router: Router, family: int) -> None:
    """Not for those behind the gateway, nor for a client of our own on port 22."""
    is_kept_in(router, "tcp", SERVER[family], 22)
    server = SILENT_SERVER[family], 4000
    # From an address of ours, but that of another interface, or another host's.
    for source in (INSIDE_GATEWAY[family], SILENT_CLIENT[family]):
        own = bytes(Ether() / segment((source, 22), server, "SA", 1, 1))
        answer = router.firewall.explain(own, router.outside, "egress")
        assert (answer.verdict, answer.reason) == ("drop", "egress_no_rule")
    with bound(router.gateway, "tcp", family, 22) as own, router.counts(egress_no_rule=1):
        own.setblocking(False)
        own.connect_ex((SERVER[family], PORT))


@families
def test_echo_by_setting_both_ways(router: Router, family: int) -> None:
    reply = ECHO_REPLY[family]
    request = ip(SILENT_SERVER[family], OUTSIDE_GATEWAY[family]) / ping(family, "request")
    with router.counts(icmp_echo_off=1):
        router.send(router.server, request)
    router.set("icmp_echo", True, router.outside)
    with router.capture(router.server) as heard, router.counts(icmp_echo=2):
        router.send(router.server, request)
        assert heard.next(reply).id == 7


@families
def test_a_ping_from_inside_needs_echo_on_the_way_out(router: Router, family: int) -> None:
    router.set("icmp_echo", True, router.inside)
    request = ip(SILENT_CLIENT[family], SERVER[family]) / ping(family, "request")
    with router.counts(icmp_echo=1, icmp_echo_off=1):
        router.send(router.client, request)
    router.set("icmp_echo", True, router.outside)
    with (
        router.capture(router.client) as heard,
        router.counts(icmp_echo=2, flow=1, egress=SOME),
    ):
        router.send(router.client, request)
        assert heard.next(ECHO_REPLY[family]).id == 7


@pytest.mark.usefixtures("_private_bpffs")
def test_addresses_are_resolved() -> None:
    """Nobody knows anybody: ARP and neighbour discovery leave and are answered."""
    network = RoutedNetwork()
    firewall = Firewall()
    try:
        with network.gateway.entered():
            try:
                firewall.attach(network.outside, "both")
                for setting in ("ipv6", "outbound_filter"):
                    firewall.set([network.outside], setting, True)
                for family in FAMILIES:
                    address = OUTSIDE_GATEWAY[family]
                    with conversation("tcp", network.server, network.gateway, address, 22):
                        pass
                reasons = firewall.status().reasons
                assert reasons["arp"][0] >= 2
                assert reasons["neighbour_discovery"][0] >= 2
                assert reasons["egress_no_rule"][0] == 0
            finally:
                firewall.detach_all()
    finally:
        network.close()


def test_arp_is_answered(router: Router) -> None:
    with router.capture(router.server) as heard, router.counts(arp=2):
        question = ARP(op="who-has", psrc=SERVER[4], pdst=OUTSIDE_GATEWAY[4])
        router.send(router.server, router.framed(router.server, question))
        assert heard.next(ARP).psrc == OUTSIDE_GATEWAY[4]


@families
def test_errors_leave(router: Router, family: int) -> None:
    """Of the host itself (above), and of one behind it about what was let in."""
    router.insert(CLIENT[family], "udp", PORT, interfaces=(router.outside,))
    # Inside, an error has to quote a flow that is known.
    with (
        bound(router.server, "udp", family) as asker,
        router.counts(rule_pass=1, icmp_error=2, egress=SOME),
        pytest.raises(ConnectionRefusedError),
    ):
        ask(asker, CLIENT[family])


# Neither TCP, UDP nor ICMP


OTHERS = {
    "ospf": (89, {"pass_non_tuple": "non_tuple"}),
    "igmp": (2, {"pass_non_tuple": "non_tuple"}),
    "gre": (47, {"pass_non_tuple": "non_tuple"}),
    "vrrp": (112, {"pass_non_tuple": "non_tuple", "vrrp": "vrrp"}),
}


@families
@pytest.mark.parametrize("name", OTHERS)
def test_other_protocols_follow_their_settings(router: Router, name: str, family: int) -> None:
    number, opening = OTHERS[name]
    message = b"\x31\x01\x64\x01" + bytes(20)
    with router.gateway.entered():
        own = socket.socket(SOCKET_FAMILY[family], socket.SOCK_RAW, number)
    with own, router.capture(router.server) as heard:

        def leaves() -> bool:
            try:
                own.sendto(message, (SILENT_SERVER[family], 0))
            except OSError:  # IPv6 tells
                pass
            return heard.has(lambda frame: message in bytes(frame))

        with router.counts(protocol=1):
            assert not leaves()
        for setting in ("vrrp", "eapol", "pass_non_tuple"):
            router.set(setting, True, router.outside)
            reason = opening.get(setting)
            with router.counts(**{reason or "protocol": 1}):
                assert leaves() is (reason is not None)
            router.set(setting, False, router.outside)


@pytest.mark.parametrize(
    ("ethertype", "opening"),
    [
        (0x888E, {"eapol": "eapol", "pass_non_tuple": "non_tuple"}),
        (0x88CC, {"pass_non_tuple": "non_tuple"}),
    ],
    ids=["eapol", "lldp"],
)
def test_frames_that_are_not_ip_follow_their_settings(
    router: Router, ethertype: int, opening: dict[str, str]
) -> None:
    frame = bytes(
        Ether(dst="01:80:c2:00:00:03", src="02:00:00:00:00:01", type=ethertype)
        / Raw(b"\x01\x01" + bytes(50))
    )
    with (
        router.gateway.packet_socket(router.outside) as wire,
        router.capture(router.server) as heard,
    ):

        def leaves() -> bool:
            try:
                wire.send(frame)
            except OSError:
                pass
            return heard.has(lambda arrived: bytes(arrived) == frame)

        def comes_in() -> None:
            router.send(router.server, frame)

        with router.counts(non_ip=2):
            assert not leaves()
            comes_in()
        for setting in ("vrrp", "eapol", "pass_non_tuple"):
            router.set(setting, True, router.outside)
            reason = opening.get(setting)
            with router.counts(**{reason or "non_ip": 2}):
                assert leaves() is (reason is not None)
                comes_in()
            router.set(setting, False, router.outside)


# Malformed, fragments, families


def test_ipv6_does_not_leave_where_it_is_off(router: Router) -> None:
    let_out(router, "udp", SERVER[6])
    router.set("ipv6", False, router.outside)
    is_kept_in(router, "udp", SERVER[6], ipv6_off=1)


@families
def test_a_large_datagram_leaves_in_fragments(router: Router, family: int) -> None:
    """Of the host itself, and answered in fragments."""
    let_out(router, "udp", SERVER[family])
    data = bytes(range(256)) * 20
    with (
        serving(router.server, "udp", family) as server,
        bound(router.gateway, "udp", family) as own,
        router.counts(rule_pass=1, fragment_passed=6, flow=1),
    ):
        own.sendto(data, (SERVER[family], PORT))
        arrived, address = server.recvfrom(10000)
        assert arrived == data
        server.sendto(data[::-1], address)
        assert own.recv(10000) == data[::-1]


@families
def test_fragments_of_what_no_rule_lets_out_stay(router: Router, family: int) -> None:
    counts = {"rule_pass": 1, "fragment_passed": 3, "egress_no_rule": 1, "fragment_dropped": 3}
    with (
        router.capture(router.server) as heard,
        bound(router.client, "udp", family) as asker,
    ):
        with router.counts(**counts):
            asker.sendto(bytes(5000), (SERVER[family], PORT))
        assert not heard.has(lambda frame: getattr(frame.payload, "src", "") == CLIENT[family])


# What the page says of packet sockets


def test_a_packet_socket_is_filtered_unless_it_goes_past_the_qdisc(router: Router) -> None:
    """PACKET_QDISC_BYPASS of packet(7), which takes CAP_NET_RAW: no program of TC runs."""
    packet = datagram((OUTSIDE_GATEWAY[4], 4000), (SILENT_SERVER[4], PORT), b"past the filter")
    ends = {"src": router.gateway.mac(router.outside), "dst": router.server.mac("eth0")}
    with (
        router.gateway.packet_socket(router.outside) as wire,
        router.capture(router.server) as heard,
    ):

        def arrives() -> bool:
            with suppress(OSError):  # the drop
                wire.send(bytes(Ether(**ends) / packet))
            return heard.has(lambda frame: b"past the filter" in bytes(frame))

        with router.counts(egress_no_rule=1):
            assert not arrives()
        wire.setsockopt(263, 20, 1)  # SOL_PACKET, PACKET_QDISC_BYPASS
        with router.counts():
            assert arrives()


# Questions to a group, which are answered from another address


@contextmanager
def asked(
    router: Router, family: int, *, passes: bool = True
) -> Iterator[tuple[socket.socket, socket.socket, tuple[str, int]]]:
    """The gateway's service, which a question to the group has reached; the asker, its address.

    In IPv6 that is a link-local one.
    """
    if passes:
        router.insert(GROUP[family], "udp", 5353, interfaces=(router.outside,))
    with (
        bound(router.gateway, "udp", family, 5353) as service,
        bound(router.server, "udp", family) as asker,
    ):
        use_groups(router.gateway, router.outside, family, service, GROUP[family])
        level, option = {
            4: (socket.IPPROTO_IP, socket.IP_MULTICAST_LOOP),
            6: (socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_LOOP),
        }[family]
        service.setsockopt(level, option, 0)
        use_groups(router.server, "eth0", family, asker)
        asker.sendto(b"question", (GROUP[family], 5353))
        if passes:
            data, address = service.recvfrom(100)
            assert data == b"question"
            router.gateway.add_neighbour(router.outside, address[0], router.server.mac("eth0"))
        else:
            assert is_silent(service)
            address = (SERVER[family], asker.getsockname()[1])
        yield service, asker, address


@families
def test_a_question_to_a_group_is_answered_and_no_more(router: Router, family: int) -> None:
    with (
        asked(router, family) as (service, asker, (host, port, *scope)),
        bound(router.gateway, "udp", family, 5354) as other,
    ):
        with router.counts(flow=2):
            service.sendto(b"answer", (host, port, *scope))
            service.sendto(b"answer", (GROUP[family], port))
        assert asker.recv(100) == b"answer"
        for sender, to in (
            (service, (host, port + 1, *scope)),
            (service, (SILENT_SERVER[family], port)),
            (other, (host, port, *scope)),
        ):
            with router.counts(egress_no_rule=1):
                sender.sendto(b"answer", to)
        # By the interface of the question, and while it is new: answers do not renew it.
        router.set("outbound_filter", True, router.inside)
        use_groups(router.gateway, router.inside, family, service)
        with router.counts(egress_no_rule=1):
            service.sendto(b"answer", (GROUP[family], port))
        flow_tables.expire_earlier("questions", 31)
        with router.counts(egress_no_rule=1):
            service.sendto(b"answer", (host, port, *scope))


@families
def test_a_question_that_no_rule_lets_in_is_not_answered(router: Router, family: int) -> None:
    with (
        asked(router, family, passes=False) as (service, _, address),
        router.counts(egress_no_rule=1),
    ):
        service.sendto(b"answer", address)


@families
@pytest.mark.parametrize("is_filtered", [True, False], ids=["filtered", "open"])
def test_the_answer_to_a_group_lets_nothing_in(
    router: Router, is_filtered: bool, family: int
) -> None:
    """The rule is for the group alone, and the asker has begun."""
    router.set("outbound_filter", is_filtered, router.outside)
    with asked(router, family) as (service, asker, address):
        service.sendto(b"answer", address)
        assert asker.recv(100) == b"answer"
        own: tuple[str | int, ...] = (OUTSIDE_GATEWAY[family], 5353)
        if family == 6:
            with router.server.entered():
                scope = socket.if_nametoindex("eth0")
            host = link_local_of(router.gateway, router.outside)
            router.server.add_neighbour("eth0", host, router.gateway.mac(router.outside))
            own = (host, 5353, 0, scope)
        with router.counts(no_rule=1):
            asker.sendto(b"and more", own)
        assert is_silent(service)
