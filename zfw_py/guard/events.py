# SPDX-License-Identifier: GPL-2.0-only
"""Turns decisions of the kernel's programs and of the DNS proxy into log events of one form."""

from __future__ import annotations

import time
from collections import OrderedDict
from socket import IPPROTO_TCP, IPPROTO_UDP
from typing import TYPE_CHECKING, Literal, NamedTuple

from zfw_py.errors import NotFound
from zfw_py.kernel import cgroup
from zfw_py.values.endpoint import Endpoint

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from zfw_py.guard.codec import Client, Event
    from zfw_py.guard.dns.proxy import AnsweredQuery

_PROTOCOLS = {1: "icmp", 6: "tcp", 17: "udp", 58: "ipv6-icmp", 132: "sctp", 136: "udplite"}
TRANSPORTS = {"udp": IPPROTO_UDP, "tcp": IPPROTO_TCP}
_MAX_NAMES = 65_536
_NANOSECONDS = 1_000_000_000


Lines = Literal["none", "denials", "all"]


class GuardEvent(NamedTuple):
    """One decision of a guard.

    ``time``: seconds since 1970. ``hook``: connect4, connect6, sendmsg4, sendmsg6, egress, or
    dns for a decision of the DNS proxy. ``pid``, ``command``: the client; None if unknown.
    ``cgroup``: the path of the client's cgroup. ``original``: the destination that the client
    used; None for dns, and for a packet without a readable one. ``redirected``: the DNS server
    that got the query instead. ``name``: the name in the query, or the one that the destination
    was resolved for; None if unknown. ``rdtype``: for dns the record type, such as "AAAA".
    ``verdict``: allow, deny or redirect; ``reason`` explains it. ``is_enforced`` is False for
    a denial that was only logged.
    """

    time: float
    pid: int | None
    command: str | None
    cgroup: str
    hook: str
    protocol: str
    original: Endpoint | None
    redirected: Endpoint | None
    name: str | None
    rdtype: str | None
    verdict: str
    reason: str
    is_enforced: bool


class EventSink(NamedTuple):
    """Receives a guard's events.

    ``emit`` is called once for each event, in the process that reads them. ``wants_all``: also
    for allowed decisions; otherwise they may be left out, which makes connections cheaper.
    ``lines``: what ``emit`` prints on stderr, so that an upgraded process prints the same.
    """

    emit: Callable[[GuardEvent], None]
    wants_all: bool
    lines: Lines = "none"


NO_EVENTS = EventSink(lambda _: None, wants_all=False)


class EventBuilder:
    """Builds events; remembers which names addresses were resolved for, and cgroups by id."""

    def __init__(self, path: str, *, is_log_only: bool) -> None:
        """``path`` is the guarded cgroup."""
        self._path = path
        self._is_log_only = is_log_only
        self._cgroups: dict[int, str] = {}
        self._names: OrderedDict[bytes, str] = OrderedDict()

    def remember(self, name: str, addresses: Iterable[bytes]) -> None:
        """Store that a name was resolved to these addresses (16 bytes each)."""
        for address in addresses:
            self._names[address] = name
            self._names.move_to_end(address)
        while len(self._names) > _MAX_NAMES:
            self._names.popitem(last=False)

    def from_kernel(self, event: Event) -> GuardEvent:
        """The event for a decision of one of the kernel's programs."""
        return GuardEvent(
            # CLOCK_MONOTONIC stands still while the machine sleeps, and is never set.
            time=time.time() - (time.monotonic_ns() - event.time) / _NANOSECONDS,
            pid=event.pid or None,
            command=event.command if event.pid else None,
            cgroup=self._cgroup(event.cgroup),
            hook=event.hook,
            protocol=_PROTOCOLS.get(event.protocol, str(event.protocol)),
            # All zeros: the packet had no destination that the program could read.
            original=Endpoint.from_mapped(event.destination, event.port)
            if any(event.destination)
            else None,
            redirected=Endpoint.from_mapped(event.redirected, event.redirected_port)
            if event.redirected_port
            else None,
            name=self._names.get(event.destination),
            rdtype=None,
            verdict=event.verdict,
            reason=event.reason,
            is_enforced=event.verdict != "deny" or not event.is_log_only,
        )

    def from_query(self, query: AnsweredQuery, client: Client | None) -> GuardEvent:
        """The event for a query that the DNS proxy answered; ``client`` sent it, if known."""
        return GuardEvent(
            time=time.time(),
            pid=client.pid or None if client else None,
            command=client.command if client and client.pid else None,
            cgroup=self._cgroup(client.cgroup) if client else self._path,
            hook="dns",
            protocol=query.transport,
            original=None,
            redirected=None,
            name=query.name,
            rdtype=query.rdtype,
            verdict=query.verdict,
            reason=query.reason,
            is_enforced=query.verdict != "deny" or not self._is_log_only,
        )

    def _cgroup(self, identifier: int) -> str:
        """The path of the guarded cgroup or of one below; of a removed one, the guarded one's."""
        if identifier not in self._cgroups:
            self._cgroups = {}
            try:
                for path in (self._path, *cgroup.descendants(self._path)):
                    self._cgroups[cgroup.identifier(path)] = path
            except NotFound:
                pass  # removed in the meantime
            self._cgroups.setdefault(identifier, self._path)
        return self._cgroups[identifier]
