# SPDX-License-Identifier: GPL-2.0-only
"""What a guard costs a program's sockets: its calls, its packets, and each run of a hook."""

from __future__ import annotations

import os
import socket
import struct
import subprocess
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from bpf.build import compile_bpf
from tests.bench.guard_bed import AROUND, DOMAINS, MANY, UPSTREAM, many_addresses
from tests.bench.packets import LEAST_SHARE, run_time, run_time_statistics
from tests.bench.path import build, ended
from tests.bench.traffic import Drain, Sender, StreamSender, on_first_cpu, udp_sender
from tests.support.cgroups import within
from tests.support.netns import Network
from zfw_py.kernel import bpf_links, cgroup
from zfw_py.kernel.libbpf import BpfObject

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import ExitStack

    from tests.bench.guard_bed import Bed, Guard
    from tests.bench.report import Section

# Where the address is not the point: these are allowed by a prefix of their own.
SERVER, SERVER6 = Network.gateway_ipv4, Network.gateway_ipv6
# Nobody is there, and no guard lets anybody go there.
DENIED = "203.0.113.9"
TCP_PORT, BULK_PORT, UDP_PORT, DNS_PORT = 2222, 2223, 5000, 53
IN_PARALLEL, ACCEPTING = 32, 2
PACKET_SIZE = 64
# Of the many addresses so many are sent to in turn: each is another than the one before.
SENT_TO = 8192

# No guard, and what a guard allows the many addresses by. Allowed ones are told to a log alone.
NONE, FEW, LOGGED = "none", "1 prefix", "1 prefix, with a log"
PREFIXES, LEARNT = f"{MANY:,} prefixes", f"{MANY:,} resolved"

# Nanoseconds a call.
CALLS = {
    "socket(2) and close(2), ns": ("socket",),
    "connect(2) of UDP, ns": ("connect", SERVER, UDP_PORT),
    "connect(2) of UDP, IPv6, ns": ("connect", SERVER6, UDP_PORT),
    "sendto(2) of UDP, not connected, ns": ("sendto", SERVER, UDP_PORT),
}
CONNECTIONS = "TCP connections/s"
FLOW = "UDP packets/s, one flow"
BULK = "TCP bulk, Gb/s"
SCATTERED = "packets/s, scattered"
# With which guards each is measured.
RATES = {
    CONNECTIONS: [FEW, LOGGED],
    FLOW: [FEW],
    BULK: [FEW],
    SCATTERED: [FEW, PREFIXES, LEARNT],
}

# A row's name, and the names of its two figures.
COMPARED = [
    *((call, f"{call}; {NONE}", f"{call}; {FEW}") for call in CALLS),
    *(
        (f"{rate}; {guard}" if len(guards) > 1 else rate, f"{rate}; {NONE}", f"{rate}; {guard}")
        for rate, guards in RATES.items()
        for guard in guards
    ),
]

EMPTY = "egress: an empty program"
ADMITTED = "egress: socket allowed before"
ALLOWED = {name: f"egress: allowed, {name}" for name in RATES[SCATTERED]}
TOLD, REFUSED = f"egress: allowed, {LOGGED}", "egress: denied"

NS = "; ns a run"

_TCP_RESET = struct.pack("!HHIIBBHHH", 4000, 4000, 0, 0, 0x50, 4, 0, 0, 0)
_UDP = struct.pack("!HHHH", 4000, UDP_PORT, PACKET_SIZE - 20, 0)


class _Run(NamedTuple):
    """A program, and a load under which it runs; what it decides then most of the time."""

    program: int
    load: Callable[[float], object]
    guard: Guard | None = None
    hook: str = ""
    reason: str = ""


class Sockets:
    """The same programs and sockets in a cgroup without a guard, and in four with one."""

    def __init__(self, bed: Bed, work: Path, stack: ExitStack) -> None:
        self._bed, self._stack = bed, stack
        self._program = {name: str(build(work, name)) for name in ("calls", "connections")}
        many = many_addresses()
        self._destinations = many[:SENT_TO]
        own = [*DOMAINS, SERVER, SERVER6]
        self.guards = {
            FEW: bed.stay(bed.cgroup("few"), [*own, AROUND]),
            LOGGED: bed.stay(bed.cgroup("logged"), [*own, AROUND], "--log", str(work / "log")),
            PREFIXES: bed.stay(bed.cgroup("prefixes"), [*own, *many]),
            LEARNT: bed.stay(bed.cgroup("names"), own),
        }
        started = time.monotonic()
        self.guards[LEARNT].admit(many)
        self.admit_seconds = time.monotonic() - started
        self._cgroups = {NONE: bed.free}
        self._cgroups |= {name: guard.cgroup for name, guard in self.guards.items()}

        self._listen()
        self._flows = {name: self._flow(name, SERVER) for name in (NONE, *RATES[FLOW])}
        self._streams = {name: self._stream(name) for name in (NONE, *RATES[BULK])}
        scattered = (NONE, *RATES[SCATTERED])
        self._scattered = {name: self._scatter(self._cgroups[name]) for name in scattered}
        self._runs = self._make_runs(work)

    def _listen(self) -> None:
        with self._bed.network.gateway.entered():
            # Never read: a full queue drops what arrives, and takes no processor from others.
            for family, address in ((socket.AF_INET, SERVER), (socket.AF_INET6, SERVER6)):
                sink = self._stack.enter_context(socket.socket(family, socket.SOCK_DGRAM))
                sink.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
                sink.bind((address, UDP_PORT))
            listener = socket.create_server((SERVER, BULK_PORT))
        self._listener = self._stack.enter_context(listener)

    def _flow(self, name: str, address: str) -> Sender:
        with self._bed.network.client.entered(), within(self._cgroups[name]):
            return udp_sender(address, UDP_PORT, PACKET_SIZE)

    def _stream(self, name: str) -> tuple[StreamSender, Drain]:
        with self._bed.network.client.entered(), within(self._cgroups[name]):
            connection = socket.create_connection((SERVER, BULK_PORT), timeout=5)
        self._stack.enter_context(connection)
        accepted = self._stack.enter_context(self._listener.accept()[0])
        return StreamSender(connection), self._stack.enter_context(Drain(accepted))

    def _scatter(self, path: Path, header: bytes = _TCP_RESET) -> Sender:
        """Packets of a raw socket, which are judged one by one.

        The guard tells of each but those of TCP. Nobody answers a reset, and the gateway
        does not forward.
        """
        protocol = socket.IPPROTO_TCP if header == _TCP_RESET else socket.IPPROTO_UDP
        with self._bed.network.client.entered(), within(path):
            sender = socket.socket(socket.AF_INET, socket.SOCK_RAW, protocol)
        packets = [header.ljust(PACKET_SIZE - 20, b"\0")] * SENT_TO
        return Sender(self._stack.enter_context(sender), packets, self._destinations)

    def _make_runs(self, work: Path) -> dict[str, _Run]:
        few, logged = self.guards[FEW], self.guards[LOGGED]
        egress = few.programs["egress"]

        def hook(name: str, load: Callable[[float], object], reason: str = "") -> _Run:
            return _Run(few.programs[name], load, few, name, reason)

        def call(*arguments: object) -> Callable[[float], object]:
            return partial(self._call, few.cgroup, arguments)

        connect_tcp = partial(self._connect, FEW)
        connect_logged = partial(self._connect, LOGGED)
        denied = self._flow(FEW, DENIED)
        told = self._scatter(logged.cgroup, _UDP)
        return {
            "sock_create": hook("sock_create", call("socket")),
            "connect4: TCP, allowed": hook("connect4", connect_tcp, "prefix"),
            f"connect4: TCP, allowed, {LOGGED}": _Run(
                logged.programs["connect4"], connect_logged, logged, "connect4", "prefix"
            ),
            "connect4: UDP": hook("connect4", call("connect", SERVER, UDP_PORT)),
            "connect6: UDP": hook("connect6", call("connect", SERVER6, UDP_PORT)),
            "connect4: DNS, redirected": hook(
                "connect4", call("connect", UPSTREAM, DNS_PORT), "dns"
            ),
            "sendmsg4: allowed": hook("sendmsg4", call("sendto", SERVER, UDP_PORT), "prefix"),
            EMPTY: self._empty(work),
            ADMITTED: hook("egress", self._flows[FEW].send, "socket"),
            "egress: the same, TCP bulk": hook("egress", self._streams[FEW][0].send, "socket"),
            "egress: TCP connections": _Run(egress, connect_tcp),
            **{
                ALLOWED[name]: _Run(
                    guard.programs["egress"],
                    self._scattered[name].send,
                    guard,
                    "egress",
                    "name" if name == LEARNT else "prefix",
                )
                for name in RATES[SCATTERED]
                for guard in [self.guards[name]]
            },
            TOLD: _Run(logged.programs["egress"], told.send, logged, "egress", "prefix"),
            REFUSED: hook("egress", denied.send, "not_allowed"),
        }

    def _empty(self, work: Path) -> _Run:
        """A program that does nothing, alone on a cgroup of its own."""
        path = self._bed.cgroup("empty")
        compile_bpf(Path(__file__).with_name("empty.bpf.c"), work / "empty.bpf.o")
        loaded = self._stack.enter_context(BpfObject(work / "empty.bpf.o"))
        loaded.load()
        program = loaded.programs()["empty_egress"]
        place = cgroup.open_directory(str(path))
        try:
            self._stack.callback(
                os.close, bpf_links.create_link(program, place, bpf_links.CGROUP_INET_EGRESS)
            )
        finally:
            os.close(place)
        return _Run(program, self._scatter(path).send)

    # What is measured

    def measure_calls(self, section: Section, seconds: float, order: int) -> None:
        """Nanoseconds of each call, with a guard and without."""
        for name, arguments in CALLS.items():
            for guard in (NONE, FEW)[::order]:
                cost = self._call(self._cgroups[guard], arguments, seconds)
                section.add(f"{name}; {guard}", cost)

    def measure_rates(self, section: Section, seconds: float, order: int) -> None:
        """How much of everything a second goes, with a guard and without."""
        methods = {
            CONNECTIONS: self._connect,
            FLOW: self._send_flow,
            BULK: self._send_stream,
            SCATTERED: self._send_scattered,
        }
        for name, guards in RATES.items():
            for guard in (NONE, *guards)[::order]:
                section.add(f"{name}; {guard}", methods[name](guard, seconds))
                self._settle()

    def measure_runs(self, section: Section, seconds: float) -> None:
        """Nanoseconds a run of each program, by the kernel's run-time statistics."""
        with run_time_statistics(), on_first_cpu():
            for name, run in self._runs.items():
                section.add(f"{name}{NS}", _cost(name, run, seconds))
                self._settle()

    def _settle(self) -> None:
        for name in (FEW, LOGGED):
            self.guards[name].settle()

    def _call(self, path: Path, arguments: tuple[object, ...], seconds: float) -> float:
        name, *rest = map(str, arguments)
        return float(self._bed.run(path, self._program["calls"], name, str(seconds), *rest))

    def _connect(self, name: str, seconds: float) -> float:
        program = self._program["connections"]
        place = (SERVER, str(TCP_PORT))
        server = self._bed.network.gateway.start(
            program, "accept", *place, str(ACCEPTING), stdout=subprocess.PIPE
        )
        with ended(server):
            if server.stdout is None or not server.stdout.readline():
                raise AssertionError("no listener: see stderr")
            client = (program, "connect", *place, str(IN_PARALLEL), str(seconds))
            return float(self._bed.run(self._cgroups[name], *client))

    def _send_flow(self, name: str, seconds: float) -> float:
        with on_first_cpu():
            return _rate(self._flows[name], seconds)

    def _send_scattered(self, name: str, seconds: float) -> float:
        with on_first_cpu():
            return _rate(self._scattered[name], seconds)

    def _send_stream(self, name: str, seconds: float) -> float:
        sender, drain = self._streams[name]
        before, started = drain.count, time.monotonic()
        sender.send(seconds)
        return (drain.count - before) * 8 / 1e9 / (time.monotonic() - started)


def _rate(sender: Sender, seconds: float) -> float:
    started = time.monotonic()
    sent = sender.send(seconds)
    return sent / (time.monotonic() - started)


def _cost(name: str, run: _Run, seconds: float) -> float:
    decided = run.guard.decisions(run.hook) if run.guard else {}
    before = run_time(run.program)
    run.load(seconds)
    after = run_time(run.program)
    runs = after[1] - before[1]
    if not runs:
        raise AssertionError(f"{name}: the program did not run")
    if run.guard and run.reason:
        now = run.guard.decisions(run.hook)
        counts = {reason: now[reason] - decided.get(reason, 0) for reason in now}
        if counts.get(run.reason, 0) < LEAST_SHARE * sum(counts.values()):
            raise AssertionError(f"{name}: not the load that was meant: {counts}")
    return (after[0] - before[0]) / runs
