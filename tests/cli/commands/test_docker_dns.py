# SPDX-License-Identifier: GPL-2.0-only
"""zfw docker-dns redirect, list and remove, and what of watch needs no engine."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import dns.message
import pytest

from tests.docker_dns.support.world import ANY_ANSWER, BUILTIN_ANSWER, CONTAINER, RESOLVER, SERVER
from tests.support.engine import container, engine

if TYPE_CHECKING:
    from tests.cli.conftest import Zfw
    from tests.docker_dns.support.world import World


@pytest.mark.kernel
def test_redirect_list_and_remove(zfw: Zfw, docker: World) -> None:
    assert zfw("docker-dns", "list") == (0, "no redirects\n", "")
    assert zfw("docker-dns", "remove", "--all") == (0, "", "")
    made = zfw("docker-dns", "redirect", "--netns", docker.network.path, "--to", SERVER)
    assert (made.code, made.err) == (0, "")
    number = made.out.strip()
    assert docker.addresses("www.example") == [ANY_ANSWER]
    docker.addresses("www.example", "+tcp")
    listed = zfw("docker-dns", "list")
    assert (listed.code, listed.err) == (0, "")
    titles, cells = (line.split() for line in listed.out.splitlines())
    assert titles == ["ID", "OF", "TO", "DOMAINS", "STATE", "QUERIES", "ANSWERS", "BUILTIN"]
    assert cells[:5] == [number, docker.network.path, SERVER, "-", "active"]
    queries, answers, builtin = map(int, cells[5:])
    assert queries >= 6
    assert answers >= 4
    assert builtin == 0
    assert zfw("docker-dns", "remove", number) == (0, f"removed {number}\n", "")
    assert docker.addresses("www.example") == [BUILTIN_ANSWER]
    gone = (5, "", f"zfw: no such redirect: {number}\n")
    assert zfw("docker-dns", "remove", number) == gone


@pytest.mark.kernel
def test_a_list_of_what_does_not_work_ends_with_a_code_of_its_own(zfw: Zfw, docker: World) -> None:
    setting, usual = "ipv4/ip_local_port_range", "32768 60999"
    docker.container.sysctl(usual, setting)
    made = zfw("docker-dns", "redirect", "--netns", docker.network.path, "--to", SERVER)
    number = made.out.strip()
    docker.container.sysctl("1024 65535", setting)
    why = "net.ipv4.ip_local_port_range has some of its ports now, 1024 to 32767"
    listed = zfw("docker-dns", "list")
    assert (listed.code, listed.err) == (21, f"zfw: warning: redirect {number}: {why}\n")
    listed = zfw("docker-dns", "list", "--json")
    assert (listed.code, json.loads(listed.out)[0]["problem"]) == (21, why)
    docker.container.sysctl(usual, setting)
    assert zfw("docker-dns", "list").code == 0
    docker.container.ip("link delete eth0")
    listed = zfw("docker-dns", "list")
    assert (listed.code, listed.err) == (
        21,
        f"zfw: warning: redirect {number}: eth0 is gone, or the program on it\n",
    )


@pytest.mark.kernel
def test_list_as_json(zfw: Zfw, docker: World) -> None:
    assert zfw("docker-dns", "list", "--json") == (0, "[]\n", "")
    options = ("--only-domain", "b.example", "--only-domain", "A.example", "--mode", "clsact")
    path = docker.container.path
    made = zfw("docker-dns", "redirect", "--netns", path, "--to", f"{SERVER}:53", *options)
    assert made.code == 0
    assert docker.addresses("www.a.example") == [ANY_ANSWER]
    assert docker.addresses("c.example") == [BUILTIN_ANSWER]
    row = zfw("docker-dns", "list").out.splitlines()[1]
    assert f"  {SERVER}  b.example +1  active " in row
    result = zfw("docker-dns", "list", "--json")
    assert (result.code, result.err) == (0, "")
    (listed,) = json.loads(result.out)
    created = listed.pop("created")
    assert created > 1_600_000_000
    outcomes = listed.pop("outcomes")
    udp, tcp = docker.daemon.ports
    assert listed == {
        "id": made.out.strip(),
        "container": None,
        "container_id": None,
        "netns": path,
        "interface": "eth0",
        "source": CONTAINER,
        "from": f"{RESOLVER}:53",
        "to": f"{SERVER}:53",
        "domains": ["b.example", "a.example"],
        "tcp": "builtin",
        "mode": "clsact",
        "watcher_pid": None,
        "problem": None,
        "daemon_ports": {"udp": udp, "tcp": tcp},
        "lost_events": 0,
    }
    assert {name: value["packets"] for name, value in outcomes.items() if value["packets"]} == {
        "query": 1,
        "answer": 1,
        "builtin_name": 1,
    }
    assert outcomes["query"]["bytes"] > 40
    assert zfw("docker-dns", "remove", "--all").out == f"removed {made.out}"


@pytest.mark.kernel
def test_of_a_container_and_of_a_process(
    zfw: Zfw, docker: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/engine.sock")
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
    ended = container("old", 0, Status="exited", Running=False)
    with (
        docker.first_process() as pid,
        engine(
            tmp_path / "engine.sock", container("web", pid), container("host", os.getpid()), ended
        ),
    ):
        for options, name, identifier in (
            (("--docker", "web"), "web", "ab" * 32),
            (("--pid", str(pid)), None, None),
        ):
            made = zfw("docker-dns", "redirect", *options, "--to", SERVER)
            assert (made.code, made.err) == (0, "")
            assert docker.addresses("www.example") == [ANY_ANSWER]
            (listed,) = json.loads(zfw("docker-dns", "list", "--json").out)
            assert listed["netns"] == f"/proc/{pid}/ns/net"
            assert (listed["container"], listed["container_id"]) == (name, identifier)
            cells = zfw("docker-dns", "list").out.splitlines()[1].split()
            assert cells[1] == (name or listed["netns"])
            assert zfw("docker-dns", "remove", "--all").out == f"removed {made.out}"
        for name, code, told in (
            ("webb", 5, "no such container: webb"),
            ("old", 1, "container old is not running: exited"),
            ("host", 2, "container host shares this network namespace, whose DNS is not the"),
        ):
            result = zfw("docker-dns", "redirect", "--docker", name, "--to", SERVER)
            assert (result.code, result.out) == (code, "")
            assert result.err.startswith(f"zfw: {told}")
            assert result.err.count("\n") == 1
        assert zfw("docker-dns", "list").out == "no redirects\n"


@pytest.mark.kernel
def test_what_is_wrong_is_listed(zfw: Zfw, docker: World) -> None:
    number = docker.redirect().id
    docker.container.run(*f"ip address delete {CONTAINER}/16 dev eth0".split())
    listed = zfw("docker-dns", "list")
    assert listed.code == 21
    assert listed.out.splitlines()[1].split()[4] == "broken"
    assert listed.err == (
        f"zfw: warning: redirect {number}:"
        f" packets to {SERVER} do not leave from {CONTAINER} any more\n"
    )


# Has them until its stdin ends.
TAKE_PORTS = """
import socket
takers = [socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(64512, 65536)]
for port, each in enumerate(takers, 64512):
    each.bind(("", port))
print("taken", flush=True)
input()
"""


@pytest.mark.kernel
def test_what_was_dropped_is_told(zfw: Zfw, docker: World) -> None:
    """Sockets of the container's own have all the ports that there are for queries."""
    docker.container.sysctl("1024 64511", "ipv4/ip_local_port_range")
    number = docker.redirect().id
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with docker.container.start(sys.executable, "-c", TAKE_PORTS, **pipes) as taker:
        assert taker.stdout is not None
        assert taker.stdout.readline() == "taken\n"
        with (
            docker.container.entered(),
            socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client,
        ):
            client.connect((RESOLVER, 53))
            for _ in range(2):
                client.send(dns.message.make_query("www.example", "A").to_wire())
        taker.communicate("\n")
    listed = zfw("docker-dns", "list")
    assert listed.out.splitlines()[1].split()[4:] == ["active", "0", "0", "0"]
    assert listed.err == f"zfw: warning: redirect {number}: 2 packets were dropped\n"


@pytest.mark.kernel
def test_what_is_in_the_way(zfw: Zfw, docker: World) -> None:
    place = ("docker-dns", "redirect", "--netns", docker.network.path)
    assert zfw(*place, "--to", SERVER, "--interface", "eth7") == (
        5,
        "",
        "zfw: no interface eth7 in the network namespace\nhint: it has eth0, lo\n",
    )
    assert zfw(*place, "--to", f"{SERVER}:54").code == 1
    made = zfw(*place, "--to", f"{SERVER}:54", "--no-probe", "--daemon-ports", "1,2")
    assert made.code == 0
    assert zfw(*place, "--to", SERVER) == (
        6,
        "",
        f"zfw: its queries are redirected already, to {SERVER}:54\n"
        f"hint: zfw docker-dns remove {made.out}",
    )
    (listed,) = json.loads(zfw("docker-dns", "list", "--json").out)
    assert listed["daemon_ports"] == {"udp": 1, "tcp": 2}


@pytest.mark.parametrize(
    ("arguments", "code", "told"),
    [
        (("redirect",), 2, "Missing option '--to'"),
        (("redirect", "--to", SERVER), 2, "give exactly one of --docker, --pid and --netns"),
        (("redirect", "--to", SERVER, "--pid", "1", "--netns", "/x"), 2, "one of --docker"),
        (("redirect", "--to", SERVER, "--pid", "0"), 2, "--pid: not a process id: 0"),
        (("redirect", "--to", SERVER, "--pid", str(1 << 30)), 5, "no such process"),
        (("redirect", "--to", SERVER, "--netns", "/nosuch"), 5, "no such network namespace"),
        (("redirect", "--to", "::1", "--pid", "1"), 2, "--to: IPv6 is unsupported"),
        (("redirect", "--to", SERVER, "--docker", "a b"), 2, "not a container's name: 'a b'"),
        (("redirect", "--to", SERVER, "--docker", "web"), 1, "container engine "),
        (("redirect", "--to", SERVER, "--pid", "1", "--tcp", "x"), 2, "'x' is not one of"),
        (
            ("redirect", "--to", SERVER, "--pid", "1", "--daemon-ports", "53"),
            2,
            "--daemon-ports: not two ports, UDP,TCP: '53'",
        ),
        (
            ("redirect", "--to", SERVER, "--pid", "1", "--daemon-ports", "1,65536"),
            2,
            "--daemon-ports: not two ports",
        ),
        (("remove",), 2, "give either an ID or --all"),
        (("remove", "7", "--all"), 2, "give either an ID or --all"),
        (("remove", "../x"), 5, "no such redirect: '../x'"),
        (("watch", "--to", SERVER), 2, "Missing option '--docker'"),
        (("watch", "--to", SERVER, "--docker", "web"), 1, "container engine "),
        (("watch", "--to", SERVER, "--docker", "w", "--log", "/nosuch/x"), 5, "--log /nosuch/x"),
    ],
)
def test_a_line_that_makes_no_sense(
    zfw: Zfw,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: tuple[str, ...],
    code: int,
    told: str,
) -> None:
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/nosuch.sock")
    result = zfw("docker-dns", *arguments)
    assert (result.code, result.out) == (code, "")
    assert told in result.err
    assert result.err.count("\n") == 1
