# SPDX-License-Identifier: GPL-2.0-only
"""docker_dns's programs on devices: what a test run cannot show of frames and link layers."""

from __future__ import annotations

import os
import select
import socket
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

import pytest
from scapy.layers.inet import IP, UDP
from scapy.layers.l2 import Dot1Q, Ether

from tests.docker_dns.support.container import container
from tests.docker_dns.support.programs import RESOLVER, SERVER, SOURCE, Programs, Settings
from tests.support.netns import Namespace
from tests.support.tcx import skip_without_tcx
from zfw_py.kernel import bpf_links

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [pytest.mark.kernel, pytest.mark.usefixtures("_private_bpffs")]

LO = 1
PATIENCE = 20
ETH_P_IP, ETH_P_ALL = 0x0800, 3


@contextmanager
def redirected(uplink: str, has_ethernet: bool) -> Iterator[Programs]:
    """The programs, attached to ``lo`` and the uplink of the namespace that the caller is in."""
    skip_without_tcx()
    index = socket.if_nametoindex(uplink)
    with ExitStack() as stack:
        programs = stack.enter_context(Programs())
        programs.configure(Settings(uplink_ifindex=index, has_ethernet=has_ethernet))
        for name, ifindex, direction in (
            ("query", LO, bpf_links.TCX_EGRESS),
            ("answer", index, bpf_links.TCX_INGRESS),
        ):
            link = bpf_links.create_link(programs.descriptor(name), ifindex, direction)
            stack.callback(os.close, link)
        yield programs


def _asks() -> socket.socket:
    """A client of the resolver, which no NAT stands before: at port 53."""
    made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    made.settimeout(PATIENCE)
    made.connect((str(RESOLVER), 53))
    return made


# --- an uplink without link-layer headers ------------------------------------------------------


@pytest.fixture
def tunnel() -> Iterator[int]:
    """The caller is in a container whose uplink is tun0; the other end of it."""
    with Namespace() as namespace, namespace.entered():
        tun = namespace.open_tun("tun0")
        try:
            namespace.set_up("tun0", f"{SOURCE}/24")
            yield tun
        finally:
            os.close(tun)


def _next_udp(tun: int) -> IP:
    """The next packet of UDP over IPv4; the stack sends others of its own."""
    while select.select([tun], [], [], PATIENCE)[0]:
        packet = os.read(tun, 65536)
        if packet[0] >> 4 == 4 and packet[9] == 17:
            return IP(packet)
    raise AssertionError("nothing came")


# The largest fills the device's MTU.
@pytest.mark.parametrize("size", [0, 1, 100, 1472])
def test_an_uplink_without_link_layer_headers(tunnel: int, size: int) -> None:
    with redirected("tun0", has_ethernet=False) as programs, _asks() as client:
        client.send(b"question")
        query = _next_udp(tunnel)
        ends = {"src": str(SOURCE), "dst": str(SERVER), "sport": query.sport, "dport": 53}
        assert {name: getattr(query, name) for name in ends} == ends
        assert bytes(query[UDP].payload) == b"question"
        # The checksum was yet to be completed on lo.
        assert bytes(query) == _summed(query)
        answer = bytes(range(256)) * 6
        ip = IP(src=query.dst, dst=query.src) / UDP(sport=53, dport=query.sport)
        os.write(tunnel, bytes(ip / answer[:size]))
        assert client.recv(2000) == answer[:size]
        assert programs.outcomes() == {"query": 1, "answer": 1}


def _summed(packet: IP) -> bytes:
    again = packet.copy()
    del again[IP].chksum
    del again[UDP].chksum
    return bytes(again)


# --- VLANs -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("vlan", "is_ours"), [(None, True), (0, True), (5, False)])
def test_an_answer_of_another_vlan_is_none(vlan: int | None, is_ours: bool) -> None:
    with (
        container() as here,
        redirected("eth0", has_ethernet=True) as programs,
        _asks() as client,
    ):
        mac = here.mac("eth0")
        with here.packet_socket("outside0") as wire:
            client.send(b"question")
            (outside,) = programs.answers()
            ip = IP(src=str(SERVER), dst=str(SOURCE)) / UDP(sport=53, dport=outside.port)
            for payload, tag in ((b"tagged", vlan), (b"untagged", None)):
                header = Ether(dst=mac) if tag is None else Ether(dst=mac) / Dot1Q(vlan=tag)
                wire.send(bytes(header / ip / payload))
            assert client.recv(100) == (b"tagged" if is_ours else b"untagged")
            if is_ours:
                assert client.recv(100) == b"untagged"
        assert programs.outcomes() == {"query": 1, "answer": 2 if is_ours else 1}


def test_a_tag_that_looks_like_a_query_is_none() -> None:
    # A sender may say of a tagged frame that it is IPv4; and 0x46 begins an IPv4 header.
    ip = IP(src="127.0.0.1", dst=str(RESOLVER)) / UDP(sport=40000, dport=53) / b"question"
    tagged = bytes(Ether(dst="00:00:00:00:00:00") / Dot1Q(prio=2, vlan=0x600) / ip)
    plain = bytes(Ether(dst="00:00:00:00:00:00") / ip)
    with container() as here, redirected("eth0", has_ethernet=True) as programs:
        with (
            here.packet_socket("lo", ETH_P_ALL) as sniffer,
            here.packet_socket("lo", ETH_P_IP) as wire,
        ):
            sniffer.settimeout(PATIENCE)
            wire.send(tagged)
            heard = sniffer.recv(2000)
            while heard[12:14] != tagged[12:14]:
                heard = sniffer.recv(2000)
            assert heard == tagged
            assert programs.outcomes() == {}
            wire.send(plain)
        assert programs.outcomes() == {"query": 1}
