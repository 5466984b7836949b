# SPDX-License-Identifier: GPL-2.0-only
"""DNS through a guard's proxy, and asked of the same server directly."""

from __future__ import annotations

import ctypes
import shutil
import signal
import socket
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

from tests.bench.guard_bed import DOMAINS, UPSTREAM, cpu_seconds
from tests.bench.path import build, ended

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Iterator
    from pathlib import Path

    from tests.bench.guard_bed import Bed, Guard
    from tests.bench.report import Section
    from tests.support.netns import Namespace

DNSMASQ, PROXY = "dnsmasq", "proxy"
# How many names are asked for in turn; 0: each only once.
LOADS = {"DNS, 1 name": 1, "DNS, 1,000 names": 1000, "DNS, new names": 0}
AT_A_TIME = 64
RATE, LATENCY, ALONE = "answers/s", "us", "us, one at a time"
CPU = "us of the server's CPU an answer"
# A row's name, and the names of its two figures.
COMPARED = [
    (name, f"{name}; {DNSMASQ}", f"{name}; {PROXY}")
    for load in LOADS
    for name in (f"{load}; {figure}" for figure in (RATE, LATENCY, ALONE, CPU))
]
LOST = "DNS, questions without an answer"

_NAMES = max(LOADS.values())
_TTL = 3600
_ADDRESS = "10.9.0.9"
_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None, use_errno=True)
_QUESTION = b"\x12\x34\x01\0\0\1\0\0\0\0\0\0\2n0\5bench\7example\0\0\1\0\1"


class Dns:
    """The server outside, and who asks it: in a guarded cgroup, and in one that is not."""

    def __init__(self, bed: Bed, guard: Guard, server: subprocess.Popen[str], work: Path) -> None:
        self._bed = bed
        self._program = str(build(work, "questions"))
        self._asking = {
            DNSMASQ: (bed.free, server.pid),
            PROXY: (guard.cgroup, guard.supervisor_pid),
        }

    def measure(self, section: Section, seconds: float, order: int) -> None:
        """One round: each load, by each way."""
        for load, names in LOADS.items():
            for way in (DNSMASQ, PROXY)[::order]:
                cgroup, pid = self._asking[way]
                before = cpu_seconds(pid)
                rate, microseconds, lost, all_ = self._ask(cgroup, seconds, AT_A_TIME, names)
                spent = cpu_seconds(pid) - before
                _, alone, *_ = self._ask(cgroup, seconds / 2, 1, names)
                section.add(f"{load}; {RATE}; {way}", rate)
                section.add(f"{load}; {LATENCY}; {way}", microseconds)
                section.add(f"{load}; {ALONE}; {way}", alone)
                section.add(f"{load}; {CPU}; {way}", spent / all_ * 1e6)
                section.add(LOST, lost)

    def _ask(self, cgroup: Path, seconds: float, at_a_time: int, names: int) -> list[float]:
        arguments = map(str, (UPSTREAM, seconds, at_a_time, names))
        return [float(word) for word in self._bed.run(cgroup, self._program, *arguments).split()]


@contextmanager
def dnsmasq(
    namespace: Namespace, work: Path, address: str, port: int = 53
) -> Iterator[subprocess.Popen[str]]:
    """The server, in a namespace: with the names of one domain, and all below the other."""
    program = shutil.which("dnsmasq")
    if program is None:
        raise FileNotFoundError("no dnsmasq")
    known, wild = DOMAINS
    hosts = work / "hosts"
    hosts.write_text("".join(f"10.20.{n >> 8}.{n & 255} n{n}.{known}\n" for n in range(_NAMES)))
    process = namespace.start(
        program,
        "--keep-in-foreground",
        "--conf-file=/dev/null",
        "--pid-file=",
        "--no-resolv",
        "--no-hosts",
        "--bind-interfaces",
        f"--listen-address={address}",
        f"--port={port}",
        f"--local-ttl={_TTL}",
        "--user=root",
        f"--addn-hosts={hosts}",
        f"--address=/{wild}/{_ADDRESS}",
        preexec_fn=_end_with_us,
    )
    with ended(process):
        _wait(namespace, process, (address, port))
        yield process


def _end_with_us() -> None:
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _wait(namespace: Namespace, process: subprocess.Popen[str], server: tuple[str, int]) -> None:
    with namespace.entered():
        probe = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with probe:
        probe.settimeout(0.1)
        probe.connect(server)
        deadline = time.monotonic() + 30
        while process.poll() is None and time.monotonic() < deadline:
            try:
                probe.send(_QUESTION)
                probe.recv(512)
                return
            except (TimeoutError, ConnectionRefusedError):
                time.sleep(0.01)
    raise AssertionError("dnsmasq does not answer: see stderr")
