# SPDX-License-Identifier: GPL-2.0-only
"""A place for guarded programs: a namespace to run in, and a world outside to reach.

inside 10.9.0.2, fd09::2 (eth0) -- (gw0) 10.9.0.1, fd09::1 outside

Outside, dnsmasq on 10.9.0.1 and fd09::1 knows NAMES, and each address of ADDRESSES
answers TCP and UDP on the ports of PORTS with who asked. What arrives there is
captured, whatever the programs inside say of it.
"""

from __future__ import annotations

import ctypes
import itertools
import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from tests.support.cgroups import enter, private_cgroup
from tests.support.children import child, in_child, staged_child
from tests.support.netns import Network
from tests.support.waiting import wait_until
from zfw_py.guard.maps import STORE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager

ZFW = Path(sys.executable).parent / "zfw"
# By name: A and AAAA. All for NAME_TTL seconds but short.example, for SHORT_TTL.
NAMES = {
    "both.example": ("10.9.0.10", "fd09::10"),
    "v4.example": ("10.9.0.11", None),
    "v6.example": (None, "fd09::12"),
    "other.example": ("10.9.0.13", "fd09::13"),
    "short.example": ("10.9.0.14", "fd09::14"),
    "a.b.deep.example": ("10.9.0.15", "fd09::15"),
}
ALIASES = {"alias.example": "v4.example"}
# One that no name has.
UNNAMED = ("10.9.0.20", "fd09::20")
ADDRESSES = (*(a for pair in NAMES.values() for a in pair if a), *UNNAMED)
PORTS = (80, 443, 853)
NAME_TTL, SHORT_TTL = 300, 1
UPSTREAM, UPSTREAM6 = "10.9.0.1", "fd09::1"
# Of the outside as well.
LINK_LOCAL = "fe80::1"

_MS_BIND = 0x1000
_ETH_P_ALL, _IP = 3, (0x0800, 0x86DD)
_SO_RCVBUFFORCE, _SOL_PACKET, _PACKET_STATISTICS = 33, 263, 6
_TAP_BYTES = 16 << 20
_numbers = itertools.count(1)
_libc = ctypes.CDLL(None, use_errno=True)


class Arrived(NamedTuple):
    """An IP packet from inside that got outside. ``port`` is of TCP and UDP, else 0.

    ``data`` is all of it. One with no IP header has no destination.
    """

    destination: str
    protocol: int
    port: int
    data: bytes


class Attached(NamedTuple):
    """A cgroup that ``zfw guard attach`` guards, and what it warned of."""

    world: World
    cgroup: Path
    id: str
    warnings: str

    def call(self, action: Callable[[], object]) -> Any:
        """What a guarded process tells of an action; see ``in_child``."""
        return self.world.call(self.cgroup, action)

    def stages(
        self, stages: Callable[[], Iterator[object]]
    ) -> AbstractContextManager[Callable[[], Any]]:
        """A guarded process that goes on as it is told to; see ``staged_child``."""
        return self.world.stages(self.cgroup, stages)

    def status(self) -> dict[str, Any]:
        """What ``zfw guard list`` has of it."""
        listed: list[dict[str, Any]] = json.loads(self.world.zfw("list", "--json").stdout)
        (found,) = (each for each in listed if each["id"] == self.id)
        return found

    def count(self, reason: str) -> int:
        """How often this was the reason of a decision, at whatever hook."""
        return sum(each.get(reason, 0) for each in self.status()["decisions"].values())


class Shell:
    """A bash that runs what it is asked to."""

    SCRIPT = 'while read -r line; do eval "$line" 2> /dev/null; printf "\\n%s\\n" "status $?"; done'

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        assert process.stdin is not None
        assert process.stdout is not None
        self._to, self._from = process.stdin, process.stdout

    def ask(self, command: str) -> tuple[int, str]:
        """Its exit code, and what it printed on stdout."""
        self._to.write(f"{command}\n")
        self._to.flush()
        printed = ""
        for line in self._from:
            if line.startswith("status "):
                return int(line.split()[1]), printed[:-1]
            printed += line
        raise AssertionError(f"the shell has ended after {printed!r}")

    def end(self) -> None:
        """Let it end by itself."""
        self._to.close()


class World:
    """The network, the cgroup that ``zfw`` is run in, and what arrived outside."""

    def __init__(self, network: Network, cgroup: Path, folder: Path) -> None:
        self.network = network
        self.cgroup = cgroup
        self.folder = folder
        self.inside = network.client
        self.outside = network.gateway
        self.bystanders: list[int] = []

    def start(self, *command: str, **options: Any) -> subprocess.Popen[str]:
        """Start a command inside, in the world's cgroup; the caller ends it."""
        options.setdefault("stdout", subprocess.PIPE)
        options.setdefault("stderr", subprocess.PIPE)
        options.setdefault("stdin", subprocess.DEVNULL)
        return self.inside.start(*command, preexec_fn=self._begin, **options)

    def _begin(self) -> None:
        """In the new process. Whoever runs the tests may ignore what a terminal sends."""
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
        """Run a command by ``zfw guard run`` with these options, asking our DNS server."""
        return self.zfw("run", "--dns-upstream", UPSTREAM, *policy, "--", *command)

    @contextmanager
    def attached(self, *policy: str) -> Iterator[Attached]:
        """A cgroup within ours that is guarded with these options, and nobody in it yet."""
        cgroup = self.new_cgroup()
        made = self.attach(cgroup, *policy)
        yield made
        done = self.zfw("detach", made.id)
        assert (done.returncode, done.stderr) == (0, "")

    def new_cgroup(self) -> Path:
        """A cgroup within ours."""
        made = self.cgroup / f"app-{next(_numbers)}"
        made.mkdir()
        return made

    def attach(self, cgroup: Path, *policy: str) -> Attached:
        """Guard a cgroup; it stays so."""
        done = self.zfw("attach", "--cgroup", str(cgroup), "--dns-upstream", UPSTREAM, *policy)
        assert done.returncode == 0, done.stderr
        return Attached(self, cgroup, done.stdout.strip(), done.stderr)

    def call(self, cgroup: Path, action: Callable[[], object]) -> Any:
        """What a process inside, in this cgroup, tells of an action; see ``in_child``."""

        def act() -> object:
            enter(cgroup)
            with self.inside.entered():
                return action()

        return in_child(act)

    def stages(
        self, cgroup: Path, stages: Callable[[], Iterator[object]]
    ) -> AbstractContextManager[Callable[[], Any]]:
        """A process inside, in this cgroup, that goes on as it is told to; see ``staged_child``."""

        def go() -> Iterator[object]:
            enter(cgroup)
            with self.inside.entered():
                yield from stages()

        return staged_child(go)

    @contextmanager
    def shell(self, *command: str) -> Iterator[Shell]:
        """A bash that a command executes, such as zfw guard run."""
        with self.start(*command, "bash", "-c", Shell.SCRIPT, stdin=subprocess.PIPE) as process:
            try:
                yield Shell(process)
            finally:
                process.kill()

    @contextmanager
    def bystander(self, *command: str) -> Iterator[int]:
        """The id of a process in the world's cgroup that does nothing, or runs a command."""
        process = self.start(*(command or ("sleep", "1000")), stdout=None, stderr=None)
        self.bystanders.append(process.pid)
        try:
            yield process.pid
        finally:
            process.kill()
            process.wait()
            self.bystanders.remove(process.pid)

    def left(self) -> list[str]:
        """What guards have made and not taken away: pins, cgroups, processes in ours."""
        found = [path for path, _, _ in os.walk(STORE.root)][1:]
        found += [path for path, _, _ in os.walk(self.cgroup)][1:]
        for path in (str(self.cgroup), *found):
            with suppress(OSError):  # no cgroup, or removed meanwhile
                pids = (Path(path) / "cgroup.procs").read_text().split()
                found += [f"process {pid}" for pid in pids if int(pid) not in self.bystanders]
        return found

    def is_clean(self) -> bool:
        """Whether nothing is left, or nothing is very soon."""
        return wait_until(lambda: not self.left())

    @contextmanager
    def capture(self, interface: str = Network.interface) -> Iterator[list[Arrived]]:
        """What arrives outside during a with block; complete after it."""
        arrived: list[Arrived] = []
        with self.outside.entered():
            tap = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(_ETH_P_ALL))
        with tap:
            tap.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _TAP_BYTES)
            tap.bind((interface, _ETH_P_ALL))
            tap.setblocking(False)
            yield arrived
            # A packet that left is here at once: veth hands it over in the sender's context,
            # or in the softirq right after it.
            while select.select([tap], [], [], 0.2)[0]:
                data, address = tap.recvfrom(65535)
                if address[1] in _IP and address[2] != socket.PACKET_OUTGOING:
                    arrived.append(_parsed(data))
            lost = tap.getsockopt(_SOL_PACKET, _PACKET_STATISTICS, 8)
            assert int.from_bytes(lost[4:], sys.byteorder) == 0, "more arrived than was captured"


def _parsed(packet: bytes) -> Arrived:
    """By hand: what a receiver would make of it."""
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
    """Make it, with its servers; all of it goes again."""
    with ExitStack() as stack:
        network = Network()
        stack.callback(network.close)
        for address in ADDRESSES:
            length = "128" if ":" in address else "32"
            network.gateway.run("ip", "address", "add", f"{address}/{length}", "dev", "gw0")
        network.gateway.run("ip", "address", "add", f"{LINK_LOCAL}/64", "dev", "gw0", "nodad")
        cgroup = stack.enter_context(private_cgroup())
        stack.enter_context(_resolv_conf(folder))
        stack.enter_context(dnsmasq(network, folder))
        stack.enter_context(_services(network))
        yield World(network, cgroup, folder)


@contextmanager
def _resolv_conf(folder: Path) -> Iterator[None]:
    """Programs inside ask our server by themselves; seen by this process and its children."""
    made = folder / "resolv.conf"
    made.write_text(f"nameserver {UPSTREAM}\nnameserver {UPSTREAM6}\noptions timeout:2\n")
    place = os.path.realpath("/etc/resolv.conf").encode()
    if _libc.mount(bytes(made), place, None, _MS_BIND, None) != 0:
        raise OSError(
            ctypes.get_errno(), "bind /etc/resolv.conf: needs a mount namespace of its own"
        )
    try:
        yield
    finally:
        _libc.umount2(place, 2)  # MNT_DETACH


@contextmanager
def dnsmasq(network: Network, folder: Path, *options: str) -> Iterator[Path]:
    """The DNS server; its log, with a line for each query."""
    log = folder / "dnsmasq.log"
    command = [
        "/usr/sbin/dnsmasq",
        "--keep-in-foreground",
        "--conf-file=/dev/null",
        "--pid-file=",
        "--no-resolv",
        "--no-hosts",
        "--bind-interfaces",
        f"--listen-address={UPSTREAM},{UPSTREAM6}",
        "--log-queries",
        f"--log-facility={log}",
        f"--local-ttl={NAME_TTL}",
        "--user=root",
        "--local=/example/",
        "--txt-record=big.example," + ",".join(["x" * 250] * 12),
        "--txt-record=text.example,hello",
    ]
    for name, addresses in NAMES.items():
        ttl = SHORT_TTL if name == "short.example" else NAME_TTL
        values = ",".join(a for a in addresses if a)
        command.append(f"--host-record={name},{values},{ttl}")
    command += [f"--cname={alias},{name}" for alias, name in ALIASES.items()]
    process = network.gateway.start(*command, *options, stderr=subprocess.PIPE)
    try:
        _wait_for_dns(network, process)
        yield log
    finally:
        process.terminate()
        process.communicate(timeout=10)


def _wait_for_dns(network: Network, process: subprocess.Popen[str]) -> None:
    question = b"\x12\x34\x01\0\0\1\0\0\0\0\0\0\4text\7example\0\0\x10\0\1"
    deadline = time.monotonic() + 30
    with network.gateway.entered(), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.settimeout(0.1)
        probe.connect((UPSTREAM, 53))
        while True:
            try:
                probe.send(question)
                probe.recv(512)
                return
            except (TimeoutError, ConnectionRefusedError):
                if process.poll() is not None or time.monotonic() > deadline:
                    assert process.stderr is not None
                    process.kill()
                    raise AssertionError(f"no dnsmasq: {process.stderr.read()}") from None
                time.sleep(0.01)


@contextmanager
def _services(network: Network) -> Iterator[None]:
    """HTTP/1.0 on TCP and an echo on UDP, on every address of the outside.

    In a process of its own: what tests fork holds none of its sockets.
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
        # An answer comes from the address that was asked.
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
                # For those who stay: each more of theirs is answered with one.
                while data := connection.recv(4096):
                    connection.sendall(data)
            except OSError:
                pass  # the client was ended

    threading.Thread(target=serve, daemon=True).start()


def _answer_datagram(each: socket.socket) -> None:
    data, ancillary, _, address = each.recvmsg(2048, 256)
    keep = [(level, kind, value) for level, kind, value in ancillary]
    each.sendmsg([data], keep, 0, address)
