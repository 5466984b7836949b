# SPDX-License-Identifier: GPL-2.0-only
"""Sockets that a process of a cgroup holds and the cgroup's programs never see.

A socket belongs to the cgroup that its maker was in (cgroup_sk_alloc() in the
kernel), also when its process is moved or hands it on. What a listener accepts
belongs to the listener's. Packet and XDP sockets run no program of any cgroup.
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
    """A socket that escapes the cgroup's programs, or may."""

    pid: int
    command: str  # of the process, as /proc/PID/comm has it; unprintable characters are "?"
    socket: Socket

    @property
    def is_certain(self) -> bool:
        """Whether it is known to escape; of some sockets the cgroup cannot be told."""
        return self.socket.family not in (AF_INET, AF_INET6) or self.socket.cgroup_id is not None

    def __str__(self) -> str:
        holder = f"process {self.pid} ({self.command}) holds a socket that"
        kind = self.socket.kind
        if self.socket.family not in (AF_INET, AF_INET6):
            return f"{holder} no cgroup's programs see: {kind}"
        if not self.is_certain:
            return f"{holder} may have been made outside of the cgroup: {kind}"
        return f"{holder} was made outside of the cgroup: {kind} {_ends(self.socket)}"


def is_foreign(socket: Socket, inside: Set[int]) -> bool:
    """Whether a socket escapes, or may, the programs of the cgroups with these ids."""
    return socket.family not in (AF_INET, AF_INET6) or socket.cgroup_id not in inside


def foreign_sockets(pids: Iterable[int], cgroup_path: str) -> list[ForeignSocket]:
    """What these processes hold that was made outside of a cgroup and of all within it.

    A socket that was made in a cgroup within it which is gone is counted as made
    outside. A process that ends meanwhile holds nothing. Raises NotFound if there is
    no such cgroup, PermissionDenied, KernelError.
    """
    inside = {identifier(cgroup_path)}
    for cgroup in descendants(cgroup_path):
        try:
            inside.add(identifier(cgroup))
        except NotFound:
            pass  # removed meanwhile
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
