# SPDX-License-Identifier: GPL-2.0-only
"""The pinned maps of one redirect."""

from __future__ import annotations

import msgspec

from zfw_py.docker_dns import layout
from zfw_py.docker_dns.codec import (
    DOMAIN_VALUE,
    ZERO,
    Config,
    Daemon,
    counts,
    domain_key,
    total,
)
from zfw_py.errors import NotFound
from zfw_py.kernel.process import Process
from zfw_py.lifecycle import manifest
from zfw_py.lifecycle.pins import Pins
from zfw_py.lifecycle.store import ROOT, Store

FLOWS = ("queries", "answers")


class NoRedirects(NotFound):
    """There are none, and nobody has ever made one here."""


STORE = Store(
    f"{ROOT}/docker_dns",
    layout.MAPS,
    noun="redirect",
    remedy="zfw docker-dns remove of that version removes it",
    absent=lambda: NoRedirects("no redirects"),
    sized=FLOWS,
)


class Watcher(msgspec.Struct, frozen=True):
    """The process that takes a redirect away with itself: its id, and when it started."""

    pid: int
    start_time: int  # clock ticks since boot

    @property
    def process(self) -> Process:
        """The same, apart from how it is pinned."""
        return Process(self.pid, self.start_time)


class About(msgspec.Struct, frozen=True):
    """What a redirect is, for people and for whoever removes it. Pinned as JSON in a map.

    ``id`` is the cookie of its network namespace, which ``path`` led to as it was made.
    ``mode`` is "tcx" or "clsact"; ``made_clsact`` has the interfaces that had no clsact before.
    """

    id: str
    container: str  # its name; "" if it was not by a container that the namespace was found
    container_id: str
    path: str
    interface: str
    ifindex: int
    source: str  # the interface's address, that the server sees
    server: str
    resolver: str
    domains: list[str]
    tcp: str
    mode: str
    made_clsact: list[int]
    created: float  # seconds since 1970
    watcher: Watcher | None = None
    digest: str = ""  # of the object that its programs are from; before 0.2 nobody wrote it


class Tables(Pins):
    """The maps of a redirect."""

    def __init__(self, directory: str) -> None:
        """``directory`` has the pins; see ``STORE.directory``."""
        super().__init__(STORE, directory)

    def about(self) -> About:
        """What was pinned. Raises LayoutMismatch, NotFound."""
        return manifest.read(self, About)

    def config(self) -> Config:
        """What the programs go by. Raises LayoutMismatch if another version wrote it."""
        config = Config.decode(self.map("config").lookup(ZERO) or bytes(layout.CONFIG_SIZE))
        if config.abi_version != layout.ABI_VERSION:
            raise self.mismatch("config", f"version {config.abi_version}")
        return config

    def write_config(self, config: Config) -> None:
        """Set it. Not in one step for programs that run: before they do."""
        self.map("config").update(ZERO, config.encode())

    def daemon(self) -> Daemon:
        """The daemon's ports, as the programs know them by now."""
        return Daemon.decode(self.map("daemon").lookup(ZERO) or bytes(layout.DAEMON_SIZE))

    def write_daemon(self, daemon: Daemon) -> None:
        """Say where it is."""
        self.map("daemon").update(ZERO, daemon.encode())

    def write_domains(self, names: tuple[str, ...]) -> None:
        """Redirect names below these only."""
        table = self.map("domains")
        for name in names:
            table.update(domain_key(name), DOMAIN_VALUE)

    def outcomes(self) -> dict[str, tuple[int, int]]:
        """What became of packets: how many, and their bytes."""
        found = sorted(self.map("outcomes").items())
        return {
            outcome: counts(value)
            for outcome, (_, value) in zip(layout.OUTCOMES, found, strict=True)
        }

    def lost(self) -> int:
        """How many events found no room."""
        return total(self.map("lost").lookup(ZERO) or b"")
