# SPDX-License-Identifier: GPL-2.0-only
"""Tracked flows, their limits and test runs to bytes and back. Pure.

Apart from ``codec``, which every command that writes a rule imports.
"""

from __future__ import annotations

from struct import Struct

from zfw_py.firewall import layout

# Flows


_flow_key = Struct(layout.FLOW_KEY)
_flow_ports = Struct("!HH")
_flow = Struct(layout.FLOW)
_flow_limits = Struct(layout.FLOW_LIMITS)
_FLOW_PROTOCOL = 36  # offset within struct zfw_flow_key
_SECOND = 1_000_000_000


def flow_protocol(key: bytes) -> int:
    """The protocol's number of a struct zfw_flow_key."""
    return key[_FLOW_PROTOCOL]


def decode_flow_key(data: bytes) -> tuple[tuple[bytes, bytes], tuple[int, int], int]:
    """Both ends' addresses and ports, and the protocol's number."""
    addresses, ports, protocol = _flow_key.unpack(data)
    port, other_port = _flow_ports.unpack(ports)
    return (addresses[:16], addresses[16:]), (port, other_port), protocol


def decode_flow(data: bytes) -> tuple[int, int, int, int]:
    """Nanoseconds of CLOCK_MONOTONIC of its last packet, its initiator (0, 1), flags, stage."""
    seen, _, _, initiator, flags, stage, _ = _flow.unpack(data)
    return seen, initiator, flags, stage


def last_seen(flow: bytes) -> int:
    """When a struct zfw_flow had its last packet."""
    return decode_flow(flow)[0]


def encode_flow_limits(udp_idle: int, tcp_idle: int, max_flows: int) -> bytes:
    """struct zfw_flow_limits, of seconds and a number of flows."""
    return _flow_limits.pack(udp_idle * _SECOND, tcp_idle * _SECOND, max_flows)


def decode_flow_limits(data: bytes) -> tuple[int, int, int]:
    """The inverse of ``encode_flow_limits``."""
    udp_idle, tcp_idle, max_flows = _flow_limits.unpack(data)
    return udp_idle // _SECOND, tcp_idle // _SECOND, max_flows


# Test runs

# struct __sk_buff, include/uapi/linux/bpf.h: its size, and offsets of what a test may set.
_SK_BUFF_SIZE = 192
_ifindex = Struct("=I")
_INGRESS_IFINDEX, _IFINDEX, _CB = 36, 40, 48


def encode_test_context(ifindex: int, ingress_ifindex: int) -> bytes:
    """struct __sk_buff for a test run of a packet at an interface."""
    context = bytearray(_SK_BUFF_SIZE)
    _ifindex.pack_into(context, _IFINDEX, ifindex)
    _ifindex.pack_into(context, _INGRESS_IFINDEX, ingress_ifindex)
    return bytes(context)


def decode_decision(context: bytes) -> tuple[int, int, int, int]:
    """Verdict, reason, slot and tracking that a test run left in its struct __sk_buff."""
    verdict, reason, slot, track = Struct(layout.DECISION).unpack_from(context, _CB)
    return verdict, reason, slot, track
