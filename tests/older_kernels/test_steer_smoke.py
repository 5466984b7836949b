# SPDX-License-Identifier: GPL-2.0-only
"""What a kernel has to be able to do for steer: take its programs, and call each of them.

scripts/test-kernels runs this in each kernel that it boots.
"""

from __future__ import annotations

import socket
from ipaddress import ip_address
from typing import TYPE_CHECKING

import pytest

from bpf import build
from tests.older_kernels.test_smoke import COMPILERS
from tests.steer.support import installed
from tests.steer.support.reference import Mapping
from zfw_py.steer.codec import Counter

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.netns import Network

pytestmark = pytest.mark.kernel

TCP, UDP = socket.IPPROTO_TCP, socket.IPPROTO_UDP
# The daemon's address, the one that clients ask, and how the daemon sees clients.
PLACES = (
    ("127.0.0.5", "10.9.0.1", "10.9.0.2"),
    ("::ffff:127.0.0.6", "10.9.0.1", "::ffff:10.9.0.2"),
    ("fd00::7", "fd09::1", "fd09::2"),
)


@pytest.mark.parametrize("compiler", COMPILERS, ids=lambda path: path.parts[-3] + path.name)
def test_what_each_compiler_of_this_machine_makes_steers(
    network: Network, compiler: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build, "find_clang", lambda: compiler)
    built = tmp_path / "steer.bpf.o"
    build.compile_bpf(build.ROOT / "bpf" / "steer.bpf.c", built)
    monkeypatch.setattr(installed, "OBJECT", built)
    network.gateway.add_addresses("lo", "fd00::7/128")
    with installed.steered() as programs:
        for target, (daemon, asked, client_address) in enumerate(PLACES):
            family = socket.AF_INET6 if ":" in daemon else socket.AF_INET
            programs.name_target(target, TCP, daemon, 22)
            programs.apply(
                [
                    Mapping(2 * target, TCP, None, (5000, 6000), target),
                    Mapping(2 * target + 1, UDP, None, (5353, 5353), target),
                ]
            )
            with socket.socket(family) as listener:
                listener.bind((daemon, 22))
                listener.listen()
                listener.settimeout(60)
                with network.client.entered():
                    client = socket.create_connection((asked, 5555), timeout=60)
                with client, listener.accept()[0] as made:
                    assert made.getpeername()[:2] == (client_address, client.getsockname()[1])
                    assert client.getpeername()[0] == asked
            with network.client.entered(), pytest.raises(ConnectionRefusedError):
                _refused(asked)
            with socket.socket(family, socket.SOCK_DGRAM) as server:
                server.bind((daemon, 5353))
                server.settimeout(60)
                programs.put(target, server)
                with network.client.entered():
                    asking = socket.socket(
                        socket.AF_INET if ip_address(asked).version == 4 else socket.AF_INET6,
                        socket.SOCK_DGRAM,
                    )
                with asking:
                    asking.settimeout(60)
                    asking.sendto(b"question", (asked, 5353))
                    server.sendto(*server.recvfrom(100))
                    assert asking.recvfrom(100)[1][:2] == (asked, 5353)
            assert programs.counter(2 * target) == Counter(
                lookups=2, kept_by_listener=0, no_socket=1
            )
            assert programs.counter(2 * target + 1) == Counter(
                lookups=1, kept_by_listener=0, no_socket=0
            )
        programs.scan()
        assert programs.listening() == {}
        assert programs.troubles() == {}


def _refused(address: str) -> None:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family) as client:
        client.settimeout(60)
        client.connect((address, 5555))
