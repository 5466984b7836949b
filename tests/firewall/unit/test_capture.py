# SPDX-License-Identifier: GPL-2.0-only
"""Capture files: as scapy writes them, by hand in each byte order, and forged."""

from __future__ import annotations

import io
import struct
from ipaddress import ip_address
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.inet import IP, UDP
from scapy.layers.l2 import Ether
from scapy.utils import PcapNgWriter, PcapWriter

from tests.firewall.support import packets
from zfw_py.errors import UsageError
from zfw_py.firewall.capture import MOST_BYTES, Captured, frame_of, read
from zfw_py.firewall.replay import fitted, outline

if TYPE_CHECKING:
    from pathlib import Path

FRAME = bytes(Ether(dst="02:00:00:00:00:01") / IP(dst="10.0.0.2") / UDP(sport=7, dport=9) / b"data")
PACKET = FRAME[14:]


def captured(data: bytes) -> list[Captured]:
    return list(read(io.BytesIO(data), "FILE"))


def pcap(*frames: bytes, order: str = "<", link_type: int = 1, nano: bool = False) -> bytes:
    magic = 0xA1B23C4D if nano else 0xA1B2C3D4
    data = struct.pack(f"{order}IHHiIII", magic, 2, 4, 0, 0, 65535, link_type)
    for frame in frames:
        data += struct.pack(f"{order}IIII", 1000, 5, len(frame), len(frame)) + frame
    return data


def block(kind: int, body: bytes, order: str = "<") -> bytes:
    body += bytes(-len(body) % 4)
    size = struct.pack(f"{order}I", len(body) + 12)
    return struct.pack(f"{order}I", kind) + size + body + size


def section(order: str = "<") -> bytes:
    return block(0x0A0D0D0A, struct.pack(f"{order}IHHq", 0x1A2B3C4D, 1, 0, -1), order)


def described(order: str = "<", link_type: int = 1, name: bytes = b"gw0") -> bytes:
    options = struct.pack(f"{order}HH", 2, len(name)) + name + bytes(-len(name) % 4)
    options += struct.pack(f"{order}HHBxxxHH", 9, 1, 9, 0, 0)
    return block(1, struct.pack(f"{order}HHI", link_type, 0, 65535) + options, order)


def enhanced(frame: bytes, order: str = "<", index: int = 0, time: int = 0) -> bytes:
    sizes = (index, time >> 32, time & 0xFFFFFFFF, len(frame), len(frame))
    return block(6, struct.pack(f"{order}IIIII", *sizes) + frame, order)


def test_as_scapy_writes_them(tmp_path: Path) -> None:
    for writer in (PcapWriter, PcapNgWriter):
        path = tmp_path / "capture"
        with writer(str(path)) as file:
            for number in range(3):
                file.write(Ether(FRAME + bytes(number)))
        found = captured(path.read_bytes())
        assert [each.data for each in found] == [FRAME + bytes(number) for number in range(3)]
        assert [each.number for each in found] == [1, 2, 3]


@pytest.mark.parametrize("order", ["<", ">"])
def test_both_byte_orders(order: str) -> None:
    (one,) = captured(pcap(FRAME, order=order))
    assert one == Captured(1, 1000.000005, 1, FRAME, len(FRAME), None)
    (one,) = captured(pcap(FRAME, order=order, nano=True))
    assert one.time == 1000.000000005
    file = section(order) + described(order) + enhanced(FRAME, order, time=5_000_000_000)
    (one,) = captured(file)
    assert one == Captured(1, 5.0, 1, FRAME, len(FRAME), "gw0")
    simple = block(3, struct.pack(f"{order}I", len(FRAME)) + FRAME, order)
    assert captured(section(order) + described(order) + simple)[0].data == FRAME
    # A new section has interfaces of its own, perhaps in the other order; others are skipped.
    other = "<" if order == ">" else ">"
    file += block(5, bytes(8), order) + section(other) + described(other) + enhanced(FRAME, other)
    assert [each.data for each in captured(file)] == [FRAME, FRAME]


@pytest.mark.parametrize(
    ("link_type", "data"),
    [
        (1, FRAME),
        (101, PACKET),
        (228, PACKET),
        (12, PACKET),
        (113, bytes(14) + b"\x08\x00" + PACKET),
        (276, b"\x08\x00" + bytes(18) + PACKET),
        (0, b"\2\0\0\0" + PACKET),
    ],
)
def test_link_types(link_type: int, data: bytes) -> None:
    (one,) = captured(pcap(data, link_type=link_type))
    assert frame_of(one)[12:] == FRAME[12:]
    assert outline(frame_of(one)).destination_text == "10.0.0.2:9"


def test_a_link_type_that_has_no_ip() -> None:
    (one,) = captured(pcap(FRAME, link_type=105))
    with pytest.raises(UsageError, match="packet 1: link type 105 is none that zfw reads"):
        frame_of(one)


NG = section() + described()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "neither a pcap nor a pcapng file"),
        (b"\xa1", "neither a pcap nor a pcapng file"),
        (b"#!/bin/sh\n", "neither a pcap nor a pcapng file"),
        (pcap()[:23], "it ends within its header"),
        (pcap(FRAME)[:-1], "it ends within packet 1"),
        (pcap(FRAME) + b"\0", "it ends within packet 2"),
        (
            pcap() + struct.pack("<IIII", 0, 0, MOST_BYTES + 1, 0),
            f"packet 1 has {MOST_BYTES + 1} bytes, more than {MOST_BYTES}",
        ),
        (pcap() + b"\xff" * 16, f"packet 1 has 4294967295 bytes, more than {MOST_BYTES}"),
        (b"\x0a\x0d\x0d\x0a", "it ends within a block"),
        (b"\x0a\x0d\x0d\x0a" + bytes(8), "a section header without a byte order"),
        (section()[:-1], "it ends within a block"),
        (section() + b"\1\0", "it ends within a block"),
        (section() + struct.pack("<II", 1, 0), "a block of 0 bytes"),
        (section() + struct.pack("<II", 1, 13), "a block of 13 bytes"),
        (
            section() + struct.pack("<II", 99, 0xFFFFFFFC),
            "a block of 4294967292 bytes, more than 1048576",
        ),
        (section() + struct.pack("<III", 99, 12, 16), "a block with two lengths"),
        (section() + block(1, b""), "an interface without a link type"),
        (
            section() + block(1, struct.pack("<HHIHHBxxx", 1, 0, 0, 9, 1, 127)),
            "an interface with an impossible resolution of time",
        ),
        (section() + enhanced(FRAME), "packet 1 is of interface 0, which is not described"),
        (NG + enhanced(FRAME, index=7), "packet 1 is of interface 7, which is not described"),
        (NG + block(6, bytes(8)), "packet 1 has no header"),
        (
            NG + block(6, struct.pack("<IIIII", 0, 0, 0, 9, 9) + bytes(4)),
            "packet 1 is longer than its block",
        ),
        (section() + described() * 4097, "more than 4096 interfaces"),
    ],
)
def test_a_forged_file_is_one_clear_error(data: bytes, message: str) -> None:
    with pytest.raises(UsageError) as error:
        captured(data)
    assert error.value.message == f"FILE: {message}"


def test_packets_before_a_fault_are_read() -> None:
    rest = read(io.BytesIO(pcap(FRAME, FRAME)[:-1]), "FILE")
    assert next(rest).data == FRAME
    with pytest.raises(UsageError, match="it ends within packet 2"):
        next(rest)


@given(st.binary(max_size=200), st.sampled_from([b"", pcap(), NG, NG + struct.pack("<I", 6)]))
def test_any_bytes_are_packets_or_an_error(tail: bytes, head: bytes) -> None:
    try:
        found = captured(head + tail)
    except UsageError:
        return
    for each in found:
        try:
            outline(fitted(frame_of(each)))
        except UsageError:
            pass


def test_a_long_packet_is_cut_to_what_a_test_run_takes() -> None:
    long = packets.udp(7, 9, bytes(9000))
    source, to = ip_address("10.0.0.1"), ip_address("10.0.0.2")
    cut = fitted(packets.ethernet(packets.ipv4(source, to, 17, long), 0x0800, (0x8100,)))
    assert len(cut) == 3000
    assert Ether(cut)[IP].len == 3000 - 18
    source, to = ip_address("fd00::1"), ip_address("fd00::2")
    cut = fitted(packets.ethernet(packets.ipv6(source, to, 17, long), 0x86DD))
    assert Ether(cut)["IPv6"].plen == 3000 - 54
    assert outline(cut).source_text == "[fd00::1]:7"
