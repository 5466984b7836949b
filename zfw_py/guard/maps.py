# SPDX-License-Identifier: GPL-2.0-only
"""Reads and writes the pinned maps of one guard, checked against the compiled layout."""

from __future__ import annotations

import time
from heapq import heapify, heappop, heappush
from typing import TYPE_CHECKING

import msgspec

from zfw_py.errors import NotFound
from zfw_py.guard import layout
from zfw_py.guard.codec import (
    DNS_PROCESS_SOCKET,
    ZERO,
    Client,
    Config,
    Proxy,
    added_decision_key,
    client_key,
    decision_counts,
    decode_supervisor,
    encode_supervisor,
    increased,
    index_of,
    netns_key,
    prefix_key,
    prefix_value,
    resolved_key,
    resolved_key_parts,
    socket_key,
    time_of,
    time_value,
    total,
)
from zfw_py.guard.events import Lines  # noqa: TC001 - msgspec reads it
from zfw_py.lifecycle import manifest as pinned
from zfw_py.lifecycle.store import ROOT, Pins, Store

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from zfw_py.guard.listeners import Listeners
    from zfw_py.guard.model import Reach
    from zfw_py.kernel import bpf_maps
    from zfw_py.kernel.process import Process

_NANOSECONDS = 1_000_000_000
# How long an address that has expired is kept, in seconds, so that its denial can have the reason.
_KEPT = 86_400


class NoGuards(NotFound):
    """No guard was ever created on this machine."""


STORE = Store(
    f"{ROOT}/guard",
    layout.MAPS,
    noun="guard",
    remedy="that version's zfw guard detach removes it, or rm -r {directory}",
    absent=lambda: NoGuards("no guards"),
    # The trie is sized to its policy.
    sized=("prefixes",),
    added=("added_decisions", "flows"),
    is_identifier=lambda name: name.isascii() and name.isalnum(),
)


class Manifest(msgspec.Struct, frozen=True):
    """What a guard is and what was created for it, for listing and removal. Pinned as JSON.

    ``kind``: run, attach or redirect. ``servers``: the upstream servers, or those of a redirect,
    each with its port. ``is_cgroup_ours``: the guarded cgroup was created for the guard and is
    removed with it. So is ``proxy_cgroup``, the supervisor's; empty without one. The manifest is
    pinned before these cgroups are created: ``cgroup_id`` is 0 until then.
    """

    id: str
    kind: str
    cgroup: str
    cgroup_id: int
    is_cgroup_ours: bool
    proxy_cgroup: str
    created: float  # seconds since 1970
    servers: list[str]
    policy: dict[str, object]
    lines: Lines = "denials"  # what the supervisor of a run prints on stderr
    digest: str = ""  # SHA-256 of the object file; empty for guards from before 0.2
    # The servers of resolv.conf at the creation stay, because the supervisor sees other files.
    is_dns_fixed: bool = False
    # How often the supervisor ended and was started again, when last (seconds since 1970), and why.
    restarts: int = 0
    restarted: float = 0.0
    ended: str = ""


class Maps(Pins):
    """The maps of a guard."""

    def __init__(self, directory: str) -> None:
        """``directory`` holds the pins; see ``STORE.directory``."""
        super().__init__(STORE, directory)
        # A heap of (time of expiry, key), one entry for each key of the map ``learnt``, in the
        # supervisor. The map may hold a later time for the key.
        self._expiries: list[tuple[int, bytes]] = []

    # Manifest, configuration, supervisor

    def write_manifest(self, manifest: Manifest) -> None:
        """Pin the manifest, in the place of an earlier one."""
        pinned.write(self.directory, manifest)

    def manifest(self) -> Manifest:
        """Read the manifest. Raises LayoutMismatch, NotFound."""
        return pinned.read(self, Manifest)

    def config(self) -> Config:
        """Read the programs' configuration. Raises LayoutMismatch if its ABI version is another."""
        config = Config.decode(self.map("config").lookup(ZERO) or bytes(layout.CONFIG_SIZE))
        if config.abi_version != layout.ABI_VERSION:
            raise self.mismatch("config", f"version {config.abi_version}")
        return config

    def write_config(self, flags: int) -> None:
        """Write the flags of the configuration (LOG_ONLY and others, combined)."""
        self.map("config").update(ZERO, Config(layout.ABI_VERSION, flags).encode())

    def supervisor(self) -> Process:
        """The guard's supervisor, alive or not; pid 0 if it never had one."""
        return decode_supervisor(self.map("keeper").lookup(ZERO) or bytes(layout.KEEPER_SIZE))

    def write_supervisor(self, process: Process) -> None:
        """Store which process is the supervisor."""
        self.map("keeper").update(ZERO, encode_supervisor(process))

    # Policy

    def write_prefixes(self, flat: Mapping[tuple[bytes, int], Reach]) -> None:
        """Write a flattened policy; the trie was sized to it."""
        self.map("prefixes").update_many(
            [prefix_key(address, length) for address, length in flat],
            [prefix_value(reach.ports, reach.otherwise) for reach in flat.values()],
        )

    def write_proxy(self, cookie: int, proxy: Proxy) -> None:
        """Write where queries of a network namespace go; cookie 0: of all without an entry."""
        self.map("proxies").update(netns_key(cookie), proxy.encode())

    def remove_proxy(self, cookie: int) -> None:
        """Send no more queries of a network namespace to the proxy: they are denied."""
        self.map("proxies").delete(netns_key(cookie))

    def write_listeners(self, listeners: Listeners) -> None:
        """Send queries of a network namespace to the DNS process's sockets there.

        The programs send queries to sockets with this mark alone, so that no other process can
        answer them: also not one that binds their ports after the end of the DNS process.
        """
        for each in (*listeners.udp, *listeners.tcp):
            self.map("sockets").update(socket_key(each.fileno()), DNS_PROCESS_SOCKET)
        self.write_proxy(listeners.cookie, listeners.proxy)

    def admit(self, addresses: Iterable[bytes], ports: frozenset[int], lifetime: float) -> None:
        """Admit addresses (16 bytes each) for ``lifetime`` seconds; without ports, on every port.

        An address that is admitted for longer stays so. Raises OSError (E2BIG) if the map is full
        of addresses that have not expired. Only the supervisor admits addresses.
        """
        until = time.monotonic_ns() + int(lifetime * _NANOSECONDS)
        elements = self.map("learnt")
        for address in addresses:
            for port in ports or (0,):
                key = resolved_key(address, port)
                known = elements.lookup(key)
                if known is None:
                    self._add(elements, key, until)
                elif time_of(known) < until:
                    elements.update(key, time_value(until))

    def _add(self, elements: bpf_maps.Map, key: bytes, until: int) -> None:
        try:
            elements.update(key, time_value(until))
        except OSError:
            if not self.remove_expired(kept=0):
                raise
            elements.update(key, time_value(until))
        heappush(self._expiries, (until, key))

    def track_resolved(self) -> None:
        """In a new supervisor: track the addresses that the last one admitted too."""
        self._expiries = [(time_of(value), key) for key, value in self.map("learnt").items()]
        heapify(self._expiries)

    def remove_expired(self, *, kept: float = _KEPT) -> int:
        """Remove addresses that expired ``kept`` seconds ago; how many.

        Uses the heap: the map may be large, and a full one is cleaned for each answer.
        """
        now = time.monotonic_ns() - int(kept * _NANOSECONDS)
        elements = self.map("learnt")
        removed = 0
        while self._expiries and self._expiries[0][0] <= now:
            _, key = heappop(self._expiries)
            value = elements.lookup(key)
            if value is None:
                continue
            if time_of(value) > now:
                heappush(self._expiries, (time_of(value), key))  # admitted again in the meantime
            else:
                removed += elements.delete(key)
        return removed

    def resolved(self) -> list[tuple[bytes, int]]:
        """Addresses (16 bytes) that are admitted now, each with its port, 0 for every port."""
        now = time.monotonic_ns()
        return [
            resolved_key_parts(key)
            for key, value in self.map("learnt").items()
            if time_of(value) > now
        ]

    # Clients and counters

    def client(self, cookie: int, port: int, protocol: int, *, is_ipv6: bool) -> Client | None:
        """The process that sent a query from a source port; None if it is not known any more.

        ``cookie`` is of its network namespace; ``protocol`` is IPPROTO_UDP or IPPROTO_TCP.
        """
        data = self.map("askers").lookup(client_key(cookie, port, protocol, is_ipv6=is_ipv6))
        return None if data is None else Client.decode(data)

    def has_client(self, cookie: int, port: int, protocol: int, *, is_ipv6: bool) -> bool:
        """Whether a guarded process sent a query from this source port; arguments as ``client``."""
        key = client_key(cookie, port, protocol, is_ipv6=is_ipv6)
        return self.map("askers").lookup(key) is not None

    def count_dns(self, counts: Mapping[str, int]) -> None:
        """Add to the counts of the DNS proxy's denials, by reason. The supervisor alone counts."""
        elements = self.find("added_decisions")
        if elements is None:
            return  # a guard of an older build
        for reason, count in counts.items():
            key = added_decision_key("dns", reason)
            elements.update(key, increased(elements.lookup(key) or b"", count))

    def decisions(self) -> dict[str, dict[str, int]]:
        """Counts of decisions, by hook and reason."""
        maps = self.map("decisions"), self.find("added_decisions")
        return decision_counts(
            *(
                [value for _, value in sorted(each.items(), key=lambda item: index_of(item[0]))]
                for each in maps
                if each is not None
            )
        )

    def lost(self) -> int:
        """How many events found the ring buffer full."""
        return total(self.map("lost").lookup(ZERO) or b"")
