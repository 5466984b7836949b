# SPDX-License-Identifier: GPL-2.0-only
"""zfw docker-dns watch: a container that starts again and again, and an engine that does."""

from __future__ import annotations

import json
import os
import signal
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import pytest

from tests.docker_dns.support.watching import watching
from tests.docker_dns.support.world import (
    ANY_ANSWER,
    BUILTIN_ANSWER,
    PATIENCE,
    RESOLVER,
    SERVER,
    docker_world,
)
from tests.support.engine import LiveEngine
from zfw_py.docker_dns.service import DnsRedirect

if TYPE_CHECKING:
    from tests.docker_dns.support.world import World

pytestmark = pytest.mark.kernel


@pytest.fixture
def engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> LiveEngine:
    """A stand-in; it serves as the test says. What ``watch`` asks is this one."""
    made = LiveEngine(tmp_path / "engine.sock")
    monkeypatch.setenv("DOCKER_HOST", f"unix://{made.path}")
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
    return made


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_what_it_makes_it_takes_away(docker: World, engine: LiveEngine, number: int) -> None:
    with engine.serving(), docker.first_process() as pid:
        engine.start("web", pid)
        with watching() as watch:
            assert watch.next() == f"web: redirected to {SERVER}:53"
            (status,) = DnsRedirect.all()
            about = status.manifest
            assert (about.container, about.container_id) == ("web", "ab" * 32)
            assert about.watcher is not None
            assert about.watcher.pid == watch.process.pid
            assert status.problem == ""
            assert docker.addresses("www.example") == [ANY_ANSWER]
            assert watch.end(number) == 0
            assert watch.errors() == ""
        assert DnsRedirect.all() == []
        assert docker.addresses("www.example") == [BUILTIN_ANSWER]


def test_queries_are_told(docker: World, engine: LiveEngine, tmp_path: Path) -> None:
    log = tmp_path / "log"
    with engine.serving(), docker.first_process() as pid:
        engine.start("web", pid)
        with watching("--only-domain", "corp.example", "--log", str(log)) as watch:
            assert watch.next() == f"web: redirected to {SERVER}:53"
            docker.addresses("Www.Corp.Example")
            line = watch.next_query()
            assert line.startswith("web: Www.Corp.Example (udp from 127.0.0.1:")
            assert f": sent to {SERVER}:53 from port " in line
            docker.addresses("www.example")
            assert watch.next_query().endswith(
                ": left to the built-in resolver, which answers all other names"
            )
            docker.addresses("www.corp.example", "+tcp")
            assert watch.next_query().endswith(": left to the built-in resolver, as all TCP")
            docker.addresses(".")
            assert watch.next_query().startswith("web: . (udp from ")
            assert watch.end() == 0
    records = [json.loads(line) for line in log.read_text().splitlines()]
    assert [record["event"] for record in records] == ["redirected", *["query"] * 4]
    assert {record["container"] for record in records} == {"web"}
    assert len({record["id"] for record in records}) == 1
    sent, other, tcp, root = records[1:]
    assert sent["name"] == "Www.Corp.Example"
    assert sent["outcome"] == "query"
    assert sent["server"] == {"address": SERVER, "port": 53}
    assert sent["resolver"] == {"address": RESOLVER, "port": docker.daemon.ports[0]}
    assert sent["source"]["address"] == "127.0.0.1"
    assert 1024 <= sent["port"] < 32768
    assert isinstance(sent["message_id"], int)
    assert (other["name"], other["outcome"]) == ("www.example", "builtin_name")
    assert (other["server"], other["port"]) == (None, None)
    assert (tcp["protocol"], tcp["name"], tcp["outcome"]) == ("tcp", None, "builtin_tcp")
    assert tcp["resolver"] == {"address": RESOLVER, "port": docker.daemon.ports[1]}
    assert root["name"] == "."


@pytest.mark.usefixtures("_private_bpffs")
def test_a_container_that_starts_again(engine: LiveEngine, tmp_path: Path) -> None:
    """In a namespace of its own each time; the one before is forgotten."""
    with engine.serving(), watching() as watch:
        assert watch.next() == "web: no such container: web; waiting for its start"
        for number in range(3):
            folder = tmp_path / str(number)
            folder.mkdir()
            with docker_world(folder) as world, world.first_process() as pid:
                engine.start("web", pid)
                assert watch.next() == f"web: redirected to {SERVER}:53"
                (status,) = DnsRedirect.all()
                assert status.problem == ""
                assert world.addresses("www.example") == [ANY_ANSWER]
                engine.end("web")
                ended = "container web is not running: exited; waiting for its next start"
                assert watch.next() == f"web: {ended}"
        assert watch.end() == 0
    assert DnsRedirect.all() == []


@pytest.mark.usefixtures("_private_bpffs")
def test_a_container_that_is_renamed(engine: LiveEngine, tmp_path: Path) -> None:
    """Its redirect stays as it is, and the next start under the new name gets one."""
    with engine.serving(), ExitStack() as stack:
        world = stack.enter_context(docker_world(tmp_path))
        engine.start("web", stack.enter_context(world.first_process()))
        watch = stack.enter_context(watching())
        assert watch.next() == f"web: redirected to {SERVER}:53"
        (before,) = DnsRedirect.all()
        engine.rename("web", "shop")
        assert watch.next() == "web: the container is called shop now"
        (after,) = DnsRedirect.all()
        assert after.manifest == msgspec.structs.replace(before.manifest, container="shop")
        assert world.addresses("www.example") == [ANY_ANSWER]
        engine.end("shop")
        ended = "container shop is not running: exited; waiting for its next start"
        assert watch.next() == f"web: {ended}"
        assert world.addresses("www.example") == [BUILTIN_ANSWER]
        engine.start("shop", stack.enter_context(world.first_process()))
        assert watch.next() == f"web: redirected to {SERVER}:53"
        assert world.addresses("www.example") == [ANY_ANSWER]
        assert watch.end() == 0


def test_an_engine_that_is_started_again(docker: World, engine: LiveEngine) -> None:
    """What is redirected stays so; what has happened to the container meanwhile is made up for."""
    with ExitStack() as stack:
        pid = stack.enter_context(docker.first_process())
        with engine.serving():
            engine.start("web", pid)
            watch = stack.enter_context(watching())
            assert watch.next() == f"web: redirected to {SERVER}:53"
        lost = f"container engine {engine.path} has ended the connection; waiting for it"
        assert watch.next() == f"web: {lost}"
        assert docker.addresses("www.example") == [ANY_ANSWER]
        with engine.serving():
            assert watch.next() == "web: the container engine is back"
            assert docker.addresses("www.example") == [ANY_ANSWER]
        assert watch.next() == f"web: {lost}"
        engine.end("web")
        with engine.serving():
            assert watch.next() == "web: the container engine is back"
            assert watch.next().startswith("web: container web is not running: exited; waiting")
        assert docker.addresses("www.example") == [BUILTIN_ANSWER]
        assert watch.end() == 0


def test_an_interface_that_comes_back(docker: World, engine: LiveEngine) -> None:
    """As when the engine takes a container off a network, and puts it on again."""
    with engine.serving(), docker.first_process() as pid:
        engine.start("web", pid)
        with watching() as watch:
            assert watch.next() == f"web: redirected to {SERVER}:53"
            docker.network.host.run("ip", "link", "delete", "veth1")
            assert watch.next() == "web: eth0 is gone, or the program on it; redirecting again"
            failed = "no interface eth0 in the network namespace"
            assert watch.next() == f"web: {failed}; trying again"
            docker.network.add_uplink()
            while (line := watch.next()).endswith("; trying again"):
                pass  # there is a moment without an address
            assert line == f"web: redirected to {SERVER}:53"
            assert docker.addresses("www.example") == [ANY_ANSWER]
            assert watch.end() == 0


def test_the_first_redirect_has_to_be_made(docker: World, engine: LiveEngine) -> None:
    with engine.serving(), docker.first_process() as pid:
        engine.start("web", pid)
        with watching("--interface", "eth7") as watch:
            assert watch.errors() == (
                "zfw: no interface eth7 in the network namespace\nhint: it has eth0, lo\n"
            )
            assert watch.process.returncode == 5
        docker.redirect()
        with watching() as watch:
            assert watch.errors().startswith("zfw: its queries are redirected already, to")
            assert watch.process.returncode == 6
        assert len(DnsRedirect.all()) == 1
    with watching() as watch:
        assert watch.errors() == f"zfw: container engine {engine.path}: No such file or directory\n"
        assert watch.process.returncode == 1


@pytest.mark.parametrize("mode", ["auto", "clsact"])
def test_a_watch_that_was_killed_is_taken_over_from(
    docker: World, engine: LiveEngine, mode: str
) -> None:
    before = docker.container.run("tc", "qdisc").stdout
    with engine.serving(), docker.first_process() as pid:
        engine.start("web", pid)
        with watching("--mode", mode) as watch:
            assert watch.next() == f"web: redirected to {SERVER}:53"
            with watching("--mode", mode) as second:
                assert second.errors().startswith("zfw: its queries are redirected already")
            watch.end(signal.SIGKILL)
        (status,) = DnsRedirect.all()
        assert status.problem == "its zfw docker-dns watch was killed; the redirect stays as it is"
        assert docker.addresses("www.example") == [ANY_ANSWER]
        with watching("--mode", mode) as watch:
            assert watch.next() == f"web: redirected to {SERVER}:53"
            assert docker.addresses("www.example") == [ANY_ANSWER]
            assert watch.end() == 0
        assert DnsRedirect.all() == []
        assert docker.container.run("tc", "qdisc").stdout == before


def test_somebody_else_takes_it_away(docker: World, engine: LiveEngine) -> None:
    with engine.serving(), docker.first_process() as pid:
        engine.start("web", pid)
        with watching() as watch:
            assert watch.next() == f"web: redirected to {SERVER}:53"
            assert len(DnsRedirect.remove_all()) == 1
            assert watch.next() == "web: the redirect was removed by another process; exiting"
            assert watch.process.wait(PATIENCE) == 0


def test_a_container_on_the_host_s_network(docker: World, engine: LiveEngine) -> None:
    with engine.serving():
        engine.start("web", os.getpid())
        with watching() as watch:
            assert watch.errors() == (
                "zfw: container web shares this network namespace, whose DNS is not the engine's\n"
            )
            assert watch.process.returncode == 2
