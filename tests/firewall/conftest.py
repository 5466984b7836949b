# SPDX-License-Identifier: GPL-2.0-only
"""Fixtures of the firewall's tests."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from bpf.build import compile_bpf
from tests.firewall.support.attached import INTERFACE, STAND_IN, attached, use_object
from tests.firewall.support.frames import Gateway
from tests.firewall.support.routed import Router
from tests.support.netns import Network
from tests.support.waiting import wait_until
from zfw_py import Firewall, NotFound
from zfw_py.firewall import programs

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture(scope="module")
def running(_private_bpffs: None) -> Iterator[Gateway]:
    """The gateway that the tests of a file share."""
    with Gateway() as made:
        yield made


@pytest.fixture
def gateway(running: Gateway) -> Iterator[Gateway]:
    """The test runs inside the gateway, which has no rules; IPv6 is on."""
    with running.gateway.entered():
        running.reset()
        yield running


@pytest.fixture(scope="module")
def forwarding(_private_bpffs: None) -> Iterator[Router]:
    """The router that the tests of a file share."""
    with Router() as made:
        yield made


@pytest.fixture
def router(forwarding: Router) -> Iterator[Router]:
    """The test runs inside the router, which has no rules and no flows; IPv6 is on."""
    with forwarding.gateway.entered():
        forwarding.reset()
        yield forwarding


@pytest.fixture(scope="module")
def stand_in_object(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("object")
    source, output = directory / "stand_in.bpf.c", directory / "stand_in.bpf.o"
    source.write_text(STAND_IN)
    compile_bpf(source, output)
    return output


@pytest.fixture
def stand_in(stand_in_object: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is attached is the stand-in, in this test."""
    use_object(monkeypatch, stand_in_object)


@pytest.fixture(scope="module")
def _machine(_private_bpffs: None) -> Iterator[Network]:
    """A network whose gateway has a firewall, attached to nothing."""
    with Network() as made, made.gateway.entered():
        yield made
        Firewall().detach_all()


@pytest.fixture
def machine(_machine: Network) -> Iterator[Network]:
    """That network, as every test finds it: no rule, no setting, no program, no clsact."""
    firewall = Firewall()
    if not firewall.is_installed():
        firewall.attach(INTERFACE, "ingress")
        firewall.detach(INTERFACE)
    yield _machine
    firewall.flush()
    for direction in ("ingress", "egress"):
        try:
            firewall.detach(INTERFACE, direction)
        except NotFound:
            pass
    for setting in ("icmp_echo", "ipv6", "per_interface_rules", "pass_non_tuple"):
        firewall.set([INTERFACE], setting, False)
    _machine.gateway.run("tc", "qdisc", "del", "dev", INTERFACE, "clsact", check=False)
    assert wait_until(lambda: not attached(INTERFACE))


@pytest.fixture
def newer_object(tmp_path: Path) -> Path:
    """The same programs from another build: a byte behind the end, which no loader reads."""
    path = tmp_path / "newer.bpf.o"
    path.write_bytes(programs.SYSTEM.object.read_bytes() + b"\0")
    return path
