# SPDX-License-Identifier: GPL-2.0-only
"""The reference model of tracked flows in plain Python, to compare the programs with.

It is written from the design and the RFCs, and shares no code and no idea with the C or with
zfw_py. Times are in seconds, and sequence numbers as in the packets. An end of a flow is an
address with a port, for ICMP echo with the identifier.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv6Address

Address = IPv4Address | IPv6Address
End = tuple[Address, int]

ICMP, TCP, UDP, GRE, ICMPV6 = 1, 6, 17, 47, 58
FIN, SYN, RST, ACK = 1, 2, 4, 16

OPENING_IDLE, CLOSING_IDLE, RESET_IDLE = 120, 120, 10
# Of protocols without ports that are known.
OTHER_IDLE = 600
# How long after a flow's end the responder's packets are still answers.
LATE_ANSWER = 600
# The largest window that Linux offers by itself is 6 MB; a number beyond it is ignored.
NEAR = 8 << 20
WRAP = 1 << 32


def distance(a: int, b: int) -> int:
    """``a - b``, of sequence numbers: RFC 9293 section 3.4."""
    return (a - b + WRAP // 2) % WRAP - WRAP // 2


def is_near(a: int, b: int) -> bool:
    """Is either within a window of the other?"""
    return abs(distance(a, b)) <= NEAR


@dataclass(frozen=True)
class Segment:
    """The fields of a TCP, UDP or ICMP echo packet that flow tracking uses."""

    protocol: int
    source: End
    destination: End
    flags: int = 0
    sequence: int = 0
    acknowledgment: int = 0
    length: int = 0  # of the data, as the headers have it
    is_request: bool = False  # ICMP echo

    @property
    def key(self) -> tuple[int, frozenset[End]]:
        """The key of the flow, the same for both directions."""
        return self.protocol, frozenset((self.source, self.destination))

    @property
    def is_tcp(self) -> bool:
        return self.protocol == TCP

    @property
    def is_echo(self) -> bool:
        """Is it of ICMP, or of ICMPv6 where the packet is of IPv6?"""
        return self.protocol == (ICMP if self.source[0].version == 4 else ICMPV6)

    @property
    def is_bare_syn(self) -> bool:
        """Is it a SYN without ACK?"""
        return self.is_tcp and self.flags & (SYN | ACK | RST | FIN) == SYN

    @property
    def is_bare_ack(self) -> bool:
        """Is it an ACK without SYN, FIN and RST?"""
        return self.is_tcp and self.flags & (SYN | ACK | RST | FIN) == ACK

    @property
    def is_reset(self) -> bool:
        return self.is_tcp and bool(self.flags & RST)

    @property
    def end(self) -> int:
        """The sequence number after this segment."""
        return (
            self.sequence + self.length + bool(self.flags & SYN) + bool(self.flags & FIN)
        ) % WRAP


@dataclass
class TrackedFlow:
    """A flow: its initiator, its state, and the directions admitted from its initiator.

    ``next`` and ``acknowledged`` are, by end, the number after the highest sent and the highest
    acknowledgment sent; an end that was not heard yet has 0. Of an initiator that has not been
    answered, ``acknowledged`` is the number after its SYN: the least that an answer acknowledges.
    """

    protocol: int
    initiator: End
    responder: End
    seen: float
    stage: str = "started"  # "started", "answered" or "confirmed"
    is_admitted_in: bool = False
    is_admitted_out: bool = False
    is_adopted: bool = False  # its beginning was not seen
    is_reset: bool = False
    is_crossed: bool = False  # the responder has sent a SYN before its answer
    again: int = 0  # the number after a SYN of the initiator since it was answered
    fins: set[int] = field(default_factory=set)  # 0: the initiator has sent it, 1: the responder
    next: dict[End, int] = field(default_factory=dict)
    acknowledged: dict[End, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for end in (self.initiator, self.responder):
            self.next.setdefault(end, 0)
            self.acknowledged.setdefault(end, 0)

    @property
    def key(self) -> tuple[int, frozenset[End]]:
        return self.protocol, frozenset((self.initiator, self.responder))

    @property
    def is_closed(self) -> bool:
        """A new SYN begins a new flow."""
        return self.is_reset or len(self.fins) == 2

    @property
    def state(self) -> str:
        """The state as zfw lists it."""
        if self.is_reset:
            return "reset"
        if len(self.fins) == 2:
            return "closing"
        return "open" if self.stage == "confirmed" else self.stage

    # Questions about a packet of this flow, which change nothing.

    def is_from_initiator(self, segment: Segment) -> bool:
        return segment.source == self.initiator

    def _other(self, segment: Segment) -> End:
        return self.responder if self.is_from_initiator(segment) else self.initiator

    def _answers_syn(self, segment: Segment) -> bool:
        """Does it acknowledge the SYN, and no more than came with it (RFC 9293, RFC 7413)?"""
        least, most = self.acknowledged[self.initiator], self.next[self.initiator]
        return (
            bool(segment.flags & ACK)
            and (segment.acknowledgment - least) % WRAP <= (most - least) % WRAP
        )

    def is_exact_reset(self, segment: Segment) -> bool:
        """Does a RST have exactly the expected number (RFC 5961 section 3)?"""
        if self.stage != "started":
            if segment.sequence == self.acknowledged[self._other(segment)]:
                return True
            # A RST after data that is not acknowledged yet may be forged: its sender must
            # also know the number of the other end.
            return (
                segment.sequence == self.next[segment.source]
                and bool(segment.flags & ACK)
                and segment.acknowledgment == self.next[self._other(segment)]
            )
        if self.is_from_initiator(segment):
            return segment.sequence == self.next[self.initiator]
        if self.is_adopted:
            return segment.sequence == self.acknowledged[self.initiator]
        # Connection refused: RFC 9293 section 3.10.7.3.
        return self._answers_syn(segment)

    def is_plausible(self, segment: Segment) -> bool:
        """Are the packet's numbers possible for this flow?"""
        if segment.is_echo:
            return self.is_from_initiator(segment) == segment.is_request
        if not segment.is_tcp:
            return True
        is_started = self.stage == "started"
        if self.is_from_initiator(segment) and is_started:
            # The RST may end an older connection that the other end still has.
            return True
        if segment.is_reset:
            return self.is_exact_reset(segment) or (
                not is_started
                and is_near(segment.sequence, self.acknowledged[self._other(segment)])
            )
        if not is_started:
            return True
        if self.is_adopted:
            return bool(segment.flags & ACK) and is_near(
                segment.acknowledgment, self.next[self.initiator]
            )
        if segment.flags & SYN:
            return self._answers_syn(segment)
        if self.is_crossed and self._answers_syn(segment):
            return True
        # An end that still has an older connection answers a SYN with a bare ACK: RFC 5961
        # section 4.
        return segment.is_bare_ack and segment.length == 0

    def is_proof(self, segment: Segment) -> bool:
        """Does it prove that its sender has received a packet of the other end?"""
        if segment.is_echo:
            return self.is_from_initiator(segment) == segment.is_request
        if not segment.is_tcp:
            return True
        if not segment.flags & ACK or segment.is_reset:
            return False
        if self.is_adopted or self.stage != "started":
            return is_near(segment.acknowledgment, self.next[self._other(segment)])
        return (bool(segment.flags & SYN) or self.is_crossed) and self._answers_syn(segment)

    def crosses(self, segment: Segment) -> bool:
        """Is it the SYN of the responder, sent before that of the initiator reached it?

        RFC 9293 section 3.5. The initiator's SYN was seen to leave, and not answered yet.
        """
        return (
            segment.is_bare_syn
            and not self.is_from_initiator(segment)
            and self.stage == "started"
            and self.is_admitted_out
            and not self.is_adopted
            and not self.is_closed
        )

    # Changes by a packet.

    def _note_numbers(self, segment: Segment, is_believed: bool) -> None:
        sender, other = segment.source, self._other(segment)
        from_initiator = self.is_from_initiator(segment)
        if segment.is_reset:
            self.is_reset |= self.is_exact_reset(segment)
            return
        if segment.flags & FIN and is_near(segment.sequence, self.acknowledged[other]):
            self.fins.add(0 if from_initiator else 1)
        is_first = not from_initiator and self.stage == "started"
        if is_first or (
            distance(segment.end, self.next[sender]) > 0 and is_near(segment.end, self.next[sender])
        ):
            self.next[sender] = segment.end
        # Before the answer this number of the initiator's is the one after its SYN.
        is_early = from_initiator and self.stage == "started" and not self.is_adopted
        if (segment.flags & ACK and not is_early) and (
            is_first
            or (
                distance(segment.acknowledgment, self.acknowledged[sender]) > 0
                and is_near(segment.acknowledgment, self.acknowledged[sender])
            )
        ):
            self.acknowledged[sender] = segment.acknowledgment
        if is_first and not self.is_adopted:
            # The initiator has to acknowledge the SYN of the answer.
            self.acknowledged[other] = (segment.sequence + 1) % WRAP
        if from_initiator and self.stage == "started" and is_believed and segment.flags & ACK:
            # The initiator has received an answer that did not cross the firewall.
            self.acknowledged[sender] = self.next[other] = segment.acknowledgment
            self.acknowledged[other] = segment.sequence

    def is_answer_to_again(self, segment: Segment) -> bool:
        """Does the responder answer a SYN that the initiator sent on the open flow?"""
        return (
            segment.is_tcp
            and not self.is_from_initiator(segment)
            and self.stage != "started"
            and self.again != 0
            and segment.flags & (SYN | ACK | RST | FIN) == SYN | ACK
            and segment.acknowledgment == self.again
        )

    def begun_again(self, segment: Segment, now: float) -> TrackedFlow:
        """The connection that begins with this answer."""
        return TrackedFlow(
            self.protocol,
            self.initiator,
            self.responder,
            now,
            "answered",
            self.is_admitted_in,
            self.is_admitted_out,
            next={self.initiator: self.again, self.responder: segment.end},
            acknowledged={
                self.initiator: (segment.sequence + 1) % WRAP,
                self.responder: self.again,
            },
        )

    def follow(self, segment: Segment, how: str, admitted: str, now: float) -> None:
        """Update this flow, which has not expired, by a packet that does not begin it anew."""
        from_initiator = self.is_from_initiator(segment)
        is_proof = self.is_proof(segment)
        if segment.is_tcp:
            if segment.is_bare_syn:
                if from_initiator:
                    self.again = segment.end
                elif self.stage == "started":
                    self.is_crossed = True
                return
            is_answer = not from_initiator and self.stage == "started"
            if is_answer and not segment.is_reset and not is_proof:
                return
            self._note_numbers(segment, how == "open")
        self.seen = now
        if not from_initiator:
            if self.stage == "started" and is_proof:
                self.stage = "answered"
            return
        if admitted == "in":
            self.is_admitted_in = True
        else:
            self.is_admitted_out = True
        is_own_ack = how == "open" and segment.is_tcp and segment.flags & (ACK | RST) == ACK
        if is_own_ack or (self.stage == "answered" and is_proof):
            self.stage = "confirmed"


def _may_begin(segment: Segment, how: str) -> bool:
    if segment.is_echo:
        return segment.is_request
    if not segment.is_tcp:
        return True
    return segment.is_bare_syn or (how == "adopt" and segment.is_bare_ack)


@dataclass
class TrackedFlows:
    """All flows; ``now`` is the time in seconds."""

    udp_idle: float = 30
    tcp_idle: float = 3600
    now: float = 0
    flows: dict[tuple[int, frozenset[End]], TrackedFlow] = field(default_factory=dict)
    # Until when a question to a group may be answered: interface, whom, and from which port.
    questions: dict[tuple[str, End, int], float] = field(default_factory=dict)

    def idle_of(self, flow: TrackedFlow) -> float:
        """Seconds without a packet after which a flow expires."""
        if flow.protocol in (UDP, ICMP, ICMPV6):
            return self.udp_idle
        if flow.protocol != TCP:
            return OTHER_IDLE
        if flow.is_reset:
            return RESET_IDLE
        if len(flow.fins) == 2:
            return CLOSING_IDLE
        return self.tcp_idle if flow.stage == "confirmed" else OPENING_IDLE

    def is_forgotten(self, flow: TrackedFlow) -> bool:
        """Has the flow expired?"""
        return flow.seen + self.idle_of(flow) < self.now

    def find(self, segment: Segment) -> TrackedFlow | None:
        """The flow of a packet, unless it has expired."""
        flow = self.flows.get(segment.key)
        return None if flow is None or self.is_forgotten(flow) else flow

    def listed(self) -> list[TrackedFlow]:
        """The flows that have not expired."""
        return [flow for flow in self.flows.values() if not self.is_forgotten(flow)]

    def is_late_answer(self, segment: Segment, admitted: str) -> bool:
        """Does the responder of a flow that was let in, and has ended, send its answer now?

        Who answers late has not begun a flow: the other end would have no rule to obey.
        """
        flow = self.flows.get(segment.key)
        return (
            flow is not None
            and admitted == "out"
            and not segment.is_echo
            and not segment.is_bare_syn
            and not flow.is_from_initiator(segment)
            and flow.is_admitted_in
            and flow.seen + self.idle_of(flow) + LATE_ANSWER >= self.now
        )

    def note_question(self, segment: Segment, interface: str) -> None:
        """A datagram to a group or to all is let in: its source or the group may be answered."""
        port = segment.source[1]
        for whom in (segment.source[0], segment.destination[0]):
            key = interface, (whom, port), segment.destination[1]
            self.questions[key] = self.now + self.udp_idle

    def answers_question(self, segment: Segment, interface: str) -> bool:
        """Does a datagram of this host answer such a question?"""
        key = interface, segment.destination, segment.source[1]
        return segment.protocol == UDP and self.questions.get(key, -1) >= self.now

    def put(self, flow: TrackedFlow) -> None:
        """Add a flow."""
        self.flows[flow.key] = flow

    def track(self, segment: Segment, how: str, admitted: str) -> bool:
        """Track a packet that passed; ``how``: "renew", "open", "adopt"; ``admitted``: "in", "out".

        "renew" makes no flow, "open" makes one of the first packet of a flow, "adopt"
        of any other packet of TCP too. Only what this host sends itself is "open".
        True if the packet begins a flow.
        """
        flow = self.find(segment)
        if flow is None and self.is_late_answer(segment, admitted):
            return False
        if flow is None or (segment.is_bare_syn and flow.is_closed):
            begins = how != "renew" and _may_begin(segment, how)
            if begins:
                self._begin(segment, {admitted})
            return begins
        if segment.is_bare_syn and flow.is_from_initiator(segment) and flow.stage == "started":
            # The initiator has sent its SYN again, perhaps with another number.
            before = {"in"} if flow.is_admitted_in else set()
            before |= {"out"} if flow.is_admitted_out else set()
            self._begin(segment, before | {admitted})
            return True
        if flow.is_answer_to_again(segment):
            self.put(flow.begun_again(segment, self.now))
            return False
        flow.follow(segment, how, admitted, self.now)
        return False

    def _begin(self, segment: Segment, admitted: set[str]) -> None:
        flow = TrackedFlow(
            segment.protocol,
            segment.source,
            segment.destination,
            self.now,
            is_admitted_in="in" in admitted,
            is_admitted_out="out" in admitted,
        )
        if segment.is_tcp:
            flow.is_adopted = not segment.is_bare_syn
            flow.next[segment.source] = segment.end
            flow.acknowledged[segment.source] = (
                segment.acknowledgment if flow.is_adopted else (segment.sequence + 1) % WRAP
            )
        self.flows[flow.key] = flow
