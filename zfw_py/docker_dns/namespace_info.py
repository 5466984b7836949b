# SPDX-License-Identifier: GPL-2.0-only
"""Inspects the caller's network namespace for a redirect, and changes nothing in it.

It finds the uplink, the route to the server, free ports and Docker's DNS daemon.
"""

from __future__ import annotations

import os
import select
import socket
import time
from struct import pack, unpack_from
from typing import TYPE_CHECKING, NamedTuple

from zfw_py.docker_dns.codec import DaemonPorts
from zfw_py.errors import Conflict, KernelError, NotFound, UsageError, ZfwError
from zfw_py.kernel import conntrack, routing, tc
from zfw_py.kernel.own_netns import netns_cookie
from zfw_py.kernel.sock_diag import sockets
from zfw_py.kernel.sysctl import local_port_range

if TYPE_CHECKING:
    from zfw_py.docker_dns.model import Redirect
    from zfw_py.values.endpoint import Server

LOOPBACK_IFINDEX = 1
_LAST_PORT = 65535
_FIRST_UNPRIVILEGED = 1024
# Fewer are soon in use, and an attacker guesses the port of a query too easily.
_FEWEST_PORTS = 1024
_TRIES, _PATIENCE = 3, 1.0  # seconds each

# The question "NS of the root", which every resolver can answer or refuse: RFC 1035,
# sections 4.1.1 and 4.1.2. Recursion desired, one question; type NS, class IN.
_HEADER = ">HHHHHH"
_QUESTION = b"\0" + pack(">HH", 2, 1)
_RECURSION_DESIRED, _RESPONSE = 0x0100, 0x8000


class NamespaceInfo(NamedTuple):
    """What a redirect needs to know of its network namespace.

    ``ifindex``, ``has_ethernet`` and ``source`` (an IPv4 address) are the uplink's. Redirected
    queries get ``port_count`` source ports, from ``first_port`` on.
    """

    cookie: int
    ifindex: int
    has_ethernet: bool
    source: str
    first_port: int
    port_count: int
    daemon: DaemonPorts


def inspect(asked: Redirect, daemon: DaemonPorts | None) -> NamespaceInfo:
    """Inspect the caller's namespace; the daemon is looked for if ``daemon`` is None.

    Raises NotFound, UsageError, Conflict, ZfwError if a redirect is impossible.
    """
    uplink = _uplink(asked.interface)
    _check_resolver(asked.resolver)
    source = _source(asked.server, uplink)
    first_port, port_count = _free_ports()
    return NamespaceInfo(
        cookie=netns_cookie(),
        ifindex=uplink.ifindex,
        has_ethernet=bool(uplink.has_ethernet),
        source=source,
        first_port=first_port,
        port_count=port_count,
        daemon=find_daemon(asked.resolver) if daemon is None else daemon,
    )


def without_clsact(uplink_ifindex: int) -> list[int]:
    """The ifindexes of lo and the uplink, without those that have a clsact qdisc."""
    return [ifindex for ifindex in (LOOPBACK_IFINDEX, uplink_ifindex) if not tc.has_clsact(ifindex)]


def _uplink(name: str) -> routing.Interface:
    try:
        found = routing.interface(name)
    except NotFound:
        others = ", ".join(sorted(routing.interfaces()))
        raise NotFound(
            f"no interface {name} in the network namespace", hint=f"it has {others}"
        ) from None
    if found.ifindex == LOOPBACK_IFINDEX:
        raise UsageError("--interface: lo leads to no server; queries come from it")
    if found.has_ethernet is None:
        raise UsageError(f"--interface: {name} is of a kind that is unsupported: {found.link_type}")
    if not found.is_up:
        raise ZfwError(f"interface {name} is down")
    if not found.ipv4:
        raise ZfwError(f"interface {name} has no IPv4 address")
    return found


def _check_resolver(resolver: Server) -> None:
    """Raise UsageError if packets to the resolver do not leave by lo, where ``query`` runs."""
    route = routing.route_to(resolver.address_text)
    if route is None or route.kind != "local":
        raise UsageError(
            f"--from: {resolver.address_text} is outside of the network namespace:"
            " its queries do not go over lo"
        )


def _source(server: Server, uplink: routing.Interface) -> str:
    """The source address of packets to the server."""
    address = server.address_text
    usual = routing.route_to(address)
    if usual is not None and usual.kind == "local":
        raise UsageError(f"--to: {address} is an address of the network namespace's own")
    route = routing.route_to(address, uplink.ifindex)
    if route is None:
        if usual is None:
            raise ZfwError(f"no route to {address} from the network namespace")
        other = socket.if_indextoname(usual.ifindex) if usual.ifindex else "another interface"
        raise ZfwError(
            f"the route to {address} is by {other}, not by {uplink.name}",
            hint=f"--interface {other}",
        )
    if route.kind != "unicast" or route.source is None:
        raise UsageError(f"--to: {address} is not the address of one host there")
    return route.source


def _free_ports() -> tuple[int, int]:
    """First port and count of the larger range outside of net.ipv4.ip_local_port_range."""
    low, high = local_port_range()
    below = (_FIRST_UNPRIVILEGED, low - _FIRST_UNPRIVILEGED)
    above = (high + 1, _LAST_PORT - high)
    found = max(below, above, key=lambda each: each[1])
    if found[1] < _FEWEST_PORTS:
        raise Conflict(
            f"net.ipv4.ip_local_port_range of the network namespace, {low} to {high},"
            f" leaves no {_FEWEST_PORTS} ports for redirected queries"
        )
    return found


def are_free(first_port: int, port_count: int) -> bool:
    """Whether ports are outside of net.ipv4.ip_local_port_range, which may change."""
    low, high = local_port_range()
    return first_port + port_count <= low or first_port > high


# The daemon

# The state of a TCP socket that listens, and of a UDP socket that is not connected.
_LISTENING = {socket.IPPROTO_UDP: "CLOSE", socket.IPPROTO_TCP: "LISTEN"}


def find_daemon(resolver: Server) -> DaemonPorts:
    """The ports to which NAT changes the resolver's port; 0: NAT leaves it as it is.

    1. Sockets bound to the resolver's address on another port are candidates.
    2. If there are any, an empty packet is sent to the resolver, and connection tracking says
       to which port NAT sent it.
    3. Without connection tracking the only candidate is it. Raises Conflict if there are several.
    """
    bound: dict[int, set[int]] = {protocol: set() for protocol in _LISTENING}
    for each in sockets(_LISTENING):
        address, port = each.local or ("", 0)
        if address == resolver.address_text and each.state == _LISTENING[each.protocol]:
            bound[each.protocol].add(port)
    return DaemonPorts(*(_port(resolver, protocol, ports) for protocol, ports in bound.items()))


def _port(resolver: Server, protocol: int, ports: set[int]) -> int:
    others = ports - {resolver.port}
    if not others:
        return 0
    seen = _seen_destination(resolver, protocol)
    if seen is not None:
        if seen[0] != resolver.address_text:
            raise Conflict(
                f"queries to {resolver} are sent on to {seen[0]}:{seen[1]} in the namespace itself"
            )
        return seen[1] if seen[1] != resolver.port else 0
    if len(others) > 1:
        name = "UDP" if protocol == socket.IPPROTO_UDP else "TCP"
        listed = ", ".join(map(str, sorted(others)))
        raise Conflict(
            f"{len(others)} {name} sockets on {resolver.address_text}, ports {listed}:"
            " one of them is the daemon's",
            hint="--daemon-ports UDP,TCP says which",
        )
    return others.pop()


def _seen_destination(resolver: Server, protocol: int) -> tuple[str, int] | None:
    """Where a packet to the resolver arrives, None: not known. An empty one gets no answer."""
    kind = socket.SOCK_DGRAM if protocol == socket.IPPROTO_UDP else socket.SOCK_STREAM
    end = (resolver.address_text, resolver.port)
    with socket.socket(socket.AF_INET, kind) as sent:
        sent.setblocking(False)
        # The first packet of the connection is enough: do not wait for the answer.
        sent.connect_ex(end)
        if protocol == socket.IPPROTO_UDP:
            try:
                sent.send(b"")
            except OSError:
                return None
        return conntrack.translated_destination(protocol, sent.getsockname(), end)


# The server


def probe(asked: Redirect, source: str) -> None:
    """Ask the server one question from the uplink, at most three times. Raises ZfwError."""
    server = (asked.server.address_text, asked.server.port)
    reason = f"for {_TRIES * _PATIENCE:.0f} s"
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sent:
        try:
            sent.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, asked.interface.encode())
            sent.bind((source, 0))
            sent.connect(server)
        except OSError as error:
            raise KernelError(f"ask {asked.server}", error.errno or 0) from error
        for _ in range(_TRIES):
            message_id = int.from_bytes(os.urandom(2), "big")
            try:
                sent.send(pack(_HEADER, message_id, _RECURSION_DESIRED, 1, 0, 0, 0) + _QUESTION)
                if _is_answered(sent, message_id):
                    return
            except OSError as error:
                # ICMP from a router, or from the server: the next try may succeed.
                reason = f"({error.strerror})"
                time.sleep(_PATIENCE / 4)
    raise ZfwError(
        f"server {asked.server} does not answer from there {reason}",
        hint="--no-probe redirects to it all the same",
    )


def _is_answered(sent: socket.socket, message_id: int) -> bool:
    deadline = time.monotonic() + _PATIENCE
    while (left := deadline - time.monotonic()) > 0:
        if not select.select([sent], [], [], left)[0]:
            return False
        answer = sent.recv(512)
        if len(answer) < 12:
            continue
        answered_id, flags = unpack_from(">HH", answer)
        if answered_id == message_id and flags & _RESPONSE:
            return True
    return False


def is_source(source: str, ifindex: int, server: str) -> bool:
    """Whether packets to a server by an interface have this source address."""
    route = routing.route_to(server, ifindex)
    return route is not None and route.source == source
