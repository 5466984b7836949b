# SPDX-License-Identifier: GPL-2.0-only
"""Steered connections, against a plain listener and an nftables redirect; and how soon a
daemon that starts again has its own."""

from __future__ import annotations

import socket
import subprocess
import threading
import time
from contextlib import ExitStack, suppress
from operator import truediv
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

from tests.bench.path import ACCEPTING, IN_PARALLEL, SERVICE, build, ended
from tests.bench.report import Section, Target, number, progress
from tests.steer.support.gateway import datagrams, listen, managed, mapping
from tests.support.netns import Network
from zfw_py.steer.service import Steering

if TYPE_CHECKING:
    from collections.abc import Callable

PORT, TARGET_PORT = 2222, 43321
COUNTS = (1, 1000, 100_000)
WAYS = ("plain listener", "steer", "nftables redirect")
MODES = [(WAYS[0], 0), *((way, count) for count in COUNTS for way in WAYS[1:])]
LIMIT = 50  # ms, of the issue


def addresses(count: int) -> list[str]:
    """So many, of which the service is one."""
    others = (f"100.{80 + (n >> 16)}.{n >> 8 & 255}.{n & 255}" for n in range(count - 1))
    return [SERVICE, *others]


class Bed:
    """A client, and a gateway whose service is reached in one way."""

    def __init__(self, way: str, count: int, program: Path, stack: ExitStack) -> None:
        self._program = str(program)
        self.network = stack.enter_context(Network())
        gateway, client = self.network.gateway, self.network.client
        gateway.run("ip", "address", "add", f"{SERVICE}/32", "dev", "lo")
        client.sysctl("1024 65535", "ipv4/ip_local_port_range")
        self._listener = (SERVICE, PORT)
        if way == "steer":
            self._listener = ("127.0.0.1", TARGET_PORT)
            with gateway.entered():
                steering = Steering()
                target = f"127.0.0.1:{TARGET_PORT}"
                steering.apply(
                    [mapping("tcp", each, str(PORT), target) for each in addresses(count)]
                )
            stack.callback(steering.detach)
        elif way == "nftables redirect":
            # To the address of the interface that it came by.
            self._listener = (Network.gateway_ipv4, TARGET_PORT)
            elements = ", ".join(addresses(count))
            gateway.run(
                "nft",
                "-f",
                "-",
                input="table ip bench {\n"
                f"set services {{ type ipv4_addr; elements = {{ {elements} }} }}\n"
                "chain prerouting { type nat hook prerouting priority dstnat;\n"
                f"ip daddr @services tcp dport {PORT} redirect to :{TARGET_PORT}\n}}\n}}\n",
            )

    def connections(self, seconds: float) -> float:
        """Connections a second, opened and reset."""
        address, port = self._listener
        command = (self._program, "accept", address, str(port), str(ACCEPTING))
        server = self.network.gateway.start(*command, stdout=subprocess.PIPE)
        with ended(server):
            if server.stdout is None or not server.stdout.readline():
                raise AssertionError("no listener: see stderr")
            command = (self._program, "connect", SERVICE, str(PORT), str(IN_PARALLEL))
            return float(self.network.client.run(*command, str(seconds)).stdout)


class _Knocking:
    """A client that tries again and again, in a thread of its own."""

    def __init__(self, network: Network, knock: Callable[[], None]) -> None:
        self._network, self._knock = network, knock
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        with self._network.client.entered():
            while not self._is_over.is_set():
                with suppress(OSError):
                    self._knock()

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._is_over.set()
        self._thread.join()


def _connect() -> None:
    # A SYN that meets a listener as it closes is lost, steered or not; TCP sends the next one
    # after a second. This client gives up and begins anew.
    socket.create_connection((Network.gateway_ipv4, PORT), timeout=0.02).close()


def _send() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.sendto(b"knock", (Network.gateway_ipv4, TARGET_PORT))
    time.sleep(0.0002)


def take_over(rounds: int, section: Section) -> None:
    """Milliseconds from when a daemon listens again to when it has what a client sends."""
    with Network() as network, network.gateway.entered():
        with _Knocking(network, _connect):
            _restart_tcp(rounds, Network.gateway_ipv4, PORT, "take-over, TCP, plain", section)
            steering = Steering()
            to = f"127.0.0.5:{TARGET_PORT}"
            tcp = mapping("tcp", "any", str(PORT), to)
            steering.add([tcp, mapping("udp", "any", str(TARGET_PORT), to)])
            _restart_tcp(rounds, "127.0.0.5", TARGET_PORT, "take-over, TCP", section)
        with managed(), _Knocking(network, _send):
            for _ in range(rounds):
                time.sleep(0.02)
                with datagrams("127.0.0.5", TARGET_PORT) as daemon:
                    started = time.monotonic()
                    daemon.recv(99)
                    section.add("take-over, UDP", 1000 * (time.monotonic() - started))
        steering.detach()


def _restart_tcp(rounds: int, address: str, port: int, name: str, section: Section) -> None:
    for _ in range(rounds):
        time.sleep(0.02)
        with listen(address, port) as daemon:
            started = time.monotonic()
            daemon.accept()[0].close()
            section.add(name, 1000 * (time.monotonic() - started))


def run(work: Path, *, quick: bool) -> Section:
    """Connections in each way, round by round, and take-overs."""
    rounds, seconds, restarts = (3, 1, 20) if quick else (9, 1, 100)
    section = Section(
        f"steer: connections to {SERVICE} that reach a daemon, a second",
        [
            f"{IN_PARALLEL} threads connect and reset, {ACCEPTING} accept",
            "steer: a mapping an address; nftables: redirect in prerouting, addresses in a set",
            f"medians of {rounds} interleaved rounds of {seconds} s;"
            " ratios: median of each round's own",
            f"take-over: {restarts} restarts, from listen() to the first connection that is"
            " accepted, from bind() to the first datagram (UDP, by zfw steer run)",
        ],
        ["WAY", "MAPPINGS", "CONNECTIONS/S", "TO PLAIN"],
    )
    program = build(work, "connections")
    with ExitStack() as stack:
        beds = {mode: Bed(*mode, program=program, stack=stack) for mode in MODES}
        for number_of_round in range(rounds):
            progress(f"steer: round {number_of_round + 1} of {rounds}")
            # There and back: what drifts meets all alike.
            for way, count in MODES[:: -1 if number_of_round % 2 else 1]:
                section.add(f"{way}; {count}", beds[way, count].connections(seconds))
    plain = section.rounds[f"{WAYS[0]}; 0"]
    for way, count in MODES:
        found = section.rounds[f"{way}; {count}"]
        ratio = median(map(truediv, found, plain))
        section.rows.append((way, count or "-", number(median(found)), number(ratio)))
    for count in COUNTS:
        steered = section.rounds[f"steer; {count}"]
        redirected = section.rounds[f"nftables redirect; {count}"]
        ratio = median(map(truediv, steered, redirected))
        section.rows.append(("steer to nftables", count, "", number(ratio)))
    progress("steer: take-over")
    take_over(restarts, section)
    for protocol in ("TCP, plain", "TCP", "UDP"):
        found = sorted(section.rounds[f"take-over, {protocol}"])
        middle, last = median(found), found[-1]
        text = f"median {number(middle)} ms, at most {number(last)} ms"
        section.rows.append((f"take-over, {protocol}", "-", text, ""))
        if protocol in ("TCP", "UDP"):
            section.targets.append(Target(f"take-over, {protocol}, median", middle, LIMIT, "ms"))
    return section
