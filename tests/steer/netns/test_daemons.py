# SPDX-License-Identifier: GPL-2.0-only
"""Real daemons, restarted under clients that connect again and again: none lands wrong.

Whatever is not steered would meet a wildcard listener on the same port, which answers WRONG.
The gap between the last connection to the old daemon and the first to the new one is printed.
"""

from __future__ import annotations

import random
import signal
import socket
import subprocess
import threading
import time
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.steer.support.gateway import managed, mapping
from tests.support.netns import Network
from tests.support.waiting import PATIENCE, wait_until
from zfw_py.steer.service import Steering

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.support.netns import Namespace

pytestmark = [pytest.mark.kernel, pytest.mark.timeout(300)]

IPV4 = Network.gateway_ipv4
RESTARTS = 3
WRONG = b"WRONG"


@contextmanager
def decoy(port: int, address: str = "0.0.0.0", text: bytes = WRONG) -> Iterator[None]:
    """What a connection meets that is not steered, in the caller's namespace."""
    with socket.socket() as listener, ExitStack() as stack:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((address, port))
        listener.listen(64)

        def answer() -> None:
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                with connection:
                    connection.sendall(text)

        thread = threading.Thread(target=answer)
        thread.start()

        def end() -> None:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()

        stack.callback(end)
        yield


class Client:
    """Asks again and again in a thread of its own; ``outcomes`` has when, and what came."""

    def __init__(self, namespace: Namespace, ask: Callable[[], bytes | None]) -> None:
        self.outcomes: list[tuple[float, bytes | None]] = []
        self._namespace, self._ask = namespace, ask
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        with self._namespace.entered():
            while not self._is_over.is_set():
                answer = self._ask()
                self.outcomes.append((time.monotonic(), answer))

    def __enter__(self) -> Client:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over.set()
        self._thread.join()

    def answers(self) -> int:
        return sum(answer is not None for _, answer in self.outcomes)

    def wait_for_more(self) -> None:
        """Until there are answers of what is there now."""
        count = self.answers()
        assert wait_until(lambda: self.answers() >= count + 20)

    def gaps(self) -> list[float]:
        """Seconds without an answer around each refusal or loss."""
        found, last, is_open = [], None, False
        for when, answer in self.outcomes:
            if answer is None:
                is_open = True
                continue
            if is_open and last is not None:
                found.append(when - last)
            last, is_open = when, False
        return found


def tcp(port: int, request: bytes = b"") -> Callable[[], bytes | None]:
    """Connects, asks, reads to the end or 100 bytes; None if it was refused or cut off."""

    def ask() -> bytes | None:
        try:
            with socket.create_connection((IPV4, port), timeout=PATIENCE) as connection:
                connection.sendall(request)
                return connection.recv(100) or None
        except (ConnectionRefusedError, ConnectionResetError, BrokenPipeError):
            time.sleep(0.001)
            return None

    return ask


def test_mappings_that_are_exchanged_never_mislead(network: Network, steering: Steering) -> None:
    """Overlapping ones, of which the same has to count before and after, by different keys."""
    wrong, right = "127.0.0.1:1111", "127.0.0.1:2222"
    around = [mapping("tcp", "any", "any", wrong), mapping("tcp", "10.0.0.0/8", "1-1000", wrong)]
    sets = [
        [*around, mapping("tcp", IPV4, "80", right)],
        [*around, mapping("tcp", "10.9.0.0/24", "80", right)],
        [*around, mapping("tcp", "10.9.0.0/24", "70-90", right)],
        [*around[:1], mapping("tcp", "0.0.0.0/0", "1-65535", right)],
        [*around[:1], mapping("tcp", IPV4, "any", right)],
    ]
    steering.apply(sets[-1])
    with (
        decoy(80),
        decoy(1111, "127.0.0.1"),
        decoy(2222, "127.0.0.1", b"RIGHT"),
        Client(network.client, tcp(80)) as client,
    ):
        for number in range(60):
            steering.apply(sets[number % len(sets)])
        client.wait_for_more()
    assert {answer for _, answer in client.outcomes} == {b"RIGHT"}
    assert client.answers() > 100


def report(name: str, client: Client) -> None:
    gaps = ", ".join(f"{1000 * gap:.0f}" for gap in client.gaps())
    print(f"{name}: {client.answers()} answers, gaps of {gaps} ms")


@contextmanager
def daemon(network: Network, log: Path, *command: str) -> Iterator[subprocess.Popen[str]]:
    """In the gateway, in the foreground; ended by its process id."""
    with log.open("a") as output:
        started = network.gateway.start(
            *command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT
        )
    try:
        yield started
        assert started.poll() is None, log.read_text()
    finally:
        started.send_signal(signal.SIGTERM)
        try:
            started.wait(30)
        except subprocess.TimeoutExpired:
            started.kill()
            started.wait()


def needs(path: str) -> str:
    if not Path(path).exists():
        pytest.fail(f"{path} is missing: scripts/setup test installs it")
    return path


def test_sshd(network: Network, steering: Steering, tmp_path: Path) -> None:
    key = tmp_path / "key"
    subprocess.run(
        ["/usr/bin/ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key)], check=True
    )
    # It insists on /run/sshd, which is the service's to make.
    start = (
        "mount -t tmpfs -o mode=755 tmpfs /run && mkdir -m 755 /run/sshd &&"
        f' exec {needs("/usr/sbin/sshd")} -D -e -f /dev/null "$@"'
    )
    command = ["/usr/bin/unshare", "--mount", "/bin/sh", "-c", start, "sshd", "-h", str(key)]
    for option in (
        "ListenAddress=127.0.0.1:2222", "PidFile=none", "UsePAM=no", "MaxStartups=1000:30:2000"
    ):  # fmt: skip
        command += ["-o", option]
    steering.add([mapping("tcp", "any", "5555", "127.0.0.1:2222")])
    with decoy(5555), Client(network.client, tcp(5555)) as client:
        for _ in range(RESTARTS):
            with daemon(network, tmp_path / "log", *command):
                client.wait_for_more()
    answers = {answer for _, answer in client.outcomes if answer}
    assert all(answer.startswith(b"SSH-2.0-") for answer in answers), answers
    report("sshd", client)


NGINX = """\
daemon off;
worker_processes 2;
pid {place}/pid;
error_log {place}/error;
events {{ worker_connections 256; }}
http {{
  access_log off;
  {temporary}
  server {{ listen 127.0.0.1:8080{option}; location / {{ return 200 "steered $remote_addr"; }} }}
}}
"""


@pytest.mark.parametrize("option", ["", " reuseport"])
def test_nginx(network: Network, steering: Steering, tmp_path: Path, option: str) -> None:
    place = tmp_path / "nginx"
    place.mkdir()
    temporary = " ".join(
        f"{kind}_temp_path {place}/{kind};"
        for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    config = place / "conf"
    config.write_text(NGINX.format(place=place, temporary=temporary, option=option))
    command = (needs("/usr/sbin/nginx"), "-e", f"{place}/error", "-c", str(config))
    steering.add([mapping("tcp", IPV4, "1-1000", "127.0.0.1:8080")])
    request = b"GET / HTTP/1.0\r\n\r\n"
    with decoy(80), Client(network.client, tcp(80, request)) as client:
        for _ in range(RESTARTS):
            with daemon(network, tmp_path / "log", *command) as started:
                client.wait_for_more()
                # New workers; the sockets stay where they are, but for those of a group.
                started.send_signal(signal.SIGHUP)
                client.wait_for_more()
    answers = {answer for _, answer in client.outcomes if answer}
    assert all(answer.startswith(b"HTTP/1.1 200 OK\r\nServer: nginx") for answer in answers)
    report(f"nginx{option}", client)
    (found,) = steering.mappings()
    assert found.state == "pending"


def udp_query() -> bytes | None:
    """Asks for a name by a connected socket, which takes answers from where it asked only."""
    number = random.getrandbits(16).to_bytes(2, "big")
    question = b"\1a\7example\0\0\1\0\1"
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.settimeout(0.03)
        client.connect((IPV4, 53))
        try:
            client.send(number + b"\1\0\0\1\0\0\0\0\0\0" + question)
            answer = client.recv(512)
        except (ConnectionRefusedError, TimeoutError):
            time.sleep(0.001)
            return None
    assert answer[:2] == number
    return answer[-4:]


DNSMASQ = (
    "/usr/sbin/dnsmasq", "--keep-in-foreground", "--conf-file=/dev/null", "--no-resolv",
    "--no-hosts", "--pid-file", "--user=root", "--listen-address=127.0.0.5", "--bind-interfaces",
    "--except-interface=nothing", "--address=/a.example/192.0.2.7",
)  # fmt: skip
UNBOUND = """\
server:
  interface: 127.0.0.5
  do-daemonize: no
  chroot: ""
  username: ""
  pidfile: ""
  directory: "{place}"
  use-syslog: no
  access-control: 0.0.0.0/0 allow
  local-zone: "example." static
  local-data: "a.example. A 192.0.2.7"
remote-control:
  control-enable: no
"""


@pytest.mark.parametrize("name", ["dnsmasq", "unbound"])
def test_dns(network: Network, steering: Steering, tmp_path: Path, name: str) -> None:
    if name == "dnsmasq":
        command: tuple[str, ...] = (needs(DNSMASQ[0]), *DNSMASQ[1:])
    else:
        config = tmp_path / "unbound.conf"
        config.write_text(UNBOUND.format(place=tmp_path))
        command = (needs("/usr/sbin/unbound"), "-d", "-c", str(config))
    steering.add([mapping("udp", IPV4, "53", "127.0.0.5:53")])
    with (
        managed(),
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as wrong,
        Client(network.client, udp_query) as client,
    ):
        wrong.bind(("127.0.0.9", 53))
        for _ in range(RESTARTS):
            with daemon(network, tmp_path / "log", *command):
                client.wait_for_more()
    assert {answer for _, answer in client.outcomes if answer} == {bytes((192, 0, 2, 7))}
    report(name, client)
