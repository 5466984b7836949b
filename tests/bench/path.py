# SPDX-License-Identifier: GPL-2.0-only
"""The whole path of an intercepted service: without a firewall, with zfw, with nftables."""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import socket
import subprocess
import time
from contextlib import ExitStack, contextmanager
from operator import truediv
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

from tests.bench.report import Section, Target, number, progress
from tests.bench.traffic import Drain, on_first_cpu, udp_sender
from tests.firewall.support.listeners import IP_TRANSPARENT, Listener
from tests.support.netns import Network
from zfw_py import Firewall, Insert, Prefix, Rule, RuleKey

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

SERVICE = "100.72.0.4"
TCP_PORT, UDP_PORT, IPERF_PORT = 2222, 5000, 5201
# Where the rules send to; what is not intercepted listens on the service itself.
TPROXY = {TCP_PORT: 43321, UDP_PORT: 43322, IPERF_PORT: 43323}
IN_PARALLEL, ACCEPTING = 32, 2
PACKET_SIZE = 64

FIREWALLS = ("none", "zfw", "nftables")
RULES = (1, 1000)
MODES = [("none", 0), *((firewall, count) for count in RULES for firewall in FIREWALLS[1:])]

CONNECTIONS, DATAGRAMS, THROUGHPUT = "connections/s", "UDP packets/s", "iperf3 Gb/s"

# Marked packets are delivered here whatever their address, as TPROXY needs it.
_MARK, _TABLE = "1", "100"
_SYS_PIDFD_GETFD = 438  # since 5.6, one number on every architecture


def counted(rules: int) -> str:
    """1 rule, 1,000 rules."""
    return "1 rule" if rules == 1 else f"{rules:,} rules"


def services(count: int) -> list[tuple[str, str, int]]:
    """Address, protocol and port of so many rules for each of the three services."""
    addresses = [SERVICE, *(f"100.73.{n // 250}.{n % 250 + 1}" for n in range(count - 1))]
    kinds = (("tcp", TCP_PORT), ("udp", UDP_PORT), ("tcp", IPERF_PORT))
    return [(address, protocol, port) for address in addresses for protocol, port in kinds]


def nftables_rules(count: int) -> str:
    """The same as an nftables ruleset: a rule for each kind, the addresses in a set."""
    found = services(count)
    sets, chain = [], []
    for _, protocol, port in found[:3]:
        addresses = ", ".join(address for address, _, its_port in found if its_port == port)
        sets.append(f"set to_{port} {{ type ipv4_addr; elements = {{ {addresses} }} }}")
        chain.append(
            f"ip daddr @to_{port} {protocol} dport {port}"
            f" tproxy to 127.0.0.1:{TPROXY[port]} meta mark set {_MARK} accept"
        )
    hook = "type filter hook prerouting priority mangle;"
    text = "\n".join([*sets, "chain prerouting {", hook, *chain, "}"])
    return f"table ip bench {{\n{text}\n}}\n"


class Bed:
    """A client, and a gateway that offers the three services behind one firewall."""

    def __init__(self, firewall: str, count: int, program: Path, stack: ExitStack) -> None:
        self._program = str(program)
        self.network = stack.enter_context(Network())
        gateway, client = self.network.gateway, self.network.client
        gateway.run("ip", "address", "add", f"{SERVICE}/32", "dev", "lo")
        client.sysctl("1024 65535", "ipv4/ip_local_port_range")
        self._address = SERVICE if firewall == "none" else "127.0.0.1"
        self._ports = {port: port for port in TPROXY} if firewall == "none" else TPROXY
        if firewall == "nftables":
            gateway.run("nft", "-f", "-", input=nftables_rules(count))
            gateway.run("ip", "rule", "add", "fwmark", _MARK, "lookup", _TABLE)
            gateway.run("ip", "route", "add", "local", "default", "dev", "lo", "table", _TABLE)
        elif firewall == "zfw":
            with gateway.entered():
                zfw = Firewall()
                zfw.attach("gw0", "ingress")
                zfw.apply(
                    [
                        Insert(
                            Rule(
                                RuleKey(Prefix.parse(address), protocol, port),
                                tproxy_port=TPROXY[port],
                            )
                        )
                        for address, protocol, port in services(count)
                    ]
                )
        with gateway.entered():
            listener = Listener(4, socket.SOCK_DGRAM, self._ports[UDP_PORT], self._address)
        stack.enter_context(listener.socket)
        self._received = stack.enter_context(Drain(listener.socket))
        with client.entered():
            self._sender = udp_sender(SERVICE, UDP_PORT, PACKET_SIZE)

    def connections(self, seconds: float) -> float:
        """Connections a second, opened and reset by 32 threads."""
        port = str(self._ports[TCP_PORT])
        command = (self._program, "accept", self._address, port, str(ACCEPTING))
        server = self.network.gateway.start(*command, stdout=subprocess.PIPE)
        with ended(server):
            if server.stdout is None or not server.stdout.readline():
                raise AssertionError("no listener: see stderr")
            command = (self._program, "connect", SERVICE, str(TCP_PORT), str(IN_PARALLEL))
            return float(self.network.client.run(*command, str(seconds)).stdout)

    def datagrams(self, seconds: float) -> float:
        """Datagrams a second that one flow brings to the socket."""
        with on_first_cpu():
            before, started = self._received.count, time.monotonic()
            self._sender.send(seconds)
            return (self._received.count - before) / (time.monotonic() - started)

    def throughput(self, seconds: float) -> float:
        """Gigabits a second of iperf3, as its server received them."""
        port = self._ports[IPERF_PORT]
        command = ("iperf3", "--server", "--one-off", "--bind", self._address)
        server = self.network.gateway.start(
            *command, "--port", str(port), stdout=subprocess.DEVNULL
        )
        with ended(server):
            _make_transparent(server.pid)
            client = ("iperf3", "--json", "--client", SERVICE, "--port", str(IPERF_PORT))
            done = self.network.client.run(*client, "--time", f"{seconds:.0f}", check=False)
        answer = json.loads(done.stdout)
        if "error" in answer:
            raise AssertionError(f"iperf3: {answer['error']}")
        return float(answer["end"]["sum_received"]["bits_per_second"]) / 1e9


@contextmanager
def ended(process: subprocess.Popen[str]) -> Iterator[None]:
    """The process is gone after the with block."""
    try:
        yield
    finally:
        process.kill()
        process.communicate()


def _make_transparent(pid: int) -> None:
    """Set IP_TRANSPARENT on the listener of a process that knows nothing of it.

    TPROXY takes no other socket, and iperf3 has no option for it.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    pidfd = os.pidfd_open(pid)
    try:
        deadline = time.monotonic() + 5
        while time.monotonic() < deadline:
            for number_of_fd in range(3, 16):
                fd = libc.syscall(_SYS_PIDFD_GETFD, pidfd, number_of_fd, 0)
                if fd < 0:
                    continue
                try:
                    found = socket.socket(fileno=fd)
                except OSError:
                    os.close(fd)  # no socket
                    continue
                with found:
                    if found.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
                        found.setsockopt(socket.SOL_IP, IP_TRANSPARENT, 1)
                        return
            time.sleep(0.01)
    finally:
        os.close(pidfd)
    raise AssertionError(f"process {pid} does not listen")


def build(work: Path, name: str) -> Path:
    """Compile a load generator of this folder. Raises FileNotFoundError, CalledProcessError."""
    compiler = shutil.which("cc") or shutil.which("clang")
    if compiler is None:
        raise FileNotFoundError("no C compiler; on Debian: apt-get install clang libc6-dev")
    source, program = Path(__file__).with_name(f"{name}.c"), work / name
    command = (compiler, "-O2", "-Wall", "-Wextra", "-pthread", str(source))
    subprocess.run([*command, "-o", str(program)], check=True)
    return program


def missing(programs: Iterable[str]) -> str:
    """What to do about those of these programs that the machine has not, or an empty text."""
    packages = {
        "dnsmasq": "dnsmasq-base",
        "ip": "iproute2",
        "iperf3": "iperf3",
        "nft": "nftables",
    }
    absent = [packages[program] for program in programs if not shutil.which(program)]
    return f"apt-get install {' '.join(absent)}" if absent else ""


def run(work: Path, *, quick: bool) -> Section:
    """Every measure in every mode, round by round."""
    rounds, seconds = (3, 1) if quick else (9, 1)
    section = Section(
        "path: a service on 100.72.0.4 through each firewall",
        [
            f"{IN_PARALLEL} threads connect and reset, {ACCEPTING} accept; UDP: one flow of"
            f" {PACKET_SIZE} bytes, packets that the socket received; iperf3: one stream",
            "nftables: TPROXY in prerouting, addresses in a set, fwmark and local route",
            f"medians of {rounds} interleaved rounds of {seconds} s;"
            " ratios: median of each round's own",
        ],
        ["FIREWALL", "RULES", CONNECTIONS, DATAGRAMS, THROUGHPUT],
    )
    measures = {
        CONNECTIONS: Bed.connections,
        DATAGRAMS: Bed.datagrams,
        THROUGHPUT: Bed.throughput,
    }
    program = build(work, "connections")
    with ExitStack() as stack:
        beds = {mode: Bed(*mode, program=program, stack=stack) for mode in MODES}
        for number_of_round in range(rounds):
            progress(f"path: round {number_of_round + 1} of {rounds}")
            for measure, method in measures.items():
                # There and back: what drifts meets all alike.
                for firewall, count in MODES[:: -1 if number_of_round % 2 else 1]:
                    figure = method(beds[firewall, count], seconds)
                    section.add(f"{measure}; {firewall}; {count}", figure)
    for firewall, count in MODES:
        figures = [section.median(f"{measure}; {firewall}; {count}") for measure in measures]
        section.rows.append((firewall, count or "-", *map(number, figures)))
    for count in RULES:
        ratios = [
            median(
                map(
                    truediv,
                    section.rounds[f"{measure}; zfw; {count}"],
                    section.rounds[f"{measure}; nftables; {count}"],
                )
            )
            for measure in measures
        ]
        section.rows.append(("zfw to nftables", count, *map(number, ratios)))
        for measure, ratio in zip(measures, ratios, strict=True):
            name = f"{measure}, {counted(count)}, to nftables"
            section.targets.append(Target(name, ratio, 1.0, "x", is_least=True))
    return section
