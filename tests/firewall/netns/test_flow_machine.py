# SPDX-License-Identifier: GPL-2.0-only
"""Tracked flows against the reference model, packet by packet: rules, settings and time between.

The programs that run on the wire are given packets by BPF_PROG_TEST_RUN, and after each
step the listing of flows is what the model says.
"""

from __future__ import annotations

import os
import socket
import struct
import time
from dataclasses import dataclass, field, replace
from ipaddress import ip_address
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    run_state_machine_as_test,
)
from hypothesis.stateful import (
    rule as step,
)

from tests.firewall.support import packets
from tests.firewall.support.flow_tables import age_flows, clear_flows, programs, run
from tests.firewall.support.listeners import udp_listener
from tests.firewall.support.reference import (
    Decision,
    Interface,
    RuleSet,
    Sockets,
    carry_out,
    decide,
    decide_egress,
    rule,
)
from tests.firewall.support.tracked import (
    ACK,
    FIN,
    ICMP,
    ICMPV6,
    NEAR,
    RST,
    SYN,
    TCP,
    UDP,
    End,
    TrackedFlows,
)
from tests.support.waiting import PATIENCE
from zfw_py import Delete, Firewall, Prefix, Rule, RuleKey
from zfw_py.firewall import layout
from zfw_py.firewall.maps import Maps

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.firewall.support import reference
    from tests.support.netns import Network

pytestmark = pytest.mark.kernel

INSIDE, OUTSIDE = "gw0", "out0"
# Direction, interface, and the interface that it came by.
Hop = tuple[str, str, str | None]
FROM_INSIDE: tuple[Hop, ...] = (("ingress", INSIDE, None), ("egress", OUTSIDE, INSIDE))
FROM_OUTSIDE: tuple[Hop, ...] = (("ingress", OUTSIDE, None), ("egress", INSIDE, OUTSIDE))
FROM_HERE: tuple[Hop, ...] = (("egress", OUTSIDE, None),)
TO_HERE: tuple[Hop, ...] = (("ingress", OUTSIDE, None),)

DROPPED, PASSED = 2, 0xFFFFFFFF  # TC_ACT_SHOT, TC_ACT_UNSPEC
PROTOCOLS = {TCP: "tcp", UDP: "udp", ICMP: "icmp", ICMPV6: "icmpv6"}


@dataclass
class Conversation:
    """Two ends that send each other packets; each knows what it sends next and has seen."""

    protocol: int
    ends: tuple[End, End]
    paths: tuple[tuple[Hop, ...], tuple[Hop, ...]]
    next: list[int] = field(default_factory=lambda: [1000, 2000])

    def frame(
        self,
        end: int,
        flags: int = 0,
        *,
        length: int = 0,
        sequence: int = 0,
        acknowledgment: int = 0,
        is_request: bool | None = None,
    ) -> bytes:
        """A packet of one end; ``sequence`` and ``acknowledgment`` are off by so much."""
        (source, from_port), (destination, to_port) = self.ends[end], self.ends[1 - end]
        if self.protocol == TCP:
            payload = packets.tcp(
                from_port,
                to_port,
                flags,
                bytes(length),
                sequence=(self.next[end] + sequence) % 2**32,
                acknowledgment=(self.next[1 - end] + acknowledgment) % 2**32 if flags & ACK else 0,
            )
            if sequence == 0 and not flags & RST:
                marks = bool(flags & SYN) + bool(flags & FIN)
                self.next[end] = (self.next[end] + length + marks) % 2**32
        elif self.protocol == UDP:
            payload = packets.udp(from_port, to_port, bytes(length))
        else:
            request, reply = (8, 0) if self.protocol == ICMP else (128, 129)
            asks = is_request if is_request is not None else end == 0
            rest = from_port.to_bytes(2, "big") + b"\0\1"
            payload = packets.icmp(request if asks else reply, rest=rest)
        if source.version == 4:
            return packets.ethernet(
                packets.ipv4(source, destination, self.protocol, payload), 0x0800
            )
        return packets.ethernet(packets.ipv6(source, destination, self.protocol, payload), 0x86DD)


def _end(address: str, port: int) -> End:
    return ip_address(address), port


def conversations() -> list[Conversation]:
    """Through the gateway in either direction, and of the gateway itself."""
    inside, outside, here = "10.9.0.2", "198.51.100.7", "203.0.113.1"
    forward, inward = (FROM_INSIDE, FROM_OUTSIDE), (FROM_OUTSIDE, FROM_INSIDE)
    return [
        Conversation(TCP, (_end(inside, 40000), _end(outside, 443)), forward),
        Conversation(TCP, (_end(outside, 50000), _end(inside, 8080)), inward),
        Conversation(TCP, (_end(here, 40000), _end(outside, 443)), (FROM_HERE, TO_HERE)),
        Conversation(TCP, (_end("fd09::2", 40000), _end("2001:db8::7", 443)), forward),
        Conversation(UDP, (_end(inside, 40000), _end(outside, 53)), forward),
        Conversation(UDP, (_end(outside, 50000), _end(here, 53)), (TO_HERE, FROM_HERE)),
        Conversation(ICMP, (_end(inside, 1), _end(outside, 1)), forward),
        Conversation(ICMPV6, (_end("fd09::2", 1), _end("2001:db8::7", 1)), forward),
        Conversation(ICMP, (_end(here, 7), _end(outside, 7)), (FROM_HERE, TO_HERE)),
    ]


# Rules that some conversation needs, those of egress first.
RULES = (
    rule("198.51.100.0/24", "tcp", 443, direction="egress"),
    rule("2001:db8::/32", "tcp", 1, 65535, direction="egress"),
    rule("198.51.100.7/32", "udp", 53, direction="egress"),
    rule("10.9.0.0/24", "tcp", 8080, direction="egress"),
    rule("198.51.100.7/32", "tcp", 443, action="deny", direction="egress"),
    rule("198.51.100.7/32", "tcp", 443, source="10.9.0.0/24"),
    rule("2001:db8::/32", "tcp", 443),
    rule("198.51.100.7/32", "udp", 53),
    rule("10.9.0.2/32", "tcp", 8080),
    rule("203.0.113.1/32", "udp", 53),
    rule("0.0.0.0/0", "tcp", 443, action="deny"),
)


class World:
    """A gateway with two interfaces, and the model of it."""

    def __init__(self, running: dict[str, int]) -> None:
        self._programs = running
        self.firewall = Firewall()
        self.reset()

    def reset(self) -> None:
        """No rule, no flow, nothing set but IPv6."""
        self.firewall.flush()
        clear_flows()
        self.rules = RuleSet()
        self.flows = TrackedFlows()
        self.firewall.set_flow_limits(udp_idle=30, tcp_idle=3600)
        self.interfaces = {}
        for name in (INSIDE, OUTSIDE):
            made = Interface(name)
            self.interfaces[name] = made
            for setting in ("icmp_echo", "outbound_filter", "pass_non_tuple"):
                self.firewall.set([name], setting, False)
            self.set(name, "ipv6", True)

    def set(self, name: str, setting: str, on: bool) -> None:
        self.firewall.set([name], setting, on)
        self.interfaces[name] = replace(self.interfaces[name], **{setting: on})

    def insert(self, new: reference.Rule) -> None:
        self.firewall.insert(kernel_rule(new))
        self.rules.insert(new)

    def delete(self, old: reference.Rule) -> None:
        self.firewall.apply([Delete(kernel_rule(old).key)])
        assert self.rules.delete(old.key)

    def set_limits(self, udp_idle: int, tcp_idle: int) -> None:
        self.firewall.set_flow_limits(udp_idle=udp_idle, tcp_idle=tcp_idle)
        self.flows.udp_idle, self.flows.tcp_idle = udp_idle, tcp_idle

    def age(self, seconds: float) -> None:
        age_flows(seconds)
        for flow in self.flows.flows.values():
            flow.seen -= seconds

    def explain(self, hop: Hop, frame: bytes) -> tuple[str, str, str]:
        """What the program says: verdict, reason, and what it does to the flow."""
        direction, name, came_by = hop
        answer = self.firewall.explain(frame, name, direction, came_by)
        return answer.verdict, answer.reason, answer.track

    def send(self, hop: Hop, frame: bytes) -> Decision:
        """Let a packet arrive or leave, in both; what is decided, which is the same."""
        direction, name, came_by = hop
        self.flows.now = time.monotonic()
        wanted = self._decide(hop, frame)
        got = self.explain(hop, frame)
        assert got == (wanted.verdict, wanted.reason, wanted.track), self._shown(hop, frame)
        result = run(self._programs[direction], frame, name, came_by)
        assert result == (DROPPED if wanted.verdict == "drop" else PASSED)
        carry_out(frame, wanted, direction, self.flows, self.rules, self.interfaces[name])
        self.check_listing()
        return wanted

    def _decide(self, hop: Hop, frame: bytes) -> Decision:
        direction, name, came_by = hop
        interface = self.interfaces[name]
        if direction == "egress":
            return decide_egress(
                frame, interface, self.rules, {}, self.flows, is_forwarded=came_by is not None
            )
        is_tracking = any(each.outbound_filter for each in self.interfaces.values())
        return decide(
            frame, interface, self.rules, Sockets(), {}, self.flows, is_tracking=is_tracking
        )

    def _shown(self, hop: Hop, frame: bytes) -> str:
        flows = "\n".join(str(flow) for flow in self.flows.flows.values())
        return f"{hop} {frame.hex()}\n{flows}"

    def check_listing(self) -> None:
        """The flows that are listed are those of the model."""
        self.flows.now = time.monotonic()
        wanted = {}
        for flow in self.flows.listed():
            ends = (str(flow.initiator[0]), flow.initiator[1])
            ends += (str(flow.responder[0]), flow.responder[1])
            described = (
                *(PROTOCOLS[flow.protocol], *ends, flow.state),
                *(flow.is_admitted_in, flow.is_admitted_out),
            )
            wanted[described] = flow.seen
        listed = {tuple(flow)[:-1]: flow.idle for flow in self.firewall.flows()}
        assert listed.keys() == wanted.keys()
        for described, idle in listed.items():
            assert abs(self.flows.now - wanted[described] - idle) < 1, described


def kernel_rule(each: reference.Rule) -> Rule:
    key = RuleKey(
        Prefix.parse(str(each.destination)),
        each.protocol,
        each.low,
        source=Prefix.parse(str(each.source)),
        direction=each.direction,
    )
    return Rule(key, each.high, tproxy_port=each.tproxy_port, deny=each.action == "deny")


@pytest.fixture
def world(network: Network) -> Iterator[World]:
    network.gateway.add_veth(OUTSIDE, "out1")
    firewall = Firewall()
    for name in (INSIDE, OUTSIDE):
        firewall.attach(name, "both")
    with programs() as running:
        yield World(running)


# How far off a number may be: the next one, within a window, just past it, anywhere.
OFFSETS = (0, 0, 0, 0, 1, -1, 1460, -1460, NEAR - 5000, NEAR + 5000, -NEAR - 5000, 1 << 31)
FLAGS = (SYN, SYN | ACK, ACK, ACK, FIN | ACK, RST, RST | ACK, 0, SYN | FIN, SYN | RST, FIN)
AGES = (1, 4, 9, 11, 29, 31, 119, 121, 599, 3601)

CONVERSATION = st.integers(0, len(conversations()) - 1)
ENDS = st.integers(0, 1)


class FlowMachine(RuleBasedStateMachine):
    """Steps in any order; ``world`` is set before it runs."""

    world: World

    @initialize(
        is_filtered=st.booleans(),
        rules=st.sets(st.sampled_from(range(len(RULES)))),
        echo=st.booleans(),
    )
    def begin(self, is_filtered: bool, rules: set[int], echo: bool) -> None:
        self.world.reset()
        self.conversations = conversations()
        self.world.set(OUTSIDE, "outbound_filter", is_filtered)
        for name in (INSIDE, OUTSIDE):
            self.world.set(name, "icmp_echo", echo)
        for number in sorted(rules):
            self.world.insert(RULES[number])

    def _pass(self, conversation: Conversation, end: int, frame: bytes) -> None:
        """Along its path until something drops it."""
        for hop in conversation.paths[end]:
            if self.world.send(hop, frame).verdict == "drop":
                return

    @step(number=CONVERSATION, isn=st.integers(0, 2**32 - 1), length=st.sampled_from((0, 0, 5)))
    def handshake(self, number: int, isn: int, length: int) -> None:
        """The first three packets of a connection; of others a question and its answer."""
        talk = self.conversations[number]
        talk.next = [isn, (isn * 7919 + 12345) % 2**32]
        self._pass(talk, 0, talk.frame(0, SYN, length=length))
        self._pass(talk, 1, talk.frame(1, SYN | ACK))
        self._pass(talk, 0, talk.frame(0, ACK))

    @step(number=CONVERSATION, end=ENDS, length=st.sampled_from((0, 1, 1000)))
    def data(self, number: int, end: int, length: int) -> None:
        talk = self.conversations[number]
        self._pass(talk, end, talk.frame(end, ACK, length=length))

    @step(number=CONVERSATION, end=ENDS)
    def finish(self, number: int, end: int) -> None:
        talk = self.conversations[number]
        self._pass(talk, end, talk.frame(end, FIN | ACK))
        self._pass(talk, 1 - end, talk.frame(1 - end, ACK))

    @step(number=CONVERSATION, end=ENDS)
    def close_both(self, number: int, end: int) -> None:
        self.finish(number, end)
        self.finish(number, 1 - end)

    @step(number=CONVERSATION, end=ENDS, flags=st.sampled_from((RST, RST | ACK)))
    def refuse(self, number: int, end: int, flags: int) -> None:
        talk = self.conversations[number]
        self._pass(talk, end, talk.frame(end, flags))

    @step(
        number=CONVERSATION,
        end=ENDS,
        flags=st.sampled_from(FLAGS),
        sequence=st.sampled_from(OFFSETS),
        acknowledgment=st.sampled_from(OFFSETS),
        length=st.sampled_from((0, 0, 7)),
        is_request=st.booleans(),
    )
    def anything(
        self,
        number: int,
        end: int,
        flags: int,
        sequence: int,
        acknowledgment: int,
        length: int,
        is_request: bool,
    ) -> None:
        """Retransmissions, blind RSTs, crossing pings, port reuse."""
        talk = self.conversations[number]
        frame = talk.frame(
            end,
            flags,
            length=length,
            sequence=sequence,
            acknowledgment=acknowledgment,
            is_request=is_request,
        )
        self._pass(talk, end, frame)

    @step(number=CONVERSATION, end=ENDS, flags=st.sampled_from(FLAGS), hop=st.integers(0, 1))
    def one_hop(self, number: int, end: int, flags: int, hop: int) -> None:
        """Seen on one interface only."""
        talk = self.conversations[number]
        path = talk.paths[end]
        self.world.send(path[hop % len(path)], talk.frame(end, flags))

    @step(number=st.sampled_from(range(len(RULES))))
    def insert_or_delete(self, number: int) -> None:
        new = RULES[number]
        if any(each.key == new.key for each in self.world.rules):
            self.world.delete(new)
        else:
            self.world.insert(new)

    @step(
        name=st.sampled_from((INSIDE, OUTSIDE)),
        setting=st.sampled_from(("outbound_filter", "outbound_filter", "icmp_echo", "ipv6")),
        on=st.booleans(),
    )
    def set(self, name: str, setting: str, on: bool) -> None:
        self.world.set(name, setting, on)

    @step(udp=st.sampled_from((5, 30, 300)), tcp=st.sampled_from((60, 600, 3600)))
    def limit(self, udp: int, tcp: int) -> None:
        self.world.set_limits(udp, tcp)

    # No sum of these is a whole number: no limit is met to the millisecond.
    @step(seconds=st.sampled_from(AGES))
    def wait(self, seconds: int) -> None:
        self.world.age(seconds + 0.013)

    @invariant()
    def listing_is_right(self) -> None:
        if hasattr(self, "conversations"):
            self.world.check_listing()


def test_flows_and_model_agree(world: World) -> None:
    machine = type("Machine", (FlowMachine,), {"world": world})
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=int(os.environ.get("ZFW_FLOW_EXAMPLES", "60")),
            stateful_step_count=30,
            deadline=None,
            database=None,
            print_blob=True,
            suppress_health_check=list(HealthCheck),
        ),
    )


# What each of these says went wrong once, or nearly.


def _handshake(world: World, talk: Conversation, numbers: tuple[int, int]) -> None:
    talk.next = list(numbers)
    for end, flags in ((0, SYN), (1, SYN | ACK), (0, ACK)):
        _send(world, talk, end, talk.frame(end, flags))


def _send(world: World, talk: Conversation, end: int, frame: bytes) -> str:
    """Along its path until something drops it; the reason there, or outside."""
    for hop in talk.paths[end]:
        decision = world.send(hop, frame)
        if decision.verdict == "drop":
            return decision.reason
        if hop[1] == OUTSIDE:
            reason = decision.reason
    return reason


def _forward(world: World, *, is_filtered: bool = True) -> Conversation:
    """A TCP connection that a client behind the gateway may make."""
    world.set(OUTSIDE, "outbound_filter", is_filtered)
    world.insert(rule("198.51.100.7/32", "tcp", 443, direction="egress"))
    world.insert(rule("198.51.100.7/32", "tcp", 443))
    return conversations()[0]


def _state(world: World) -> list[str]:
    return [flow.state for flow in world.firewall.flows()]


@pytest.mark.parametrize("is_filtered", [True, False])
def test_a_connection_whose_ends_both_finish_is_closing(world: World, is_filtered: bool) -> None:
    """Their first numbers have nothing to do with each other."""
    talk = _forward(world, is_filtered=is_filtered)
    _handshake(world, talk, (1_000_000_000, 3_000_000_000))
    assert _state(world) == ["open"]
    for end in (0, 1):
        _send(world, talk, end, talk.frame(end, FIN | ACK))
        _send(world, talk, 1 - end, talk.frame(1 - end, ACK))
    assert _state(world) == ["closing"]


def test_a_reset_within_the_window_passes_and_ends_nothing(world: World) -> None:
    talk = _forward(world)
    _handshake(world, talk, (1_000_000_000, 3_000_000_000))
    assert _send(world, talk, 1, talk.frame(1, RST, sequence=1000)) == "flow"
    assert _state(world) == ["open"]
    assert _send(world, talk, 1, talk.frame(1, RST, sequence=1 << 30)) == "flow_invalid"
    assert _send(world, talk, 1, talk.frame(1, RST)) == "flow"
    assert _state(world) == ["reset"]


def test_this_hosts_own_connection_is_followed_to_its_end(world: World) -> None:
    """Its answers may have come in where nothing was tracked."""
    world.insert(rule("203.0.113.1/32", "tcp", 40000, source="198.51.100.7/32"))
    talk = conversations()[2]
    talk.next = [1_000_000_000, 3_000_000_000]
    _send(world, talk, 0, talk.frame(0, SYN))
    talk.frame(1, SYN | ACK)  # not seen
    _send(world, talk, 0, talk.frame(0, ACK))
    assert _state(world) == ["open"]
    assert _send(world, talk, 1, talk.frame(1, RST, sequence=1000)) == "flow"
    _send(world, talk, 1, talk.frame(1, FIN | ACK))
    _send(world, talk, 0, talk.frame(0, FIN | ACK))
    assert _state(world) == ["closing"]


def test_a_syn_after_an_adopted_packet_begins_with_a_clean_slate(world: World) -> None:
    """So that its refusal, whose number is 0, is believed."""
    talk = _forward(world)
    talk.next = [1_000_000_000, 3_000_000_000]
    _send(world, talk, 0, talk.frame(0, ACK))
    talk.next = [2_000_000_000, 0]
    _send(world, talk, 0, talk.frame(0, SYN))
    assert _send(world, talk, 1, talk.frame(1, RST | ACK)) == "flow"
    assert _state(world) == ["reset"]


def test_the_reset_that_ends_an_older_connection_of_the_other_end_leaves(world: World) -> None:
    """RFC 9293 section 3.5.1, figure 9: half-open connection discovery."""
    talk = _forward(world)
    _send(world, talk, 0, talk.frame(0, SYN))
    older = Conversation(TCP, talk.ends, talk.paths, [500_000_000, 4_000_000_000])
    assert _send(world, talk, 1, older.frame(1, ACK)) == "flow"
    # Its number is what that bare ACK acknowledged.
    assert _send(world, talk, 0, older.frame(0, RST)) == "flow"
    assert _state(world) == ["started"]


def test_an_answer_to_a_syn_that_ends_instead_is_none(world: World) -> None:
    talk = _forward(world)
    _send(world, talk, 0, talk.frame(0, SYN))
    assert _send(world, talk, 1, talk.frame(1, FIN | ACK, acknowledgment=99)) == "flow_invalid"


@pytest.mark.parametrize("which", [6, 7])
def test_two_hosts_ping_each_other_with_one_identifier(world: World, which: int) -> None:
    """Some systems always take 1."""
    for name in (INSIDE, OUTSIDE):
        world.set(name, "icmp_echo", True)
        world.set(name, "outbound_filter", True)
    talk = conversations()[which]
    assert _send(world, talk, 0, talk.frame(0, is_request=True)) == "icmp_echo"
    assert _send(world, talk, 1, talk.frame(1, is_request=True)) == "icmp_echo"
    assert _state(world) == ["started"]
    assert _send(world, talk, 0, talk.frame(0, is_request=False)) == "icmp_echo"
    assert _send(world, talk, 1, talk.frame(1, is_request=False)) == "flow"
    assert _state(world) == ["answered"]


@pytest.mark.parametrize("which", [6, 7])
def test_an_error_about_the_answer_to_a_ping_comes_in(world: World, which: int) -> None:
    """Or a path's MTU is not learnt from a large ping's answer (RFC 4443 section 3.2)."""
    talk = conversations()[which]
    for name in (INSIDE, OUTSIDE):
        world.set(name, "icmp_echo", True)
    # Pinged from outside, so that the answer leaves.
    _send(world, talk, 1, talk.frame(1, is_request=True))
    quote = talk.frame(0, is_request=False)[14:]
    (inside, _), (outside, _) = talk.ends
    if which == 6:
        error = packets.icmp(3, 4, payload=quote)
        frame = packets.ethernet(packets.ipv4(outside, inside, ICMP, error), 0x0800)
    else:
        error = packets.icmp(2, 0, payload=quote)
        frame = packets.ethernet(packets.ipv6(outside, inside, ICMPV6, error), 0x86DD)
    assert world.send(("ingress", OUTSIDE, None), frame).reason == "icmp_error"


def test_a_blind_reset_does_not_end_a_flow(world: World) -> None:
    """Nor does one that a blind segment of data goes before: RFC 5961 sections 3 and 5."""
    talk = _forward(world)
    _handshake(world, talk, (1_000_000_000, 3_000_000_000))
    real = list(talk.next)
    for guess in range(0, 2**32, NEAR):
        blind = Conversation(TCP, talk.ends, talk.paths, [77, guess])
        for frame in (blind.frame(1, ACK, length=1), blind.frame(1, RST)):
            world.firewall.explain(frame, OUTSIDE)
            run(world._programs["ingress"], frame, OUTSIDE)
    talk.next = real
    assert _state(world) == ["open"]


def test_interception_of_udp_survives_the_proxys_answer(world: World, network: Network) -> None:
    """The answer is this host's, and begins no flow of its own."""
    with network.client.entered():
        client = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    client.settimeout(PATIENCE)
    with udp_listener() as proxy, client:
        intercept = rule("100.72.0.4/32", "udp", 53, tproxy_port=proxy.port)
        world.firewall.insert(kernel_rule(intercept), route=True)
        client.sendto(b"first", ("100.72.0.4", 53))
        data, source, destination = proxy.receive()
        assert (data, destination) == (b"first", ("100.72.0.4", 53))
        with udp_listener(port=53, address="100.72.0.4") as answering:
            answering.socket.sendto(b"answer", source)
            assert client.recv(100) == b"answer"
        client.sendto(b"second", ("100.72.0.4", 53))
        assert proxy.receive()[0] == b"second"


def test_an_interface_whose_row_another_one_took_has_the_strictest_settings(world: World) -> None:
    """Of two indexes with one remainder: struct fw_interface."""
    world.set(OUTSIDE, "outbound_filter", True)
    frame = conversations()[4].frame(0)
    assert world.explain(("egress", OUTSIDE, INSIDE), frame)[1] == "egress_no_rule"
    with Maps(is_writer=True) as maps:
        row = maps.map("interfaces")
        index = socket.if_nametoindex(OUTSIDE)
        taken = struct.pack("=I", index + layout.INTERFACE_ROWS)
        key = struct.pack("=I", index % layout.INTERFACE_ROWS)
        row.update(key, taken + bytes(layout.INTERFACE_SIZE - 4))
    assert world.explain(("egress", OUTSIDE, INSIDE), frame)[0] == "drop"


def test_a_connection_on_the_port_of_one_that_broke_off(world: World) -> None:
    """The client restarted and begins again: what comes of it is a whole connection."""
    talk = _forward(world)
    _handshake(world, talk, (1_000_000_000, 3_000_000_000))
    again = conversations()[0]
    _handshake(world, again, (2_200_000_000, 500_000_000))
    assert _send(world, again, 1, again.frame(1, RST, sequence=1000)) == "flow"
    assert _send(world, again, 1, again.frame(1, RST)) == "flow"
    assert _state(world) == ["reset"]
