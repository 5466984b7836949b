# SPDX-License-Identifier: GPL-2.0-only
"""Network namespaces for tests, and networks of them: veth pairs, bridges, addresses, routes.

``Namespaces`` builds every network of the tests. A network is a subclass whose
``__init__`` says which namespaces there are and how they are joined.

A namespace is entered by setns(2). ``ip netns exec`` would mount another /sys, which hides
bpffs.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import socket
import struct
import subprocess
import threading
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from collections.abc import Iterator

CLONE_NEWNS = 0x00020000
CLONE_NEWNET = 0x40000000
MS_REC, MS_PRIVATE, MNT_DETACH = 0x4000, 0x40000, 2
# include/uapi/linux/if_tun.h
_TUNSETIFF, _IFF_TUN, _IFF_NO_PI = 0x400454CA, 0x1, 0x1000

_libc = ctypes.CDLL(None, use_errno=True)


def _checked(result: int, what: str) -> None:
    if result != 0:
        errno = ctypes.get_errno()
        raise OSError(errno, f"{what}: {os.strerror(errno)}")


def use_private_bpffs(path: str = "/sys/fs/bpf") -> None:
    """Move this process to a mount namespace of its own, and mount a new bpffs there.

    cgroup2 stays where it is mounted first. A machine may have it a second time, for a chroot.
    """
    _checked(_libc.unshare(CLONE_NEWNS), "unshare")
    _checked(_libc.mount(b"none", b"/", None, MS_REC | MS_PRIVATE, None), "make mounts private")
    _checked(_libc.mount(b"bpf", path.encode(), b"bpf", 0, b"mode=700"), "mount bpffs")
    mounts = [line.split() for line in Path("/proc/self/mounts").read_text().splitlines()]
    for again in [fields[1] for fields in mounts if fields[2] == "cgroup2"][1:]:
        _checked(_libc.umount2(again.encode(), MNT_DETACH), f"unmount {again}")


def _current() -> int:
    return os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)


class Namespace:
    """A new network namespace, with ``lo`` up, until ``close`` or the end of a with block."""

    def __init__(self) -> None:
        """Create it in another thread, so that the calling thread stays in its namespace."""
        self.fd = -1
        thread = threading.Thread(target=self._make)
        thread.start()
        thread.join()
        if self.fd < 0:
            raise OSError("no new network namespace: needs root")
        self.run("ip", "link", "set", "lo", "up")

    def _make(self) -> None:
        _checked(_libc.unshare(CLONE_NEWNET), "unshare")
        self.fd = _current()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @classmethod
    def opened(cls, path: str) -> Namespace:
        """The existing namespace that a path such as /proc/1/ns/net leads to."""
        opened = cls.__new__(cls)
        opened.fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        return opened

    @property
    def path(self) -> str:
        """A path that leads to the namespace while this object is open."""
        return f"/proc/{os.getpid()}/fd/{self.fd}"

    def close(self) -> None:
        """Close the descriptor; the kernel removes a namespace that nothing uses."""
        os.close(self.fd)
        self.fd = -1

    @contextmanager
    def entered(self) -> Iterator[Namespace]:
        """In the block this thread is in the namespace; a socket made there stays there."""
        back = _current()
        try:
            _checked(_libc.setns(self.fd, CLONE_NEWNET), "setns")
            yield self
        finally:
            _checked(_libc.setns(back, CLONE_NEWNET), "setns")
            os.close(back)

    def run(
        self, *command: str, check: bool = True, **options: object
    ) -> subprocess.CompletedProcess[str]:
        """Run a command in the namespace and return its output as text.

        Raises AssertionError if it fails, unless ``check`` is false.
        """
        options.setdefault("capture_output", True)
        with self.entered():
            done = subprocess.run(command, check=False, text=True, timeout=120, **options)  # type: ignore[call-overload]
        if check and done.returncode != 0:
            raise AssertionError(f"{' '.join(command)}: {done.returncode}: {done.stderr}")
        return done  # type: ignore[no-any-return]

    def start(self, *command: str, **options: object) -> subprocess.Popen[str]:
        """Start a command in the namespace; the caller waits for it or kills it."""
        with self.entered():
            return subprocess.Popen(command, text=True, **options)  # type: ignore[call-overload,no-any-return]

    def ip(self, *commands: str) -> None:
        """Run ip(8) for each command, whose words are separated by spaces."""
        for command in commands:
            self.run("ip", *command.split())

    def sysctl(self, value: int | str, *names: str) -> None:
        """Write a value to files below /proc/sys/net, such as "ipv4/ip_forward"."""
        with self.entered():
            for name in names:
                Path("/proc/sys/net", name).write_text(str(value))

    # Interfaces

    def add_veth(self, name: str, peer_name: str, peer: Namespace | None = None) -> None:
        """Create a veth pair: one end here, the other in ``peer``, or here too without one.

        A name may be followed by what ip(8) takes there, such as "eth0 index 2".
        """
        where = f"netns {peer.path}" if peer else ""
        self.ip(f"link add {name} type veth peer name {peer_name} {where}")

    def add_bridge(self, name: str, *ports: str) -> None:
        """Create a bridge of these ports, and set all of them up."""
        self.ip(f"link add {name} type bridge", f"link set {name} up")
        self.ip(*(f"link set {port} master {name} up" for port in ports))

    def open_tun(self, name: str) -> int:
        """Create a tun device, without link-layer headers; the device lives until the fd closes."""
        with self.entered():
            fd = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
            request = struct.pack("16sH22x", name.encode(), _IFF_TUN | _IFF_NO_PI)
            fcntl.ioctl(fd, _TUNSETIFF, request)
        return fd

    def add_addresses(self, interface: str, *addresses: str) -> None:
        """Add addresses with prefix lengths, without duplicate address detection."""
        for address in addresses:
            nodad = "nodad" if ":" in address else ""
            self.ip(f"address add {address} dev {interface} {nodad}")

    def set_up(self, interface: str, *addresses: str) -> None:
        """Add addresses to an interface, and set it up."""
        self.add_addresses(interface, *addresses)
        self.ip(f"link set {interface} up")

    def route_by(self, *gateways: str) -> None:
        """Add a default route by each gateway: one of IPv4, one of IPv6."""
        self.ip(*(f"route add default via {gateway}" for gateway in gateways))

    def add_neighbour(self, interface: str, address: str, mac: str) -> None:
        """Add or replace a permanent neighbour, for which no packet is ever sent."""
        entry = f"{address} lladdr {mac} nud permanent dev {interface}"
        self.ip(f"neighbour replace {entry}")

    def packet_socket(self, interface: str, protocol: int = 0) -> socket.socket:
        """A raw packet socket that is bound to an interface; with protocol 0 it only sends."""
        with self.entered():
            made = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(protocol))
            made.bind((interface, protocol))
        return made

    def mac(self, interface: str) -> str:
        """The link-layer address of an interface, as "02:00:00:00:00:01"."""
        with self.packet_socket(interface) as probe:
            address: bytes = probe.getsockname()[4]
        return address.hex(":")


# A namespace, the name of an interface in it, and the interface's addresses.
End = tuple[Namespace, str, *tuple[str, ...]]


class Namespaces:
    """A network of new namespaces; ``close``, or the end of a with block, closes all of them."""

    def __init__(self) -> None:
        self._added: list[Namespace] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def add(self, *, forwards: bool = False, has_ipv6: bool = True) -> Namespace:
        """Add a namespace whose kernel sends nothing unless a test makes it do so.

        Duplicate address detection and router solicitations would add packets, seconds later,
        to those that a test counts.
        """
        made = Namespace()
        self._added.append(made)
        for name in ("all", "default"):
            conf = f"ipv6/conf/{name}"
            made.sysctl(0, f"{conf}/accept_dad", f"{conf}/router_solicitations")
            if not has_ipv6:
                made.sysctl(1, f"{conf}/disable_ipv6")
        if forwards:
            made.sysctl(1, "ipv4/ip_forward", "ipv6/conf/all/forwarding")
        return made

    @staticmethod
    def join(one: End, other: End) -> None:
        """Join two namespaces by a veth pair, and set both ends up."""
        namespace, name, *addresses = one
        peer, peer_name, *peer_addresses = other
        namespace.add_veth(name, peer_name, peer)
        namespace.set_up(name, *addresses)
        peer.set_up(peer_name, *peer_addresses)

    def close(self) -> None:
        """Close all namespaces; the kernel removes their interfaces."""
        while self._added:
            self._added.pop().close()


class Network(Namespaces):
    """A client and a gateway, joined by a veth pair; the gateway is the client's default route.

    client 10.9.0.2, fd09::2 (eth0) -- (gw0) 10.9.0.1, fd09::1 gateway
    """

    client_ipv4, gateway_ipv4 = "10.9.0.2", "10.9.0.1"
    client_ipv6, gateway_ipv6 = "fd09::2", "fd09::1"
    interface = "gw0"

    def __init__(self) -> None:
        super().__init__()
        self.client, self.gateway = self.add(), self.add()
        self.join(
            (self.gateway, self.interface, "10.9.0.1/24", "fd09::1/64"),
            (self.client, "eth0", "10.9.0.2/24", "fd09::2/64"),
        )
        self.client.route_by(self.gateway_ipv4, self.gateway_ipv6)


class RoutedNetwork(Namespaces):
    """A gateway that forwards between a client behind it and a server outside.

    client 10.9.0.2, fd09::2 (eth0) -- (lan0) 10.9.0.1, fd09::1 gateway
    gateway 10.8.0.1, fd08::1 (wan0) -- (eth0) 10.8.0.2, fd08::2 server
    """

    client_ipv4, client_ipv6 = "10.9.0.2", "fd09::2"
    server_ipv4, server_ipv6 = "10.8.0.2", "fd08::2"
    inside, outside = "lan0", "wan0"

    def __init__(self) -> None:
        super().__init__()
        self.client, self.gateway, self.server = self.add(), self.add(forwards=True), self.add()
        for name, net, peer in ((self.inside, 9, self.client), (self.outside, 8, self.server)):
            self.join(
                (self.gateway, name, f"10.{net}.0.1/24", f"fd0{net}::1/64"),
                (peer, "eth0", f"10.{net}.0.2/24", f"fd0{net}::2/64"),
            )
            peer.route_by(f"10.{net}.0.1", f"fd0{net}::1")
