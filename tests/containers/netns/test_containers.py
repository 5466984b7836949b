# SPDX-License-Identifier: GPL-2.0-only
"""Containers by name, from a real engine: podman, which serves Docker's API."""

from __future__ import annotations

import os
import socket
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.support.cgroups import is_empty_within
from tests.support.netns import Namespace
from zfw_py.containers import Container, find
from zfw_py.errors import NotFound, ZfwError
from zfw_py.kernel import cgroup
from zfw_py.kernel.namespaces import call_in
from zfw_py.kernel.own_netns import netns_cookie
from zfw_py.kernel.sock_diag import sockets_near

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support.podman import Podman, Running

pytestmark = pytest.mark.kernel

SLEEP = ("/usr/bin/sleep", "1000")
# Listens, and then tells so by a pipe in a directory that the test shares.
LISTEN = """\
import pathlib, signal, socket
server = socket.create_server(("127.0.0.1", 8053))
pathlib.Path("/told/ready").write_text("ready")
signal.pause()
"""


@contextmanager
def listening(podman: Podman, directory: Path, network: str) -> Iterator[Running]:
    """A container that listens on its 127.0.0.1:8053."""
    os.mkfifo(directory / "ready")
    command = ("/usr/bin/python3", "-c", LISTEN)
    shared = ("--volume", f"{directory}:/told")
    with podman.container(*command, network=network, options=shared) as running:
        assert (directory / "ready").read_text() == "ready"
        yield running


@pytest.fixture(autouse=True)
def _engine(podman: Podman, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("DOCKER_HOST", f"unix://{podman.socket}")
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))


def test_a_container_is_found_by_its_name_or_its_id(podman: Podman) -> None:
    with podman.container(*SLEEP, name="web-1.a_b") as running:
        expected = Container("web-1.a_b", running.id, running.pid)
        assert find("web-1.a_b") == find(running.id) == find(running.id[:12]) == expected
        # Its first process, which is number 1 in there.
        status = Path(f"/proc/{running.pid}/status").read_text()
        assert f"NSpid:\t{running.pid}\t1\n" in status
        assert Path(f"/proc/{running.pid}/cmdline").read_text().split("\0")[0] == SLEEP[0]
    with pytest.raises(NotFound, match=r"^no such container: web-1\.a_b$"):
        find("web-1.a_b")


def test_a_container_has_a_cgroup_of_its_own(podman: Podman) -> None:
    with podman.container(*SLEEP) as first, podman.container(*SLEEP) as second:
        for running in (first, second):
            path = cgroup.of_process(find(running.name).pid)
            assert path == str(running.cgroup)
            assert running.id in path
            assert cgroup.processes(path) == [running.pid]
            assert not cgroup.is_root(path)
        with cgroup.Population(str(first.cgroup)) as population:
            podman.run("kill", first.name)
            assert is_empty_within(population, 60)


def test_a_container_that_has_ended_or_is_paused(podman: Podman) -> None:
    with podman.container(*SLEEP, name="brief") as running:
        podman.run("pause", "brief")
        assert find("brief").pid == running.pid
        podman.run("unpause", "brief")
        podman.run("kill", "brief")
        podman.run("wait", "brief")
        with pytest.raises(ZfwError, match=r"^container brief is not running: exited$"):
            find("brief")
        podman.run("start", "brief")
        again = find("brief")
        assert again.id == running.id
        assert again.pid != running.pid


def test_a_container_s_network_namespace_is_entered_by_its_process(
    podman: Podman, tmp_path: Path
) -> None:
    with listening(podman, tmp_path, "none") as running:
        pid = find(running.name).pid
        assert call_in(f"/proc/{pid}/ns/net", netns_cookie) != netns_cookie()
        (listener,) = sockets_near(pid)
        assert (listener.state, listener.local) == ("LISTEN", ("127.0.0.1", 8053))
        assert listener.cgroup_id == cgroup.identifier(str(running.cgroup))


def test_a_container_joins_a_network_namespace_of_the_test_s(
    podman: Podman, tmp_path: Path
) -> None:
    """As the tests of what concerns containers' networks need it."""
    with Namespace() as made:
        network = f"ns:{made.path}"
        with listening(podman, tmp_path, network) as running:
            pid = find(running.name).pid
            assert Path(f"/proc/{pid}/ns/net").stat().st_ino == os.fstat(made.fd).st_ino
            with made.entered(), socket.create_connection(("127.0.0.1", 8053)):
                pass
