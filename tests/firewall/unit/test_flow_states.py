# SPDX-License-Identifier: GPL-2.0-only
"""The table of flow states that the program is driven by, against the reference model.

The table is read from bpf/include/firewall/flow_states.h. The model is given each kind of
packet in each state; the events are told apart here as the header's comments say.
"""

from __future__ import annotations

import re
from collections import defaultdict
from copy import deepcopy
from itertools import product
from pathlib import Path

import pytest

from tests.firewall.support import tracked
from tests.firewall.support.flow_kinds import ENDS, INITIATOR, STATES, flows, segments
from tests.firewall.support.tracked import (
    ACK,
    FIN,
    GRE,
    ICMP,
    RST,
    SYN,
    TCP,
    UDP,
    Segment,
    TrackedFlow,
)
from zfw_py.firewall import layout

HEADER = Path(__file__).parents[3] / "bpf" / "include" / "firewall" / "flow_states.h"
STEPS = {"IGNORE", "RENEW", "BEGIN", "REMEMBER", "BEGIN_ANEW", "ANSWER", "CONFIRM", "CROSS"}
TABLE = {
    event: dict(zip(STATES, re.findall(r"\w+", row), strict=True))
    for event, row in re.findall(r"FW_EVENT_(\w+) += FW_ROW\((.*)\),", HEADER.read_text())
}
# Where no packet leads: what an event says of the flow excludes the state.
UNREACHABLE = {(event, "no entry") for event in TABLE if event not in ("BEGINNING", "OTHER")} | {
    ("NEW_ANSWER", "started")
}

BEFORE, NOW = 100.0, 105.0


def test_the_table_is_read() -> None:
    assert set(TABLE) == {
        *("BEGINNING", "RESPONDER_SYN", "NEW_ANSWER", "ANSWER", "UNPROVEN", "CONFIRMATION"),
        *("OWN_ACK", "OTHER"),
    }
    assert {step for row in TABLE.values() for step in row.values()} == STEPS


def event_of(flow: TrackedFlow | None, segment: Segment, how: str) -> tuple[str, str]:
    """Which event a packet is, and the state that it meets."""
    if flow is None or (segment.is_bare_syn and flow.is_closed):
        begins = {
            TCP: segment.is_bare_syn or (how == "adopt" and segment.is_bare_ack),
            UDP: True,
            GRE: True,
            ICMP: segment.is_request,
        }[segment.protocol]
        return ("BEGINNING" if begins and how != "renew" else "OTHER"), "no entry"
    is_initiator = segment.source[0] == INITIATOR[0]
    is_proof = flow.is_proof(segment)
    if segment.is_bare_syn:
        event = "BEGINNING" if is_initiator else "RESPONDER_SYN"
    elif (
        not is_initiator
        and flow.stage != "started"
        and flow.again
        and segment.flags & (SYN | ACK | RST | FIN) == SYN | ACK
        and segment.acknowledgment == flow.again
    ):
        event = "NEW_ANSWER"
    elif not is_initiator and is_proof:
        event = "ANSWER"
    elif not is_initiator:
        event = "UNPROVEN" if segment.is_tcp and not segment.is_reset else "OTHER"
    elif how == "open" and segment.is_tcp and segment.flags & (ACK | RST) == ACK:
        event = "OWN_ACK"
    else:
        event = "CONFIRMATION" if is_proof else "OTHER"
    return event, flow.stage


def check(
    step: str, before: TrackedFlow | None, segment: Segment, after: TrackedFlow | None
) -> None:
    """The model did to its flow what a step says, and no more."""
    if before is None and step == "IGNORE":
        assert after is None
        return
    assert after is not None
    if step in ("BEGIN", "BEGIN_ANEW"):
        assert after is not before
        assert after.stage == {"BEGIN": "started", "BEGIN_ANEW": "answered"}[step]
        assert (after.seen, after.fins, after.is_reset, after.again) == (NOW, set(), False, 0)
        if step == "BEGIN_ANEW":
            assert after.initiator == INITIATOR
        return
    assert before is not None
    assert after.is_crossed == (step == "CROSS" or before.is_crossed)
    if step in ("IGNORE", "REMEMBER", "CROSS"):
        assert (after.seen, after.stage, after.fins) == (BEFORE, before.stage, before.fins)
        assert (after.next, after.acknowledged) == (before.next, before.acknowledged)
        assert after.is_reset == before.is_reset
        assert after.again == (segment.end if step == "REMEMBER" else before.again)
        return
    assert after.seen == NOW
    expected = {"RENEW": before.stage, "ANSWER": "answered", "CONFIRM": "confirmed"}
    assert after.stage == expected[step]
    # A mark is set for good.
    assert after.fins >= before.fins
    assert after.is_reset >= before.is_reset


@pytest.mark.parametrize("protocol", [TCP, UDP, ICMP, GRE])
def test_the_model_does_what_the_table_says(protocol: int) -> None:
    reached: dict[tuple[str, str], int] = defaultdict(int)
    kinds = list(segments(protocol))
    for flow in flows(protocol, BEFORE):
        for segment, how in product(kinds, ("renew", "open", "adopt")):
            all_flows = tracked.TrackedFlows(now=NOW)
            if flow is not None:
                all_flows.put(deepcopy(flow))
            cell = event_of(flow, segment, how)
            reached[cell] += 1
            all_flows.track(segment, how, "out")
            after = all_flows.flows.get(segment.key)
            try:
                check(TABLE[cell[0]][cell[1]], flow, segment, after)
            except AssertionError as error:
                raise AssertionError(f"{cell}\n{flow}\n{segment} {how}\n{after}") from error
    if protocol == TCP:
        assert set(reached) == set(product(TABLE, STATES)) - UNREACHABLE


@pytest.mark.parametrize(
    ("flow", "seconds"),
    [
        (TrackedFlow(UDP, *ENDS, 0), 30),
        (TrackedFlow(UDP, *ENDS, 0, "confirmed"), 30),
        (TrackedFlow(ICMP, *ENDS, 0, "confirmed"), 30),
        (TrackedFlow(TCP, *ENDS, 0, "started"), layout.TCP_OPENING_IDLE),
        (TrackedFlow(TCP, *ENDS, 0, "answered"), layout.TCP_OPENING_IDLE),
        (TrackedFlow(TCP, *ENDS, 0, "confirmed"), 3600),
        (TrackedFlow(TCP, *ENDS, 0, "confirmed", fins={0}), 3600),
        (TrackedFlow(TCP, *ENDS, 0, "started", fins={1}), layout.TCP_OPENING_IDLE),
        (TrackedFlow(TCP, *ENDS, 0, "confirmed", fins={0, 1}), layout.TCP_CLOSING_IDLE),
        (TrackedFlow(TCP, *ENDS, 0, "answered", fins={0, 1}), layout.TCP_CLOSING_IDLE),
        (TrackedFlow(TCP, *ENDS, 0, "confirmed", is_reset=True), layout.TCP_RESET_IDLE),
        (
            TrackedFlow(TCP, *ENDS, 0, "started", is_reset=True, fins={0, 1}),
            layout.TCP_RESET_IDLE,
        ),
    ],
    ids=lambda value: f"{value.protocol}-{value.state}" if isinstance(value, TrackedFlow) else None,
)
def test_a_flow_is_forgotten_after_its_states_timeout(flow: TrackedFlow, seconds: int) -> None:
    all_flows = tracked.TrackedFlows(udp_idle=30, tcp_idle=3600)
    all_flows.now = seconds
    assert not all_flows.is_forgotten(flow)
    all_flows.now = seconds + 0.001
    assert all_flows.is_forgotten(flow)
