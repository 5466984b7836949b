# SPDX-License-Identifier: GPL-2.0-only
"""What an older version made and left running is taken over while traffic goes on.

The older version is built from this repository's history and run as its users run it. What
follows an upgrade is this version's command, as its users type it.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
import time
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.docker_dns.support.world import ANY_ANSWER, SERVER, docker_world
from tests.guard.support.world import UPSTREAM, ZFW
from tests.guard.support.world import world as guard_world
from tests.lifecycle.support import older
from tests.steer.support.gateway import connected, datagrams, listen
from tests.support.netns import Network
from tests.support.sockets import udp_socket
from tests.support.waiting import PATIENCE, wait_until
from zfw_py import Firewall
from zfw_py.docker_dns.service import DnsRedirect
from zfw_py.firewall import programs as firewall_programs
from zfw_py.firewall.maps import STORE as FIREWALL_STORE
from zfw_py.guard.maps import STORE as GUARD_STORE
from zfw_py.kernel.own_netns import netns_cookie
from zfw_py.steer.maps import STORE as STEER_STORE
from zfw_py.steer.service import Steering

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.guard.support.world import World as GuardWorld
    from tests.support.netns import Namespace

IPV4 = Network.gateway_ipv4

pytestmark = pytest.mark.kernel


@pytest.fixture(scope="module")
def older_version(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return older.build(tmp_path_factory.mktemp("older"))


@pytest.fixture
def network(_private_bpffs: None) -> Iterator[Network]:
    made = Network()
    try:
        with made.gateway.entered():
            yield made
    finally:
        made.close()


def run(*arguments: str, expected: int = 0) -> str:
    """Run a command line where this thread is; what it prints."""
    done = subprocess.run(arguments, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == expected, done.stderr
    return done.stdout


def pins(directory: str) -> list[str]:
    return sorted(path.name for path in Path(directory).iterdir())


@contextmanager
def conversation(
    client: Namespace, address: str, port: int, listener: socket.socket
) -> Iterator[Any]:
    """A connection on which bytes go both ways all the time, without one that is lost."""
    stop = threading.Event()
    failures: list[BaseException] = []
    rounds = [0]
    with connected(client, address, port) as ours:
        theirs = listener.accept()[0]
        ours.settimeout(PATIENCE)
        theirs.settimeout(PATIENCE)

        def talk() -> None:
            try:
                while not stop.is_set():
                    ours.sendall(b"question")
                    assert theirs.recv(64) == b"question"
                    theirs.sendall(b"answer")
                    assert ours.recv(64) == b"answer"
                    rounds[0] += 1
            except BaseException as error:  # noqa: BLE001 - raised below
                failures.append(error)

        thread = threading.Thread(target=talk)
        thread.start()
        try:
            yield rounds
            before = rounds[0]
            assert wait_until(lambda: bool(failures) or rounds[0] > before + 10)
        finally:
            stop.set()
            thread.join()
            theirs.close()
    if failures:
        raise failures[0]


# The firewall


def running(directory: str) -> list[int | None]:
    """The ids of the firewall's programs, as the kernel runs them."""
    return [each.program_id() for each in firewall_programs.SYSTEM.attachments(directory)]


@pytest.mark.parametrize("again", [("attach", "gw0", "--direction", "both"), ("upgrade",)])
@pytest.mark.parametrize("mode", ["tcx", "clsact"])
def test_a_firewall(
    network: Network, older_version: Path, mode: str, again: tuple[str, ...]
) -> None:
    def old(*arguments: str) -> str:
        return run(*older.command(older_version, *arguments))

    try:
        with ExitStack() as stack:
            allowed = stack.enter_context(listen(IPV4, 7777))
            stack.enter_context(listen(IPV4, 7778))
            old("attach", "gw0", "--direction", "both", "--mode", mode)
            # Of an interface that has no such setting: there the older version does not look.
            old("insert", "-c", IPV4, "-p", "tcp", "-l", "7777", "-N", "lo")
            directory = FIREWALL_STORE.directory(netns_cookie())
            before = pins(directory)
            programs = [
                each.program_id() for each in firewall_programs.SYSTEM.attachments(directory)
            ]
            (rule,) = json.loads(old("list", "--json"))
            stop = threading.Event()
            leaked: list[int] = []

            def probe() -> None:
                """Nothing may pass at any moment that no rule allows."""
                with network.client.entered():
                    while not stop.is_set():
                        with socket.socket() as trying:
                            trying.settimeout(0.05)
                            if trying.connect_ex((IPV4, 7778)) == 0:
                                leaked.append(1)

            prober = threading.Thread(target=probe)
            prober.start()
            try:
                with conversation(network.client, IPV4, 7777, allowed):
                    run(str(ZFW), *again)
            finally:
                stop.set()
                prober.join()
            assert leaked == []
            after = running(directory)
            # The later version has one more program, on the network namespace.
            assert len(after) == len(programs) + 1 == 3
            assert not set(after) & set(programs)
            added = (*FIREWALL_STORE.added, *firewall_programs.SYSTEM.added, "deliver_link")
            assert pins(directory) == sorted([*before, *added])
            (kept,) = json.loads(run(str(ZFW), "list", "--json"))
            assert kept["packets"] >= rule["packets"]
            zero = {"packets": 0, "bytes": 0}
            assert {**kept, **zero} == {**rule, **zero, "limited": False}
    finally:
        Firewall().detach_all()


# Steering


@pytest.mark.parametrize("again", [("steer", "add", "tcp", "any", "6666", "--to", "127.0.0.1:2222"),
                                   ("upgrade",)])  # fmt: skip
def test_steering(network: Network, older_version: Path, again: tuple[str, ...]) -> None:
    with ExitStack() as stack:
        daemon = stack.enter_context(listen("127.0.0.1", 2222))
        run(*older.command(older_version, "steer", "add", "tcp", "any", "5555",
                           "--to", "127.0.0.1:2222"))  # fmt: skip
        stack.callback(lambda: Steering().detach())
        # The older version counts a connected UDP socket as a listener.
        target = stack.enter_context(datagrams("127.0.0.1", 7000))
        connected_one = stack.enter_context(datagrams(IPV4, 7000))
        run(*older.command(older_version, "steer", "add", "udp", "any", "7000",
                           "--to", "127.0.0.1:7000"))  # fmt: skip
        connected_one.connect((network.client_ipv4, 9))
        directory = STEER_STORE.directory(netns_cookie())
        before, program = pins(directory), Steering().status().program_id
        with conversation(network.client, IPV4, 5555, daemon):
            run(str(ZFW), *again)
        status = Steering().status()
        assert status.program_id != program
        assert status.order == [status.program_id]
        hooks = [f"{kind}_connect{family}" for kind in ("link", "program") for family in (4, 6)]
        added = [*STEER_STORE.added, *hooks]
        states = {"state_0", "state_1"}
        assert set(pins(directory)) - states == {*before, *added} - states
        with network.client.entered(), udp_socket() as client:
            client.sendto(b"steered", (IPV4, 7000))
            assert target.recv(100) == b"steered"
        assert Steering().mappings()[0].counters.lookups >= 1
        with connected(network.client, IPV4, 5555):
            daemon.accept()[0].close()


# A redirect


@pytest.mark.parametrize("by_upgrade", [False, True])
@pytest.mark.parametrize("mode", ["tcx", "clsact"])
@pytest.mark.usefixtures("_private_bpffs")
def test_a_redirect(older_version: Path, tmp_path: Path, mode: str, by_upgrade: bool) -> None:
    with docker_world(tmp_path) as world:
        arguments = ("docker-dns", "redirect", "--netns", world.network.path, "--to", SERVER)
        run(*older.command(older_version, *arguments, "--mode", mode))
        (before,) = DnsRedirect.all()
        assert before.manifest.digest == ""
        stop = threading.Event()
        answers: list[list[str]] = []

        def ask() -> None:
            while not stop.is_set():
                answers.append(world.addresses("www.example"))

        asking = threading.Thread(target=ask)
        asking.start()
        try:
            assert wait_until(lambda: len(answers) > 2)
            if by_upgrade:
                with world.container.entered():
                    assert "redirect: upgraded" in run(str(ZFW), "upgrade")
            else:
                run(str(ZFW), *arguments)
            count = len(answers)
            assert wait_until(lambda: len(answers) > count + 2)
        finally:
            stop.set()
            asking.join()
        assert all(answer == [ANY_ANSWER] for answer in answers), answers
        (after,) = DnsRedirect.all()
        assert (after.manifest.id, after.manifest.mode, after.problem) == (
            before.manifest.id,
            mode,
            "",
        )
        assert after.manifest.digest != ""
        assert after.outcomes["query"][0] > before.outcomes["query"][0]


# A guard


ASK = (
    "import json, socket, sys\n"
    "held = socket.create_connection(('both.example', 443), timeout=5)\n"
    "for line in sys.stdin:\n"
    "    told = []\n"
    "    for name in ('both.example', 'other.example'):\n"
    "        try:\n"
    "            socket.create_connection((name, 443), timeout=5).close()\n"
    "            told.append('reached')\n"
    "        except OSError as error:\n"
    "            told.append('denied')\n"
    "    held.sendall(b'x')\n"
    "    print(json.dumps(told), flush=True)\n"
)


@contextmanager
def asking(world: GuardWorld, *command: str) -> Iterator[subprocess.Popen[str]]:
    """A process in the guarded cgroup with an open connection, which tries names when asked."""
    command = (*command, sys.executable, "-c", ASK)
    with world.start(*command, stdin=subprocess.PIPE) as process:
        try:
            yield process
        finally:
            process.kill()


def tell(process: subprocess.Popen[str]) -> list[str]:
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write("\n")
    process.stdin.flush()
    told: list[str] = json.loads(process.stdout.readline())
    return told


def listed(world: GuardWorld) -> dict[str, Any]:
    (found,) = json.loads(world.zfw("list", "--json").stdout)
    return dict(found)


@pytest.mark.parametrize("way", ["guard upgrade", "upgrade", "attach"])
@pytest.mark.usefixtures("_private_bpffs")
def test_a_guard(older_version: Path, tmp_path: Path, way: str) -> None:
    with guard_world(tmp_path) as world:
        log = tmp_path / "log"
        guarded = world.new_cgroup()
        options = ("--cgroup", str(guarded), "--dns-upstream", UPSTREAM, "--allow", "both.example",
                   "--log", str(log))  # fmt: skip
        done = world.run(*older.command(older_version, "guard", "attach", *options))
        assert done.returncode == 0, done.stderr
        identifier = done.stdout.strip()
        before = listed(world)
        names = pins(GUARD_STORE.directory(identifier))
        with asking(world) as process:
            (guarded / "cgroup.procs").write_text(str(process.pid))
            assert tell(process) == ["reached", "denied"]
            commands = {
                "guard upgrade": ("guard", "upgrade", identifier),
                "upgrade": ("upgrade",),
                "attach": ("guard", "attach", *options),
            }
            done = world.run(str(ZFW), *commands[way])
            assert (done.returncode, done.stderr) == (0, "")
            assert identifier in done.stdout
            for _ in range(3):
                assert tell(process) == ["reached", "denied"]
            after = listed(world)
            assert after["id"] == identifier
            assert after["problem"] in (None, "")
            assert after["keeper_pid"] != before["keeper_pid"]
            assert wait_until(lambda: not Path(f"/proc/{before['keeper_pid']}/fd").exists())
            assert pins(GUARD_STORE.directory(identifier)) == sorted([*names, *GUARD_STORE.added])
            count = len(log.read_text().splitlines())
            assert tell(process) == ["reached", "denied"]
            assert wait_until(lambda: len(log.read_text().splitlines()) > count)
            # This build's is there already.
            done = world.zfw("upgrade")
            assert done.stdout == f"guard {identifier}: up to date\n"
        done = world.zfw("detach", identifier)
        assert (done.returncode, done.stderr) == (0, "")
        guarded.rmdir()
        assert world.is_clean(), world.left()


@pytest.mark.usefixtures("_private_bpffs")
def test_a_guard_of_a_command_that_runs(older_version: Path, tmp_path: Path) -> None:
    """The command goes on, its denials are printed on, and the guard ends with it."""
    with guard_world(tmp_path) as world:
        command = older.command(older_version, "guard", "run", "--dns-upstream", UPSTREAM,
                                "--allow", "both.example", "--")  # fmt: skip
        with asking(world, *command) as process:
            assert process.stderr is not None
            assert tell(process) == ["reached", "denied"]
            assert "denied" in process.stderr.readline()
            done = world.zfw("upgrade")
            assert (done.returncode, done.stderr) == (0, "")
            assert done.stdout.endswith(": upgraded\n")
            assert tell(process) == ["reached", "denied"]
            lines = [process.stderr.readline() for _ in range(2)]
            assert any("denied" in line and "other.example" in line for line in lines), lines
            assert process.stdin is not None
            process.stdin.close()
            assert process.wait(timeout=30) == 0
        assert world.is_clean(), world.left()


@pytest.mark.usefixtures("_private_bpffs")
def test_a_guard_whose_process_was_killed_gets_another(older_version: Path, tmp_path: Path) -> None:
    with guard_world(tmp_path) as world:
        guarded = world.new_cgroup()
        options = ("--cgroup", str(guarded), "--dns-upstream", UPSTREAM, "--allow", "both.example")
        done = world.run(*older.command(older_version, "guard", "attach", *options))
        identifier = done.stdout.strip()
        killed = listed(world)["keeper_pid"]
        os.kill(killed, 9)
        assert wait_until(lambda: listed(world)["keeper_pid"] is None)
        done = world.zfw("upgrade", identifier)
        assert (done.returncode, done.stdout) == (0, f"guard {identifier}: upgraded\n")
        with asking(world) as process:
            (guarded / "cgroup.procs").write_text(str(process.pid))
            time.sleep(0.1)
            assert tell(process) == ["reached", "denied"]
        assert world.zfw("detach", identifier).returncode == 0
        guarded.rmdir()
        assert world.is_clean(), world.left()
