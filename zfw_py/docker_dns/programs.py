# SPDX-License-Identifier: GPL-2.0-only
"""Declares the two programs of a redirect to the life cycle, and finds where they are attached.

1. The maps are filled before a program is attached.
2. ``answer`` is attached to the uplink's ingress.
3. ``query`` is attached to the egress of lo, and the redirect takes effect.

Removal detaches in reverse, so that no query is sent whose answer could not come back.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from msgspec.structs import replace

from zfw_py.docker_dns import layout
from zfw_py.docker_dns.maps import FLOWS, STORE, Maps
from zfw_py.docker_dns.namespace_info import LOOPBACK_IFINDEX
from zfw_py.errors import ZfwError
from zfw_py.kernel import tc
from zfw_py.kernel.namespaces import call_in, find, live_cookies
from zfw_py.kernel.own_netns import netns_cookie
from zfw_py.lifecycle import programs
from zfw_py.lifecycle.attachment import Attachment, Clsact, Tcx
from zfw_py.lifecycle.manifest import write as write_manifest
from zfw_py.lifecycle.programs import System

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator, Sequence

    from zfw_py.docker_dns.codec import Config, DaemonPorts
    from zfw_py.docker_dns.maps import Manifest


class _Hook(NamedTuple):
    program: str
    is_on_loopback: bool
    direction: str


# In attach order.
_HOOKS = (_Hook("answer", False, "ingress"), _Hook("query", True, "egress"))


def _manifest(directory: str) -> Manifest | None:
    """None: another version wrote it, or its creator was killed before it wrote one."""
    try:
        return Maps(directory).manifest()
    except ZfwError:
        return None


def _attachments(directory: str) -> Sequence[Attachment]:
    manifest = _manifest(directory)
    if manifest is None:
        # Links need no namespace to be detached.
        return [Tcx(directory, hook.program, 0, hook.direction) for hook in _HOOKS]
    path = path_of(manifest) if manifest.mode == "clsact" else manifest.path
    return [] if path is None else _attachments_at(directory, manifest, path)


def _attachments_at(directory: str, manifest: Manifest, path: str) -> list[Attachment]:
    """Both attachments, in attach order; ``path`` leads to the network namespace."""
    call = partial(call_in, path)
    made: list[Attachment] = []
    for hook in _HOOKS:
        ifindex = LOOPBACK_IFINDEX if hook.is_on_loopback else manifest.ifindex
        if manifest.mode == "clsact":
            ours = partial(programs.program_ids, SYSTEM, directory, hook.program)
            handle = tc.DOCKER_DNS_HANDLE
            made.append(Clsact(hook.program, ifindex, hook.direction, handle, ours, call))
        else:
            made.append(Tcx(directory, hook.program, ifindex, hook.direction, call=call))
    return made


def _digest(directory: str) -> str:
    return Maps(directory).manifest().digest


def _record(directory: str, digest: str) -> None:
    write_manifest(directory, replace(Maps(directory).manifest(), digest=digest))


def _undo(directory: str) -> None:
    """Remove the clsact qdiscs that zfw created, where they are empty."""
    manifest = _manifest(directory)
    path = path_of(manifest) if manifest is not None and manifest.made_clsact else None
    if manifest is not None and path is not None:
        for ifindex in manifest.made_clsact:
            call_in(path, partial(tc.remove_empty_clsact, ifindex))


def _abandoned() -> Iterator[str]:
    """Redirects whose namespace or interface is gone; those of another version stay."""
    for identifier in STORE.identifiers():
        manifest = _manifest(STORE.directory(identifier))
        if manifest is not None and (is_gone(manifest) or detached(manifest)):
            yield identifier


SYSTEM = System(
    store=STORE,
    object=Path(__file__).resolve().parent.parent / "objects" / "docker_dns.bpf.o",
    attachments=_attachments,
    digest=_digest,
    record=_record,
    abandoned=_abandoned,
    undo=_undo,
    pinned=[hook.program for hook in _HOOKS],
)


def install(
    manifest: Manifest, config: Config, daemon: DaemonPorts, domains: tuple[str, ...], path: str
) -> Manifest:
    """Create a redirect; its manifest with the digest. The caller holds the lock.

    ``path`` leads to the network namespace. Raises KernelError, VerifierError, Conflict,
    PermissionDenied; then nothing is changed.
    """

    def prepare(directory: str) -> Generator[Attachment]:
        maps = Maps(directory)
        maps.write_config(config)
        maps.write_daemon(daemon)
        maps.write_domains(domains)
        yield from _attachments_at(directory, manifest, path)

    # An LRU map that is full drops its oldest flow. With half as many flows as ports,
    # ``query`` finds a free port in 16 random tries.
    size = min(layout.FLOWS, config.port_count // 2)
    manifest = replace(manifest, digest=programs.digest_of(SYSTEM))
    programs.install(SYSTEM, manifest.id, prepare, manifest, dict.fromkeys(FLOWS, size))
    return manifest


def rename(identifier: str, name: str) -> Manifest:
    """Store the new name of a redirect's container; the new manifest. Raises NotFound."""
    with programs.locked(STORE, is_exclusive=True):
        directory = STORE.directory(identifier)
        manifest = replace(Maps(directory).manifest(), container=name)
        write_manifest(directory, manifest)
    return manifest


def path_of(manifest: Manifest) -> str | None:
    """A path to the namespace of a redirect; None if the namespace is gone.

    Raises ZfwError if this process cannot see all namespaces, and not this one.
    """
    cookie = int(manifest.id)
    if is_at(manifest.path, cookie):
        return manifest.path
    path = find(cookie)
    if path is None and live_cookies() is None:
        raise ZfwError(
            f"redirect {manifest.id}: its network namespace cannot be seen from here",
            hint="outside of all PID namespaces it can",
        )
    return path


def is_at(path: str, cookie: int) -> bool:
    """Whether a path leads to the namespace of a cookie; a process id in it may be reused."""
    try:
        return call_in(path, netns_cookie) == cookie
    except ZfwError:
        return False


def detached(manifest: Manifest) -> list[str]:
    """The programs that are no longer attached: detached by hand, or their interface is gone."""
    attachments = _attachments(STORE.directory(manifest.id))
    there = {each.program for each in attachments if each.program_id() is not None}
    return [hook.program for hook in _HOOKS if hook.program not in there]


def is_gone(manifest: Manifest) -> bool:
    """Whether the network namespace is gone; lo is removed with it, and never before."""
    if manifest.mode == "clsact":
        return path_of(manifest) is None
    return Tcx(STORE.directory(manifest.id), "query", LOOPBACK_IFINDEX, "egress").target == 0
