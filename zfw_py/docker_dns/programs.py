# SPDX-License-Identifier: GPL-2.0-only
"""A redirect's two programs, on lo and on the uplink.

The maps are filled before the first program is attached; the program that takes answers is
attached before the one that sends queries, and detached after it.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from msgspec.structs import replace

from zfw_py.docker_dns import layout
from zfw_py.docker_dns.maps import FLOWS, STORE, Tables
from zfw_py.docker_dns.namespace_info import LOOPBACK_IFINDEX
from zfw_py.errors import ZfwError
from zfw_py.kernel import tc
from zfw_py.kernel.namespaces import call_in, find, live_cookies
from zfw_py.kernel.netns_cookie import netns_cookie
from zfw_py.lifecycle import manifest, programs
from zfw_py.lifecycle.attachment import Attachment, Clsact, Tcx
from zfw_py.lifecycle.programs import System

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator, Sequence

    from zfw_py.docker_dns.codec import Config, Daemon
    from zfw_py.docker_dns.maps import About


class _Hook(NamedTuple):
    program: str
    is_on_loopback: bool
    direction: str


# In the order in which they are attached.
_HOOKS = (_Hook("answer", False, "ingress"), _Hook("query", True, "egress"))


def _about(directory: str) -> About | None:
    """None: another version made it, or its maker was killed before it wrote one."""
    try:
        return Tables(directory).about()
    except ZfwError:
        return None


def _attachments(directory: str) -> Sequence[Attachment]:
    about = _about(directory)
    if about is None:
        # Links need no namespace to be detached.
        return [Tcx(directory, hook.program, 0, hook.direction) for hook in _HOOKS]
    path = path_of(about) if about.mode == "clsact" else about.path
    return [] if path is None else _placed(directory, about, path)


def _placed(directory: str, about: About, path: str) -> list[Attachment]:
    """Both attachments; ``path`` leads to the network namespace."""
    call = partial(call_in, path)
    made: list[Attachment] = []
    for hook in _HOOKS:
        ifindex = LOOPBACK_IFINDEX if hook.is_on_loopback else about.ifindex
        if about.mode == "clsact":
            ours = partial(programs.program_ids, SYSTEM, directory, hook.program)
            handle = tc.DOCKER_DNS_HANDLE
            made.append(Clsact(hook.program, ifindex, hook.direction, handle, ours, call))
        else:
            made.append(Tcx(directory, hook.program, ifindex, hook.direction, call=call))
    return made


def _digest(directory: str) -> str:
    return Tables(directory).about().digest


def _record(directory: str, digest: str) -> None:
    manifest.write(directory, replace(Tables(directory).about(), digest=digest))


def _undo(directory: str) -> None:
    """Remove the qdiscs that were made for the filters."""
    about = _about(directory)
    path = path_of(about) if about is not None and about.made_clsact else None
    if about is not None and path is not None:
        for ifindex in about.made_clsact:
            call_in(path, partial(tc.remove_empty_clsact, ifindex))


def _abandoned() -> Iterator[str]:
    """Those whose network namespace or interface is gone; another version's stay."""
    for identifier in STORE.identifiers():
        about = _about(STORE.directory(identifier))
        if about is not None and (is_gone(about) or detached(about)):
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
    about: About, config: Config, daemon: Daemon, domains: tuple[str, ...], path: str
) -> About:
    """Redirect from now on; the caller holds the lock. ``path`` leads to the namespace.

    Raises KernelError, VerifierError, Conflict, PermissionDenied; then nothing is changed.
    """

    def prepare(directory: str) -> Generator[Attachment]:
        tables = Tables(directory)
        tables.write_config(config)
        tables.write_daemon(daemon)
        tables.write_domains(domains)
        yield from _placed(directory, about, path)

    # The table forgets the oldest, and so there always is a port that is free.
    size = min(layout.FLOWS, config.port_count // 2)
    about = replace(about, digest=programs.digest_of(SYSTEM))
    programs.install(SYSTEM, about.id, prepare, about, dict.fromkeys(FLOWS, size))
    return about


def path_of(about: About) -> str | None:
    """A path to a redirect's namespace, None if that is gone.

    Raises ZfwError if it can only be that it is hidden from this process.
    """
    cookie = int(about.id)
    if is_at(about.path, cookie):
        return about.path
    path = find(cookie)
    if path is None and live_cookies() is None:
        raise ZfwError(
            f"redirect {about.id}: its network namespace cannot be seen from here",
            hint="outside of all PID namespaces it can",
        )
    return path


def is_at(path: str, cookie: int) -> bool:
    """Whether a path leads to the namespace of a cookie: process ids are given again."""
    try:
        return call_in(path, netns_cookie) == cookie
    except ZfwError:
        return False


def detached(about: About) -> list[str]:
    """The programs that are not where they were put: their interface is gone, or they were."""
    attachments = _attachments(STORE.directory(about.id))
    there = {each.program for each in attachments if each.program_id() is not None}
    return [hook.program for hook in _HOOKS if hook.program not in there]


def is_gone(about: About) -> bool:
    """Whether the network namespace is: lo goes with it, and never before."""
    if about.mode == "clsact":
        return path_of(about) is None
    return Tcx(STORE.directory(about.id), "query", LOOPBACK_IFINDEX, "egress").target == 0
