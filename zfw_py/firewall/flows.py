# SPDX-License-Identifier: GPL-2.0-only
"""The flows that the programs track: their tables, their limits, and the listing."""

from __future__ import annotations

from struct import Struct
from time import monotonic_ns
from typing import TYPE_CHECKING, NamedTuple

from zfw_py.firewall import layout
from zfw_py.firewall.flow_limits import FlowLimits
from zfw_py.firewall.maps import ZERO
from zfw_py.kernel.bpf_maps import create_map
from zfw_py.values.prefix import address_text

if TYPE_CHECKING:
    from collections.abc import Iterator

    from zfw_py.firewall.maps import Tables
    from zfw_py.kernel.bpf_maps import Map

_key = Struct(layout.FLOW_KEY)
_flow = Struct(layout.FLOW)
_limits = Struct(layout.FLOW_LIMITS)
_ports = Struct("!HH")
_seen = Struct("=Q")  # leads a flow

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
    """A tracked flow: who began it and with whom, addresses as text.

    ``state`` is "started" (nobody has answered), "answered", "open", "closing" (both
    ends have sent FIN) or "reset". ``is_admitted_in`` and ``is_admitted_out`` say
    whether packets of the initiator were let in and out. ``idle`` is in seconds. An ICMP
    echo has its identifier for both ports.
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


def read_limits(tables: Tables) -> FlowLimits:
    """The limits that hold."""
    udp_idle, tcp_idle, max_flows = _limits.unpack(tables.map("flow_limits").lookup(ZERO) or b"")
    return FlowLimits(udp_idle // _SECOND, tcp_idle // _SECOND, max_flows)


def write_limits(tables: Tables, limits: FlowLimits) -> None:
    """Make these the limits; tables that are there keep their size."""
    value = _limits.pack(limits.udp_idle * _SECOND, limits.tcp_idle * _SECOND, limits.max_flows)
    tables.map("flow_limits").update(ZERO, value)


def set_limits(tables: Tables, limits: FlowLimits) -> None:
    """Make these the limits. Raises UsageError for one out of bounds."""
    old = read_limits(tables)
    if limits.check().max_flows != old.max_flows:
        for index in _OPEN:
            table = tables.inner("flows", index)
            if table is not None:
                _replace(tables, index, table, limits.max_flows)
    if limits != old:
        write_limits(tables, limits)


def _create(entries: int) -> Map:
    kind, key_size, value_size, _, flags = layout.INNER_MAPS["flows"]
    return create_map((kind, key_size, value_size, entries, flags), "flows")


def make_tables(tables: Tables) -> None:
    """Before a program tracks: make the tables if there are none."""
    max_flows = read_limits(tables).max_flows
    for index in range(layout.FLOW_TABLES):
        if tables.inner("flows", index) is None:
            entries = max_flows if index in _OPEN else layout.OPENING_FLOWS
            tables.put_inner("flows", index, _create(entries))


def drop_tables(tables: Tables) -> None:
    """When nothing tracks any more: forget all flows, and free their memory."""
    for index in range(layout.FLOW_TABLES):
        if tables.inner("flows", index) is not None:
            tables.drop_inner("flows", index)


def _replace(tables: Tables, index: int, old: Map, max_flows: int) -> None:
    """A table of another size in the place of one of open flows, with what is in it."""
    new = _create(max_flows)
    # Twice: a packet may have made or renewed an entry before the programs saw the new.
    _copy(old, new)
    tables.put_inner("flows", index, new)
    _copy(old, new)


def _copy(old: Map, new: Map) -> None:
    newest: list[tuple[int, bytes, bytes]] = []
    for key, value in old.items():
        (seen,) = _seen.unpack_from(value)
        present = new.lookup(key)
        if present is None or _seen.unpack_from(present)[0] < seen:
            newest.append((seen, key, value))
    # What was seen last is written last, and pushed out last where there is less room.
    newest.sort()
    new.update_many([key for _, key, _ in newest], [value for _, _, value in newest])


def _lifetime(protocol: int, flags: int, table: int, limits: FlowLimits) -> int:
    """Seconds, as fw_is_expired() in bpf/include/firewall/flows.h has them."""
    if protocol != _TCP:
        return limits.udp_idle
    if flags & layout.FLOW_RESET:
        return layout.TCP_RESET_IDLE
    if flags & _FINS == _FINS:
        return layout.TCP_CLOSING_IDLE
    return layout.TCP_OPENING_IDLE if table == layout.FLOWS_OPENING else limits.tcp_idle


def _entries(tables: Tables) -> Iterator[tuple[int, bytes, bytes, bool]]:
    """Table, key, value, and whether it is forgotten."""
    limits = read_limits(tables)
    for table in range(layout.FLOW_TABLES):
        inner = tables.inner("flows", table)
        if inner is None:
            continue
        now = monotonic_ns()
        for key, value in inner.items():
            seen, _, _, _, flags, *_ = _flow.unpack(value)
            life = _lifetime(key[36], flags, table, limits)
            yield table, key, value, seen + life * _SECOND < now


def read_flows(tables: Tables) -> Iterator[Flow]:
    """Every flow that is not forgotten."""
    now = monotonic_ns()
    for _, key, value, is_forgotten in _entries(tables):
        if is_forgotten:
            continue
        addresses, port_bytes, protocol = _key.unpack(key)
        ports = _ports.unpack(port_bytes)
        seen, _, _, initiator, flags, stage, _ = _flow.unpack(value)
        ends = [address_text(addresses[:16]), address_text(addresses[16:])]
        if flags & layout.FLOW_RESET:
            state = "reset"
        elif flags & _FINS == _FINS:
            state = "closing"
        else:
            state = _STAGES[stage]
        yield Flow(
            _PROTOCOLS[protocol],
            ends[initiator],
            ports[initiator],
            ends[1 - initiator],
            ports[1 - initiator],
            state,
            bool(flags & layout.FLOW_ADMITTED_IN),
            bool(flags & layout.FLOW_ADMITTED_OUT),
            max(now - seen, 0) / _SECOND,
        )


def expire(tables: Tables) -> int:
    """Remove the entries of forgotten flows; how many there were."""
    doomed = [(table, key) for table, key, _, is_forgotten in _entries(tables) if is_forgotten]
    count = 0
    for table, key in doomed:
        inner = tables.inner("flows", table)
        # The programs may have replaced or dropped it meanwhile.
        if inner is not None and inner.delete(key):
            count += 1
    return count
