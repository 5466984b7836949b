# SPDX-License-Identifier: GPL-2.0-only
"""The guard's test world: a namespace for guarded programs, and servers outside for them.

inside 10.9.0.2, fd09::2 (eth0) -- (gw0) 10.9.0.1, fd09::1 outside

Outside, dnsmasq on 10.9.0.1 and fd09::1 knows NAMES. Each address of ADDRESSES answers TCP and
UDP on the ports of PORTS with the client's address. ``World.capture`` shows which packets
really arrived outside.
"""

from __future__ import annotations

import itertools
import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from tests.support.cgroups import enter, private_cgroup
from tests.support.children import child, in_child, staged_child
from tests.support.command import ZFW
from tests.support.dns_server import dnsmasq, resolv_conf
from tests.support.netns import Network
from tests.support.sockets import tcp_socket
from tests.support.waiting import wait_until
from zfw_py.guard.maps import STORE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager

# Name: its A and its AAAA record. The TTL is NAME_TTL, and SHORT_TTL for short.example.
NAMES = {
    "both.example": ("10.9.0.10", "fd09::10"),
    "v4.example": ("10.9.0.11", None),
    "v6.example": (None, "fd09::12"),
    "other.example": ("10.9.0.13", "fd09::13"),
    "short.example": ("10.9.0.14", "fd09::14"),
    "a.b.deep.example": ("10.9.0.15", "fd09::15"),
}
ALIASES = {"alias.example": "v4.example"}
# A host that has no name.
UNNAMED = ("10.9.0.20", "fd09::20")
ADDRESSES = (*(a for pair in NAMES.values() for a in pair if a), *UNNAMED)
PORTS = (80, 443, 853)
NAME_TTL, SHORT_TTL = 300, 1
UPSTREAM, UPSTREAM6 = "10.9.0.1", "fd09::1"
# One more address of the outside.
LINK_LOCAL = "fe80::1"

_ETH_P_ALL, _IP = 3, (0x0800, 0x86DD)
_SO_RCVBUFFORCE, _SOL_PACKET, _PACKET_STATISTICS = 33, 263, 6
# Seconds in which a watcher has ended.
_MOMENT = 2.0
_TAP_BYTES = 16 << 20
_numbers = itertools.count(1)


class Arrived(NamedTuple):
    """A packet from inside that arrived outside: destination, protocol, port and all its bytes.

    ``port`` is 0 unless the protocol is TCP or UDP. ``destination`` is "" without an IP header.
    """

    destination: str
    protocol: int
    port: int
    data: bytes


class Attached(NamedTuple):
    """A cgroup that ``zfw guard attach`` guards, and the warnings that it printed."""

    world: World
    cgroup: Path
    id: str
    warnings: str

    def call(self, action: Callable[[], object]) -> Any:
        """Call an action in a guarded process and return its result; see ``in_child``."""
        return self.world.call(self.cgroup, action)

    def stages(
        self, stages: Callable[[], Iterator[object]]
    ) -> AbstractContextManager[Callable[[], Any]]:
        """A guarded process that runs to its next stage on demand; see ``staged_child``."""
        return self.world.stages(self.cgroup, stages)

    def status(self) -> dict[str, Any]:
        """This guard's object in ``zfw guard list --json``."""
        listed: list[dict[str, Any]] = json.loads(self.world.zfw("list", "--json").stdout)
        (found,) = (each for each in listed if each["id"] == self.id)
        return found

    def count(self, reason: str) -> int:
        """The number of decisions with this reason, at all hooks together."""
        return sum(each.get(reason, 0) for each in self.status()["decisions"].values())


class Shell:
    """A bash that runs one command after another."""

    SCRIPT = 'while read -r line; do eval "$line" 2> /dev/null; printf "\\n%s\\n" "status $?"; done'

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        assert process.stdin is not None
        assert process.stdout is not None
        self._to, self._from = process.stdin, process.stdout

    def ask(self, command: str) -> tuple[int, str]:
        """Run a command; its exit code, and what it printed on stdout."""
        self._to.write(f"{command}\n")
        self._to.flush()
        printed = ""
        for line in self._from:
            if line.startswith("status "):
                return int(line.split()[1]), printed[:-1]
            printed += line
        raise AssertionError(f"the shell has ended after {printed!r}")

    def end(self) -> None:
        """Close the shell's stdin, so that it exits."""
        self._to.close()


class World:
    """The network, the cgroup in which ``zfw`` runs, and a capture of what arrives outside."""

    def __init__(self, network: Network, cgroup: Path, folder: Path) -> None:
        self.network = network
        self.cgroup = cgroup
        self.folder = folder
        self.inside = network.client
        self.outside = network.gateway
        self.bystanders: list[int] = []

    def start(self, *command: str, **options: Any) -> subprocess.Popen[str]:
        """Start a command inside, in the world's cgroup; the caller waits for it or kills it."""
        options.setdefault("stdout", subprocess.PIPE)
        options.setdefault("stderr", subprocess.PIPE)
        options.setdefault("stdin", subprocess.DEVNULL)
        return self.inside.start(*command, preexec_fn=self._begin, **options)

    def _begin(self) -> None:
        """In the new process: enter the cgroup, and reset signals that pytest's parent ignores."""
        enter(self.cgroup)
        for number in (signal.SIGINT, signal.SIGQUIT, signal.SIGHUP):
            signal.signal(number, signal.SIG_DFL)

    def run(self, *command: str, **options: Any) -> subprocess.CompletedProcess[str]:
        """Run a command inside, in the world's cgroup, to its end."""
        process = self.start(*command, **options)
        try:
            out, err = process.communicate(timeout=60)
        except subprocess.TimeoutExpired:
            process.kill()
            raise
        return subprocess.CompletedProcess(command, process.returncode, out, err)

    def zfw(self, *arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
        """Run ``zfw guard``."""
        return self.run(str(ZFW), "guard", *arguments, **options)

    def guarded(self, policy: list[str], *command: str) -> subprocess.CompletedProcess[str]:
        """Run a command by ``zfw guard run`` with these options and the DNS server outside."""
        return self.zfw("run", "--dns-upstream", UPSTREAM, *policy, "--", *command)

    @contextmanager
    def attached(self, *policy: str) -> Iterator[Attached]:
        """A new cgroup within the world's, without a process, guarded with these options."""
        cgroup = self.new_cgroup()
        made = self.attach(cgroup, *policy)
        yield made
        done = self.zfw("detach", made.id)
        assert (done.returncode, done.stderr) == (0, "")

    def new_cgroup(self) -> Path:
        """A new cgroup within the world's."""
        made = self.cgroup / f"app-{next(_numbers)}"
        made.mkdir()
        return made

    def attach(self, cgroup: Path, *policy: str) -> Attached:
        """Guard a cgroup, beyond the end of this call."""
        done = self.zfw("attach", "--cgroup", str(cgroup), "--dns-upstream", UPSTREAM, *policy)
        assert done.returncode == 0, done.stderr
        return Attached(self, cgroup, done.stdout.strip(), done.stderr)

    def call(self, cgroup: Path, action: Callable[[], object]) -> Any:
        """Call an action in a process inside, in this cgroup; see ``in_child``."""

        def act() -> object:
            enter(cgroup)
            with self.inside.entered():
                return action()

        return in_child(act)

    def stages(
        self, cgroup: Path, stages: Callable[[], Iterator[object]]
    ) -> AbstractContextManager[Callable[[], Any]]:
        """A process inside, in this cgroup, that runs in stages; see ``staged_child``."""

        def go() -> Iterator[object]:
            enter(cgroup)
            with self.inside.entered():
                yield from stages()

        return staged_child(go)

    @contextmanager
    def shell(self, *command: str) -> Iterator[Shell]:
        """A bash that a command such as ``zfw guard run`` executes."""
        with self.start(*command, "bash", "-c", Shell.SCRIPT, stdin=subprocess.PIPE) as process:
            try:
                yield Shell(process)
            finally:
                process.kill()

    @contextmanager
    def bystander(self, *command: str) -> Iterator[int]:
        """A process in the world's cgroup that sleeps, or runs a command; yields its id."""
        process = self.start(*(command or ("sleep", "1000")), stdout=None, stderr=None)
        self.bystanders.append(process.pid)
        try:
            yield process.pid
        finally:
            process.kill()
            process.wait()
            self.bystanders.remove(process.pid)

    def left(self) -> list[str]:
        """Pins, cgroups and processes that guards have created and not removed.

        A watcher ends a moment after its guard is removed: it is waited for.
        """
        found: list[str] = []

        def is_settled() -> bool:
            nonlocal found
            found = self._left()
            return not any(each.startswith("process ") for each in found)

        wait_until(is_settled, _MOMENT)
        return found

    def _left(self) -> list[str]:
        found = [path for path, _, _ in os.walk(STORE.root)][1:]
        found += [path for path, _, _ in os.walk(self.cgroup)][1:]
        for path in (str(self.cgroup), *found):
            with suppress(OSError):  # no cgroup, or removed meanwhile
                pids = (Path(path) / "cgroup.procs").read_text().split()
                found += [f"process {pid}" for pid in pids if int(pid) not in self.bystanders]
        return found

    def is_clean(self) -> bool:
        """Whether nothing is left, now or after a while."""
        return wait_until(lambda: not self.left())

    @contextmanager
    def capture(self, interface: str = Network.interface) -> Iterator[list[Arrived]]:
        """The packets that arrive outside during a with block; the list is complete after it."""
        arrived: list[Arrived] = []
        with self.outside.entered():
            tap = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(_ETH_P_ALL))
        with tap:
            tap.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _TAP_BYTES)
            tap.bind((interface, _ETH_P_ALL))
            tap.setblocking(False)
            yield arrived
            # A packet that was sent has arrived: veth delivers it in the sender's context, or
            # in the softirq right after it.
            while select.select([tap], [], [], 0.2)[0]:
                data, address = tap.recvfrom(65535)
                if address[1] in _IP and address[2] != socket.PACKET_OUTGOING:
                    arrived.append(_parsed(data))
            lost = tap.getsockopt(_SOL_PACKET, _PACKET_STATISTICS, 8)
            assert int.from_bytes(lost[4:], sys.byteorder) == 0, "more arrived than was captured"


def _parsed(packet: bytes) -> Arrived:
    """Parse a packet as its receiver does, without the parsers that are tested."""
    version = packet[0] >> 4
    if version == 4 and len(packet) >= 20:
        header, protocol = (packet[0] & 15) * 4, packet[9]
        destination = socket.inet_ntop(socket.AF_INET, packet[16:20])
    elif version == 6 and len(packet) >= 40:
        header, protocol = 40, packet[6]
        destination = socket.inet_ntop(socket.AF_INET6, packet[24:40])
    else:
        return Arrived("", 0, 0, packet)
    port = 0
    if protocol in (socket.IPPROTO_TCP, socket.IPPROTO_UDP):
        port = int.from_bytes(packet[header + 2 : header + 4], "big")
    return Arrived(destination, protocol, port, packet)


@contextmanager
def world(folder: Path) -> Iterator[World]:
    """The network, a cgroup and the servers, for the length of a with block."""
    with ExitStack() as stack:
        network = stack.enter_context(Network())
        hosts = (f"{one}/{128 if ':' in one else 32}" for one in ADDRESSES)
        network.gateway.add_addresses(Network.interface, *hosts, f"{LINK_LOCAL}/64")
        cgroup = stack.enter_context(private_cgroup())
        servers = f"nameserver {UPSTREAM}\nnameserver {UPSTREAM6}\n"
        stack.enter_context(resolv_conf(folder, f"{servers}options timeout:2\n"))
        stack.enter_context(_names(network, folder))
        stack.enter_context(_services(network))
        yield World(network, cgroup, folder)


def _names(network: Network, folder: Path) -> AbstractContextManager[Path]:
    """The DNS server outside; its log is dnsmasq.log in the folder."""
    options = [f"--local-ttl={NAME_TTL}", "--local=/example/", "--txt-record=text.example,hello"]
    for name, addresses in NAMES.items():
        ttl = SHORT_TTL if name == "short.example" else NAME_TTL
        values = ",".join(a for a in addresses if a)
        options.append(f"--host-record={name},{values},{ttl}")
    options += [f"--cname={alias},{name}" for alias, name in ALIASES.items()]
    log = folder / "dnsmasq.log"
    return dnsmasq(network.gateway, log, [UPSTREAM, UPSTREAM6], *options)


@contextmanager
def _services(network: Network) -> Iterator[None]:
    """HTTP/1.0 on TCP and an echo on UDP, on every address of the outside.

    The servers run in another process, so that a process that a test forks has none of their
    sockets.
    """

    def start() -> None:
        with network.gateway.entered():
            listening = [
                _listening(port, kind)
                for port in PORTS
                for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM)
            ]
        threading.Thread(target=_serve, args=[listening], daemon=True).start()

    with child(start):
        yield


def _listening(port: int, kind: socket.SocketKind) -> socket.socket:
    made = socket.socket(socket.AF_INET6, kind)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    if kind == socket.SOCK_DGRAM:
        # An answer has the source address to which the question was sent.
        made.setsockopt(socket.SOL_IP, 8, 1)  # IP_PKTINFO
        made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO, 1)
    made.bind(("::", port))
    if kind == socket.SOCK_STREAM:
        made.listen(64)
    return made


def _serve(listening: list[socket.socket]) -> None:
    answers: dict[int, Callable[[socket.socket], None]] = {
        socket.SOCK_STREAM: _answer_connection,
        socket.SOCK_DGRAM: _answer_datagram,
    }
    while True:
        for each in select.select(listening, [], [])[0]:
            answers[each.type](each)


def _answer_connection(listener: socket.socket) -> None:
    connection, address = listener.accept()

    def serve() -> None:
        with connection:
            connection.settimeout(30)
            body = f"{address[0]}\n".encode()
            try:
                connection.recv(4096)
                head = b"HTTP/1.0 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body)
                connection.sendall(head + body)
                # Answer each later message on the connection with the same message.
                while data := connection.recv(4096):
                    connection.sendall(data)
            except OSError:
                pass  # the client was ended

    threading.Thread(target=serve, daemon=True).start()


def _answer_datagram(each: socket.socket) -> None:
    data, ancillary, _, address = each.recvmsg(2048, 256)
    keep = [(level, kind, value) for level, kind, value in ancillary]
    each.sendmsg([data], keep, 0, address)


def echo_stream(family: int | str, address: str) -> socket.socket:
    """A connection to the HTTP server of the outside, which goes on as an echo."""
    made = tcp_socket(family)
    made.connect((address, 80))
    made.sendall(b"GET /")
    while not made.recv(4096).endswith(b"\n"):
        pass
    return made
