# SPDX-License-Identifier: GPL-2.0-only
"""Network namespaces for tests: made, entered, and gone when they are closed.

Not by ``ip netns exec``: it mounts another /sys, which hides bpffs.
"""

from __future__ import annotations

import ctypes
import os
import subprocess
import threading
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

CLONE_NEWNS = 0x00020000
CLONE_NEWNET = 0x40000000
MS_REC, MS_PRIVATE = 0x4000, 0x40000

_libc = ctypes.CDLL(None, use_errno=True)


def _checked(result: int, what: str) -> None:
    if result != 0:
        errno = ctypes.get_errno()
        raise OSError(errno, f"{what}: {os.strerror(errno)}")


def use_private_bpffs(path: str = "/sys/fs/bpf") -> None:
    """Leave the machine's mounts, for this whole process, and mount a bpffs of our own."""
    _checked(_libc.unshare(CLONE_NEWNS), "unshare")
    _checked(_libc.mount(b"none", b"/", None, MS_REC | MS_PRIVATE, None), "make mounts private")
    _checked(_libc.mount(b"bpf", path.encode(), b"bpf", 0, b"mode=700"), "mount bpffs")


def _current() -> int:
    return os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)


class Namespace:
    """A network namespace of our own, with ``lo`` up; it lives until ``close``."""

    def __init__(self) -> None:
        """Make it, in a thread of its own: this thread stays where it is."""
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

    def close(self) -> None:
        """Let go of it; the kernel removes it with its interfaces when nothing uses it."""
        os.close(self.fd)
        self.fd = -1

    @contextmanager
    def entered(self) -> Iterator[Namespace]:
        """This thread is in the namespace; sockets made here stay here."""
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
        """Run a command in the namespace; its output is text in the result."""
        options.setdefault("capture_output", True)
        with self.entered():
            done = subprocess.run(command, check=False, text=True, timeout=120, **options)  # type: ignore[call-overload]
        if check and done.returncode != 0:
            raise AssertionError(f"{' '.join(command)}: {done.returncode}: {done.stderr}")
        return done  # type: ignore[no-any-return]

    def start(self, *command: str, **options: object) -> subprocess.Popen[str]:
        """Start a command in the namespace; the caller ends it."""
        with self.entered():
            return subprocess.Popen(command, text=True, **options)  # type: ignore[call-overload,no-any-return]


class Network:
    """A client and a gateway, joined by a veth pair; the gateway is the client's default route.

    client 10.9.0.2, fd09::2 (eth0) -- (gw0) 10.9.0.1, fd09::1 gateway
    """

    client_ipv4, gateway_ipv4 = "10.9.0.2", "10.9.0.1"
    client_ipv6, gateway_ipv6 = "fd09::2", "fd09::1"
    interface = "gw0"

    def __init__(self) -> None:
        """Make both and wait for nothing: duplicate address detection is off.

        Nor does anybody ask for routers, seconds later, into what a test counts.
        """
        self.client, self.gateway = Namespace(), Namespace()
        for namespace in (self.client, self.gateway):
            with namespace.entered():
                for name in ("all", "default"):
                    Path(f"/proc/sys/net/ipv6/conf/{name}/accept_dad").write_text("0")
                    Path(f"/proc/sys/net/ipv6/conf/{name}/router_solicitations").write_text("0")
        self.gateway.run(
            "ip",
            "link",
            "add",
            "gw0",
            "type",
            "veth",
            "peer",
            "name",
            "eth0",
            "netns",
            f"/proc/{os.getpid()}/fd/{self.client.fd}",
        )
        self.gateway.run("ip", "address", "add", "10.9.0.1/24", "dev", "gw0")
        self.gateway.run("ip", "address", "add", "fd09::1/64", "dev", "gw0", "nodad")
        self.gateway.run("ip", "link", "set", "gw0", "up")
        self.client.run("ip", "address", "add", "10.9.0.2/24", "dev", "eth0")
        self.client.run("ip", "address", "add", "fd09::2/64", "dev", "eth0", "nodad")
        self.client.run("ip", "link", "set", "eth0", "up")
        self.client.run("ip", "route", "add", "default", "via", "10.9.0.1")
        self.client.run("ip", "-6", "route", "add", "default", "via", "fd09::1")

    def close(self) -> None:
        """Both namespaces go, and the veth pair with them."""
        self.client.close()
        self.gateway.close()


class RoutedNetwork:
    """A gateway that forwards between a client behind it and a server outside.

    client 10.9.0.2, fd09::2 (eth0) -- (lan0) 10.9.0.1, fd09::1 gateway
    gateway 10.8.0.1, fd08::1 (wan0) -- (eth0) 10.8.0.2, fd08::2 server
    """

    client_ipv4, client_ipv6 = "10.9.0.2", "fd09::2"
    server_ipv4, server_ipv6 = "10.8.0.2", "fd08::2"
    inside, outside = "lan0", "wan0"

    def __init__(self) -> None:
        """Make all three; duplicate address detection is off, forwarding on."""
        self.client, self.gateway, self.server = Namespace(), Namespace(), Namespace()
        for namespace in (self.client, self.gateway, self.server):
            with namespace.entered():
                for name in ("all", "default"):
                    Path(f"/proc/sys/net/ipv6/conf/{name}/accept_dad").write_text("0")
        with self.gateway.entered():
            Path("/proc/sys/net/ipv4/ip_forward").write_text("1")
            Path("/proc/sys/net/ipv6/conf/all/forwarding").write_text("1")
        for name, net, peer in (
            (self.inside, 9, self.client),
            (self.outside, 8, self.server),
        ):
            place = f"/proc/{os.getpid()}/fd/{peer.fd}"
            pair = ("type", "veth", "peer", "name", "eth0", "netns", place)
            self.gateway.run("ip", "link", "add", name, *pair)
            for namespace, interface, host in ((self.gateway, name, 1), (peer, "eth0", 2)):
                addresses = (f"10.{net}.0.{host}/24", f"fd0{net}::{host}/64")
                for address in addresses:
                    namespace.run("ip", "address", "add", address, "dev", interface)
                namespace.run("ip", "link", "set", interface, "up")
            peer.run("ip", "route", "add", "default", "via", f"10.{net}.0.1")
            peer.run("ip", "-6", "route", "add", "default", "via", f"fd0{net}::1")

    def close(self) -> None:
        """All three go."""
        for namespace in (self.client, self.gateway, self.server):
            namespace.close()
