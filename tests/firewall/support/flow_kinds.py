# SPDX-License-Identifier: GPL-2.0-only
"""Every kind of tracked flow and of packet, to try each packet in each state."""

from __future__ import annotations

from collections.abc import Iterator
from ipaddress import ip_address
from itertools import product

from tests.firewall.support.tracked import (
    ACK,
    FIN,
    GRE,
    ICMP,
    NEAR,
    RST,
    SYN,
    TCP,
    UDP,
    WRAP,
    End,
    Segment,
    TrackedFlow,
)

STATES = ("no entry", "started", "answered", "confirmed")
INITIATOR, RESPONDER = (ip_address("10.9.0.2"), 40000), (ip_address("198.51.100.7"), 443)
ENDS = (INITIATOR, RESPONDER)
# The numbers that each end sends next, and the one after the initiator's new SYN.
NEXT = {INITIATOR: 2**32 - 3, RESPONDER: 5000}
AGAIN = 777_000_001


def ends(protocol: int) -> tuple[End, End]:
    """The initiator and the responder. An echo's identifier is the port of both, GRE has none."""
    if protocol == GRE:
        return (INITIATOR[0], 0), (RESPONDER[0], 0)
    return (INITIATOR, (RESPONDER[0], INITIATOR[1])) if protocol == ICMP else ENDS


def flows(protocol: int, seen: float) -> Iterator[TrackedFlow | None]:
    """A flow in each state, with each combination of marks; its last packet was at ``seen``."""
    yield None
    tcp = protocol == TCP
    marks: tuple[tuple[bool, tuple[int, ...]], ...] = ((False, ()),)
    if tcp:
        marks += ((False, (0,)), (False, (1,)), (False, (0, 1)), (True, ()))
    crossings = (False, True) if tcp else (False,)
    for stage, is_adopted, (is_reset, fins), again, is_crossed in product(
        STATES[1:],
        (False, True) if tcp else (False,),
        marks,
        (0, AGAIN) if tcp else (0,),
        crossings,
    ):
        if is_crossed and stage != "started":
            continue
        flow = TrackedFlow(
            *(protocol, *ends(protocol), seen, stage),
            is_admitted_out=True,
            is_adopted=is_adopted,
            is_reset=is_reset,
            is_crossed=is_crossed,
            again=again,
            fins=set(fins),
        )
        if tcp:
            heard = ENDS if stage != "started" else ENDS[:1]
            flow.next.update({end: NEXT[end] for end in heard})
            flow.acknowledged.update(
                {end: NEXT[other] for end, other in zip(ENDS, ENDS[::-1], strict=True)}
            )
            if stage == "started":
                # After its SYN, or what an initiator of an adopted flow has acknowledged.
                flow.acknowledged = {
                    INITIATOR: NEXT[RESPONDER] if is_adopted else NEXT[INITIATOR],
                    RESPONDER: 0,
                }
        yield flow


def segments(protocol: int) -> Iterator[Segment]:
    """Each kind of packet of either end."""
    initiator, responder = ends(protocol)
    for sender, receiver in ((initiator, responder), (responder, initiator)):
        if protocol in (UDP, GRE):
            yield Segment(protocol, sender, receiver)
        elif protocol == ICMP:
            for is_request in (False, True):
                yield Segment(ICMP, sender, receiver, is_request=is_request)
        else:
            numbers = (NEXT[sender], NEXT[sender] + 5, NEXT[sender] + NEAR + 9)
            acknowledgments = (NEXT[receiver], NEXT[receiver] - 5, NEXT[receiver] + NEAR + 9, AGAIN)
            for flags, sequence in product(range(32), numbers):
                if flags & ~(FIN | SYN | RST | ACK):
                    continue
                for acknowledgment in acknowledgments if flags & ACK else (0,):
                    yield Segment(
                        *(TCP, sender, receiver, flags),
                        sequence=sequence % WRAP,
                        acknowledgment=acknowledgment % WRAP,
                    )
