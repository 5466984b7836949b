# SPDX-License-Identifier: GPL-2.0-only
"""Reads the redirects of the machine and checks each of them; changes nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from zfw_py.docker_dns import namespace_info, programs
from zfw_py.docker_dns.maps import STORE, Manifest, Maps, NoRedirects
from zfw_py.kernel.namespaces import call_in
from zfw_py.lifecycle.programs import locked

if TYPE_CHECKING:
    from zfw_py.docker_dns.codec import DaemonPorts


class RedirectStatus(NamedTuple):
    """The state of one redirect.

    ``manifest``: what was created, and where. ``problem``: one line of text, empty if the
    redirect works. ``daemon``: ports of Docker's DNS daemon. ``outcomes``: packets and bytes
    by outcome (names as in the layout's OUTCOMES). ``lost``: events that found the ring buffer
    full.
    """

    manifest: Manifest
    problem: str
    daemon: DaemonPorts
    outcomes: dict[str, tuple[int, int]]
    lost: int


def redirects() -> list[RedirectStatus]:
    """All redirects of the machine, the oldest first. Raises LayoutMismatch, PermissionDenied."""
    try:
        with locked(STORE, is_exclusive=False):
            found = [status(identifier) for identifier in STORE.identifiers()]
    except NoRedirects:
        return []
    return sorted(found, key=lambda each: each.manifest.created)


def status(identifier: str | int) -> RedirectStatus:
    """The state of one redirect. Raises NotFound, LayoutMismatch."""
    maps = Maps(STORE.directory(identifier))
    manifest = maps.manifest()
    maps.config()
    return RedirectStatus(
        manifest=manifest,
        problem=problem(manifest),
        daemon=maps.daemon(),
        outcomes=maps.outcomes(),
        lost=maps.lost(),
    )


def problem(manifest: Manifest) -> str:
    """Why a redirect does not work as created, in one line; empty if it works."""
    if programs.is_gone(manifest):
        return "its network namespace is gone"
    missing = programs.detached(manifest)
    if "answer" in missing:
        return f"{manifest.interface} is gone, or the program on it"
    if missing:
        return "the program on lo is gone"
    if programs.is_at(manifest.path, int(manifest.id)):
        server = manifest.server.partition(":")[0]
        if not call_in(
            manifest.path,
            lambda: namespace_info.is_source(manifest.source, manifest.ifindex, server),
        ):
            return f"packets to {server} do not leave from {manifest.source} any more"
        config = Maps(STORE.directory(manifest.id)).config()
        first, count = config.first_port, config.port_count
        if not call_in(manifest.path, lambda: namespace_info.are_free(first, count)):
            return (
                f"net.ipv4.ip_local_port_range has some of its ports now, {first} to"
                f" {first + count - 1}"
            )
    if manifest.watcher is not None and not manifest.watcher.process.is_alive():
        return "its zfw docker-dns watch was killed; the redirect stays as it is"
    return ""
