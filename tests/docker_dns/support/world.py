# SPDX-License-Identifier: GPL-2.0-only
"""The test world of docker-dns: Docker's network of a container, its resolver, and a server.

container 172.18.0.2 (eth0) -- (veth1) br0 172.18.0.1 host
                                           10.77.0.1 (out0) -- (eth0) 10.77.0.53 server

Docker's NAT rules in the container translate 127.0.0.11:53 to the ports of the daemon's
resolver. ``Daemon`` stands in for that and answers every question with BUILTIN_ANSWER. The
server is a dnsmasq that answers ANY_ANSWER to any name but those of its own records.
"""

from __future__ import annotations

import os
import select
import socket
import threading
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import dns.exception
import dns.message
import dns.rrset
import pytest

from tests.support import dns_server
from tests.support.netns import Namespace, Namespaces
from tests.support.tcx import skip_without_tcx
from zfw_py.docker_dns.model import Redirect
from zfw_py.docker_dns.service import DnsRedirect, RedirectOptions

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Iterator
    from contextlib import AbstractContextManager
    from pathlib import Path

    from zfw_py.docker_dns.maps import Manifest

RESOLVER = "127.0.0.11"
CONTAINER, HOST, SERVER = "172.18.0.2", "172.18.0.1", "10.77.0.53"
BUILTIN_ANSWER, ANY_ANSWER = "192.0.2.11", "198.51.100.53"
# The tools with which Docker's versions write their rules.
BACKENDS = ("iptables-nft", "iptables-legacy", "nft")
PATIENCE = 60.0


class Outside(Namespaces):
    """A host of containers, and the server beyond it."""

    def __init__(self) -> None:
        super().__init__()
        # No IPv6: its packets would be among those that tests compare.
        self.host = self.add(forwards=True, has_ipv6=False)
        self.server = self.add(has_ipv6=False)
        self.join((self.host, "out0", "10.77.0.1/24"), (self.server, "eth0", f"{SERVER}/24"))
        self.server.route_by("10.77.0.1")


class DockerNetwork(Outside):
    """The host, the server and a container on a bridge; ``Daemon`` adds the NAT rules."""

    def __init__(self) -> None:
        super().__init__()
        self.container = self.add(has_ipv6=False)
        self.host.add_bridge("br0")
        self.host.add_addresses("br0", f"{HOST}/16")
        self.add_uplink()

    def add_uplink(self) -> None:
        """Add the container's eth0 and its default route."""
        self.join((self.host, "veth1"), (self.container, "eth0", f"{CONTAINER}/16"))
        self.host.ip("link set veth1 master br0")
        self.container.route_by(HOST)

    @property
    def path(self) -> str:
        """A path that leads to the container's namespace."""
        return self.container.path


def nft_rules(udp: int, tcp: int) -> str:
    """Docker's rules for a resolver at these ports, in the syntax of nft(8)."""
    return f"""
        table ip docker-dns {{}}
        delete table ip docker-dns
        table ip docker-dns {{
            chain dns-dnat {{
                type nat hook output priority -100; policy accept;
                ip daddr {RESOLVER} udp dport 53 counter dnat to {RESOLVER}:{udp}
                ip daddr {RESOLVER} tcp dport 53 counter dnat to {RESOLVER}:{tcp}
            }}
            chain dns-snat {{
                type nat hook postrouting priority srcnat; policy accept;
                ip saddr {RESOLVER} udp sport {udp} counter snat to :53
                ip saddr {RESOLVER} tcp sport {tcp} counter snat to :53
            }}
        }}
        """


class Daemon:
    """The engine's resolver: its sockets are in the container, its process is outside."""

    def __init__(self, container: Namespace, backend: str = BACKENDS[0]) -> None:
        self.container = container
        self.backend = backend
        self.asked: list[tuple[str, str]] = []  # "udp" or "tcp", and the name in the question
        self.start()

    def start(self) -> None:
        """Bind free ports, serve them, and write the rules that translate to them."""
        with self.container.entered():
            self.udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            self.tcp = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        for each in (self.udp, self.tcp):
            each.bind((RESOLVER, 0))
        self.tcp.listen(64)
        self._stop, self._stopped = os.pipe()
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()
        self._write_rules()

    @property
    def ports(self) -> tuple[int, int]:
        """The ports of UDP and of TCP."""
        return self.udp.getsockname()[1], self.tcp.getsockname()[1]

    def remove_rules(self) -> None:
        """Remove the rules: packets to the resolver's port are translated no longer."""
        self.iptables("-F")
        self.iptables("-X")

    def close(self) -> None:
        """Close the sockets and leave the rules, as when Docker's daemon stops."""
        os.close(self._stopped)
        self._thread.join()
        os.close(self._stop)
        self.udp.close()
        self.tcp.close()

    def restart(self) -> None:
        """Close, and start at other ports."""
        before = self.ports
        self.close()
        self.start()
        assert self.ports != before

    def _write_rules(self) -> None:
        """Write the rules as resolver_unix.go of Docker's libnetwork does."""
        udp, tcp = self.ports
        if self.backend == "nft":
            self.container.run("nft", "-f", "-", input=nft_rules(udp, tcp))
            return
        if self.iptables("-S", check=False).returncode != 0:
            pytest.skip(f"no {self.backend} in this kernel")
        jumps = (("OUTPUT", "DOCKER_OUTPUT"), ("POSTROUTING", "DOCKER_POSTROUTING"))
        for hook, chain in jumps:
            jump = (hook, "-d", RESOLVER, "-j", chain)
            if self.iptables("-C", *jump, check=False).returncode == 0:
                self.iptables("-F", chain)
            else:
                self.iptables("-N", chain)
                self.iptables("-I", *jump)
        for protocol, port in (("udp", udp), ("tcp", tcp)):
            to = ("-j", "DNAT", "--to-destination", f"{RESOLVER}:{port}")
            self.iptables(
                "-I", "DOCKER_OUTPUT", "-d", RESOLVER, "-p", protocol, "--dport", "53", *to
            )
            back = ("-j", "SNAT", "--to-source", ":53")
            matched = ("-s", RESOLVER, "-p", protocol, "--sport", str(port))
            self.iptables("-I", "DOCKER_POSTROUTING", *matched, *back)

    def iptables(self, *arguments: str, check: bool = True) -> Any:
        """Run iptables in the container, for the table nat."""
        return self.container.run(self.backend, "-w", "-t", "nat", *arguments, check=check)

    def _serve(self) -> None:
        open_connections: list[socket.socket] = []
        while True:
            waited: list[Any] = [self._stop, self.udp, self.tcp, *open_connections]
            ready = select.select(waited, [], [])[0]
            if self._stop in ready:
                for each in open_connections:
                    each.close()
                return
            for each in ready:
                if each is self.udp:
                    data, address = self.udp.recvfrom(65535)
                    if answer := self._answer("udp", data):
                        self.udp.sendto(answer, address)
                elif each is self.tcp:
                    open_connections.append(self.tcp.accept()[0])
                elif not self._answer_connection(each):
                    each.close()
                    open_connections.remove(each)

    def _answer_connection(self, connection: socket.socket) -> bool:
        try:
            data = connection.recv(65535)
            if data and (answer := self._answer("tcp", data[2:])):
                connection.sendall(len(answer).to_bytes(2, "big") + answer)
        except OSError:
            return False
        return bool(data)

    def _answer(self, transport: str, data: bytes) -> bytes | None:
        try:
            query = dns.message.from_wire(data)
            (question,) = query.question
            answer = dns.message.make_response(query)
        except (dns.exception.DNSException, ValueError):
            self.asked.append((transport, ""))
            return None
        self.asked.append((transport, question.name.to_text()))
        answer.answer.append(dns.rrset.from_text(question.name, 60, "IN", "A", BUILTIN_ANSWER))
        return answer.to_wire()


class World(NamedTuple):
    """The network, the daemon, and the log of the server: a line for each query."""

    network: DockerNetwork
    daemon: Daemon
    log: Path

    @property
    def container(self) -> Namespace:
        return self.network.container

    @property
    def server(self) -> Namespace:
        return self.network.server

    def redirect(self, *domains: str, to: str = SERVER, **making: Any) -> Manifest:
        """Redirect the container's queries."""
        if making.get("mode") == "tcx":
            skip_without_tcx()
        asked = Redirect.parse(to, domains=domains, tcp=making.pop("tcp", None))
        return DnsRedirect(self.network.path).create(asked, RedirectOptions(**making))

    def addresses(self, name: str, *options: str) -> list[str]:
        """The addresses that dig gets for a name from the resolver; [] without an answer."""
        done = self.dig(name, "+short", *options)
        return done.stdout.split() if done.returncode == 0 else []

    def dig(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run dig against the resolver: three tries of 3 s each."""
        command = ("dig", f"@{RESOLVER}", "+time=3", "+tries=3", *arguments)
        return self.container.run(*command, check=False)

    @contextmanager
    def first_process(self) -> Iterator[int]:
        """A process in the container; yields the id that an engine would report for it."""
        process = self.container.start("/usr/bin/sleep", "1000")
        try:
            yield process.pid
        finally:
            process.kill()
            process.wait()

    def outcomes(self) -> dict[str, int]:
        """The number of packets by outcome, without the outcomes that have none."""
        (status,) = DnsRedirect.all()
        return {outcome: packets for outcome, (packets, _) in status.outcomes.items() if packets}


@contextmanager
def docker_world(folder: Path, backend: str = BACKENDS[0]) -> Iterator[World]:
    """The network, the daemon and the server; redirects do not outlive the with block."""
    with ExitStack() as stack:
        network = stack.enter_context(DockerNetwork())
        daemon = Daemon(network.container, backend)
        stack.callback(daemon.close)
        log = stack.enter_context(dnsmasq(network.server, folder))
        stack.callback(DnsRedirect.remove_all)
        yield World(network, daemon, log)


def dnsmasq(
    namespace: Namespace, folder: Path, *options: str, address: str = SERVER
) -> AbstractContextManager[Path]:
    """A DNS server that answers ANY_ANSWER to all names, unless options say otherwise."""
    return dns_server.dnsmasq(
        namespace,
        folder / f"dnsmasq-{address}.log",
        [address],
        "--edns-packet-max=4096",
        f"--host-record=web.example,{address}",
        "--txt-record=huge.example," + ",".join(["y" * 250] * 60),
        *(options or [f"--address=/#/{ANY_ANSWER}"]),
    )


def resolv_conf(folder: Path) -> AbstractContextManager[None]:
    """In the block /etc/resolv.conf is as in a container of Docker's."""
    text = f"nameserver {RESOLVER}\noptions ndots:0 timeout:2\n"
    return dns_server.resolv_conf(folder, text)
