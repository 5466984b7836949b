# SPDX-License-Identifier: GPL-2.0-only
"""What a kernel has to be able to do: take the programs, and serve the installed command.

scripts/test-kernels runs this in each kernel that it boots.
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from bpf import build
from tests.firewall.support.frames import (
    CLIENT,
    GATEWAY,
    SERVICE,
    Gateway,
    listening,
)
from tests.support.command import ZFW
from tests.support.netns import Network
from tests.support.waiting import wait_until
from zfw_py import Firewall, NotInstalled
from zfw_py.firewall import programs
from zfw_py.firewall.maps import STORE

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support.netns import Namespace

pytestmark = pytest.mark.kernel

COMPILERS = sorted({path.resolve() for path in build.CLANGS if path.is_file()})
# TCX came with Linux 6.6; before it there is clsact.
MODE = "tcx" if tuple(map(int, os.uname().release.split(".")[:2])) >= (6, 6) else "clsact"
ATTACHED = "".join(
    rf"attached {Network.interface} {direction} by {MODE} \(program (\d+)\)\n"
    for direction in ("ingress", "egress")
)


@pytest.fixture
def unarmed(_private_bpffs: None) -> Iterator[Gateway]:
    """The test is inside a gateway of its own, without a firewall."""
    with Gateway() as made, made.gateway.entered():
        made.firewall.detach_all()
        yield made
        made.firewall.attach(made.interface, "ingress")  # which close() takes off


@pytest.mark.parametrize("compiler", COMPILERS, ids=lambda path: path.parts[-3] + path.name)
def test_the_verifier_takes_what_each_compiler_of_this_machine_makes(
    namespace: Namespace, compiler: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build, "find_clang", lambda: compiler)
    built = tmp_path / "firewall.bpf.o"
    build.compile_bpf(build.ROOT / "bpf" / "firewall.bpf.c", built)
    monkeypatch.setattr(programs, "SYSTEM", programs.SYSTEM._replace(object=built))
    attachments = Firewall().attach("lo", "both")
    assert {(one.direction, one.mode) for one in attachments} == {
        ("ingress", MODE),
        ("egress", MODE),
    }


def test_the_installed_command_attaches_intercepts_deletes_and_leaves_nothing(
    unarmed: Gateway,
) -> None:
    def zfw(*arguments: str) -> str:
        return unarmed.gateway.run(str(ZFW), *arguments).stdout

    def is_loaded(program: str) -> bool:
        asked = ("bpftool", "prog", "show", "id", program)
        return unarmed.gateway.run(*asked, check=False).returncode == 0

    attached = re.fullmatch(ATTACHED, zfw("attach", unarmed.interface))
    assert attached
    assert is_loaded(attached[1])
    zfw("set", unarmed.interface, "--ipv6", "on")
    # Each start of the interpreter takes seconds under emulation: not every combination.
    for protocol, family in (("tcp", 4), ("udp", 6)):
        key = ("-c", SERVICE[family], "-p", protocol, "-l", "22")
        unarmed.is_dropped(protocol, SERVICE[family], 22, "no_rule")
        with listening(protocol, family) as listener:
            zfw("insert", *key, "-t", str(listener.port))
            unarmed.talks(listener, SERVICE[family], 22)
        (rule,) = json.loads(zfw("list", "--json"))
        assert (rule["protocol"], rule["tproxy_port"]) == (protocol, listener.port)
        assert rule["packets"] == 1
        zfw("delete", *key)
        unarmed.is_dropped(protocol, SERVICE[family], 22, "no_rule")

    zfw("detach", "--all")
    assert STORE.identifiers() == []
    with pytest.raises(NotInstalled):
        Firewall().rules()
    # Which it stays as long as anything has it: a filter, a link, a pin.
    assert wait_until(lambda: not is_loaded(attached[1]))
    with (
        listening("tcp", 4, 5000, GATEWAY[4]) as service,
        unarmed.client_socket("tcp", 4) as client,
    ):
        client.connect((GATEWAY[4], 5000))
        with service.accept() as connection:
            assert connection.getpeername()[0] == CLIENT[4]
