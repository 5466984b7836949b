# SPDX-License-Identifier: GPL-2.0-only
"""What is attached to an interface, as the kernel reports it; and traffic that crosses it."""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.firewall.support import frames
from tests.support.command import captured
from tests.support.netns import Network
from tests.support.tcx import tcx_programs
from zfw_py import Firewall, Prefix, Rule, RuleKey
from zfw_py.firewall import programs
from zfw_py.firewall.maps import STORE
from zfw_py.kernel import bpf_maps
from zfw_py.kernel.own_netns import netns_cookie

if TYPE_CHECKING:
    from collections.abc import Iterator

    import pytest

ALLOWED, DENIED = 5000, 5001
INTERFACE = Network.interface

# The firewall's maps, and programs that pass every packet. They load in a hundredth of the
# time, for tests that are not about packets.
STAND_IN = """
#include <linux/pkt_cls.h>
#include "firewall/maps.h"
#define PROGRAM(name) SEC("tc") int name(struct __sk_buff *skb)
PROGRAM(ingress) { (void)skb; return TC_ACT_UNSPEC; }
PROGRAM(egress) { (void)skb; return TC_ACT_UNSPEC; }
PROGRAM(explain_ingress) { (void)skb; return 0; }
PROGRAM(explain_egress) { (void)skb; return 0; }
SEC("sk_lookup") int deliver(void *ctx) { return ctx != 0; }
char LICENSE[] SEC("license") = "GPL";
"""


def use_object(monkeypatch: pytest.MonkeyPatch, path: Path) -> None:
    """Make zfw load another compiled object."""
    monkeypatch.setattr(programs, "SYSTEM", programs.SYSTEM._replace(object=path))


# What the kernel says


def clsact_programs(interface: str, direction: str) -> list[int]:
    """The program ids of an interface's BPF filters, 0 for a filter of classic BPF."""
    return [
        entry["options"].get("prog", {}).get("id", 0)
        for entry in filters(interface, direction)
        if entry["kind"] == "bpf" and "handle" in entry.get("options", {})
    ]


def filters(interface: str, direction: str) -> list[dict[str, Any]]:
    command = ("tc", "-json", "filter", "show", "dev", interface, direction)
    shown = captured(*command, check=True)
    listed: list[dict[str, Any]] = json.loads(shown.stdout or "[]")
    return listed


def attached(interface: str) -> list[tuple[str, str, int]]:
    """Direction, mode and program id of each program that is attached to an interface."""
    return [
        (direction, mode, program)
        for direction in ("ingress", "egress")
        for mode, listed in (("tcx", tcx_programs), ("clsact", clsact_programs))
        for program in listed(interface, direction)
    ]


def our_program(direction: str = "ingress") -> int:
    fd = bpf_maps.open_pin(f"{directory()}/{direction}")
    try:
        return bpf_maps.object_id(fd)
    finally:
        os.close(fd)


def directory() -> Path:
    """The directory of this network namespace's pins."""
    return Path(STORE.directory(netns_cookie()))


def names_in(path: Path | str) -> list[str]:
    return sorted(entry.name for entry in Path(path).iterdir())


# Traffic


class Stream:
    """Numbered datagrams from the client to two ports of the gateway, while a with block lasts.

    Afterwards ``lost`` has the numbers that did not arrive at the port that a rule passes, and
    ``leaked`` those that arrived at the port without a rule.
    """

    def __init__(self, network: Network) -> None:
        with network.client.entered():
            self._client = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._address = network.gateway_ipv4
        self._sinks = {port: self._sink(port) for port in (ALLOWED, DENIED)}
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._send)
        self.sent = 0
        self.arrived: dict[int, list[int]] = {}

    def _sink(self, port: int) -> socket.socket:
        sink = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        # SO_RCVBUFFORCE: the socket never drops a datagram for lack of room.
        sink.setsockopt(socket.SOL_SOCKET, 33, 1 << 29)
        sink.bind((self._address, port))
        sink.setblocking(False)
        return sink

    def _send(self) -> None:
        while not self._is_over.is_set():
            # A few at a time: the queue between the two ends of a veth pair is finite.
            for _ in range(16):
                number = self.sent.to_bytes(4, "big")
                for port in self._sinks:
                    self._client.sendto(number, (self._address, port))
                self.sent += 1
            time.sleep(0.0001)

    def __enter__(self) -> Stream:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over.set()
        self._thread.join()
        time.sleep(0.05)
        for port, sink in self._sinks.items():
            self.arrived[port] = list(self._drain(sink))
            sink.close()
        self._client.close()

    @staticmethod
    def _drain(sink: socket.socket) -> Iterator[int]:
        while True:
            try:
                yield int.from_bytes(sink.recv(4), "big")
            except BlockingIOError:
                return

    def flows(self, milliseconds: int = 30) -> int:
        """Wait while datagrams flow; the number of the next one."""
        time.sleep(milliseconds / 1000)
        return self.sent

    @property
    def lost(self) -> list[int]:
        return sorted(set(range(self.sent)) - set(self.arrived[ALLOWED]))

    @property
    def leaked(self) -> list[int]:
        return self.arrived[DENIED]


def allow() -> None:
    Firewall().insert(Rule(RuleKey(Prefix.parse(Network.gateway_ipv4), "udp", ALLOWED)))


def frame(port: int, protocol: str = "udp", destination: str = Network.gateway_ipv4) -> bytes:
    """An Ethernet frame to the gateway, with a datagram or a SYN."""
    packet = {"udp": frames.datagram, "tcp": frames.syn}[protocol](destination, port)
    header = b"\2\0\0\0\0\1\2\0\0\0\0\2\x08\0"
    return header + bytes(packet)
