# SPDX-License-Identifier: GPL-2.0-only
"""What ``zfw doctor`` finds about the redirects of the machine."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING

from zfw_py.docker_dns import listing
from zfw_py.docker_dns.programs import SYSTEM, path_of
from zfw_py.lifecycle.stale import unfinished
from zfw_py.values.finding import Registry

if TYPE_CHECKING:
    from collections.abc import Iterator

    from zfw_py.docker_dns.listing import RedirectStatus
    from zfw_py.docker_dns.maps import Manifest
    from zfw_py.values.finding import Finding

REGISTRY: Registry[list[RedirectStatus]] = Registry()
KINDS = REGISTRY.kinds


def findings() -> list[Finding]:
    """All that is found. Changes nothing. Raises PermissionDenied, LayoutMismatch, Busy."""
    return list(REGISTRY.find(listing.redirects()))


@REGISTRY.kind(
    "docker-dns-broken",
    "error",
    "Queries of the container get no answer, or the built-in resolver answers them. The command"
    " removes the redirect, and makes it anew where its network namespace exists.",
)
def broken(found: list[RedirectStatus]) -> Iterator[tuple[str, str]]:
    """A redirect whose namespace, interface, address or program is gone, or whose watch died."""
    for status in found:
        if status.problem:
            what = f"redirect {status.manifest.id}: {status.problem}"
            yield what, _command(status.manifest)


def _command(manifest: Manifest) -> str:
    remove = f"zfw docker-dns remove {manifest.id}"
    path = path_of(manifest)
    if path is None:
        return remove
    where = ["--docker", manifest.container] if manifest.container else ["--netns", path]
    words = ["--to", manifest.server, "--from", manifest.resolver, "--tcp", manifest.tcp]
    domains = [word for each in manifest.domains for word in ("--only-domain", each)]
    words = [*where, *words, "--interface", manifest.interface, *domains]
    return f"{remove} && {shlex.join(['zfw', 'docker-dns', 'redirect', *words])}"


@REGISTRY.kind(
    "docker-dns-stale-pins",
    "note",
    "The pins keep maps and programs in memory that nothing uses. The next redirect that is made"
    " removes them.",
)
def stale_pins(_: list[RedirectStatus]) -> Iterator[tuple[str, str]]:
    """Pins of a redirect that a killed process left."""
    return unfinished(SYSTEM)
