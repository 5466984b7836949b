# SPDX-License-Identifier: GPL-2.0-only
"""Which sockets of a network namespace a target means, of those that listen there now."""

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
_NAMES: dict[int, Protocol] = {IPPROTO_TCP: "tcp", IPPROTO_UDP: "udp"}


class Listener(NamedTuple):
    """A socket that takes connections, or an unconnected one of UDP.

    ``address`` is 16 bytes, IPv4 as ::ffff:a.b.c.d. ``families`` are those whose packets it
    takes. ``cookie`` is SO_COOKIE.
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
    """A socket as such; None if it is connected, or no process's."""
    is_waiting = each.state == ("LISTEN" if each.protocol == IPPROTO_TCP else "CLOSE")
    if not is_waiting or each.local is None or each.cookie is None or not each.inode:
        return None
    address, port = each.local
    mapped = mapped_address(*parse_address(address, "sock_diag"))
    families = {6} if each.family == AF_INET6 else {4}
    if each.family == AF_INET6 and not each.is_v6only:
        families.add(4)
    return Listener(
        _NAMES[each.protocol], mapped, port, frozenset(families), each.cookie, each.inode
    )


class Surroundings:
    """The listeners there are, and whose they are, looked up once for many targets.

    Has to be made in the network namespace; the rest may be called anywhere. ``cookies``
    has also those of UDP that are connected.
    """

    def __init__(self) -> None:
        """Look for the listeners. Raises KernelError."""
        found = sock_diag.listeners(PROTOCOL_NUMBERS.values())
        self.cookies = {each.cookie for each in found}
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
        """The listeners that a target means, in no order.

        Of a process or a unit those on ``port``, if it is said. Raises ZfwError.
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
        """The processes that have it, the latest first."""
        if self._holders is None:
            # At once for all that may be asked for: the descriptors of all processes are read.
            self._holders = process_sockets.holders(self._by_inode)
        pids = self._holders.get(listener.inode, [])
        return sorted(pids, key=lambda pid: start_time(pid) or 0, reverse=True)

    def take(self, listener: Listener) -> socket | None:
        """The socket itself; the caller closes it. None if whoever had it has it no more."""
        for pid in self.holders_of(listener):
            taken = process_sockets.take(pid, listener.cookie, listener.inode)
            if taken is not None:
                return taken
        return None


def chosen(found: Iterable[Listener], target: Target, family: int) -> list[Listener]:
    """Those of a target that take packets of a family.

    Of an address there may be several, which daemons have opened one after the other or
    together (SO_REUSEPORT). A process or unit has to have one: sockets on the same address
    and port are one group. Raises Conflict, naming them.
    """
    usable = [each for each in found if family in each.families]
    if not isinstance(target, AddressTarget):
        # One of the family itself comes before one that takes it as well.
        own = [each for each in usable if AddressTarget(each.address, each.port).family == family]
        usable = own or usable
        ends = sorted({str(each) for each in usable})
        if len(ends) > 1:
            raise Conflict(
                f"{target} listens on several: {', '.join(ends)}",
                hint="name one of them: --to ADDR:PORT",
            )
    return usable
