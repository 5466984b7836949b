# SPDX-License-Identifier: GPL-2.0-only
"""zfw guard attach and redirect --docker: a container, and what becomes of its guard.

With a real engine, podman; and with a stand-in of one, whose container is a process in a
cgroup of its own: that is all a guard sees of either.
"""

from __future__ import annotations

import json
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import pytest

from tests.guard.support.world import UPSTREAM
from tests.support.cgroups import cgroup_of
from tests.support.engine import container, engine
from tests.support.waiting import wait_until
from zfw_py.guard import listing
from zfw_py.kernel import cgroup

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager

    from tests.guard.support.world import World
    from tests.support.podman import Podman

    Boxed = Callable[[str], AbstractContextManager["Box"]]

pytestmark = pytest.mark.kernel

BOTH = "fd09::10        both.example\n"
ALLOWED, DENIED = "http://10.9.0.10", "http://10.9.0.13"
SLEEP = ("/usr/bin/sleep", "1000")
# In the namespace of the world's inside, or in one of its own that has nothing but lo.
WORLD, OWN = "world", "own"


class Box(Protocol):
    """A running container."""

    name: str

    def pid(self) -> int:
        """Of its first process."""

    def run(self, *command: str) -> subprocess.CompletedProcess[str]:
        """Run a command in it, as ``docker exec`` does."""

    def restart(self) -> None:
        """End all that is in it, and start it anew."""


class PodmanBox:
    """A real one."""

    def __init__(self, podman: Podman, name: str) -> None:
        self.name = name
        self._podman = podman

    def pid(self) -> int:
        return int(self._podman.run("inspect", "--format", "{{.State.Pid}}", self.name).stdout)

    def run(self, *command: str) -> subprocess.CompletedProcess[str]:
        return self._podman.run("exec", self.name, *command, check=False)

    def restart(self) -> None:
        self._podman.run("restart", "--time", "0", self.name)


class StandIn:
    """A process in a cgroup of its own, which the stand-in of an engine tells of."""

    def __init__(self, world: World, network: str) -> None:
        self.name = "web"
        self._world = world
        self._network = network
        self._cgroup = world.cgroup / "container"
        self._start()
        self.told = container(self.name, self.pid())

    def _start(self) -> None:
        self._cgroup.mkdir()
        command = " ".join(SLEEP)
        if self._network == OWN:
            command = f"unshare --net sh -c 'ip link set lo up && exec {command}'"
        enter = f"echo 0 > {self._cgroup}/cgroup.procs; exec {command}"
        self._process = self._world.start("sh", "-c", enter, stdout=None, stderr=None)
        name = Path(f"/proc/{self.pid()}/comm")
        assert wait_until(lambda: name.read_text() == "sleep\n")

    def pid(self) -> int:
        return self._process.pid

    def run(self, *command: str) -> subprocess.CompletedProcess[str]:
        enter = f'echo 0 > {self._cgroup}/cgroup.procs; exec nsenter -t {self.pid()} -n "$@"'
        return self._world.run("sh", "-c", enter, "sh", *command)

    def restart(self) -> None:
        self.end()
        assert wait_until(lambda: not cgroup.is_populated(str(self._cgroup)))
        self._cgroup.rmdir()
        self._start()
        self.told["State"]["Pid"] = self.pid()

    def end(self) -> None:
        self._process.kill()
        self._process.wait()


@contextmanager
def in_podman(podman: Podman, world: World, network: str) -> Iterator[tuple[Box, Path]]:
    joined = "none" if network == OWN else f"ns:{world.inside.path}"
    shared = ("--volume", f"{world.folder}/resolv.conf:/etc/resolv.conf:ro")
    with podman.container(*SLEEP, network=joined, options=shared) as running:
        yield PodmanBox(podman, running.name), podman.socket


@contextmanager
def in_stand_in(world: World, network: str) -> Iterator[tuple[Box, Path]]:
    made = StandIn(world, network)
    place = world.folder / "engine.sock"
    try:
        with engine(place, made.told):
            yield made, place
    finally:
        made.end()


@pytest.fixture(params=["podman", "stand-in"])
def boxed(request: pytest.FixtureRequest, world: World, monkeypatch: pytest.MonkeyPatch) -> Boxed:
    """Makes a container in one of the networks, which zfw finds by its name."""
    podman = request.getfixturevalue("podman") if request.param == "podman" else None

    @contextmanager
    def make(network: str) -> Iterator[Box]:
        made = in_podman(podman, world, network) if podman else in_stand_in(world, network)
        with made as (box, place):
            monkeypatch.setenv("DOCKER_HOST", f"unix://{place}")
            yield box

    return make


def attach(world: World, box: Box, *policy: str) -> str:
    """The id of a guard that a container has from now on."""
    command = ("attach", "--docker", box.name, "--dns-upstream", UPSTREAM, *policy)
    done = world.zfw(*command)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.strip()


def is_reached(box: Box, url: str) -> bool:
    code = box.run("curl", "--silent", "--max-time", "10", "--output", "/dev/null", url).returncode
    assert code in (0, 7)
    return code == 0


def answer(box: Box, name: str) -> tuple[int, str]:
    done = box.run("getent", "hosts", name)
    return done.returncode, done.stdout


def test_a_container_reaches_what_it_was_allowed(world: World, boxed: Boxed) -> None:
    log = world.folder / "log"
    with boxed(WORLD) as box:
        assert is_reached(box, ALLOWED)
        assert is_reached(box, DENIED)
        identifier = attach(world, box, "--allow", "both.example", "--log", str(log))
        [status], _ = listing.guards()
        assert status.manifest.cgroup == str(cgroup_of(box.pid()))
        assert not is_reached(box, ALLOWED)  # nobody has asked for its name
        assert answer(box, "both.example") == (0, BOTH)
        assert answer(box, "other.example") == (2, "")
        assert is_reached(box, "http://both.example")
        assert not is_reached(box, DENIED)
        assert world.zfw("detach", identifier).returncode == 0
        assert is_reached(box, DENIED)
    records = [json.loads(line) for line in log.read_text().splitlines()]
    [denial] = [one for one in records if (one["original"] or {}).get("address") == "10.9.0.13"]
    assert (denial["command"], denial["verdict"]) == ("curl", "deny")
    assert denial["cgroup"].startswith(status.manifest.cgroup)


def test_a_container_with_a_network_of_its_own(world: World, boxed: Boxed) -> None:
    """Its programs ask on its own loopback, and zfw asks where it was started."""
    with boxed(OWN) as box:
        assert answer(box, "both.example") == (2, "")
        attach(world, box, "--allow", "both.example")
        assert answer(box, "both.example") == (0, BOTH)
        assert answer(box, "other.example") == (2, "")


def test_a_container_that_is_started_again_is_not_guarded(world: World, boxed: Boxed) -> None:
    """It has a new cgroup, though its name be the same; a new guard is for that one."""
    with boxed(WORLD) as box:
        identifier = attach(world, box, "--allow", "both.example")
        assert not is_reached(box, DENIED)
        box.restart()
        assert is_reached(box, DENIED)
        assert wait_until(lambda: listing.guards() == ([], []))
        done = world.zfw("detach", identifier)
        assert (done.returncode, done.stderr) == (5, f"zfw: no such guard: {identifier}\n")
        assert attach(world, box, "--allow", "both.example") != identifier
        assert not is_reached(box, DENIED)
        assert answer(box, "both.example") == (0, BOTH)


def test_a_container_s_dns_is_redirected(world: World, boxed: Boxed) -> None:
    (world.folder / "resolv.conf").write_text("nameserver 192.0.2.1\noptions timeout:1\n")
    with boxed(WORLD) as box:
        done = world.zfw("redirect", "--docker", box.name, "--dns-to", UPSTREAM)
        assert (done.returncode, done.stderr) == (0, "")
        assert answer(box, "both.example") == (0, BOTH)
        assert is_reached(box, DENIED)


def test_a_container_that_is_not_there(world: World, boxed: Boxed) -> None:
    with boxed(WORLD) as box:
        for verb in (("attach",), ("redirect", "--dns-to", UPSTREAM)):
            done = world.zfw(*verb, "--docker", f"{box.name}x")
            assert (done.returncode, done.stdout) == (5, "")
            assert done.stderr == f"zfw: no such container: {box.name}x\n"
        assert listing.guards() == ([], [])
