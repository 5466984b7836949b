# SPDX-License-Identifier: GPL-2.0-only
"""What a kernel has to be able to do for docker_dns: take its programs, and carry DNS by them.

scripts/test-kernels runs this in each kernel that it boots.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from bpf import build
from tests.docker_dns.support.world import ANY_ANSWER, BUILTIN_ANSWER, CONTAINER, RESOLVER, SERVER
from tests.older_kernels.test_smoke import COMPILERS, MODE
from tests.support.command import ZFW
from zfw_py.docker_dns import programs
from zfw_py.docker_dns.service import DnsRedirect

if TYPE_CHECKING:
    from pathlib import Path

    from tests.docker_dns.support.world import World

pytestmark = pytest.mark.kernel


@pytest.mark.parametrize("compiler", COMPILERS, ids=lambda path: path.parts[-3] + path.name)
def test_the_verifier_takes_what_each_compiler_of_this_machine_makes(
    docker: World, compiler: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build, "find_clang", lambda: compiler)
    built = tmp_path / "docker_dns.bpf.o"
    build.compile_bpf(build.ROOT / "bpf" / "docker_dns.bpf.c", built)
    monkeypatch.setattr(programs, "SYSTEM", programs.SYSTEM._replace(object=built))
    assert docker.redirect("corp.example").mode == MODE
    assert docker.addresses("www.corp.example") == [ANY_ANSWER]
    assert docker.addresses("www.example") == [BUILTIN_ANSWER]


def test_the_installed_command_redirects_and_leaves_nothing(docker: World) -> None:
    def zfw(*arguments: str) -> str:
        return docker.network.host.run(str(ZFW), "docker-dns", *arguments).stdout

    def qdiscs() -> str:
        return docker.container.run("tc", "qdisc").stdout

    before = qdiscs()
    number = zfw("redirect", "--netns", docker.network.path, "--to", SERVER).strip()
    assert (qdiscs() == before) is (MODE == "tcx")
    log = docker.log.read_text()
    for options in ((), ("+tcp",)):
        done = docker.dig("www.example", *options)
        assert ANY_ANSWER in done.stdout
        assert f"SERVER: {RESOLVER}#53({RESOLVER})" in done.stdout
    asked = docker.log.read_text().removeprefix(log)
    assert asked.count(f"query[A] www.example from {CONTAINER}") == 2
    # In one datagram that comes in fragments.
    assert docker.dig("big.example", "TXT", "+bufsize=4096").stdout.count("x" * 250) == 12

    (listed,) = json.loads(zfw("list", "--json"))
    udp, tcp = docker.daemon.ports
    assert (listed["id"], listed["mode"], listed["problem"]) == (number, MODE, None)
    assert listed["daemon_ports"] == {"udp": udp, "tcp": tcp}
    counted = {name: counter["packets"] for name, counter in listed["outcomes"].items()}
    assert counted.pop("query") >= 7
    assert counted.pop("answer") >= 8
    assert set(counted.values()) == {0}

    assert zfw("remove", number) == f"removed {number}\n"
    assert DnsRedirect.all() == []
    assert qdiscs() == before
    assert docker.addresses("www.example") == [BUILTIN_ANSWER]
