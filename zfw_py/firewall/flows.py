# SPDX-License-Identifier: GPL-2.0-only
"""The flows that the programs track: their tables, their limits, and the listing."""

from __future__ import annotations

from time import monotonic_ns
from typing import TYPE_CHECKING, NamedTuple

from zfw_py.firewall import flow_codec, layout
from zfw_py.firewall.flow_limits import FlowLimits
from zfw_py.firewall.maps import ZERO
from zfw_py.values.prefix import address_text

if TYPE_CHECKING:
    from collections.abc import Iterator

    from zfw_py.firewall.maps import Maps
    from zfw_py.kernel.bpf_maps import Map

_SECOND = 1_000_000_000
_TCP = 6
_PROTOCOLS = {_TCP: "tcp", 17: "udp", 1: "icmp", 58: "icmpv6"}
_FINS = layout.FLOW_FIN_0 | layout.FLOW_FIN_1
_OPEN = (layout.FLOWS_OPEN, layout.FLOWS_OPEN_DATAGRAMS)
_STAGES = {
    layout.FLOW_STARTED: "started",
    layout.FLOW_ANSWERED: "answered",
    layout.FLOW_CONFIRMED: "open",
}


class Flow(NamedTuple):
    """A tracked flow: its initiator and its responder, addresses as text.

    ``protocol`` is "tcp", "udp", "icmp", "icmpv6", or the number of another one, whose ports are 0.
    ``state`` is "started" (no answer yet), "answered", "open", "closing" (both ends have sent
    FIN) or "reset". ``is_admitted_in`` and ``is_admitted_out`` say whether packets of the
    initiator passed ingress and egress. ``idle``: seconds since the last packet. Both ports of
    an ICMP echo are its identifier.
    """

    protocol: str
    initiator: str
    initiator_port: int
    responder: str
    responder_port: int
    state: str
    is_admitted_in: bool
    is_admitted_out: bool
    idle: float


def read_limits(maps: Maps) -> FlowLimits:
    """The limits in force."""
    return FlowLimits(*flow_codec.decode_flow_limits(maps.map("flow_limits").lookup(ZERO) or b""))


def write_limits(maps: Maps, limits: FlowLimits) -> None:
    """Write the limits; tables that exist keep their size."""
    maps.map("flow_limits").update(ZERO, flow_codec.encode_flow_limits(*limits))


def set_limits(maps: Maps, limits: FlowLimits) -> None:
    """Change the limits, and the size of tables. Raises UsageError for one out of bounds."""
    old = read_limits(maps)
    if limits.check().max_flows != old.max_flows:
        for index in _OPEN:
            table = maps.inner("flows", index)
            if table is not None:
                _replace(maps, index, table, limits.max_flows)
    if limits != old:
        write_limits(maps, limits)


def make_tables(maps: Maps) -> None:
    """Before a program tracks: create the tables that are missing."""
    max_flows = read_limits(maps).max_flows
    for index in range(layout.FLOW_TABLES):
        if maps.inner("flows", index) is None:
            entries = max_flows if index in _OPEN else layout.OPENING_FLOWS
            maps.put_inner("flows", index, maps.create_inner("flows", entries))


def drop_tables(maps: Maps) -> None:
    """After the last program that tracks: forget all flows, and free their memory."""
    for index in range(layout.FLOW_TABLES):
        if maps.inner("flows", index) is not None:
            maps.drop_inner("flows", index)


def _replace(maps: Maps, index: int, old: Map, max_flows: int) -> None:
    """Replace a table of open flows by one of another size with the same entries."""
    new = maps.create_inner("flows", max_flows)
    # Twice: packets change entries of the old table until the programs use the new one.
    _copy(old, new)
    maps.put_inner("flows", index, new)
    _copy(old, new)


def _copy(old: Map, new: Map) -> None:
    newest: list[tuple[int, bytes, bytes]] = []
    for key, value in old.items():
        seen = flow_codec.last_seen(value)
        present = new.lookup(key)
        if present is None or flow_codec.last_seen(present) < seen:
            newest.append((seen, key, value))
    # Oldest first: where there is less room, the table drops what was written first.
    newest.sort()
    new.update_many([key for _, key, _ in newest], [value for _, _, value in newest])


def _lifetime(protocol: int, flags: int, table: int, limits: FlowLimits) -> int:
    """Seconds, as fw_is_expired() in bpf/include/firewall/flows.h computes them."""
    if protocol not in _PROTOCOLS:
        return layout.OTHER_IDLE
    if protocol != _TCP:
        return limits.udp_idle
    if flags & layout.FLOW_RESET:
        return layout.TCP_RESET_IDLE
    if flags & _FINS == _FINS:
        return layout.TCP_CLOSING_IDLE
    return layout.TCP_OPENING_IDLE if table == layout.FLOWS_OPENING else limits.tcp_idle


def _entries(maps: Maps) -> Iterator[tuple[int, bytes, bytes, bool]]:
    """Table, key, value, and whether the programs count the entry as forgotten."""
    limits = read_limits(maps)
    for table in range(layout.FLOW_TABLES):
        inner = maps.inner("flows", table)
        if inner is None:
            continue
        now = monotonic_ns()
        for key, value in inner.items():
            seen, _, flags, _ = flow_codec.decode_flow(value)
            life = _lifetime(flow_codec.flow_protocol(key), flags, table, limits)
            yield table, key, value, seen + life * _SECOND < now


def read_flows(maps: Maps) -> Iterator[Flow]:
    """Every flow that is not forgotten."""
    now = monotonic_ns()
    for _, key, value, is_forgotten in _entries(maps):
        if is_forgotten:
            continue
        addresses, ports, protocol = flow_codec.decode_flow_key(key)
        seen, initiator, flags, stage = flow_codec.decode_flow(value)
        ends = [address_text(address) for address in addresses]
        if flags & layout.FLOW_RESET:
            state = "reset"
        elif flags & _FINS == _FINS:
            state = "closing"
        else:
            state = _STAGES[stage]
        yield Flow(
            _PROTOCOLS.get(protocol, str(protocol)),
            ends[initiator],
            ports[initiator],
            ends[1 - initiator],
            ports[1 - initiator],
            state,
            bool(flags & layout.FLOW_ADMITTED_IN),
            bool(flags & layout.FLOW_ADMITTED_OUT),
            max(now - seen, 0) / _SECOND,
        )


def expire(maps: Maps) -> int:
    """Remove the entries of forgotten flows; how many there were."""
    doomed = [(table, key) for table, key, _, is_forgotten in _entries(maps) if is_forgotten]
    count = 0
    for table, key in doomed:
        inner = maps.inner("flows", table)
        # The programs may have replaced or dropped the entry meanwhile.
        if inner is not None and inner.delete(key):
            count += 1
    return count
