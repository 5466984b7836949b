# SPDX-License-Identifier: GPL-2.0-only
"""The program does to a flow what the reference model does: each packet in each state."""

from __future__ import annotations

import time
from copy import deepcopy
from functools import cache
from typing import TYPE_CHECKING

import pytest

from tests.firewall.support import packets
from tests.firewall.support.flow_kinds import flows, segments
from tests.firewall.support.flow_tables import clear_flows, encode, programs, run, table_of
from tests.firewall.support.tracked import GRE, ICMP, TCP, UDP, Segment, TrackedFlow, TrackedFlows
from zfw_py import Firewall
from zfw_py.firewall import layout
from zfw_py.firewall.maps import Maps

if TYPE_CHECKING:
    from tests.support.netns import Network

pytestmark = pytest.mark.kernel

INSIDE, OUTSIDE = "gw0", "out0"
# How a packet is tracked that leaves by an interface without a filter: as this host's own, or
# as one that came in by another interface.
WAYS = (("open", None), ("adopt", INSIDE))


@cache
def frame_of(segment: Segment) -> bytes:
    (source, from_port), (destination, to_port) = segment.source, segment.destination
    if segment.protocol == TCP:
        payload = packets.tcp(
            *(from_port, to_port, segment.flags),
            sequence=segment.sequence,
            acknowledgment=segment.acknowledgment,
        )
    elif segment.protocol == UDP:
        payload = packets.udp(from_port, to_port)
    else:
        payload = packets.icmp(
            8 if segment.is_request else 0, rest=from_port.to_bytes(2, "big") + b"\0\1"
        )
    return packets.ethernet(packets.ipv4(source, destination, segment.protocol, payload), 0x0800)


@pytest.mark.parametrize("protocol", [TCP, UDP, ICMP, GRE])
def test_program_and_model_agree_in_each_state(network: Network, protocol: int) -> None:
    network.gateway.add_veth(OUTSIDE, "out1")
    Firewall().attach(OUTSIDE, "both")
    clear_flows()
    kinds = list(segments(protocol))
    with programs() as running, Maps(is_writer=True) as maps:
        maps = {index: maps.inner("flows", index) for index in range(layout.FLOW_TABLES)}

        def entries(key: bytes) -> dict[int, bytes]:
            found = {index: inner.lookup(key) for index, inner in maps.items() if inner}
            return {index: value for index, value in found.items() if value is not None}

        tried = 0
        for flow in flows(protocol, 0):
            for segment in kinds:
                for how, came_by in WAYS:
                    model = TrackedFlows(now=time.monotonic())
                    seen = model.now - 3
                    if flow is not None:
                        before = deepcopy(flow)
                        before.seen = seen
                        model.put(before)
                        inner = maps[table_of(before)]
                        assert inner is not None
                        inner.update(*encode(before))
                    run(running["egress"], frame_of(segment), OUTSIDE, came_by)
                    model.track(segment, how, "out")
                    after = model.flows.get(segment.key)
                    key, _ = encode(after or begun(segment))
                    found = entries(key)
                    assert shown(found, seen) == expected(after, seen), f"{flow}\n{segment} {how}"
                    for index in found:
                        inner = maps[index]
                        assert inner is not None
                        inner.delete(key)
                    tried += 1
    assert tried == len(list(flows(protocol, 0))) * len(kinds) * len(WAYS)


def begun(segment: Segment) -> TrackedFlow:
    """Any flow of these ends, for its key."""
    return TrackedFlow(segment.protocol, segment.source, segment.destination, 0)


def shown(found: dict[int, bytes], seen: float) -> dict[int, tuple[bool, bytes]]:
    """By table: whether the timeout was restarted, and the rest of the entry."""
    return {
        index: (int.from_bytes(value[:8], "little") / 1e9 > seen + 1, value[8:])
        for index, value in found.items()
    }


def expected(after: TrackedFlow | None, seen: float) -> dict[int, tuple[bool, bytes]]:
    if after is None:
        return {}
    return {table_of(after): (after.seen > seen + 1, encode(after)[1][8:])}
