# SPDX-License-Identifier: GPL-2.0-only
"""Finds the listening sockets of a network namespace, and those that belong to a target."""

from __future__ import annotations

from socket import AF_INET6, IPPROTO_TCP, IPPROTO_UDP
from typing import TYPE_CHECKING, NamedTuple

from zfw_py.errors import Conflict
from zfw_py.kernel import process_sockets, sock_diag
from zfw_py.kernel.process import Process, start_time
from zfw_py.steer import units
from zfw_py.steer.model import (
    AddressTarget,
    ProcessTarget,
    UnitTarget,
)
from zfw_py.values.endpoint import Endpoint
from zfw_py.values.prefix import mapped_address, parse_address

if TYPE_CHECKING:
    from collections.abc import Iterable
    from socket import socket

    from zfw_py.steer.model import Protocol, Target

PROTOCOL_NUMBERS: dict[Protocol, int] = {"tcp": IPPROTO_TCP, "udp": IPPROTO_UDP}
PROTOCOL_NAMES: dict[int, Protocol] = {IPPROTO_TCP: "tcp", IPPROTO_UDP: "udp"}


class Listener(NamedTuple):
    """A TCP socket that listens, or a UDP socket that is not connected.

    ``address``: 16 bytes in network order, IPv4 as ::ffff:a.b.c.d. ``families``: of 4 and 6,
    those whose packets it accepts. ``cookie``: SO_COOKIE.
    """

    protocol: Protocol
    address: bytes
    port: int
    families: frozenset[int]
    cookie: int
    inode: int

    def __str__(self) -> str:
        return str(Endpoint.from_mapped(self.address, self.port))


def _listener(each: sock_diag.Socket) -> Listener | None:
    """A socket as a listener; None if it is connected, or no process has it open."""
    is_waiting = each.state == ("LISTEN" if each.protocol == IPPROTO_TCP else "CLOSE")
    if not is_waiting or each.local is None or each.cookie is None or not each.inode:
        return None
    address, port = each.local
    mapped = mapped_address(*parse_address(address, "sock_diag"))
    families = {6} if each.family == AF_INET6 else {4}
    if each.family == AF_INET6 and not each.is_v6only:
        families.add(4)
    return Listener(
        PROTOCOL_NAMES[each.protocol], mapped, port, frozenset(families), each.cookie, each.inode
    )


class SocketSnapshot:
    """The listeners of the caller's network namespace at one time, for many targets.

    Only the constructor must run in the network namespace. ``cookies`` has the cookies of all
    TCP listeners and all UDP sockets, ``connected`` those of UDP sockets that are connected.
    """

    def __init__(self) -> None:
        """Dump the sockets by sock_diag. Raises KernelError."""
        found = sock_diag.listeners(PROTOCOL_NUMBERS.values())
        self.cookies = {each.cookie for each in found}
        self.connected = {each.cookie for each in found if each.state == "ESTABLISHED"}
        self._by_inode: dict[int, list[Listener]] = {}
        self._by_end: dict[tuple[Protocol, bytes, int], list[Listener]] = {}
        for each in filter(None, map(_listener, found)):
            self._by_inode.setdefault(each.inode, []).append(each)
            self._by_end.setdefault((each.protocol, each.address, each.port), []).append(each)
        self._holders: dict[int, list[int]] | None = None

    def by_cookie(self) -> dict[int, Listener]:
        """All listeners by their cookies."""
        return {each.cookie: each for some in self._by_inode.values() for each in some}

    def of_target(
        self, protocol: Protocol, target: Target, port: int | None = None
    ) -> list[Listener]:
        """The listeners of a target, in no order.

        ``port``: only those on this port, for a process or unit. Raises ZfwError.
        """
        match target:
            case AddressTarget(address, its_port):
                return list(self._by_end.get((protocol, address, its_port), ()))
            case ProcessTarget(pid):
                pids = {pid} if Process(*target).is_alive() else set()
            case UnitTarget(unit):
                pids = units.processes_of(unit)
        inodes = {inode for pid in pids for inode in process_sockets.inodes_of(pid)}
        return [
            each
            for inode in sorted(inodes & self._by_inode.keys())
            for each in self._by_inode[inode]
            if each.protocol == protocol and port in (None, each.port)
        ]

    def holders_of(self, listener: Listener) -> list[int]:
        """The ids of the processes that have it open, the one that started last first."""
        if self._holders is None:
            # For all listeners at once: this reads the descriptors of all processes.
            self._holders = process_sockets.holders(self._by_inode)
        pids = self._holders.get(listener.inode, [])
        return sorted(pids, key=lambda pid: start_time(pid) or 0, reverse=True)

    def duplicate(self, listener: Listener) -> socket | None:
        """A duplicate of the socket, which the caller closes; None if it was closed meanwhile."""
        for pid in self.holders_of(listener):
            taken = process_sockets.take(pid, listener.cookie, listener.inode)
            if taken is not None:
                return taken
        return None


def chosen(found: Iterable[Listener], target: Target, family: int) -> list[Listener]:
    """The listeners of a target that accept packets of a family.

    An address may have several, opened one after the other or as a SO_REUSEPORT group. Those
    of a process or unit must have the same address and port. Raises Conflict that names them.
    """
    usable = [each for each in found if family in each.families]
    if not isinstance(target, AddressTarget):
        # An IPv4 socket goes before an IPv6 socket that accepts IPv4 as well.
        own = [each for each in usable if AddressTarget(each.address, each.port).family == family]
        usable = own or usable
        ends = sorted({str(each) for each in usable})
        if len(ends) > 1:
            raise Conflict(
                f"{target} listens on several: {', '.join(ends)}",
                hint="name one of them: --to ADDR:PORT",
            )
    return usable
