# SPDX-License-Identifier: GPL-2.0-only
"""Where guards are measured: sibling cgroups in one network namespace, one of them unguarded."""

from __future__ import annotations

import os
import random
import struct
import time
from functools import partial
from ipaddress import IPv4Address
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from tests.bench.installation import Installation
from tests.bench.installation import run as run_command
from tests.bench.rules import memory_of
from tests.support.cgroups import enter, private_cgroup, within
from tests.support.netns import Network
from zfw_py.guard import layout
from zfw_py.guard import service as guard
from zfw_py.guard.maps import STORE, Maps
from zfw_py.kernel import bpf_maps

if TYPE_CHECKING:
    from collections.abc import Sequence
    from contextlib import ExitStack

UPSTREAM = Network.gateway_ipv4
MANY = 100_000
# All of the many are in there.
AROUND = "100.64.0.0/10"
# Below these the DNS server knows names.
DOMAINS = ("bench.example", "wild.example")

_MAPPED = b"\0" * 10 + b"\xff\xff"
# A process that did nothing for so long has nothing to do.
_QUIET = 0.03
_PROG_GET_FD_BY_ID = 13
_PROGRAM_ID = 8  # offset of prog_id in struct bpf_link_info


def many_addresses() -> list[str]:
    """A hundred thousand addresses, scattered and the same each time."""
    first = int(IPv4Address(AROUND.partition("/")[0]))
    return [str(IPv4Address(first + n)) for n in random.Random(1).sample(range(1 << 22), MANY)]


class Guard(NamedTuple):
    """A guard in force, and what attaching it took."""

    id: str
    cgroup: Path
    seconds: float
    supervisor_pid: int
    maps: Maps
    programs: dict[str, int]  # descriptors

    def admit(self, addresses: Sequence[str]) -> None:
        """Let these be reached as the addresses of names are, for an hour."""
        mapped = [_MAPPED + IPv4Address(address).packed for address in addresses]
        self.maps.admit(mapped, frozenset(), 3600)

    def decisions(self, hook: str) -> dict[str, int]:
        """How often was decided what at a hook, by reason."""
        return self.maps.decisions().get(hook, {})

    def settle(self) -> None:
        """Wait until its process has dealt with what it was told of."""
        spent = -1.0
        while spent != (spent := cpu_seconds(self.supervisor_pid)):
            time.sleep(_QUIET)

    def kernel_memory(self) -> int:
        """Bytes of its maps and programs in the kernel."""
        return sum(memory_of(self.maps.map(name).fd) for name in layout.MAPS) + sum(
            map(memory_of, self.programs.values())
        )

    def supervisor_memory(self) -> int:
        """Bytes of the guard's process that are in memory."""
        pages = int(Path(f"/proc/{self.supervisor_pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")


class Bed:
    """The network, and the cgroups that programs are started in.

    This process is in a cgroup of its own beside them while it lasts.
    """

    def __init__(self, installation: Installation, work: Path, stack: ExitStack) -> None:
        self.zfw = installation.zfw
        self._work = work
        self._stack = stack
        self._root = stack.enter_context(private_cgroup())
        stack.enter_context(within(self.cgroup("bench")))
        self.network = stack.enter_context(Network())
        self.network.client.sysctl("1024 65535", "ipv4/ip_local_port_range")
        self.free = self.cgroup("free")

    def cgroup(self, name: str) -> Path:
        """A new one beside the others."""
        path = self._root / name
        path.mkdir()
        return path

    def attach(self, cgroup: Path, allow: Sequence[str], *log: str) -> Guard:
        """Guard a cgroup by ``zfw guard attach``, from now on."""
        policy, told = self._work / "policy.toml", self._work / "told"
        entries = "".join(f'"{entry}",\n' for entry in allow)
        policy.write_text(f"allow = [\n{entries}]\n")
        command = (self.zfw, "guard", "attach", "--cgroup", str(cgroup), "--policy", str(policy))
        with self.network.client.entered():
            done = run_command(*command, "--dns-upstream", UPSTREAM, *log, output=told)
        identifier = told.read_text().strip()
        try:
            return _opened(identifier, cgroup, done.seconds)
        except BaseException:
            guard.Guard(identifier).detach()
            raise

    def stay(self, cgroup: Path, allow: Sequence[str], *log: str) -> Guard:
        """Guard a cgroup until the bed is taken away."""
        made = self.attach(cgroup, allow, *log)
        self._stack.callback(detach, made)
        return made

    def run(self, cgroup: Path, *command: str) -> str:
        """What a program says in a cgroup, in the client's namespace."""
        return self.network.client.run(*command, preexec_fn=partial(enter, cgroup)).stdout

    def time(self, *command: str) -> float:
        """Seconds from fork to exit of a command, in the client's namespace and our cgroup."""
        with self.network.client.entered():
            return run_command(*command).seconds


def cpu_seconds(pid: int) -> float:
    """What a process has had of processors until now."""
    return int(Path(f"/proc/{pid}/schedstat").read_text().split()[0]) / 1e9


def _opened(identifier: str, cgroup: Path, seconds: float) -> Guard:
    maps = Maps(STORE.directory(identifier))
    programs: dict[str, int] = {}
    for pin in Path(maps.directory).glob("link_*"):
        link = bpf_maps.open_pin(str(pin))
        try:
            (number,) = struct.unpack_from("=I", bpf_maps.object_info(link, 12), _PROGRAM_ID)
        finally:
            os.close(link)
        attribute = bpf_maps.attribute(struct.pack("=III", number, 0, 0))
        programs[pin.name.removeprefix("link_")] = bpf_maps.bpf(_PROG_GET_FD_BY_ID, attribute)
    return Guard(identifier, cgroup, seconds, maps.supervisor().pid, maps, programs)


def detach(made: Guard) -> None:
    """Take a guard away."""
    for program in made.programs.values():
        os.close(program)
    guard.Guard(made.id).detach()
