# SPDX-License-Identifier: GPL-2.0-only
"""The pinned maps of one guard, checked against the compiled layout."""

from __future__ import annotations

import os
import time
from contextlib import ExitStack, contextmanager, suppress
from heapq import heappop, heappush
from typing import TYPE_CHECKING

import msgspec

from zfw_py.errors import NotFound, raise_expected
from zfw_py.guard import layout
from zfw_py.guard.codec import (
    ZERO,
    Asker,
    Config,
    Keeper,
    Proxy,
    asker_key,
    decision_counts,
    learnt_key,
    learnt_key_parts,
    netns_key,
    prefix_key,
    prefix_value,
    time_of,
    time_value,
    total,
)
from zfw_py.kernel import bpffs
from zfw_py.kernel.lock import Lock
from zfw_py.kernel.pins import Kind, Pins

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from zfw_py.guard.model import Reach
    from zfw_py.kernel import bpf

ROOT = f"{bpffs.ROOT}/guard"
ABOUT, _NEW_ABOUT = "about", "new_about"
_NANOSECONDS = 1_000_000_000
_KIND = Kind(
    layout.MAPS,
    "guard",
    "that version's zfw guard detach removes it, or rm -r {directory}",
    # The trie is sized to its policy.
    frozenset({"prefixes"}),
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


@contextmanager
def locked(*, is_exclusive: bool) -> Iterator[Lock]:
    """Hold the lock on all guards.

    Raises FileNotFoundError where there never was one, PermissionDenied, Busy.
    """
    with ExitStack() as held:
        try:
            lock = held.enter_context(Lock(ROOT, is_exclusive=is_exclusive))
        except PermissionError as error:
            raise_expected(error)
        yield lock


def make_root() -> None:
    """Make the directory of all guards' state. Raises PermissionDenied or KernelError."""
    try:
        bpffs.make_root()
        os.makedirs(ROOT, mode=0o700, exist_ok=True)
    except OSError as error:
        raise_expected(error)


def identifiers() -> list[str]:
    """The ids of all guards that have state, in no order."""
    try:
        names = os.listdir(ROOT)
    except FileNotFoundError:
        return []
    except OSError as error:
        raise_expected(error)
    # What is being built or removed has an underscore.
    return [name for name in names if _is_identifier(name)]


def _is_identifier(name: str) -> bool:
    return name.isalnum() and name.isascii()


class Tables(Pins):
    """The maps of a guard."""

    def __init__(self, directory: str) -> None:
        """``directory`` has the pins; see ``directory_of``."""
        super().__init__(directory, _KIND)
        # Of what was admitted here: until when at least, and its key. One for each key.
        self._expiries: list[tuple[int, bytes]] = []

    # What it is

    def write_about(self, about: About) -> None:
        """Pin it, in the place of an earlier one."""
        with suppress(FileNotFoundError):
            os.unlink(f"{self.directory}/{_NEW_ABOUT}")  # of one who was killed here
        self.write_document(_NEW_ABOUT, about)
        os.rename(f"{self.directory}/{_NEW_ABOUT}", f"{self.directory}/{ABOUT}")

    def about(self) -> About:
        """What was pinned."""
        return self.document(ABOUT, About)

    def config(self) -> Config:
        """What the programs go by. Raises LayoutMismatch if another version wrote it."""
        config = Config.decode(self.map("config").lookup(ZERO) or bytes(layout.CONFIG_SIZE))
        if config.abi_version != layout.ABI_VERSION:
            raise self.mismatch("config", f"version {config.abi_version}")
        return config

    def write_config(self, flags: int) -> None:
        """Set the flags."""
        self.map("config").update(ZERO, Config(layout.ABI_VERSION, flags).encode())

    def keeper(self) -> Keeper:
        """The process that keeps it."""
        return Keeper.decode(self.map("keeper").lookup(ZERO) or bytes(layout.KEEPER_SIZE))

    def write_keeper(self, keeper: Keeper) -> None:
        """Say who keeps it."""
        self.map("keeper").update(ZERO, keeper.encode())

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

    def _add(self, table: bpf.Map, key: bytes, until: int) -> None:
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


def directory_of(identifier: str) -> str:
    """Where a guard has its pins. Raises NotFound for what is no id."""
    if not _is_identifier(identifier):
        raise NotFound(f"no such guard: {identifier!r}")
    return f"{ROOT}/{identifier}"


def exists(identifier: str) -> bool:
    """Whether there is a guard of this id. Raises NotFound for what is no id."""
    return os.path.isdir(directory_of(identifier))
