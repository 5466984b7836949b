# SPDX-License-Identifier: GPL-2.0-only
"""The pinned maps of one guard, checked against the compiled layout."""

from __future__ import annotations

import time
from heapq import heappop, heappush
from typing import TYPE_CHECKING

import msgspec

from zfw_py.errors import NotFound
from zfw_py.guard import layout
from zfw_py.guard.codec import (
    ZERO,
    Asker,
    Config,
    Proxy,
    asker_key,
    decision_counts,
    decode_keeper,
    encode_keeper,
    learnt_key,
    learnt_key_parts,
    netns_key,
    prefix_key,
    prefix_value,
    time_of,
    time_value,
    total,
)
from zfw_py.guard.events import Lines  # noqa: TC001 - msgspec reads it
from zfw_py.lifecycle import manifest
from zfw_py.lifecycle.pins import Pins
from zfw_py.lifecycle.store import ROOT, Store

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from zfw_py.guard.model import Reach
    from zfw_py.kernel import bpf_maps
    from zfw_py.kernel.process import Process

_NANOSECONDS = 1_000_000_000


class NoGuards(NotFound):
    """There are none, and nobody has ever made one here."""


STORE = Store(
    f"{ROOT}/guard",
    layout.MAPS,
    noun="guard",
    remedy="that version's zfw guard detach removes it, or rm -r {directory}",
    absent=lambda: NoGuards("no guards"),
    # The trie is sized to its policy.
    sized=("prefixes",),
    is_identifier=lambda name: name.isascii() and name.isalnum(),
)


class About(msgspec.Struct, frozen=True):
    """What a guard is, for people and for whoever removes it. Pinned as JSON in a map.

    ``servers`` are asked for what the policy allows, or are the proxy of a redirect.
    ``is_cgroup_ours``: made by us, and to be removed with the guard; so is
    ``proxy_cgroup``, where its process is, if there is one. Both are told before they
    are made: ``cgroup_id`` is 0 until then.
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
    lines: Lines = "denials"  # on the stderr of the command that it guards
    digest: str = ""  # of the object that its programs are from; before 0.2 nobody wrote it


class Tables(Pins):
    """The maps of a guard."""

    def __init__(self, directory: str) -> None:
        """``directory`` has the pins; see ``STORE.directory``."""
        super().__init__(STORE, directory)
        # Of what was admitted here: until when at least, and its key. One for each key.
        self._expiries: list[tuple[int, bytes]] = []

    # What it is

    def write_about(self, about: About) -> None:
        """Pin it, in the place of an earlier one."""
        manifest.write(self.directory, about)

    def about(self) -> About:
        """What was pinned. Raises LayoutMismatch, NotFound."""
        return manifest.read(self, About)

    def config(self) -> Config:
        """What the programs go by. Raises LayoutMismatch if another version wrote it."""
        config = Config.decode(self.map("config").lookup(ZERO) or bytes(layout.CONFIG_SIZE))
        if config.abi_version != layout.ABI_VERSION:
            raise self.mismatch("config", f"version {config.abi_version}")
        return config

    def write_config(self, flags: int) -> None:
        """Set the flags."""
        self.map("config").update(ZERO, Config(layout.ABI_VERSION, flags).encode())

    def keeper(self) -> Process:
        """The process that keeps it."""
        return decode_keeper(self.map("keeper").lookup(ZERO) or bytes(layout.KEEPER_SIZE))

    def write_keeper(self, process: Process) -> None:
        """Say who keeps it."""
        self.map("keeper").update(ZERO, encode_keeper(process))

    # What it goes by

    def write_prefixes(self, flat: Mapping[tuple[bytes, int], Reach]) -> None:
        """Put in what a policy says of addresses; the trie has room for all of it."""
        self.map("prefixes").update_many(
            [prefix_key(address, length) for address, length in flat],
            [prefix_value(reach.ports, reach.otherwise) for reach in flat.values()],
        )

    def write_proxy(self, cookie: int, proxy: Proxy) -> None:
        """Say where DNS goes in a network namespace, or with 0 in all others."""
        self.map("proxies").update(netns_key(cookie), proxy.encode())

    def admit(self, addresses: Iterable[bytes], ports: frozenset[int], lifetime: float) -> None:
        """Let addresses be reached for so many seconds; without ports, on any.

        What is let longer stays so. Raises OSError (E2BIG) if the table is full
        of what still counts. It is one process that admits.
        """
        until = time.monotonic_ns() + int(lifetime * _NANOSECONDS)
        table = self.map("learnt")
        for address in addresses:
            for port in ports or (0,):
                key = learnt_key(address, port)
                known = table.lookup(key)
                if known is None:
                    self._add(table, key, until)
                elif time_of(known) < until:
                    table.update(key, time_value(until))

    def _add(self, table: bpf_maps.Map, key: bytes, until: int) -> None:
        try:
            table.update(key, time_value(until))
        except OSError:
            if not self.forget_expired():
                raise
            table.update(key, time_value(until))
        heappush(self._expiries, (until, key))

    def forget_expired(self) -> int:
        """Remove the addresses admitted here that no longer count; how many.

        Without a look at the others: a full table is big, and this may be asked for with
        each answer.
        """
        now = time.monotonic_ns()
        table = self.map("learnt")
        forgotten = 0
        while self._expiries and self._expiries[0][0] <= now:
            _, key = heappop(self._expiries)
            value = table.lookup(key)
            if value is None:
                continue
            if time_of(value) > now:
                heappush(self._expiries, (time_of(value), key))  # admitted again meanwhile
            else:
                forgotten += table.delete(key)
        return forgotten

    def learnt(self) -> list[tuple[bytes, int]]:
        """Addresses of names that may be reached now, each with its port, 0 for any."""
        now = time.monotonic_ns()
        return [
            learnt_key_parts(key)
            for key, value in self.map("learnt").items()
            if time_of(value) > now
        ]

    # What happened

    def asker(self, cookie: int, port: int, protocol: int, *, is_ipv6: bool) -> Asker | None:
        """Who asked the proxy from a port, if that is still known."""
        data = self.map("askers").lookup(asker_key(cookie, port, protocol, is_ipv6=is_ipv6))
        return None if data is None else Asker.decode(data)

    def decisions(self) -> dict[str, dict[str, int]]:
        """How often what was decided, by hook and reason."""
        return decision_counts([value for _, value in sorted(self.map("decisions").items())])

    def lost(self) -> int:
        """How many events found no room."""
        return total(self.map("lost").lookup(ZERO) or b"")
