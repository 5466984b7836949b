# SPDX-License-Identifier: GPL-2.0-only
"""What opens and closes a TCP flow, segment by segment, and what a blind attacker cannot."""

from __future__ import annotations

import socket
from struct import pack
from typing import TYPE_CHECKING

import pytest
from scapy.layers.inet import TCP

from tests.firewall.support.frames import FAMILIES, SOME, families
from tests.firewall.support.routed import (
    PORT,
    SERVER,
    SILENT_CLIENT,
    SILENT_SERVER,
    Conversation,
    Router,
    bound,
    segment,
    serving,
)
from tests.support.waiting import PATIENCE

if TYPE_CHECKING:
    from collections.abc import Callable

    from scapy.packet import Packet

pytestmark = pytest.mark.kernel


CLIENT_PORT = 4000
FAR = 1 << 30
# Numbers below are counted from these: far from each other, and the client's pass 0 soon.
CLIENT_BASE, SERVER_BASE = 2**32 - 1004, 0x7000_0000


class Ends:
    """Two ends whose segments are made here: the client inside, the server outside."""

    def __init__(self, router: Router, family: int) -> None:
        self.router = router
        self.client = SILENT_CLIENT[family], CLIENT_PORT
        self.server = SILENT_SERVER[family], PORT

    def asks(self, flags: str, seq: int, ack: int = 0, data: bytes = b"") -> bool:
        """The client sends; whether it gets through."""
        numbers = (CLIENT_BASE + seq) % 2**32, (SERVER_BASE + ack) % 2**32
        packet = segment(self.client, self.server, flags, *numbers, data)
        with self.router.capture(self.router.server) as heard:
            self.router.send(self.router.client, packet)
            return heard.has(_is(packet))

    def answers(self, flags: str, seq: int, ack: int = 0, data: bytes = b"") -> bool:
        """The server sends; whether it gets through."""
        numbers = (SERVER_BASE + seq) % 2**32, (CLIENT_BASE + ack) % 2**32
        packet = segment(self.server, self.client, flags, *numbers, data)
        with self.router.capture(self.router.client) as heard:
            self.router.send(self.router.server, packet)
            return heard.has(_is(packet))

    def open(self) -> None:
        """A handshake: the client's next number is 1001 then, the server's 5001."""
        assert self.asks("S", 1000)
        assert self.router.state() == "started"
        assert self.answers("SA", 5000, 1001)
        assert self.router.state() == "answered"
        assert self.asks("A", 1001, 5001)
        assert self.router.state() == "open"


def _is(packet: Packet) -> Callable[[Packet], bool]:
    header = bytes(packet[TCP])[:16]

    def is_it(frame: Packet) -> bool:
        return TCP in frame and bytes(frame[TCP])[:16] == header

    return is_it


@pytest.fixture(params=FAMILIES)
def ends(router: Router, request: pytest.FixtureRequest) -> Ends:
    """Of a family each; clients may send anything."""
    router.let_clients_in()
    return Ends(router, request.param)


@pytest.fixture(params=["", "filtered"])
def either_way(router: Router, request: pytest.FixtureRequest) -> None:
    """Whether what leaves is filtered makes no difference to the outside."""
    if request.param:
        router.set("outbound_filter", True, router.outside)
        place = {"interfaces": (router.outside,), "direction": "egress"}
        for anywhere in ("0.0.0.0/0", "::/0"):
            router.insert(anywhere, "tcp", 0, 65535, **place)  # type: ignore[arg-type]


# Opening


def test_a_handshake_opens(ends: Ends, router: Router, either_way: None) -> None:
    with router.counts(rule_pass=SOME, egress=SOME, flow=SOME):
        ends.open()
        assert ends.answers("PA", 5001, 1001, b"answer")
        assert ends.asks("PA", 1001, 5007, b"question")


@pytest.mark.parametrize("flags", ["R", "RA", "F", "FA", "SA", "SF", "SR", ""])
def test_what_begins_no_flow(ends: Ends, router: Router, flags: str) -> None:
    """Let out, since that is not filtered, but no answer to it is awaited."""
    assert ends.asks(flags, 1000, 1)
    assert router.flow("tcp") is None
    with router.counts(no_rule=2):
        assert not ends.answers("SA", 5000, 1001)
        assert not ends.answers("R", 5000)


@pytest.mark.parametrize("flags", ["R", "RA", "SA", "FA"])
def test_a_filtered_segment_begins_no_flow_either(ends: Ends, router: Router, flags: str) -> None:
    router.set("outbound_filter", True, router.outside)
    anywhere = "::/0" if ":" in ends.client[0] else "0.0.0.0/0"
    place = {"interfaces": (router.outside,), "direction": "egress"}
    router.insert(anywhere, "tcp", PORT, **place)  # type: ignore[arg-type]
    with router.counts(rule_pass=2):
        assert ends.asks(flags, 1000, 1)
    assert router.flow("tcp") is None


@pytest.mark.parametrize("flags", ["R", "RA", "F", "FA", "SA", "S", "A", "PA", ""])
def test_the_outside_begins_no_flow(
    ends: Ends, router: Router, flags: str, either_way: None
) -> None:
    with router.counts(no_rule=1):
        assert not ends.answers(flags, 5000, 1001)
    assert router.firewall.flows() == []


@pytest.mark.parametrize("ack", [1000, 1002, 0, 1001 + FAR, 1001 - FAR])
def test_only_an_answer_to_the_syn_is_one(
    ends: Ends, router: Router, ack: int, either_way: None
) -> None:
    assert ends.asks("S", 1000)
    with router.counts(flow_invalid=1):
        assert not ends.answers("SA", 5000, ack)
    with router.counts(flow_invalid=3):
        assert not ends.answers("PA", 5000, 1001, b"data")
        assert not ends.answers("F", 5000)
        assert not ends.answers("", 5000, 0)
    assert router.state() == "started"


def test_a_syn_may_be_sent_again(ends: Ends, router: Router, either_way: None) -> None:
    """With another number: who sends it has begun anew."""
    assert ends.asks("S", 1000)
    assert ends.asks("S", 1000)
    assert ends.asks("S", 90000)
    with router.counts(flow_invalid=1):
        assert not ends.answers("SA", 5000, 1001)
    assert ends.answers("SA", 5000, 90001)
    assert ends.asks("A", 90001, 5001)
    assert router.state() == "open"


def test_an_older_connection_is_told_of(ends: Ends, router: Router, either_way: None) -> None:
    """The server still has one: its bare ACK comes in, the client's RST ends it.

    RFC 9293, section 3.10.7.
    """
    assert ends.asks("S", 1000)
    assert ends.answers("A", 777, 4444)
    assert router.state() == "started"
    assert ends.asks("R", 4444)
    assert ends.asks("S", 1000)
    assert ends.answers("SA", 5000, 1001)
    assert ends.asks("A", 1001, 5001)
    assert router.state() == "open"


def test_data_with_the_syn(ends: Ends, router: Router, either_way: None) -> None:
    """TCP Fast Open: acknowledged with its SYN, or not."""
    assert ends.asks("S", 1000, data=b"question")
    with router.counts(flow_invalid=1):
        assert not ends.answers("SA", 5000, 1010)
    assert ends.answers("SA", 5000, 1009)
    assert ends.asks("A", 1009, 5001)
    assert router.state() == "open"


# Resets


@pytest.mark.parametrize("seq", [5001 + FAR, 5001 - FAR, 0x80000000])
@pytest.mark.parametrize("flags", ["R", "RA"])
def test_a_blind_reset_stays_outside(
    ends: Ends, router: Router, flags: str, seq: int, either_way: None
) -> None:
    ends.open()
    with router.counts(flow_invalid=1):
        assert not ends.answers(flags, seq, 1001)
    assert router.state() == "open"
    assert ends.answers("PA", 5001, 1001, b"answer")


@pytest.mark.parametrize("distance", [-1, 1, 1000, 60000])
def test_a_reset_in_the_window_closes_nothing(
    ends: Ends, router: Router, distance: int, either_way: None
) -> None:
    """The client gets it, and challenges it (RFC 5961, section 3.2)."""
    ends.open()
    with router.counts(flow=1, egress=SOME):
        assert ends.answers("R", 5001 + distance)
    assert router.state() == "open"
    # The challenge, and what the server says to it.
    assert ends.asks("A", 1001, 5001)
    assert ends.answers("PA", 5001, 1001, b"answer")
    assert router.state() == "open"


@pytest.mark.parametrize("flags", ["R", "RA"])
def test_the_exact_reset_closes(ends: Ends, router: Router, flags: str, either_way: None) -> None:
    ends.open()
    with router.counts(flow=1, egress=SOME):
        assert ends.answers(flags, 5001, 1001)
    assert router.state() == "reset"


def test_the_clients_exact_reset_closes(ends: Ends, router: Router, either_way: None) -> None:
    ends.open()
    assert ends.asks("R", 1001)
    assert router.state() == "reset"


def test_a_reset_after_data(ends: Ends, router: Router, either_way: None) -> None:
    """One beyond what the client has acknowledged counts if it acknowledges all of the client's."""
    ends.open()
    assert ends.answers("PA", 5001, 1001, bytes(100))
    assert ends.answers("R", 5101)
    assert router.state() == "open"
    assert ends.answers("RA", 5101, 1001)
    assert router.state() == "reset"


def test_a_clients_reset_with_another_number_closes_nothing(ends: Ends, router: Router) -> None:
    ends.open()
    assert ends.asks("R", 1001 + FAR)
    assert router.state() == "open"


def test_a_clients_blind_reset_does_not_leave_where_that_is_filtered(
    ends: Ends, router: Router
) -> None:
    ends.open()
    router.set("outbound_filter", True, router.outside)
    with router.counts(rule_pass=1, flow_invalid=1):
        assert not ends.asks("R", 1001 + FAR)
    assert router.state() == "open"


def test_a_refusal_comes_in(ends: Ends, router: Router, either_way: None) -> None:
    assert ends.asks("S", 1000)
    with router.counts(flow_invalid=3):
        assert not ends.answers("R", 1001)
        assert not ends.answers("RA", 0, 1002)
        assert not ends.answers("RA", 0, 1001 + FAR)
    assert router.state() == "started"
    assert ends.answers("RA", 0, 1001)
    assert router.state() == "reset"


# FIN


def test_a_fin_each_way_closes(ends: Ends, router: Router, either_way: None) -> None:
    ends.open()
    assert ends.asks("FA", 1001, 5001)
    assert router.state() == "open"
    assert ends.answers("PA", 5001, 1002, b"the rest")
    assert ends.answers("FA", 5009, 1002)
    assert router.state() == "closing"
    assert ends.asks("A", 1002, 5010)
    # Lost on the way, perhaps: sent again.
    assert ends.answers("FA", 5009, 1002)
    assert router.state() == "closing"


def test_blind_fins_close_nothing(ends: Ends, router: Router, either_way: None) -> None:
    ends.open()
    ends.answers("FA", 5001 + FAR, 1001)
    ends.answers("FA", 5001 - FAR, 1001)
    assert ends.asks("FA", 1001, 5001)
    assert router.state() == "open"
    assert ends.answers("PA", 5001, 1002, b"answer")


def test_the_same_ports_at_once_after_a_close(ends: Ends, router: Router, either_way: None) -> None:
    ends.open()
    assert ends.asks("FA", 1001, 5001)
    assert ends.answers("FA", 5001, 1002)
    assert ends.asks("A", 1002, 5002)
    assert router.state() == "closing"
    ends.open()
    assert ends.answers("R", 5001)
    assert router.state() == "reset"
    ends.open()


def test_a_syn_does_not_renew_an_open_flow(ends: Ends, router: Router, either_way: None) -> None:
    """The server challenges it; the flow is what it was."""
    ends.open()
    assert ends.asks("S", 7000)
    assert router.state() == "open"
    assert ends.answers("A", 5001, 1001)
    with router.counts(flow_invalid=1):
        assert not ends.answers("R", 5001 + FAR)
    assert router.state() == "open"


def test_a_syn_from_outside_is_no_answer(ends: Ends, router: Router, either_way: None) -> None:
    ends.open()
    with router.counts(no_rule=1):
        assert not ends.answers("S", 5001)
    assert router.state() == "open"


# With stacks at both ends


@families
@pytest.mark.parametrize("first", ["client", "server", "client resets", "server resets"])
def test_a_new_connection_from_the_same_port_works_at_once(
    router: Router, first: str, family: int, either_way: None
) -> None:
    router.let_clients_in()
    seen = []
    with serving(router.server, "tcp", family) as listener:
        for _ in range(3):
            client = bound(router.client, "tcp", family, CLIENT_PORT)
            with client:
                client.connect((SERVER[family], PORT))
                connection, _ = listener.accept()
                with connection:
                    Conversation(client, connection).talks()
                    assert router.state() == "open"
                    one, other = client, connection
                    if first.startswith("server"):
                        one, other = connection, client
                    if not first.endswith("resets"):
                        for each in (one, other):
                            each.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, pack("ii", 0, 0))
                    one.close()
                    other.settimeout(PATIENCE)
                    try:
                        assert other.recv(1) == b""
                    except ConnectionResetError:
                        assert first.endswith("resets")
                    other.close()
            seen.append(router.state())
    assert set(seen) == {"reset" if first.endswith("resets") else "closing"}
