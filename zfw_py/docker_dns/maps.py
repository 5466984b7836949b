# SPDX-License-Identifier: GPL-2.0-only
"""The pinned maps of one redirect, and where those of all of them are."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

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
from zfw_py.errors import NotFound, raise_expected
from zfw_py.kernel import bpffs, pins
from zfw_py.kernel.pins import Kind, Pins

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

ROOT = f"{bpffs.ROOT}/docker_dns"
_ABOUT = "about"
FLOWS = ("queries", "answers")
_KIND = Kind(
    layout.MAPS,
    "redirect",
    "zfw docker-dns remove of that version removes it",
    frozenset(FLOWS),
)


class NoRedirects(NotFound):
    """There are none, and nobody has ever made one here."""


class Watcher(msgspec.Struct, frozen=True):
    """The process that takes a redirect away with itself: its id, and when it started."""

    pid: int
    start_time: int  # clock ticks since boot


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


def locked(*, is_exclusive: bool) -> AbstractContextManager[None]:
    """Hold the lock on all redirects; an OSError from within becomes one of ours.

    Raises NoRedirects where there never was one, PermissionDenied, Busy.
    """
    return pins.locked(ROOT, NoRedirects("no redirects"), is_exclusive=is_exclusive)


def make_root() -> None:
    """Make the directory of all redirects' state. Raises PermissionDenied or KernelError."""
    pins.make_root(ROOT)


def identifiers() -> list[str]:
    """The ids of all redirects that have state, in no order."""
    try:
        names = os.listdir(ROOT)
    except FileNotFoundError:
        return []
    except OSError as error:
        raise_expected(error)
    return [name for name in names if name.isdigit()]


def directory_of(identifier: str) -> str:
    """Where a redirect has its pins. Raises NotFound for what is no id."""
    if not identifier.isascii() or not identifier.isdigit():
        raise NotFound(f"no such redirect: {identifier!r}")
    return f"{ROOT}/{identifier}"


class Tables(Pins):
    """The maps of a redirect."""

    def __init__(self, directory: str) -> None:
        """``directory`` has the pins; see ``directory_of``."""
        super().__init__(directory, _KIND)

    def write_about(self, about: About) -> None:
        """Pin it, once."""
        self.write_document(_ABOUT, about)

    def about(self) -> About:
        """What was pinned."""
        return self.document(_ABOUT, About)

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
