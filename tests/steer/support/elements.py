# SPDX-License-Identifier: GPL-2.0-only
"""Elements of steer's maps that the product only writes, or that only the kernel uses."""

from __future__ import annotations

from struct import Struct, unpack_from

from zfw_py.steer import layout
from zfw_py.steer.codec import Mapping, MappingKey

_mapping_key = Struct(layout.MAPPING_KEY)
_mapping = Struct(layout.MAPPING)
_segments = Struct(f"={layout.SEGMENT_PORTS}H")
_flow_key = Struct(layout.FLOW_KEY)
_flow = Struct(layout.FLOW)


def mapping_key_of(data: bytes) -> MappingKey:
    """The inverse of ``MappingKey.encode``."""
    bits, protocol, family, port, mapping_class, address = _mapping_key.unpack(data)
    # 64 bits precede the address, and 96 of it an IPv4 address.
    length = bits - 64 - (96 if family == 4 else 0)
    return MappingKey(protocol, family, mapping_class, port, address, length)


def mapping_of(data: bytes) -> Mapping:
    """The inverse of ``Mapping.encode``."""
    return Mapping(*_mapping.unpack(data))


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
