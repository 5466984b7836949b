# SPDX-License-Identifier: GPL-2.0-only
"""The pinned maps of one redirect, read and written as values."""

from __future__ import annotations

import msgspec

from zfw_py.docker_dns import layout
from zfw_py.docker_dns.codec import (
    DOMAIN_VALUE,
    ZERO,
    Config,
    DaemonPorts,
    counts,
    domain_key,
    total,
)
from zfw_py.errors import NotFound
from zfw_py.kernel.process import Process
from zfw_py.lifecycle import manifest
from zfw_py.lifecycle.store import ROOT, Pins, Store

FLOWS = ("queries", "answers")


class NoRedirects(NotFound):
    """No redirect was ever created on this machine since it booted."""


STORE = Store(
    f"{ROOT}/docker_dns",
    layout.MAPS,
    noun="redirect",
    remedy="zfw docker-dns remove of that version removes it",
    absent=lambda: NoRedirects("no redirects"),
    sized=FLOWS,
    added=("truncated",),
)


class Watcher(msgspec.Struct, frozen=True):
    """The ``zfw docker-dns watch`` process that removes a redirect at its end."""

    pid: int
    start_time: int  # clock ticks since boot

    @property
    def process(self) -> Process:
        """The process, as a value that can say whether it runs."""
        return Process(self.pid, self.start_time)


class Manifest(msgspec.Struct, frozen=True):
    """What was created for a redirect, and where; pinned as JSON in the map ``about``.

    ``id``: the cookie of the network namespace, which ``path`` led to at that time. ``mode``:
    "tcx" or "clsact". ``made_clsact``: interfaces on which zfw created the clsact qdisc.
    """

    id: str
    container: str  # its name; "" if the namespace was given by a path or a process id
    container_id: str
    path: str
    interface: str
    ifindex: int
    source: str  # the interface's address, from which the server gets the queries
    server: str
    resolver: str
    domains: list[str]
    tcp: str
    mode: str
    made_clsact: list[int]
    created: float  # seconds since 1970
    watcher: Watcher | None = None
    digest: str = ""  # SHA-256 of the object that the programs are from; "" before 0.2


class Maps(Pins):
    """The maps of one redirect."""

    def __init__(self, directory: str) -> None:
        """``directory``: the redirect's pins, as ``STORE.directory`` returns it."""
        super().__init__(STORE, directory)

    def manifest(self) -> Manifest:
        """The manifest of the redirect. Raises NotFound, LayoutMismatch."""
        return manifest.read(self, Manifest)

    def config(self) -> Config:
        """The settings of the programs. Raises LayoutMismatch if another version wrote them."""
        config = Config.decode(self.map("config").lookup(ZERO) or bytes(layout.CONFIG_SIZE))
        if config.abi_version != layout.ABI_VERSION:
            raise self.mismatch("config", f"version {config.abi_version}")
        return config

    def write_config(self, config: Config) -> None:
        """Write the settings; not atomic, so only before a program is attached."""
        self.map("config").update(ZERO, config.encode())

    def daemon(self) -> DaemonPorts:
        """The ports of Docker's DNS daemon, as the program ``query`` last saw them."""
        return DaemonPorts.decode(self.map("daemon").lookup(ZERO) or bytes(layout.DAEMON_SIZE))

    def write_daemon(self, daemon: DaemonPorts) -> None:
        """Set the ports of Docker's DNS daemon."""
        self.map("daemon").update(ZERO, daemon.encode())

    def write_domains(self, names: tuple[str, ...]) -> None:
        """Redirect only these names and all names below them."""
        table = self.map("domains")
        for name in names:
            table.update(domain_key(name), DOMAIN_VALUE)

    def outcomes(self) -> dict[str, tuple[int, int]]:
        """Packets and bytes by outcome."""
        found = sorted(self.map("outcomes").items())
        return {
            outcome: counts(value)
            for outcome, (_, value) in zip(layout.OUTCOMES, found, strict=True)
        }

    def lost(self) -> int:
        """How many events found the ring buffer full."""
        return total(self.map("lost").lookup(ZERO) or b"")
