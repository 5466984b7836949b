# SPDX-License-Identifier: GPL-2.0-only
"""Containers of a real engine, on a network that it makes: podman.

Its own resolver is outside of the container, on the bridge, where nothing has to be
redirected. Docker's is laid out in each container, which asks 127.0.0.11.
"""

from __future__ import annotations

import json
import subprocess
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from tests.docker_dns.support.watching import watching
from tests.docker_dns.support.world import (
    ANY_ANSWER,
    BUILTIN_ANSWER,
    RESOLVER,
    SERVER,
    Daemon,
    Outside,
    dnsmasq,
)
from tests.support.command import ZFW, captured
from tests.support.netns import Namespace
from zfw_py.docker_dns.service import DnsRedirect

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.support.podman import Podman

pytestmark = pytest.mark.kernel

SLEEP = ("/usr/bin/sleep", "1000")
ADDRESSES = ("/usr/bin/getent", "ahostsv4", "www.example")
PID = "{{.State.Pid}}"
GATEWAY = "{{range .NetworkSettings.Networks}}{{.Gateway}}{{end}}"


@pytest.fixture(autouse=True)
def _outside(podman: Podman, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The test is on the containers' host, and the engine is podman."""
    monkeypatch.setenv("DOCKER_HOST", f"unix://{podman.socket}")
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
    with Outside() as made, dnsmasq(made.server, tmp_path), made.host.entered():
        yield
        DnsRedirect.remove_all()


@contextmanager
def container(podman: Podman, *options: str) -> Iterator[None]:
    """A container, ``web``, on a network of its own."""
    with (
        podman.network() as network,
        podman.container(*SLEEP, name="web", network=network, options=options),
    ):
        yield


def shown(podman: Podman, what: str) -> str:
    return podman.run("inspect", "--format", what, "web").stdout.strip()


def addresses(podman: Podman) -> set[str]:
    """What a program in the container is told, by the resolver that it knows of.

    Not by ``podman exec``: where all of this is in a chroot, that leads out of it.
    """
    pid = shown(podman, PID)
    namespace = Namespace.opened(f"/proc/{pid}/ns/net")
    try:
        found = namespace.run("/usr/sbin/chroot", f"/proc/{pid}/root", *ADDRESSES).stdout
    finally:
        namespace.close()
    return {line.split()[0] for line in found.splitlines()}


@contextmanager
def docker_laid_out(podman: Podman) -> Iterator[Daemon]:
    """Docker's rules and its resolver in the container that runs now."""
    namespace = Namespace.opened(f"/proc/{shown(podman, PID)}/ns/net")
    try:
        daemon = Daemon(namespace)
        try:
            yield daemon
        finally:
            daemon.close()
    finally:
        namespace.close()


def zfw(*arguments: str) -> subprocess.CompletedProcess[str]:
    return captured(ZFW, "docker-dns", *arguments)


def test_a_container_by_its_name(podman: Podman) -> None:
    with container(podman, "--dns", RESOLVER), docker_laid_out(podman) as daemon:
        assert addresses(podman) == {BUILTIN_ANSWER}
        made = zfw("redirect", "--docker", "web", "--to", SERVER)
        assert (made.returncode, made.stderr) == (0, "")
        number = made.stdout.strip()
        daemon.asked.clear()
        assert addresses(podman) == {ANY_ANSWER}
        dig = ("/usr/bin/dig", f"@{RESOLVER}", "+tcp", "+short", "www.example")
        assert podman.run("exec", "web", *dig).stdout.split() == [ANY_ANSWER]
        assert daemon.asked == []

        (listed,) = json.loads(zfw("list", "--json").stdout)
        assert (listed["id"], listed["problem"]) == (number, None)
        assert (listed["container"], listed["container_id"]) == ("web", shown(podman, "{{.Id}}"))
        udp, tcp = daemon.ports
        assert listed["daemon_ports"] == {"udp": udp, "tcp": tcp}
        assert zfw("list").stdout.splitlines()[1].split()[:2] == [number, "web"]

        assert zfw("remove", number).stdout == f"removed {number}\n"
        assert addresses(podman) == {BUILTIN_ANSWER}


def test_a_container_that_is_started_again_has_no_redirect(podman: Podman) -> None:
    with container(podman, "--dns", RESOLVER):
        # Nobody has the resolver's address: its port is all there is to go by.
        first = zfw("redirect", "--docker", "web", "--to", SERVER).stdout.strip()
        assert addresses(podman) == {ANY_ANSWER}
        podman.run("restart", "--time", "0", "web")
        with docker_laid_out(podman):
            assert addresses(podman) == {BUILTIN_ANSWER}
            # The other one is gone with its namespace, and collected by now.
            second = zfw("redirect", "--docker", "web", "--to", SERVER).stdout.strip()
            assert second != first
            assert addresses(podman) == {ANY_ANSWER}
            assert zfw("remove", "--all").stdout == f"removed {second}\n"


def test_podman_s_own_resolver_is_outside(podman: Podman) -> None:
    with container(podman):
        gateway = shown(podman, GATEWAY)
        made = zfw("redirect", "--docker", "web", "--to", SERVER, "--from", gateway)
        assert (made.returncode, made.stdout, made.stderr) == (
            2,
            "",
            f"zfw: --from: {gateway} is outside of the network namespace:"
            " its queries do not go over lo\n",
        )


def test_a_container_that_does_not_run(podman: Podman) -> None:
    with container(podman):
        podman.run("kill", "web")
        for name, code, told in (
            ("web", 1, "container web is not running: exited"),
            ("webb", 5, "no such container: webb"),
        ):
            made = zfw("redirect", "--docker", name, "--to", SERVER)
            assert (made.returncode, made.stdout) == (code, "")
            assert made.stderr == f"zfw: {told}\n"
        assert zfw("list").stdout == "no redirects\n"


def test_watch(podman: Podman) -> None:
    """Through starts and stops, each in a network namespace of its own."""
    with watching() as watch:
        assert watch.next() == "web: no such container: web; waiting for its start"
        with container(podman, "--dns", RESOLVER):
            numbers = set()
            for stop in (("kill", "web"), ("stop", "--time", "0", "web"), ()):
                assert watch.next() == f"web: redirected to {SERVER}:53"
                with docker_laid_out(podman):
                    assert addresses(podman) == {ANY_ANSWER}
                    line = watch.next_query()
                    assert line.startswith("web: www.example (udp from ")
                    (listed,) = json.loads(zfw("list", "--json").stdout)
                    assert (listed["container"], listed["problem"]) == ("web", None)
                    assert listed["watcher_pid"] == watch.process.pid
                    numbers.add(listed["id"])
                    if stop:
                        podman.run(*stop)
                        ended = "container web is not running: exited; waiting for its next start"
                        assert watch.next() == f"web: {ended}"
                        assert zfw("list").stdout == "no redirects\n"
                        podman.run("start", "web")
                    else:
                        assert watch.end() == 0
                        assert addresses(podman) == {BUILTIN_ANSWER}
            assert len(numbers) == 3
    assert DnsRedirect.all() == []
