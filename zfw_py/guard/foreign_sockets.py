# SPDX-License-Identifier: GPL-2.0-only
"""Finds sockets that processes of a cgroup hold, but that the cgroup's programs do not see.

A socket belongs to the cgroup of the process that created it (cgroup_sk_alloc() in the kernel),
also when that process moves, or passes the socket on. An accepted socket belongs to the cgroup of
its listener. Packet and XDP sockets run no cgroup's programs.
"""

from __future__ import annotations

from socket import AF_INET, AF_INET6
from typing import TYPE_CHECKING, NamedTuple

from zfw_py.errors import NotFound
from zfw_py.kernel.cgroup import descendants, identifier
from zfw_py.kernel.process import command_name
from zfw_py.kernel.sock_diag import Socket, sockets_of
from zfw_py.values.endpoint import Endpoint

if TYPE_CHECKING:
    from collections.abc import Iterable, Set


class ForeignSocket(NamedTuple):
    """A socket that the cgroup's programs do not see, or may not see."""

    pid: int
    command: str  # of the process, as /proc/PID/comm has it; unprintable characters are "?"
    socket: Socket

    @property
    def is_certain(self) -> bool:
        """Whether it is certainly not seen; the kernel does not report every socket's cgroup."""
        return self.socket.family not in (AF_INET, AF_INET6) or self.socket.cgroup_id is not None

    def __str__(self) -> str:
        holder = f"process {self.pid} ({self.command}) holds a socket that"
        kind = self.socket.kind
        if self.socket.family not in (AF_INET, AF_INET6):
            return f"{holder} no cgroup's programs see: {kind}"
        if not self.is_certain:
            return f"{holder} may have been created outside of the cgroup: {kind}"
        return f"{holder} was created outside of the cgroup: {kind} {_ends(self.socket)}"


def is_foreign(socket: Socket, inside: Set[int]) -> bool:
    """Whether programs of the cgroups with these ids do not, or may not, see a socket."""
    return socket.family not in (AF_INET, AF_INET6) or socket.cgroup_id not in inside


def foreign_sockets(pids: Iterable[int], cgroup_path: str) -> list[ForeignSocket]:
    """Sockets of these processes that were created outside of a cgroup and all cgroups below it.

    A socket from a cgroup below that was removed counts as foreign. A process that has ended is
    skipped. Raises NotFound if there is no such cgroup, PermissionDenied, KernelError.
    """
    inside = {identifier(cgroup_path)}
    for cgroup in descendants(cgroup_path):
        try:
            inside.add(identifier(cgroup))
        except NotFound:
            pass  # removed in the meantime
    found = []
    for pid in pids:
        try:
            command, held = command_name(pid), sockets_of(pid)
        except (NotFound, FileNotFoundError, ProcessLookupError):
            continue
        found += [ForeignSocket(pid, command, each) for each in held if is_foreign(each, inside)]
    return found


def _ends(socket: Socket) -> str:
    ends = [str(Endpoint(*end)) for end in (socket.local, socket.remote) if end is not None]
    return ends[0] if socket.state in ("LISTEN", "CLOSE") else " to ".join(ends)
