# SPDX-License-Identifier: GPL-2.0-only
"""A container's network as Docker lays it out, its daemon's resolver, and a server to choose.

container 172.18.0.2 (eth0) -- (veth1) br0 172.18.0.1 host
                                           10.77.0.1 (out0) -- (eth0) 10.77.0.53 server

In the container NAT rules of Docker's turn 127.0.0.11:53 into the ports that the
stand-in of its daemon has there. It answers every question with BUILTIN_ANSWER;
the server is a dnsmasq, which knows NAMES and answers ANY_ANSWER to all else.
"""

from __future__ import annotations

import ctypes
import os
import select
import socket
import threading
import time
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import dns.exception
import dns.message
import dns.rrset
import pytest

from tests.support.daemons import running
from tests.support.netns import Namespace
from tests.support.tcx import skip_without_tcx
from zfw_py.docker_dns import service as redirects
from zfw_py.docker_dns.model import parse_redirect
from zfw_py.docker_dns.service import Making

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Iterator

    from zfw_py.docker_dns.maps import About

RESOLVER = "127.0.0.11"
CONTAINER, HOST, SERVER = "172.18.0.2", "172.18.0.1", "10.77.0.53"
BUILTIN_ANSWER, ANY_ANSWER = "192.0.2.11", "198.51.100.53"
# What a rule set is made with, as Docker does it.
BACKENDS = ("iptables-nft", "iptables-legacy", "nft")
PATIENCE = 60.0

_MS_BIND = 0x1000
_libc = ctypes.CDLL(None, use_errno=True)


class Outside:
    """A host of containers, and the server beyond it."""

    def __init__(self) -> None:
        self.host, self.server = Namespace(), Namespace()
        for namespace in (self.host, self.server):
            _disable_ipv6(namespace)
        with self.host.entered():
            Path("/proc/sys/net/ipv4/ip_forward").write_text("1")
        self._pair("out0", self.server)
        _ip(self.host, "address add 10.77.0.1/24 dev out0")
        _ip(self.server, f"address add {SERVER}/24 dev eth0", "link set eth0 up")
        _ip(self.server, "route add default via 10.77.0.1")

    def _pair(self, name: str, peer: Namespace) -> None:
        place = f"/proc/{os.getpid()}/fd/{peer.fd}"
        _ip(self.host, f"link add {name} type veth peer name eth0 netns {place}")
        _ip(self.host, f"link set {name} up")

    def close(self) -> None:
        """Both go."""
        for namespace in (self.host, self.server):
            namespace.close()


class DockerNetwork(Outside):
    """The three namespaces, joined; NAT rules come with the daemon."""

    def __init__(self) -> None:
        super().__init__()
        self.container = Namespace()
        _disable_ipv6(self.container)
        _ip(self.host, "link add br0 type bridge", "link set br0 up")
        _ip(self.host, f"address add {HOST}/16 dev br0")
        self.add_uplink()

    def add_uplink(self) -> None:
        """The container's eth0, and the way out by it."""
        self._pair("veth1", self.container)
        _ip(self.host, "link set veth1 master br0")
        _ip(self.container, f"address add {CONTAINER}/16 dev eth0", "link set eth0 up")
        _ip(self.container, f"route add default via {HOST}")

    @property
    def path(self) -> str:
        """A path that leads to the container's namespace."""
        return f"/proc/{os.getpid()}/fd/{self.container.fd}"

    def close(self) -> None:
        """All three go."""
        self.container.close()
        super().close()


def _disable_ipv6(namespace: Namespace) -> None:
    """No packets of it in what a test compares."""
    with namespace.entered():
        for name in ("all", "default"):
            Path(f"/proc/sys/net/ipv6/conf/{name}/disable_ipv6").write_text("1")


def _ip(namespace: Namespace, *commands: str) -> None:
    for command in commands:
        namespace.run("ip", *command.split())


def nft_rules(udp: int, tcp: int) -> str:
    """Docker's rules, for a daemon at these ports."""
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
    """The engine's resolver: sockets in the container, held by a process outside of it."""

    def __init__(self, container: Namespace, backend: str = BACKENDS[0]) -> None:
        self.container = container
        self.backend = backend
        self.asked: list[tuple[str, str]] = []  # "udp" or "tcp", and the name
        self.start()

    def start(self) -> None:
        """At ports that are free, with rules that lead there."""
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
        """Of UDP and TCP."""
        return self.udp.getsockname()[1], self.tcp.getsockname()[1]

    def remove_rules(self) -> None:
        """The resolver's port is nothing but itself."""
        self.iptables("-F")
        self.iptables("-X")

    def close(self) -> None:
        """The sockets go; the rules stay, as they do when Docker's daemon stops."""
        os.close(self._stopped)
        self._thread.join()
        os.close(self._stop)
        self.udp.close()
        self.tcp.close()

    def restart(self) -> None:
        """Again, at other ports, with other rules."""
        before = self.ports
        self.close()
        self.start()
        assert self.ports != before

    def _write_rules(self) -> None:
        """As resolver_unix.go of Docker's libnetwork writes them."""
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
        """Change or show its rules."""
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


def joined(path: str) -> Namespace:
    """A namespace that is there already, by a path that leads to it."""
    made = Namespace.__new__(Namespace)
    made.fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    return made


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

    def redirect(self, *domains: str, to: str = SERVER, **making: Any) -> About:
        """Redirect the container's queries."""
        if making.get("mode") == "tcx":
            skip_without_tcx()
        asked = parse_redirect(to, domains=domains, tcp=making.pop("tcp", None))
        return redirects.redirect(redirects.of_path(self.network.path), asked, Making(**making))

    def addresses(self, name: str, *options: str) -> list[str]:
        """What dig gets for a name from the resolver's address; [] for no answer."""
        done = self.dig(name, "+short", *options)
        return done.stdout.split() if done.returncode == 0 else []

    def dig(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Ask the resolver's address, three times for 3 s."""
        command = ("dig", f"@{RESOLVER}", "+time=3", "+tries=3", *arguments)
        return self.container.run(*command, check=False)

    @contextmanager
    def first_process(self) -> Iterator[int]:
        """What an engine would call the container's; its id."""
        process = self.container.start("/usr/bin/sleep", "1000")
        try:
            yield process.pid
        finally:
            process.kill()
            process.wait()

    def outcomes(self) -> dict[str, int]:
        """How many packets had what outcome, of those that occurred."""
        (status,) = redirects.redirects()
        return {outcome: packets for outcome, (packets, _) in status.outcomes.items() if packets}


@contextmanager
def docker_world(folder: Path, backend: str = BACKENDS[0]) -> Iterator[World]:
    """Make it; all of it goes again, and so do redirects."""
    with ExitStack() as stack:
        network = DockerNetwork()
        stack.callback(network.close)
        daemon = Daemon(network.container, backend)
        stack.callback(daemon.close)
        log = stack.enter_context(dnsmasq(network.server, folder))
        stack.callback(redirects.remove_all)
        yield World(network, daemon, log)


@contextmanager
def dnsmasq(
    namespace: Namespace, folder: Path, *options: str, address: str = SERVER
) -> Iterator[Path]:
    """The server; its log."""
    log = folder / f"dnsmasq-{address}.log"
    command = [
        "/usr/sbin/dnsmasq",
        "--keep-in-foreground",
        "--conf-file=/dev/null",
        "--pid-file=",
        "--no-resolv",
        "--no-hosts",
        "--bind-interfaces",
        f"--listen-address={address}",
        "--log-queries",
        f"--log-facility={log}",
        "--user=root",
        "--edns-packet-max=4096",
        f"--host-record=web.example,{address}",
        "--txt-record=big.example," + ",".join(["x" * 250] * 12),
        "--txt-record=huge.example," + ",".join(["y" * 250] * 60),
        *(options or [f"--address=/#/{ANY_ANSWER}"]),
    ]
    with running(namespace, folder / f"dnsmasq-{address}.err", *command):
        _wait_for_dns(namespace, address)
        yield log


def _wait_for_dns(namespace: Namespace, address: str) -> None:
    question = dns.message.make_query("ready.example", "A").to_wire()
    deadline = time.monotonic() + PATIENCE
    with namespace.entered(), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.settimeout(0.1)
        probe.connect((address, 53))
        while True:
            try:
                probe.send(question)
                probe.recv(512)
                return
            except (TimeoutError, ConnectionRefusedError):
                assert time.monotonic() < deadline, "no dnsmasq"
                time.sleep(0.01)


@contextmanager
def resolv_conf(folder: Path) -> Iterator[None]:
    """As in a container of Docker's; seen by this process and its children."""
    made = folder / "resolv.conf"
    made.write_text(f"nameserver {RESOLVER}\noptions ndots:0 timeout:2\n")
    place = os.path.realpath("/etc/resolv.conf").encode()
    if _libc.mount(bytes(made), place, None, _MS_BIND, None) != 0:
        raise OSError(ctypes.get_errno(), "bind /etc/resolv.conf")
    try:
        yield
    finally:
        _libc.umount2(place, 2)  # MNT_DETACH
