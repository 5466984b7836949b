# SPDX-License-Identifier: GPL-2.0-only
"""A small stand-in for a ziti router: the commands it runs, its sockets, the addresses it adds.

It does what the router's tproxy does with a diverter: one listener on 127.0.0.1 for each service
and protocol, one process for each rule, in the same order and with the same arguments. It checks
the exit code of each process.
"""

from __future__ import annotations

import socket
import subprocess
from dataclasses import dataclass, field
from ipaddress import ip_interface
from itertools import product
from typing import TYPE_CHECKING

from tests.firewall.support.listeners import IP_RECVORIGDSTADDR, IP_TRANSPARENT, Listener
from tests.support.command import ZFW
from tests.support.waiting import PATIENCE

if TYPE_CHECKING:
    from tests.support.netns import Namespace

IPPROTO_MPTCP = 262

# The default name of a service: base58, 22 letters.
SERVICE_ID = "5XzC8mf1RrFO2vmfHGG5GL"
_KINDS = {"tcp": socket.SOCK_STREAM, "udp": socket.SOCK_DGRAM}


class CommandLine:
    """The installed command in a namespace, run as other programs run it.

    It has no shell and no terminal, an empty environment, and the directory /.
    """

    def __init__(self, namespace: Namespace) -> None:
        self._namespace = namespace

    def __call__(self, *words: str, **options: object) -> subprocess.CompletedProcess[str]:
        """Run it, and wait until it ends."""
        return self._namespace.run(
            str(ZFW), *words, check=False, env={}, cwd="/", stdin=subprocess.DEVNULL, **options
        )

    def start(self, *words: str) -> subprocess.Popen[str]:
        """Start it; the caller waits for it."""
        return self._namespace.start(
            str(ZFW),
            *words,
            env={},
            cwd="/",
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )


class DiverterFailed(Exception):
    """The diverter's exit code was not 0. The text is all that it printed."""


@dataclass
class Service:
    """A service to intercept. ``interfaces`` None means all, and () means no interface."""

    addresses: tuple[str, ...]
    ports: tuple[tuple[int, int], ...]
    protocols: tuple[str, ...] = ("tcp",)
    sources: tuple[str, ...] = ("0.0.0.0/0",)
    interfaces: tuple[str, ...] | None = None
    name: str = SERVICE_ID
    listeners: dict[str, Listener] = field(default_factory=dict, repr=False)

    def rules(self) -> list[tuple[str, ...]]:
        """The selecting arguments of each rule, in the router's order; low and high port last."""
        found = []
        for address, protocol, (low, high), interface, source in product(
            self.addresses,
            self.protocols,
            self.ports,
            self.interfaces if self.interfaces is not None else ("",),
            self.sources,
        ):
            ip, length = _split(address)
            source_ip, source_length = _split(source)
            words = ("-c", ip, "-m", length, "-p", protocol, "-o", source_ip, "-n", source_length)
            ports = ("-l", str(low), "-h", str(high))
            found.append((*words, *ports, *((interface,) if interface else ())))
        return found


def _split(address: str) -> tuple[str, str]:
    """An address with its host bits, and its prefix length; 32 for a name."""
    ip, slash, length = address.partition("/")
    return ip, length if slash else "128" if ":" in ip else "32"


class Router:
    """The router. It opens its sockets in the caller's namespace."""

    def __init__(self, namespace: Namespace) -> None:
        """Start: add the addresses for names, then ask for the diverter's version."""
        self._namespace = namespace
        self._diverter = CommandLine(namespace)
        self._services: list[Service] = []
        self._add_address("100.64.0.1/10")
        self._divert("-V")

    def _divert(self, *words: str) -> str:
        done = self._diverter(*words)
        output = done.stdout + done.stderr
        if done.returncode != 0:
            raise DiverterFailed(output)
        return output

    def _add_address(self, address: str) -> None:
        # RTM_NEWADDR; the router ignores EEXIST.
        self._namespace.run(
            "ip", "address", "add", address, "dev", "lo", "scope", "host", check=False
        )

    def _remove_address(self, address: str) -> None:
        self._namespace.run("ip", "address", "del", address, "dev", "lo", check=False)

    @staticmethod
    def _is_prefix(address: str) -> bool:
        try:
            ip_interface(address)
        except ValueError:
            return False  # a host name; its address is within 100.64.0.0/10
        return True

    def add(self, service: Service) -> None:
        """Intercept a service. Raises DiverterFailed at the first rule that fails."""
        for protocol in service.protocols:
            service.listeners[protocol] = Listener(4, _KINDS[protocol])
        self._services.append(service)
        for address in service.addresses:
            if self._is_prefix(address):
                self._add_address(address if "/" in address else "/".join(_split(address)))
        for rule in service.rules():
            protocol = rule[5]
            words, interface = rule[:14], rule[14:]
            self._divert(
                "-I",
                *words,
                "-t",
                str(service.listeners[protocol].port),
                "-s",
                service.name,
                *(("-N", *interface) if interface else ()),
            )

    def remove(self, service: Service) -> list[str]:
        """Stop to intercept a service; returns the errors, after which it goes on."""
        failures = []
        for rule in service.rules():
            words, interface = rule[:14], rule[14:]
            try:
                self._divert("-D", *words, *(("-N", *interface) if interface else ()))
            except DiverterFailed as error:
                failures.append(str(error))
        for address in service.addresses:
            if self._is_prefix(address):
                self._remove_address("/".join(_split(address)))
        for listener in service.listeners.values():
            listener.socket.close()
        self._services.remove(service)
        return failures

    def update(self, old: Service, new: Service) -> None:
        """Remove the old rules, then add the new ones, with new listeners."""
        self.remove(old)
        self.add(new)

    def crash(self) -> None:
        """Do what SIGKILL does: only the sockets are closed."""
        for service in self._services:
            for listener in service.listeners.values():
                listener.socket.close()
        self._services.clear()

    def stop(self) -> None:
        """Do what SIGTERM does: delete each rule, and the addresses."""
        for service in list(self._services):
            self.remove(service)
        self._remove_address("100.64.0.1/10")


class UdpConversation:
    """The router's UDP service: the listener receives, and another socket answers.

    That socket is bound to the original destination and not connected; it is never read from.
    """

    def __init__(self, listener: Listener) -> None:
        self._listener = listener
        self.reply_sockets: dict[tuple[str, int], socket.socket] = {}

    def answer(self) -> tuple[bytes, tuple[str, int]]:
        """Receive a datagram and answer it: its data and its original destination."""
        data, source, destination = self._listener.receive()
        if destination not in self.reply_sockets:
            reply = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            reply.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            reply.setsockopt(socket.SOL_IP, IP_TRANSPARENT, 1)
            reply.bind(destination)
            self.reply_sockets[destination] = reply
        self.reply_sockets[destination].sendto(b"answer to " + data, source)
        return data, destination

    def close(self) -> None:
        """Close the reply sockets."""
        for reply in self.reply_sockets.values():
            reply.close()


def multipath_listener() -> Listener:
    """Go's first choice: an MPTCP listener, which refuses IP_RECVORIGDSTADDR."""
    listener = Listener.__new__(Listener)
    listener.family = 4
    listener.socket = socket.socket(socket.AF_INET, socket.SOCK_STREAM, IPPROTO_MPTCP)
    listener.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.socket.setsockopt(socket.SOL_IP, IP_TRANSPARENT, 1)
    try:
        listener.socket.setsockopt(socket.SOL_IP, IP_RECVORIGDSTADDR, 1)
    except OSError:
        pass
    listener.socket.settimeout(PATIENCE)
    listener.socket.bind(("127.0.0.1", 0))
    listener.socket.listen(8)
    listener.port = listener.socket.getsockname()[1]
    return listener
