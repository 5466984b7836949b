# SPDX-License-Identifier: GPL-2.0-only
"""Packets and bytes by the shortest way that Python has: sendmmsg, recvmmsg, sendall.

A system call carries hundreds of packets, so that the interpreter costs each of
them some 20 ns. What receives is a process of its own.
"""

from __future__ import annotations

import ctypes
import fcntl
import multiprocessing
import os
import random
import signal
import socket
import struct
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

_libc = ctypes.CDLL(None, use_errno=True)
_PR_SET_PDEATHSIG = 1
_SIOCGIFHWADDR = 0x8927
_MSG_WAITFORONE = 0x10000
_BATCH = 256
_CHUNK = bytes(1 << 18)


class _Iovec(ctypes.Structure):
    _fields_ = (("base", ctypes.c_void_p), ("length", ctypes.c_size_t))


class _Msghdr(ctypes.Structure):
    _fields_ = (
        ("name", ctypes.c_void_p),
        ("name_length", ctypes.c_uint),
        ("iov", ctypes.c_void_p),
        ("iov_count", ctypes.c_size_t),
        ("control", ctypes.c_void_p),
        ("control_length", ctypes.c_size_t),
        ("flags", ctypes.c_int),
    )


class _Mmsghdr(ctypes.Structure):
    _fields_ = (("header", _Msghdr), ("length", ctypes.c_uint))


class _Messages:
    """Buffers as sendmmsg(2) and recvmmsg(2) take them; destinations unless it is connected."""

    def __init__(self, contents: Sequence[bytes], destinations: Sequence[str] = ()) -> None:
        count = len(contents)
        self._buffers = [ctypes.create_string_buffer(data, len(data)) for data in contents]
        self._iovecs = (_Iovec * count)(
            *[_Iovec(ctypes.addressof(buffer), len(buffer)) for buffer in self._buffers]
        )
        self.headers = (_Mmsghdr * count)()
        for header, iovec in zip(self.headers, self._iovecs, strict=True):
            header.header.iov = ctypes.addressof(iovec)
            header.header.iov_count = 1
        names = [
            struct.pack("=H2x4s8x", socket.AF_INET, socket.inet_aton(address))
            for address in destinations
        ]
        self._names = [ctypes.create_string_buffer(name, len(name)) for name in names]
        for header, name in zip(self.headers, self._names, strict=False):
            header.header.name = ctypes.addressof(name)
            header.header.name_length = len(name)
        self.count = count


class Sender:
    """The same packets on a socket, over and over, as fast as the kernel takes them.

    A raw socket that is not connected sends each to an address of its own.
    """

    def __init__(
        self, sender: socket.socket, packets: Sequence[bytes], destinations: Sequence[str] = ()
    ) -> None:
        self._socket = sender
        self._batches = [
            _Messages(packets[start : start + _BATCH], destinations[start : start + _BATCH])
            for start in range(0, len(packets), _BATCH)
        ]
        self._position = 0

    def send(self, seconds: float) -> int:
        """Send for so long; how many the kernel took. What it refuses is not tried again."""
        fd, taken = self._socket.fileno(), 0
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            messages = self._batches[self._position % len(self._batches)]
            taken += max(0, _libc.sendmmsg(fd, messages.headers, messages.count, 0))
            self._position += 1
        return taken

    def send_once(self) -> None:
        """Send each packet once; those that the socket has no room for are tried again."""
        for messages in self._batches:
            done = 0
            while done < messages.count:
                sent = _libc.sendmmsg(
                    self._socket.fileno(),
                    ctypes.byref(messages.headers, done * ctypes.sizeof(_Mmsghdr)),
                    messages.count - done,
                    0,
                )
                done += max(sent, 0)


class StreamSender:
    """Bytes into a connection, as fast as it takes them."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection

    def send(self, seconds: float) -> None:
        """Send for so long."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            self._connection.sendall(_CHUNK)


class Drain:
    """A process that reads a socket empty and counts; ends with the with block."""

    def __init__(self, source: socket.socket) -> None:
        context = multiprocessing.get_context("fork")
        self._count = context.RawValue(ctypes.c_uint64, 0)
        self._process = context.Process(target=_drain, args=(source, self._count), daemon=True)

    def __enter__(self) -> Self:
        self._process.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._process.kill()
        self._process.join()

    @property
    def count(self) -> int:
        """Datagrams, or bytes of a stream, until now."""
        return self._count.value


def _drain(source: socket.socket, count: ctypes.c_uint64) -> None:
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)  # not even a killed bench leaves it behind
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # ctrl-C ends the bench, which ends this
    source.setblocking(True)
    if source.type == socket.SOCK_STREAM:
        _drain_stream(source, count)
    else:
        _drain_datagrams(source, count)


def _drain_datagrams(source: socket.socket, count: ctypes.c_uint64) -> None:
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    messages = _Messages([bytes(2048)] * _BATCH)
    while True:
        received = _libc.recvmmsg(
            source.fileno(), messages.headers, messages.count, _MSG_WAITFORONE, None
        )
        if received > 0:
            count.value += received


def _drain_stream(source: socket.socket, count: ctypes.c_uint64) -> None:
    buffer = bytearray(1 << 18)
    while received := source.recv_into(buffer):
        count.value += received


@contextmanager
def on_first_cpu() -> Iterator[None]:
    """This thread sends on one CPU, and whoever drains has another, if there is one."""
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(allowed)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, allowed)


def udp_sender(address: str, port: int, size: int = 64) -> Sender:
    """One flow of datagrams, from the caller's network namespace."""
    sender = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sender.connect((address, port))
    return Sender(sender, [bytes(size)] * _BATCH)


def mac_of(interface: str) -> bytes:
    """An Ethernet address, in the caller's network namespace."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        answer = fcntl.ioctl(probe, _SIOCGIFHWADDR, interface.encode().ljust(40, b"\0"))
    return answer[18:24]


def syn_sender(interface: str, gateway: bytes, address: str, port: int, count: int) -> Sender:
    """SYNs of so many flows onto an interface, from a hundred hosts of 10.9.0.0/24."""
    sender = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
    sender.bind((interface, 0))
    own = mac_of(interface)
    flows = random.Random(1).sample(range(100 * 64000), count)
    frames = [
        gateway
        + own
        + b"\x08\x00"
        + _syn(f"10.9.0.{100 + flow // 64000}", 1024 + flow % 64000, address, port)
        for flow in flows
    ]
    return Sender(sender, frames)


def _syn(source: str, source_port: int, destination: str, port: int) -> bytes:
    addresses = socket.inet_aton(source) + socket.inet_aton(destination)
    tcp = struct.pack("!HHIIBBHHH", source_port, port, source_port, 0, 0x50, 2, 64240, 0, 0)
    pseudo = addresses + struct.pack("!HH", socket.IPPROTO_TCP, len(tcp))
    tcp = tcp[:16] + checksum(pseudo + tcp) + tcp[18:]
    ip = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(tcp), 0, 0x4000, 64, socket.IPPROTO_TCP, 0)
    return ip[:10] + checksum(ip + addresses) + addresses + tcp


def checksum(data: bytes) -> bytes:
    """The Internet checksum (RFC 1071), in network order."""
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return struct.pack("!H", ~total & 0xFFFF)
