# SPDX-License-Identifier: GPL-2.0-only
"""What the ingress program costs a packet, by the kernel's own run-time statistics."""

from __future__ import annotations

import os
import socket
import struct
import time
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from tests.bench.report import Section, Target, number, progress
from tests.bench.traffic import (
    Drain,
    Sender,
    StreamSender,
    mac_of,
    on_first_cpu,
    syn_sender,
    udp_sender,
)
from tests.firewall.support.listeners import Listener
from tests.support.netns import Network
from zfw_py import Firewall, Insert, Prefix, Rule, RuleKey
from zfw_py.firewall.maps import STORE
from zfw_py.kernel import bpf_links, bpf_maps
from zfw_py.kernel.libbpf import BpfObject
from zfw_py.kernel.own_netns import netns_cookie

if TYPE_CHECKING:
    from collections.abc import Iterator

SERVICE = "100.72.0.4"
TCP_PORT, UDP_PORT, NO_PORT = 2222, 5000, 40001
SYN_FLOWS = 32768

# Targets in nanoseconds, and as a multiple of the same load with one rule.
LOADS = {
    "UDP, one flow, intercepted": 450,
    "SYN, intercepted": 600,
    "dropped, no rule for the address": 320,
    "dropped, address matches, port does not": 320,
    "TCP, established, bulk": 300,
}
RULE_SETS = {
    "1 rule": 1.0,
    "100,000 /32 rules": 1.3,
    "1,000 ranges in the prefix": 1.3,
    "8 prefix lengths": 2.0,
}
_UDP, _SYN, _NO_ADDRESS, _NO_PORT, _BULK = LOADS

# What most of a load's packets are counted under: else it measures something else.
_REASONS = {
    _UDP: "rule_intercept",
    _SYN: "rule_intercept",
    _NO_ADDRESS: "no_rule",
    _NO_PORT: "no_rule",
    _BULK: "established",
}
LEAST_SHARE = 0.9

_ENABLE_STATS = 32  # BPF_ENABLE_STATS, since 5.8
_RUN_TIME = 192  # offset of run_time_ns and run_cnt in struct bpf_prog_info


@contextmanager
def run_time_statistics() -> Iterator[None]:
    """The kernel times every BPF program, for as long as a descriptor of ours is open.

    Unlike the sysctl kernel.bpf_stats_enabled nothing has to be put back, whatever
    becomes of this process.
    """
    fd = bpf_maps.bpf(_ENABLE_STATS, bpf_maps.attribute(struct.pack("=I", 0)))
    try:
        yield
    finally:
        os.close(fd)


def run_time(program: int) -> tuple[int, int]:
    """Nanoseconds and runs of a program until now."""
    run_time, runs = struct.unpack_from(
        "=QQ", bpf_maps.object_info(program, _RUN_TIME + 16), _RUN_TIME
    )
    return run_time, runs


def rules_of(name: str, ports: dict[str, int]) -> list[Rule]:
    """A set of rules for both protocols; the service's own are among them, and match."""
    service = [
        (Prefix.parse(SERVICE), "tcp", TCP_PORT),
        (Prefix.parse(SERVICE), "udp", UDP_PORT),
    ]
    others: list[tuple[Prefix, str, int]] = []
    if name == "100,000 /32 rules":
        others = [
            (Prefix(4, (0x0B000000 + host).to_bytes(4, "big"), 32), protocol, 80)
            for host in range(50_000 - 1)
            for protocol in ("tcp", "udp")
        ]
    elif name == "1,000 ranges in the prefix":
        # Every other port, so that none can be joined to its neighbour.
        others = [
            (Prefix.parse(SERVICE), protocol, port)
            for protocol in ("tcp", "udp")
            for port in range(10_000, 10_000 + 2 * 999, 2)
        ]
    elif name == "8 prefix lengths":
        # The worst: each longer prefix holds the address, and none of them the port.
        service = [(Prefix.parse(SERVICE, 12), protocol, port) for _, protocol, port in service]
        others = [
            (Prefix.parse(SERVICE, length), protocol, 1)
            for length in (32, 30, 28, 26, 24, 20, 16)
            for protocol in ("tcp", "udp")
        ]
    return [
        Rule(RuleKey(destination, protocol, port), tproxy_port=ports[protocol])
        for destination, protocol, port in others + service
    ]


class Bed:
    """A client and a gateway with a set of rules, and a sender for each load."""

    def __init__(self, rule_set: str, empty: int, stack: ExitStack) -> None:
        self.network = stack.enter_context(Network())
        self.firewall = Firewall()
        self._empty = empty
        with self.network.gateway.entered():
            (attachment,) = self.firewall.attach("gw0", "ingress", "tcx")
            state = STORE.directory(netns_cookie())
            self._link = bpf_maps.open_pin(f"{state}/link_ingress_{attachment.ifindex}")
            self._program = bpf_maps.open_pin(f"{state}/ingress")
            stack.callback(os.close, self._link)
            stack.callback(os.close, self._program)
            # A full queue of SYNs is left so, and cookies would be computed for each.
            Path("/proc/sys/net/ipv4/tcp_syncookies").write_text("0")
            self._listeners = {
                "tcp": Listener(4, socket.SOCK_STREAM),
                "udp": Listener(4, socket.SOCK_DGRAM),
            }
            for listener in self._listeners.values():
                stack.enter_context(listener.socket)
            ports = {protocol: listener.port for protocol, listener in self._listeners.items()}
            self.firewall.apply([Insert(rule) for rule in rules_of(rule_set, ports)])
            self.network.gateway.run("ip", "address", "add", f"{SERVICE}/32", "dev", "lo")
            gateway = mac_of("gw0")
        with self.network.client.entered():
            self.senders: dict[str, Sender | StreamSender] = {
                _UDP: udp_sender(SERVICE, UDP_PORT),
                _SYN: syn_sender("eth0", gateway, SERVICE, TCP_PORT, SYN_FLOWS),
                _NO_ADDRESS: udp_sender("203.0.113.9", UDP_PORT),
                _NO_PORT: udp_sender(SERVICE, NO_PORT),
                _BULK: StreamSender(socket.create_connection((SERVICE, TCP_PORT), timeout=5)),
            }
        self._connection = stack.enter_context(self._listeners["tcp"].accept())
        stack.enter_context(Drain(self._listeners["udp"].socket))
        stack.enter_context(Drain(self._connection))

    def measure(self, load: str, seconds: float) -> float:
        """Nanoseconds a packet of our program, its decisions checked."""
        before = self._reasons()
        cost, _ = self._run(self._program, load, seconds)
        after = self._reasons()
        counts = {reason: after[reason] - before[reason] for reason in after}
        share = counts[_REASONS[load]] / max(1, sum(counts.values()))
        if share < LEAST_SHARE:
            seen = {reason: count for reason, count in counts.items() if count}
            raise AssertionError(f"{load}: not the load that was meant: {seen}")
        return cost

    def measure_empty(self, load: str, seconds: float) -> float:
        """The same with the empty program in the place of ours."""
        bpf_links.update_link(self._link, self._empty)
        try:
            return self._run(self._empty, load, seconds)[0]
        finally:
            bpf_links.update_link(self._link, self._program)

    def _run(self, program: int, load: str, seconds: float) -> tuple[float, int]:
        before = run_time(program)
        self.senders[load].send(seconds)
        time.sleep(0.02)  # the last packets are on their way
        after = run_time(program)
        runs = after[1] - before[1]
        if not runs:
            raise AssertionError(f"{load}: no packet arrived")
        return (after[0] - before[0]) / runs, runs

    def _reasons(self) -> dict[str, int]:
        with self.network.gateway.entered():
            reasons = self.firewall.status().reasons
        return {reason: packets for reason, (packets, _) in reasons.items()}


def run(work: Path, *, quick: bool) -> Section:
    """Every load on every set of rules, round by round."""
    rounds, seconds = (3, 0.15) if quick else (9, 0.3)
    section = Section(
        "packets: nanoseconds a packet in the ingress program",
        [
            "run-time statistics of the kernel on live traffic over veth; the empty program takes"
            " the place of ours on the same interface",
            f"medians of {rounds} interleaved rounds of {seconds} s a load;"
            " x is the multiple of the same load with 1 rule",
        ],
        ["LOAD", "RULES", "ZFW", "EMPTY", "DIFFERENCE", "x", "LOWEST", "HIGHEST"],
    )
    with ExitStack() as stack:
        loaded = stack.enter_context(BpfObject(work / "empty.bpf.o"))
        loaded.load()
        empty = loaded.programs()["empty"]
        beds = {}
        for rule_set in RULE_SETS:
            progress(f"packets: {rule_set}")
            beds[rule_set] = Bed(rule_set, empty, stack)
        stack.enter_context(run_time_statistics())
        stack.enter_context(on_first_cpu())
        for number_of_round in range(rounds):
            progress(f"packets: round {number_of_round + 1} of {rounds}")
            for load in LOADS:
                for rule_set, bed in beds.items():
                    section.add(f"{load}; {rule_set}", bed.measure(load, seconds))
                    section.add(f"{load}; {rule_set}; empty", bed.measure_empty(load, seconds / 2))
    _fill(section)
    return section


def _fill(section: Section) -> None:
    for load, limit in LOADS.items():
        one = section.median(f"{load}; 1 rule")
        section.targets.append(Target(f"{load}, 1 rule", one, limit, "ns"))
        for rule_set, most in RULE_SETS.items():
            name = f"{load}; {rule_set}"
            cost, empty = section.median(name), section.median(f"{name}; empty")
            rounds = section.rounds[name]
            section.rows.append(
                (
                    load,
                    rule_set,
                    number(cost),
                    number(empty),
                    number(cost - empty),
                    number(cost / one),
                    number(min(rounds)),
                    number(max(rounds)),
                )
            )
            if rule_set != "1 rule":
                section.targets.append(
                    Target(f"{load}, {rule_set} to 1 rule", cost / one, most, "x")
                )
