# SPDX-License-Identifier: GPL-2.0-only
"""The flow tables: writes, deletes and ages their entries; and runs single packets.

Entries are encoded from the layout and the comments of struct fw_flow.
"""

from __future__ import annotations

import os
import struct
from contextlib import contextmanager
from socket import if_nametoindex
from typing import TYPE_CHECKING

from tests.firewall.support.tracked import TCP, End, TrackedFlow
from zfw_py.firewall import layout
from zfw_py.firewall.maps import Maps
from zfw_py.kernel import bpf_maps, bpf_run

if TYPE_CHECKING:
    from collections.abc import Iterator

SECOND = 1_000_000_000
STAGES = {
    "started": layout.FLOW_STARTED,
    "answered": layout.FLOW_ANSWERED,
    "confirmed": layout.FLOW_CONFIRMED,
}
_FINS = (layout.FLOW_FIN_0, layout.FLOW_FIN_1)
# struct __sk_buff
_CONTEXT_SIZE, _INGRESS_IFINDEX, _IFINDEX = 192, 36, 40


def _address(end: End) -> bytes:
    address = end[0]
    return address.packed if address.version == 6 else b"\0" * 10 + b"\xff\xff" + address.packed


def _rank(end: End) -> tuple[int, ...]:
    """The order of the two ends in a key: the programs compare native words, the last one first."""
    words = struct.unpack("=4I", _address(end))
    return (*reversed(words), *struct.unpack("=H", end[1].to_bytes(2, "big")))


def encode(flow: TrackedFlow) -> tuple[bytes, bytes]:
    """The key and the value of a flow's entry."""
    ends = sorted((flow.initiator, flow.responder), key=_rank)
    key = struct.pack(
        layout.FLOW_KEY,
        b"".join(_address(end) for end in ends),
        b"".join(end[1].to_bytes(2, "big") for end in ends),
        flow.protocol,
    )
    initiator = ends.index(flow.initiator)
    flags = (
        layout.FLOW_ADMITTED_IN * flow.is_admitted_in
        | layout.FLOW_ADMITTED_OUT * flow.is_admitted_out
        | layout.FLOW_ADOPTED * flow.is_adopted
        | layout.FLOW_RESET * flow.is_reset
        | layout.FLOW_CROSSED * flow.is_crossed
    )
    for fin in flow.fins:
        flags |= _FINS[initiator ^ fin]
    value = struct.pack(
        layout.FLOW,
        max(round(flow.seen * SECOND), 0),
        struct.pack("=2I", *(flow.next[end] for end in ends)),
        struct.pack("=2I", *(flow.acknowledged[end] for end in ends)),
        initiator,
        flags,
        STAGES[flow.stage],
        flow.again,
    )
    return key, value


def table_of(flow: TrackedFlow) -> int:
    """The table that has the flow's entry."""
    if flow.stage != "confirmed":
        return layout.FLOWS_OPENING
    return layout.FLOWS_OPEN if flow.protocol == TCP else layout.FLOWS_OPEN_DATAGRAMS


def write_flow(maps: Maps, flow: TrackedFlow) -> None:
    """Write a flow to the table in which the programs look it up."""
    inner = maps.inner("flows", table_of(flow))
    assert inner is not None
    inner.update(*encode(flow))


def _entries(maps: Maps) -> Iterator[tuple[bpf_maps.Map, bytes, bytes]]:
    """Map, key and value of every flow."""
    for index in range(layout.FLOW_TABLES):
        inner = maps.inner("flows", index)
        if inner is not None:
            for key, value in list(inner.items()):
                yield inner, key, value


def clear_flows() -> None:
    """Delete all flows, pairs of hosts, and questions to groups."""
    with Maps(is_writer=True) as maps:
        for inner, key, _ in _entries(maps):
            inner.delete(key)
    clear_pairs()


def clear_pairs() -> None:
    """Delete all pairs of hosts between which something has passed, and questions to groups."""
    with Maps(is_writer=True) as maps:
        for name in ("pairs", "questions"):
            entries = maps.map(name)
            for key, _ in list(entries.items()):
                entries.delete(key)


def expire_earlier(name: str, seconds: float) -> None:
    """Make all entries of the map ``pairs`` or ``questions`` expire earlier."""
    with Maps(is_writer=True) as maps:
        entries = maps.map(name)
        for key, value in list(entries.items()):
            (expires,) = struct.unpack("=Q", value)
            entries.update(key, struct.pack("=Q", max(expires - round(seconds * SECOND), 0)))


def age_flows(seconds: float) -> None:
    """Make all flows older, at most as old as the machine's last boot."""
    with Maps(is_writer=True) as maps:
        for inner, key, value in _entries(maps):
            (seen,) = struct.unpack_from("=Q", value)
            older = max(seen - round(seconds * SECOND), 0)
            inner.update(key, struct.pack("=Q", older) + value[8:])


@contextmanager
def programs() -> Iterator[dict[str, int]]:
    """Descriptors of the attached programs, by direction."""
    with Maps(is_writer=False) as maps:
        opened = {
            direction: bpf_maps.open_pin(f"{maps.directory}/{direction}")
            for direction in ("ingress", "egress")
        }
    try:
        yield opened
    finally:
        for program in opened.values():
            os.close(program)


def run(program: int, frame: bytes, name: str, came_by: str | None = None) -> int:
    """Run a program for one packet at an interface; returns what the program returns."""
    context = bytearray(_CONTEXT_SIZE)
    struct.pack_into("=I", context, _IFINDEX, if_nametoindex(name))
    if came_by:
        struct.pack_into("=I", context, _INGRESS_IFINDEX, if_nametoindex(came_by))
    return bpf_run.run(program, frame, bytes(context)).returned
