# SPDX-License-Identifier: GPL-2.0-only
"""A router in small: the commands it runs, the sockets it opens, the addresses it adds.

It does what a ziti router's tproxy does with a diverter: one listener a service
and protocol on 127.0.0.1, one process a rule, in exactly the order and with
exactly the arguments that it uses, and of each process it heeds the exit code.
"""

from __future__ import annotations

import socket
import subprocess
import sys
from dataclasses import dataclass, field
from ipaddress import ip_interface
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING

from tests.firewall.support.listeners import IP_RECVORIGDSTADDR, IP_TRANSPARENT, Listener

if TYPE_CHECKING:
    from tests.support.netns import Namespace

ZFW = Path(sys.executable).with_name("zfw")
IPPROTO_MPTCP = 262

# What a router's service is called if nothing is said: base58, 22 letters.
SERVICE_ID = "5XzC8mf1RrFO2vmfHGG5GL"
_KINDS = {"tcp": socket.SOCK_STREAM, "udp": socket.SOCK_DGRAM}


class CommandLine:
    """The installed command, run in a namespace as other programs run it.

    No shell, an empty environment, / for a directory, no terminal.
    """

    def __init__(self, namespace: Namespace) -> None:
        self._namespace = namespace

    def __call__(self, *words: str, **options: object) -> subprocess.CompletedProcess[str]:
        """Run it to its end."""
        return self._namespace.run(
            str(ZFW), *words, check=False, env={}, cwd="/", stdin=subprocess.DEVNULL, **options
        )

    def start(self, *words: str) -> subprocess.Popen[str]:
        """Run it and go on."""
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
    """The diverter did not exit with 0. The text is all that it printed."""


@dataclass
class Service:
    """What is to be intercepted. ``interfaces`` None is for all; with none, for nothing."""

    addresses: tuple[str, ...]
    ports: tuple[tuple[int, int], ...]
    protocols: tuple[str, ...] = ("tcp",)
    sources: tuple[str, ...] = ("0.0.0.0/0",)
    interfaces: tuple[str, ...] | None = None
    name: str = SERVICE_ID
    listeners: dict[str, Listener] = field(default_factory=dict, repr=False)

    def rules(self) -> list[tuple[str, ...]]:
        """The arguments that name each rule, in the router's order; then low and high port."""
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
    """An address and its length, host bits and all; a name has no mask, and gets 32."""
    ip, slash, length = address.partition("/")
    return ip, length if slash else "128" if ":" in ip else "32"


class Router:
    """The router. Its sockets are those of the namespace that the caller is in."""

    def __init__(self, namespace: Namespace) -> None:
        """As at its start: the addresses for names, then the diverter's version."""
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
        # RTM_NEWADDR; that it is there already is ignored.
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
        """No longer intercept it; what failed is logged, and the rest done."""
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
        """The old set of rules goes, then comes the new one, with listeners of its own."""
        self.remove(old)
        self.add(new)

    def crash(self) -> None:
        """Killed: its sockets are closed, and that is all."""
        for service in self._services:
            for listener in service.listeners.values():
                listener.socket.close()
        self._services.clear()

    def stop(self) -> None:
        """At SIGTERM: one delete a rule, and the addresses."""
        for service in list(self._services):
            self.remove(service)
        self._remove_address("100.64.0.1/10")


class UdpConversation:
    """How the router serves UDP: the listener hears, another socket answers.

    That one is bound, not connected, to the original destination, and nobody
    ever reads from it.
    """

    def __init__(self, listener: Listener) -> None:
        self._listener = listener
        self.reply_sockets: dict[tuple[str, int], socket.socket] = {}

    def answer(self) -> tuple[bytes, tuple[str, int]]:
        """Hear one datagram and answer it: its data and its original destination."""
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
        """The reply sockets go."""
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
    listener.socket.settimeout(5)
    listener.socket.bind(("127.0.0.1", 0))
    listener.socket.listen(8)
    listener.port = listener.socket.getsockname()[1]
    return listener
