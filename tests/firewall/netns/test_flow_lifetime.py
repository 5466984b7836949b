# SPDX-License-Identifier: GPL-2.0-only
"""How long flows are remembered, and that a flood of beginnings forgets none that is open."""

from __future__ import annotations

from struct import pack_into
from typing import TYPE_CHECKING

import pytest

from tests.firewall.support.frames import PROTOCOLS, SOME, families
from tests.firewall.support.routed import (
    ANYWHERE,
    CLIENT,
    OUTSIDE_GATEWAY,
    PORT,
    SERVER,
    SILENT_CLIENT,
    SILENT_SERVER,
    Conversation,
    Router,
    conversation,
    datagram,
    hears_nothing,
    segment,
    serving,
)
from zfw_py.cli.app import main
from zfw_py.cli.classic.run import run as classic
from zfw_py.firewall import layout

if TYPE_CHECKING:
    from scapy.packet import Packet

    from tests.support.netns import Namespace

pytestmark = pytest.mark.kernel

protocols = pytest.mark.parametrize("protocol", PROTOCOLS)

# More than there is room for among those that are opening.
FLOOD = layout.OPENING_FLOWS + 8192
# What ends within the time that a machine has been up, however short, before the test.
SOON = 10


def is_answered_in_vain(router: Router, talk: Conversation) -> None:
    """The outside's next data does not come in any more."""
    with router.counts(no_rule=SOME):
        talk.answers()
        assert hears_nothing(talk.asker)


# Idle


@families
def test_a_control_connection_may_be_idle_for_long(router: Router, family: int) -> None:
    """FTP: an hour's transfer goes on another connection, then the server reports on this one."""
    router.let_clients_in()
    assert router.firewall.flow_limits() == (30, 3600, 131072)
    with (
        conversation("tcp", router.client, router.server, SERVER[family], 21) as control,
        conversation("tcp", router.client, router.server, SERVER[family], 30000) as data,
    ):
        for seconds in (3000, 500, 90):
            router.age_flows(seconds)
            data.talks()
        control.answerer.send(b"226 Transfer complete\r\n")
        assert control.asker.recv(100) == b"226 Transfer complete\r\n"
        control.talks()


@families
@protocols
def test_a_flow_is_forgotten_when_it_is_idle(router: Router, protocol: str, family: int) -> None:
    router.let_clients_in()
    assert main(["set", f"--{protocol}-idle", str(SOON)]) == 0
    with conversation(protocol, router.client, router.server, SERVER[family]) as talk:
        router.age_flows(SOON - 1)
        talk.talks()
        router.age_flows(SOON + 1)
        assert router.flow(protocol) is None
        is_answered_in_vain(router, talk)


@families
@protocols
def test_each_protocol_has_its_own_idle_time(router: Router, protocol: str, family: int) -> None:
    router.let_clients_in()
    other = {"tcp": "udp", "udp": "tcp"}[protocol]
    assert main(["set", f"--{other}-idle", "1"]) == 0
    with conversation(protocol, router.client, router.server, SERVER[family]) as talk:
        router.age_flows(SOON)
        talk.talks()


@families
def test_udp_is_forgotten_after_30_s(router: Router, family: int) -> None:
    router.let_clients_in()
    with conversation("udp", router.client, router.server, SERVER[family]) as talk:
        router.age_flows(29)
        talk.talks()
        router.age_flows(31)
        is_answered_in_vain(router, talk)


@families
@protocols
def test_a_client_that_speaks_again_is_heard(router: Router, protocol: str, family: int) -> None:
    """What was forgotten is adopted, as long as a rule lets it out."""
    router.let_clients_in()
    router.set("outbound_filter", True, router.outside)
    router.firewall.set_flow_limits(udp_idle=SOON, tcp_idle=SOON)
    place = {"interfaces": (router.outside,), "direction": "egress"}
    router.insert(SERVER[family], protocol, PORT, **place)  # type: ignore[arg-type]
    with conversation(protocol, router.client, router.server, SERVER[family]) as talk:
        router.age_flows(SOON + 1)
        talk.talks()
        talk.talks()
        router.firewall.flush(direction="egress")
        router.age_flows(SOON + 1)
        with router.counts(rule_pass=SOME, egress_no_rule=SOME):
            talk.asks_in_vain()


# zfw -L -G


def test_case_53_expired_flows_go_and_live_ones_stay(
    router: Router, capsys: pytest.CaptureFixture[str]
) -> None:
    router.let_clients_in()
    with (
        conversation("udp", router.client, router.server, SERVER[4], 5001) as forgotten,
        conversation("tcp", router.client, router.server, SERVER[4], 5002) as live_tcp,
        conversation("tcp", router.client, router.server, SERVER[6], 5002),
    ):
        router.age_flows(31)
        with conversation("udp", router.client, router.server, SERVER[6], 5003) as live_udp:
            assert count_entries(router) == 4
            assert classic(["-L", "-G"]) == 0
            assert count_entries(router) == 3
            live_udp.talks()
            live_tcp.talks()
            forgotten.talks()
            router.firewall.set_flow_limits(udp_idle=SOON, tcp_idle=SOON)
            router.age_flows(SOON + 1)
            live_udp.talks()
            assert classic(["-L", "-G"]) == 0
            assert [flow.responder_port for flow in router.firewall.flows()] == [5003]
            assert count_entries(router) == 1
    assert "error" not in capsys.readouterr().err


def count_entries(router: Router) -> int:
    """Entries of the tables, forgotten or not."""
    from zfw_py.firewall.maps import Maps

    with Maps(is_writer=False) as maps:
        inners = [maps.inner("flows", index) for index in range(layout.FLOW_TABLES)]
        return sum(len(list(inner.items())) for inner in inners if inner is not None)


# How many


@families
def test_flows_stay_when_their_number_changes(router: Router, family: int) -> None:
    router.let_clients_in()
    with (
        conversation("tcp", router.client, router.server, SERVER[family]) as tcp,
        conversation("udp", router.client, router.server, SERVER[family]) as udp,
    ):
        udp.talks()
        for count in (1024, 200_000, 4096):
            assert main(["set", "--max-flows", str(count)]) == 0
            assert router.state("tcp") == router.state("udp") == "open"
            udp.talks()
            tcp.talks()
        assert router.firewall.flow_limits().max_flows == 4096


def test_where_there_is_less_room_the_newest_flows_stay(router: Router) -> None:
    router.let_clients_in()
    with conversation("tcp", router.client, router.server, SERVER[4]) as talk:
        old = 1500
        for number in range(old):
            client, server = (SILENT_CLIENT[4], 10000 + number), (SILENT_SERVER[4], 53)
            router.send(router.client, _raw_datagram(router, client, server))
            router.send(router.server, _raw_datagram(router, server, client, outside=True))
            router.send(router.client, _raw_datagram(router, client, server))
        assert len(router.firewall.flows()) == old + 1
        router.age_flows(5)
        talk.talks()
        router.firewall.set_flow_limits(max_flows=1024)
        assert len(router.firewall.flows()) <= 1024
        assert router.state() == "open"
        talk.talks()


def _raw_datagram(
    router: Router, source: tuple[str, int], destination: tuple[str, int], *, outside: bool = False
) -> bytes:
    """As ``datagram``, but from a template: scapy takes a millisecond for each."""
    kind = (source[0], destination[0])
    if kind not in _templates:
        peer = router.server if outside else router.client
        _templates[kind] = bytearray(router.framed(peer, datagram(source, destination)))
    frame = bytearray(_templates[kind])
    pack_into("!HH", frame, 34, source[1], destination[1])
    pack_into("!H", frame, 40, 0)  # no checksum
    return bytes(frame)


_templates: dict[tuple[str, str], bytearray] = {}


# Floods


def flood(router: Router, peer: Namespace, packet: Packet, count: int = FLOOD) -> None:
    """The same SYN from ``count`` ports, its checksum kept right by the sequence number."""
    frame = bytearray(router.framed(peer, packet))
    transport = 14 + (40 if packet.version == 6 else 20)
    for number in range(count):
        pack_into("!H", frame, transport, 1024 + number)
        pack_into("!H", frame, transport + 6, 65000 - number)
        router.send(peer, bytes(frame))


def flooding_segment(source: str, destination: str, port: int) -> Packet:
    return segment((source, 1024), (destination, port), "S", 65000)


@families
def test_a_flood_from_inside_pushes_out_no_open_flow(router: Router, family: int) -> None:
    router.let_clients_in()
    with (
        conversation("tcp", router.client, router.server, SERVER[family]) as tcp,
        conversation("udp", router.client, router.server, SERVER[family]) as udp,
    ):
        udp.talks()
        with router.counts(rule_pass=FLOOD, egress=SOME):
            flood(
                router,
                router.client,
                flooding_segment(SILENT_CLIENT[family], SILENT_SERVER[family], 80),
            )
        assert count_entries(router) > layout.OPENING_FLOWS // 2
        with router.counts(flow=SOME, rule_pass=SOME, egress=SOME):
            # The outside first: were its flow gone, nothing would let it in.
            for talk in (tcp, udp):
                talk.answers()
                assert talk.asker.recv(100) == b"answer"
            tcp.talks()
            udp.talks()


@families
def test_a_flood_from_inside_to_somebody_who_answers(router: Router, family: int) -> None:
    """A server's SYN-ACK to each: half of what makes a flow open."""
    router.let_clients_in()
    with (
        conversation("tcp", router.client, router.server, SERVER[family]) as tcp,
        serving(router.server, "tcp", family, 80),
    ):
        flood(router, router.client, flooding_segment(SILENT_CLIENT[family], SERVER[family], 80))
        tcp.answers()
        assert tcp.asker.recv(100) == b"answer"
        tcp.talks()


@families
@pytest.mark.parametrize("target", ["silent", "inside", "gateway"])
def test_a_flood_from_outside_pushes_out_no_open_flow(
    router: Router, target: str, family: int
) -> None:
    """To a service that a rule admits: one that does not answer, one that does, one of our own."""
    router.let_clients_in()
    router.set("outbound_filter", True, router.outside)
    out = {"interfaces": (router.outside,), "direction": "egress"}
    router.insert(ANYWHERE[family], "tcp", PORT, **out)  # type: ignore[arg-type]
    address, place = {
        "silent": (SILENT_CLIENT[family], router.client),
        "inside": (CLIENT[family], router.client),
        "gateway": (OUTSIDE_GATEWAY[family], router.gateway),
    }[target]
    router.insert(address, "tcp", 80, interfaces=(router.outside,))
    router.insert(CLIENT[family], "tcp", 443, interfaces=(router.outside,))
    with (
        conversation("tcp", router.client, router.server, SERVER[family]) as outgoing,
        conversation("tcp", router.server, router.client, CLIENT[family], 443) as incoming,
        serving(place, "tcp", family, 80),
    ):
        # Neither has a rule any more: only what is tracked lets them go on.
        router.firewall.flush(direction="egress")
        with router.counts(rule_pass=FLOOD, **({} if target == "silent" else {"flow": SOME})):
            flood(router, router.server, flooding_segment(SILENT_SERVER[family], address, 80))
        assert count_entries(router) > layout.OPENING_FLOWS // 2
        for talk in (outgoing, incoming):
            talk.answers()
            assert talk.asker.recv(100) == b"answer"
            talk.talks()


@families
def test_a_flood_of_datagrams_pushes_out_no_open_connection(router: Router, family: int) -> None:
    """Nobody answers them."""
    router.let_clients_in()
    with conversation("tcp", router.client, router.server, SERVER[family]) as tcp:
        packet = datagram((SILENT_CLIENT[family], 1024), (SILENT_SERVER[family], 53), bytes(8))
        frame = bytearray(router.framed(router.client, packet))
        transport = 14 + (40 if family == 6 else 20)
        for number in range(FLOOD):
            pack_into("!H", frame, transport, 1024 + number)
            router.send(router.client, bytes(frame))
        tcp.answers()
        assert tcp.asker.recv(100) == b"answer"
        tcp.talks()
