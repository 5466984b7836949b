# SPDX-License-Identifier: GPL-2.0-only
"""Elements of steer's maps that only the programs in the kernel write and read."""

from __future__ import annotations

from struct import Struct, unpack_from

from zfw_py.steer import layout

_segments = Struct(f"={layout.SEGMENT_PORTS}H")
_flow_key = Struct(layout.FLOW_KEY)
_flow = Struct(layout.FLOW)


def segments_of(data: bytes) -> tuple[int, ...]:
    """The segment of each port, of a value of ``segments``."""
    return _segments.unpack(data)


def listener_count(data: bytes) -> int:
    """How many sockets listen, of a value of ``listeners``."""
    count: int = unpack_from("=I", data)[0]
    return count


def flow_key(remote: bytes, remote_port: int, bound: bytes, bound_port: int) -> bytes:
    """Key of ``flows``: a client of a UDP daemon, and the address that the daemon is bound to."""
    return _flow_key.pack(remote, bound, remote_port, bound_port)


def flow_value(local: bytes, seen: int) -> bytes:
    """The address that the client sent to, and when: CLOCK_MONOTONIC in nanoseconds."""
    return _flow.pack(local, seen)


def flow_parts(data: bytes) -> tuple[bytes, int]:
    """The inverse."""
    local, seen = _flow.unpack(data)
    return local, seen
