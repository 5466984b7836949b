# SPDX-License-Identifier: GPL-2.0-only
"""What a guard tells: decisions of the kernel's programs and of the proxy, in one form."""

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

    from zfw_py.guard.codec import Asker, Event
    from zfw_py.guard.dns.proxy import Asked

_PROTOCOLS = {1: "icmp", 6: "tcp", 17: "udp", 58: "ipv6-icmp", 132: "sctp", 136: "udplite"}
TRANSPORTS = {"udp": IPPROTO_UDP, "tcp": IPPROTO_TCP}
_NAMES = 65_536
_NANOSECONDS = 1_000_000_000


Lines = Literal["none", "denials", "all"]


class Record(NamedTuple):
    """A decision.

    ``time`` in seconds since 1970. ``hook`` is connect4, connect6, sendmsg4,
    sendmsg6, egress, or dns for what the proxy decided; that one has ``name`` and
    ``rdtype``, the others a ``name`` where the address was handed out for one.
    ``pid`` and ``command`` are None where nobody knows. ``is_enforced`` is False
    where a denial was only logged.
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


class Teller(NamedTuple):
    """Who is told of decisions. Without ``has_all``: denials are all that has to be told.

    ``lines`` are those on the terminal.
    """

    tell: Callable[[Record], None]
    has_all: bool
    lines: Lines = "none"


class Recorder:
    """Makes records; knows the names of addresses that were handed out, and cgroups by id."""

    def __init__(self, path: str, *, is_log_only: bool) -> None:
        """``path`` is the guarded cgroup."""
        self._path = path
        self._is_log_only = is_log_only
        self._cgroups: dict[int, str] = {}
        self._names: OrderedDict[bytes, str] = OrderedDict()

    def remember(self, name: str, addresses: Iterable[bytes]) -> None:
        """An answer for a name had these addresses."""
        for address in addresses:
            self._names[address] = name
            self._names.move_to_end(address)
        while len(self._names) > _NAMES:
            self._names.popitem(last=False)

    def of_event(self, event: Event) -> Record:
        """What a program of the kernel's decided."""
        return Record(
            # That clock stands still while the machine sleeps, and is never set.
            time=time.time() - (time.monotonic_ns() - event.time) / _NANOSECONDS,
            pid=event.pid or None,
            command=event.command if event.pid else None,
            cgroup=self._cgroup(event.cgroup),
            hook=event.hook,
            protocol=_PROTOCOLS.get(event.protocol, str(event.protocol)),
            # No packet goes to no address: there was none, or none that could be read.
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

    def of_question(self, asked: Asked, asker: Asker | None) -> Record:
        """What the proxy decided."""
        return Record(
            time=time.time(),
            pid=asker.pid or None if asker else None,
            command=asker.command if asker and asker.pid else None,
            cgroup=self._cgroup(asker.cgroup) if asker else self._path,
            hook="dns",
            protocol=asked.transport,
            original=None,
            redirected=None,
            name=asked.name,
            rdtype=asked.rdtype,
            verdict=asked.verdict,
            reason=asked.reason,
            is_enforced=asked.verdict != "deny" or not self._is_log_only,
        )

    def _cgroup(self, identifier: int) -> str:
        """The path of the guarded cgroup or one in it; of one that is gone, the guarded one's."""
        if identifier not in self._cgroups:
            self._cgroups = {}
            try:
                for path in (self._path, *cgroup.descendants(self._path)):
                    self._cgroups[cgroup.identifier(path)] = path
            except NotFound:
                pass  # removed meanwhile
            self._cgroups.setdefault(identifier, self._path)
        return self._cgroups[identifier]
