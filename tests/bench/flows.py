# SPDX-License-Identifier: GPL-2.0-only
"""What leaves and what goes through: the egress program, forwarded flows, a million of them."""

from __future__ import annotations

import json
import os
import socket
import struct
import subprocess
import time
from contextlib import ExitStack
from operator import truediv
from pathlib import Path
from statistics import median

from tests.bench.packets import run_time, run_time_statistics
from tests.bench.path import ended
from tests.bench.report import Section, Target, number, progress
from tests.bench.rules import kernel_memory
from tests.bench.traffic import Drain, Sender, StreamSender, checksum, mac_of
from tests.support.netns import RoutedNetwork
from zfw_py import Firewall, Prefix, Rule, RuleKey
from zfw_py.firewall import layout
from zfw_py.firewall.maps import STORE, Maps
from zfw_py.kernel import bpf_maps
from zfw_py.kernel.own_netns import netns_cookie

EGRESS_NS = 400
MANY_FLOWS, CAPACITY = 1_000_000, 1_250_000
# So many at a time begin, are answered and confirmed: the table of those that are
# opening has four times as many entries.
_CHUNK = layout.OPENING_FLOWS // 4
BULK_PORT, IPERF_PORT = 2222, 5201
_HOST, _ROUTED, _FILTERED = "this host's own", "forwarded", "forwarded, outbound filter on"
FIREWALLS = ("none", "zfw", "nftables")
THROUGHPUT = "iperf3 Gb/s, forwarded"

_NFTABLES = f"""
table inet bench {{
  chain forward {{
    type filter hook forward priority filter; policy drop;
    ct state established,related accept
    ct state invalid drop
    iifname "{RoutedNetwork.inside}" accept
  }}
}}
"""


def _zfw() -> Firewall:
    """Both directions on both interfaces; what comes from inside may pass."""
    firewall = Firewall()
    for name in (RoutedNetwork.inside, RoutedNetwork.outside):
        firewall.attach(name, "both")
        firewall.set([name], "per_interface_rules", True)
    for protocol in ("tcp", "udp"):
        key = RuleKey(Prefix.any(4), protocol, 0)
        firewall.insert(Rule(key, 65535, interfaces=[RoutedNetwork.inside]))
    return firewall


class Bed:
    """A gateway between a client and a server, with one of the firewalls."""

    def __init__(self, firewall: str, stack: ExitStack) -> None:
        self.network = stack.enter_context(RoutedNetwork())
        if firewall == "nftables":
            self.network.gateway.run("nft", "-f", "-", input=_NFTABLES)
        elif firewall == "zfw":
            with self.network.gateway.entered():
                self.firewall = _zfw()

    def throughput(self, seconds: float) -> float:
        """Gigabits a second of iperf3 through the gateway, as its server received them."""
        command = ("iperf3", "--server", "--one-off", "--port", str(IPERF_PORT))
        server = self.network.server.start(*command, stdout=subprocess.DEVNULL)
        with ended(server):
            client = ("iperf3", "--json", "--client", self.network.server_ipv4)
            port = ("--port", str(IPERF_PORT), "--time", f"{seconds:.0f}")
            for _ in range(50):  # until the server listens
                done = self.network.client.run(*client, *port, check=False)
                answer = json.loads(done.stdout)
                if "refused" not in answer.get("error", ""):
                    break
                time.sleep(0.05)
        if "error" in answer:
            raise AssertionError(f"iperf3: {answer['error']}")
        return float(answer["end"]["sum_received"]["bits_per_second"]) / 1e9


class Bulk:
    """Bulk TCP that leaves by the outer interface: this host's own and the client's."""

    def __init__(self, bed: Bed, stack: ExitStack) -> None:
        network = bed.network
        with network.server.entered():
            listener = stack.enter_context(socket.create_server(("", BULK_PORT)))
        self._senders = {}
        for name, namespace in ((_HOST, network.gateway), (_ROUTED, network.client)):
            with namespace.entered():
                connection = socket.create_connection((network.server_ipv4, BULK_PORT), timeout=5)
            stack.enter_context(connection)
            self._senders[name] = StreamSender(connection)
            stack.enter_context(Drain(stack.enter_context(listener.accept()[0])))
        self._senders[_FILTERED] = self._senders[_ROUTED]
        self._bed = bed
        with network.gateway.entered():
            state = STORE.directory(netns_cookie())
            self._program = bpf_maps.open_pin(f"{state}/egress")
        stack.callback(os.close, self._program)

    def measure(self, name: str, seconds: float) -> float:
        """Nanoseconds a run of the egress program, on both interfaces; ACKs are among them."""
        if name == _FILTERED:
            self._filter(True)
        before = run_time(self._program)
        self._senders[name].send(seconds)
        after = run_time(self._program)
        if name == _FILTERED:
            self._filter(False)
        return (after[0] - before[0]) / (after[1] - before[1])

    def _filter(self, on: bool) -> None:
        with self._bed.network.gateway.entered():
            self._bed.firewall.set([self._bed.network.outside], "outbound_filter", on)


def _frames(to: bytes, own: bytes, ends: list[tuple[str, int, str, int]]) -> list[bytes]:
    frames = []
    for source, source_port, destination, port in ends:
        addresses = socket.inet_aton(source) + socket.inet_aton(destination)
        ip = struct.pack("!BBHHHBBH", 0x45, 0, 32, 0, 0x4000, 64, socket.IPPROTO_UDP, 0)
        ip = ip[:10] + checksum(ip + addresses) + addresses
        frames.append(
            to + own + b"\x08\x00" + ip + struct.pack("!HHHH4x", source_port, port, 12, 0)
        )
    return frames


def million_flows(section: Section, count: int) -> None:
    """So many UDP flows through the gateway, each begun, answered and confirmed."""
    inner, outer = "10.9.0.77", "10.8.0.77"
    with ExitStack() as stack:
        bed = Bed("zfw", stack)
        network = bed.network
        client = stack.enter_context(network.client.packet_socket("eth0"))
        with network.client.entered():
            client_mac = mac_of("eth0")
        server = stack.enter_context(network.server.packet_socket("eth0"))
        with network.server.entered():
            server_mac = mac_of("eth0")
        with network.gateway.entered():
            inside_mac, outside_mac = mac_of(network.inside), mac_of(network.outside)
            bed.firewall.set_flow_limits(max_flows=CAPACITY, udp_idle=3600)
        for address, interface, mac in (
            (inner, network.inside, client_mac),
            (outer, network.outside, server_mac),
        ):
            network.gateway.add_neighbour(interface, address, mac.hex(":"))
        flows = [(1024 + n % 60_000, 1024 + n // 60_000) for n in range(count)]
        seconds = 0.0
        for start in range(0, count, _CHUNK):
            if start % (_CHUNK * 16) == 0:
                progress(f"flows: {start:,} of {count:,}")
            some = flows[start : start + _CHUNK]
            out = [(inner, a, outer, b) for a, b in some]
            back = [(outer, b, inner, a) for a, b in some]
            outgoing = Sender(client, _frames(inside_mac, client_mac, out))
            answering = Sender(server, _frames(outside_mac, server_mac, back))
            started = time.monotonic()
            for sender in (outgoing, answering, outgoing):
                sender.send_once()
            seconds += time.monotonic() - started
        with network.gateway.entered():
            with Maps(is_writer=False) as maps:
                table = maps.inner("flows", layout.FLOWS_OPEN_DATAGRAMS)
                kept = sum(1 for _ in table.items()) if table else 0
            memory = kernel_memory() / 1e6
    section.rows.append(
        ("flows kept of those that went through", f"{kept:,} of {count:,}", number(seconds), "-")
    )
    section.rows.append(("memory in the kernel with them", f"{memory:.0f} MB", "-", "-"))
    name = f"tracked flows of {count:,}"
    section.add(name, kept)
    section.targets.append(Target(name, kept, count * 0.999, "", is_least=True))


def run(work: Path, *, quick: bool) -> Section:
    """Egress cost, throughput of what is forwarded, and many flows."""
    rounds, seconds = (3, 0.3) if quick else (9, 0.5)
    section = Section(
        "flows: what leaves, and what goes through",
        [
            "egress: nanoseconds a run of the egress program on bulk TCP, run-time statistics",
            "forwarded: iperf3 through the gateway, one stream; zfw on both interfaces in both"
            " directions, nftables with ct state",
            f"medians of {rounds} interleaved rounds; ratios: median of each round's own",
        ],
        ["WHAT", "MEDIAN", "LOWEST", "HIGHEST"],
    )
    loads = (_HOST, _ROUTED, _FILTERED)
    with ExitStack() as stack:
        beds = {firewall: Bed(firewall, stack) for firewall in FIREWALLS}
        bulk = Bulk(beds["zfw"], stack)
        for number_of_round in range(rounds):
            progress(f"flows: round {number_of_round + 1} of {rounds}")
            with run_time_statistics():
                for load in loads:
                    section.add(f"egress; {load}", bulk.measure(load, seconds))
            for firewall in FIREWALLS[:: -1 if number_of_round % 2 else 1]:
                section.add(f"{THROUGHPUT}; {firewall}", beds[firewall].throughput(1))
    for load in loads:
        figures = section.rounds[f"egress; {load}"]
        section.rows.append((f"egress ns, {load}", *_spread(figures)))
        section.targets.append(Target(f"egress, {load}", median(figures), EGRESS_NS, "ns"))
    for firewall in FIREWALLS:
        figures = section.rounds[f"{THROUGHPUT}; {firewall}"]
        section.rows.append((f"{THROUGHPUT}, {firewall}", *_spread(figures)))
    ratios = [
        *map(
            truediv,
            section.rounds[f"{THROUGHPUT}; zfw"],
            section.rounds[f"{THROUGHPUT}; nftables"],
        )
    ]
    section.rows.append(("zfw to nftables, forwarded", *_spread(ratios)))
    section.targets.append(
        Target("forwarded throughput, to nftables", median(ratios), 1.0, "x", is_least=True)
    )
    million_flows(section, 100_000 if quick else MANY_FLOWS)
    return section


def _spread(figures: list[float]) -> tuple[str, str, str]:
    return number(median(figures)), number(min(figures)), number(max(figures))
