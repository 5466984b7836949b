# SPDX-License-Identifier: GPL-2.0-only
"""The end that began a flow is the one that a rule let in or out, not the one that was seen first.

Only the outside interface of the gateway has the firewall, in both directions.
"""

from __future__ import annotations

import os
import select
import socket
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest
from scapy.layers.inet import TCP

from tests.firewall.support.flow_tables import age_flows, clear_flows
from tests.firewall.support.frames import (
    DEFAULT_SETTINGS,
    PROTOCOLS,
    SOCKET_FAMILY,
    Filtering,
    families,
    is_silent,
    listening,
    transparent_socket,
)
from tests.firewall.support.routed import (
    CLIENT,
    OUTSIDE_GATEWAY,
    PORT,
    SERVER,
    SILENT_CLIENT,
    SILENT_SERVER,
    Wires,
    bound,
    conversation,
    hears_nothing,
    segment,
    serving,
)
from zfw_py import Firewall, FlowLimits

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support.netns import Namespace

pytestmark = pytest.mark.kernel

protocols = pytest.mark.parametrize("protocol", PROTOCOLS)

NOBODY = 65534
# Local to the gateway, and no address of one of its interfaces but lo.
SERVICE = {4: "100.72.0.4", 6: "fd72::4"}


class Outside(Filtering, Wires):
    """The wires, and the firewall on the outside interface alone."""

    unasked = frozenset({"multicast_listener", "egress", "egress_no_rule"})

    def __init__(self) -> None:
        super().__init__()
        self.gateway.ip(*(f"route add local {one} dev lo" for one in SERVICE.values()))
        with self.gateway.entered():
            self.firewall = Firewall()
            self.firewall.attach(self.outside)

    def reset(self) -> None:
        """Attached, without rules and flows; settings are the defaults, but IPv6 on."""
        self.firewall.attach(self.outside)
        self.firewall.flush()
        for setting, on in DEFAULT_SETTINGS.items():
            self.firewall.set([self.outside], setting, on)
        self.firewall.set_flow_limits(**FlowLimits()._asdict())
        clear_flows()

    def set_filter(self, on: bool) -> None:
        """Turn the outbound filter on or off."""
        self.firewall.set([self.outside], "outbound_filter", on)

    def close(self) -> None:
        with self.gateway.entered():
            self.firewall.detach_all()
        super().close()


@pytest.fixture(scope="module")
def _outside(_private_bpffs: None) -> Iterator[Outside]:
    with Outside() as made:
        yield made


@pytest.fixture
def outside(_outside: Outside) -> Iterator[Outside]:
    with _outside.gateway.entered():
        _outside.reset()
        yield _outside


@contextmanager
def as_nobody() -> Iterator[None]:
    """In the block this process has no privilege."""
    os.setegid(NOBODY)
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(0)


@families
@protocols
@pytest.mark.parametrize("end", ["delete", "deny"])
def test_a_flow_from_outside_ends_with_its_rule(
    outside: Outside, end: str, protocol: str, family: int
) -> None:
    """The answers of a server inside begin no flow in which the client outside answers."""
    rule = outside.insert(CLIENT[family], protocol, PORT).rule
    with conversation(protocol, outside.server, outside.client, CLIENT[family]) as talk:
        talk.talks()
        if end == "delete":
            outside.firewall.delete(rule.key)
        else:
            outside.insert(CLIENT[family], protocol, PORT, deny=True)
        talk.asks_in_vain()


@families
def test_so_does_one_that_is_older_than_the_firewall(outside: Outside, family: int) -> None:
    """The first packet that the programs see is the server's."""
    outside.firewall.detach(outside.outside)
    with conversation("tcp", outside.server, outside.client, CLIENT[family]) as talk:
        rule = outside.insert(CLIENT[family], "tcp", PORT).rule
        outside.firewall.attach(outside.outside)
        talk.answers()
        assert talk.asker.recv(100) == b"answer"
        talk.talks()
        outside.firewall.delete(rule.key)
        talk.asks_in_vain()


@families
@protocols
def test_a_late_answer_begins_no_flow(outside: Outside, protocol: str, family: int) -> None:
    """The flow has been forgotten when a server inside answers, and its rule is gone."""
    outside.firewall.set_flow_limits(udp_idle=10, tcp_idle=10)
    rule = outside.insert(CLIENT[family], protocol, PORT).rule
    with conversation(protocol, outside.server, outside.client, CLIENT[family]) as talk:
        age_flows(20)
        outside.firewall.delete(rule.key)
        talk.answers()
        assert talk.asker.recv(100) == b"answer"
        talk.asks_in_vain()


@families
@pytest.mark.parametrize(
    ("where", "memory"),
    [(SERVICE, "old"), (SERVICE, "none"), (OUTSIDE_GATEWAY, "old")],
    ids=["service-old", "service-none", "own-old"],
)
def test_a_proxys_late_answer_leaves_its_client_to_the_rules(
    outside: Outside, where: dict[int, str], memory: str, family: int
) -> None:
    """The client's next datagrams reach the proxy, and no other socket of that port."""
    with (
        listening("udp", family) as listener,
        transparent_socket((where[family], 80)) as other,
        bound(outside.server, "udp", family) as client,
    ):
        outside.insert(where[family], "udp", 80, to=listener.port)
        client.connect((where[family], 80))
        client.send(b"question")
        _, address, original = listener.receive()
        if memory == "old":
            age_flows(40)
        else:
            clear_flows()
        with transparent_socket(original) as reply:
            reply.sendto(b"answer", address)
        assert client.recv(100) == b"answer"
        for _ in range(3):
            client.send(b"next question")
            assert listener.receive()[0] == b"next question"
        assert is_silent(other)


@families
def test_the_gateways_own_question_is_answered_beside_a_wide_rule(
    outside: Outside, family: int
) -> None:
    """Its answer is the answer to a flow that this host began, not the proxy's."""
    with (
        listening("udp", family) as listener,
        serving(outside.server, "udp", family) as server,
        bound(outside.gateway, "udp", family) as own,
    ):
        anywhere = {4: "0.0.0.0/0", 6: "::/0"}[family]
        outside.insert(anywhere, "udp", 1, 65535, to=listener.port)
        own.sendto(b"question", (SERVER[family], PORT))
        _, address = server.recvfrom(100)
        server.sendto(b"answer", address)
        assert own.recv(100) == b"answer"


# Whom the outbound filter lets out


@families
def test_a_datagram_from_outside_lets_no_socket_out(outside: Outside, family: int) -> None:
    """What no rule lets in gives nobody's socket no answer to send."""
    outside.set_filter(True)
    with serving(outside.server, "udp", family) as server:
        with as_nobody():
            own = socket.socket(SOCKET_FAMILY[family], socket.SOCK_DGRAM)
            own.connect((SERVER[family], PORT))
            own.send(b"dropped")
        with own:
            assert hears_nothing(server)
            server.sendto(b"come out", (OUTSIDE_GATEWAY[family], own.getsockname()[1]))
            hears_nothing(own)
            with as_nobody():
                for _ in range(3):
                    own.send(b"secret")
            assert hears_nothing(server)


@families
def test_a_datagram_that_a_rule_lets_in_is_answered(outside: Outside, family: int) -> None:
    """The server connects a socket for each client, after the first datagram or before."""
    outside.set_filter(True)
    outside.insert(OUTSIDE_GATEWAY[family], "udp", PORT)
    with (
        bound(outside.server, "udp", family) as client,
        bound(outside.gateway, "udp", family, PORT) as own,
    ):
        client.connect((OUTSIDE_GATEWAY[family], PORT))
        own.connect((SERVER[family], client.getsockname()[1]))
        for _ in range(2):
            client.send(b"question")
            assert own.recv(100) == b"question"
            own.send(b"answer")
            assert client.recv(100) == b"answer"
            age_flows(40)


@families
def test_a_syn_from_outside_lets_no_socket_out(outside: Outside, family: int) -> None:
    """Neither to a socket that tries to connect, nor back from it."""
    outside.set_filter(True)
    with (
        outside.capture(outside.server) as heard,
        bound(outside.server, "tcp", family, PORT) as other,
    ):
        with as_nobody():
            own = socket.socket(SOCKET_FAMILY[family], socket.SOCK_STREAM)
            own.setblocking(False)
            own.connect_ex((SERVER[family], PORT))
        with own:
            port = own.getsockname()[1]
            other.setblocking(False)
            other.connect_ex((OUTSIDE_GATEWAY[family], port))
            hears_nothing(own)
        assert not heard.has(lambda frame: getattr(frame.payload.payload, "sport", 0) == port)


# Both ends begin at once: RFC 9293, section 3.5


@families
@pytest.mark.parametrize("answer", ["SA", "A"])
def test_crossing_syns_become_a_connection(outside: Outside, answer: str, family: int) -> None:
    """The SYN from outside has no rule; that from inside has left, and is not answered yet."""
    client, server = (SILENT_CLIENT[family], 4000), (SILENT_SERVER[family], 4001)
    ours, theirs = 1000, 3 << 30
    with outside.capture(outside.client) as inside, outside.counts(flow=3):
        outside.send(outside.client, segment(client, server, "S", ours))
        outside.send(outside.server, segment(server, client, "S", theirs))
        outside.send(outside.client, segment(client, server, "SA", ours, theirs + 1))
        outside.send(outside.server, segment(server, client, answer, theirs, ours + 1))
        data = segment(server, client, "A", theirs + 1, ours + 1, b"data")
        outside.send(outside.server, data)
        assert [inside.next(TCP).flags for _ in range(3)] == ["S", answer, "A"]
    with outside.counts(no_rule=2):
        outside.send(outside.server, segment(server, client, "S", theirs + 7))
        other = (SILENT_SERVER[family], 4002)
        outside.send(outside.server, segment(other, client, "S", theirs))


@families
def test_a_crossing_syn_needs_the_others_number(outside: Outside, family: int) -> None:
    """A SYN alone lets no segment in that does not acknowledge the one that left."""
    client, server = (SILENT_CLIENT[family], 4000), (SILENT_SERVER[family], 4001)
    outside.send(outside.client, segment(client, server, "S", 1000))
    with outside.counts(flow=1, flow_invalid=2):
        outside.send(outside.server, segment(server, client, "S", 7))
        for acknowledged in (999, 5000):
            data = segment(server, client, "A", 8, acknowledged, b"data")
            outside.send(outside.server, data)


@contextmanager
def delayed(namespace: Namespace, interface: str, to: str) -> Iterator[None]:
    """What leaves by the interface waits: a bucket that is empty at first fills slowly."""
    shape = "tbf rate 8kbit burst 1600 limit 100000"
    namespace.run(*f"tc qdisc add dev {interface} root {shape}".split())
    with bound(namespace, "udp", 4) as filling:
        filling.sendto(bytes(1472), (to, 9))
    try:
        yield
    finally:
        namespace.run(*f"tc qdisc del dev {interface} root".split())


@families
def test_two_gateways_let_crossing_syns_through(outside: Outside, family: int) -> None:
    """Real sockets: the host outside has a firewall as well, and each SYN leaves first."""
    with outside.server.entered():
        far = Firewall()
        far.attach("eth0")
        far.set(["eth0"], "ipv6", True)
    try:
        with (
            delayed(outside.server, "eth0", OUTSIDE_GATEWAY[4]),
            delayed(outside.gateway, outside.outside, SERVER[4]),
            bound(outside.gateway, "tcp", family, 4005) as own,
            bound(outside.server, "tcp", family, 4006) as other,
        ):
            for each, to in (
                (own, (SERVER[family], 4006)),
                (other, (OUTSIDE_GATEWAY[family], 4005)),
            ):
                each.setblocking(False)
                each.connect_ex(to)
            own.settimeout(5)
            other.settimeout(5)
            select.select([], [own], [], 5)
            own.send(b"across")
            assert other.recv(100) == b"across"
    finally:
        with outside.server.entered():
            far.detach_all()
