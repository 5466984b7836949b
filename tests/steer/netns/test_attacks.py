# SPDX-License-Identifier: GPL-2.0-only
"""What a user without privileges can do to the daemons and mappings of others: nothing."""

from __future__ import annotations

import os
import resource
import socket
from contextlib import contextmanager
from ipaddress import IPv4Address
from typing import TYPE_CHECKING

import pytest

from tests.steer.support.gateway import lands_on, listen, mapping
from tests.support.children import NOBODY, child, drop_privileges, in_child
from tests.support.waiting import PATIENCE, wait_until
from zfw_py.steer import codec, layout
from zfw_py.steer.maps import STORE, Maps

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support.netns import Network
    from zfw_py.steer.service import Steering

pytestmark = pytest.mark.kernel

TARGET = ("127.0.0.5", 2222)
# Beyond the share of one user.
MORE = 2_000


@pytest.fixture
def target(steering: Steering) -> Iterator[socket.socket]:
    """The listener to which all ports of all addresses are steered."""
    with listen(*TARGET) as made:
        steering.add([mapping("tcp", "any", "any", f"{TARGET[0]}:{TARGET[1]}")])
        yield made


@contextmanager
def _filled_by_nobody(count: int) -> Iterator[None]:
    """A process of nobody has so many sockets, each on an address of its own."""
    limit = count + 100
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, max(limit, before[1])))
    held = []

    def fill() -> int:
        drop_privileges()
        for number in range(count):
            made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            made.bind((str(IPv4Address("127.1.0.0") + number), 4000))
            held.append(made)
        return len(held)

    try:
        with child(fill) as process:
            assert process.told == count
            yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_a_user_who_fills_the_table_takes_no_connection_from_a_daemon(
    network: Network, steering: Steering, target: socket.socket
) -> None:
    with _filled_by_nobody(layout.SHARE + MORE):
        with listen(network.gateway_ipv4, 7000) as daemon:
            assert lands_on(network.client, network.gateway_ipv4, 7000, daemon)
        assert lands_on(network.client, network.gateway_ipv4, 7001, target)
        status = steering.status()
        assert [each for each in status.warnings if each.startswith(f"user {NOBODY} has ")]
        assert "listeners" not in status.errors
        # What is beyond its share keeps nothing, and ends no steering.
        with _listening_as_nobody(network.gateway_ipv4, 7002):
            assert lands_on(network.client, network.gateway_ipv4, 7002, target)
    maps = Maps(STORE.directory(steering.cookie))
    # The kernel closes what a process held after the process has ended.
    assert wait_until(lambda: list(maps.map("charges").items()) == [])
    assert [codec.cookie_of(value) for _, value in maps.map("shares").items()] == [0]
    assert steering.status().warnings == []
    with _listening_as_nobody(network.gateway_ipv4, 7002) as theirs:
        assert lands_on(network.client, network.gateway_ipv4, 7002, theirs)


@contextmanager
def _listening_as_nobody(address: str, port: int) -> Iterator[socket.socket]:
    """A listener of nobody, which this process has open too."""
    with socket.socket() as made:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind((address, port))
        made.settimeout(PATIENCE)
        os.fchown(made.fileno(), NOBODY, NOBODY)

        def begin() -> None:
            drop_privileges()
            made.listen()

        in_child(begin)
        yield made


def test_a_table_that_is_full_proves_nothing(
    network: Network, steering: Steering, target: socket.socket
) -> None:
    """Several users have filled it: the kernel's own look-up finds the daemon."""
    maps = Maps(STORE.directory(steering.cookie))
    charges = maps.map("charges")
    gone = [codec.cookie_key((1 << 63) + number) for number in range(layout.CHARGES)]
    charges.update_many(gone, [codec.number_key(1)] * len(gone))
    address = network.gateway_ipv4
    with _listening_as_nobody(address, 7000) as theirs:
        assert lands_on(network.client, address, 7000, theirs)
        assert lands_on(network.client, address, 7001, target)
        # Root has room that no other user takes.
        with listen(address, 7002) as daemon:
            assert lands_on(network.client, address, 7002, daemon)
        status = steering.status()
        assert status.errors == {"listeners": 1}
        assert [each for each in status.warnings if "more sockets listen" in each]
        # A scan does not find room either, until others have closed.
        steering.snapshot(maps)
        assert maps.has_unrecorded()
        assert lands_on(network.client, address, 7000, theirs)
        charges.delete_many(gone)
        steering.snapshot(maps)
        assert not maps.has_unrecorded()
        assert lands_on(network.client, address, 7000, theirs)
        assert steering.status().warnings == []
    assert lands_on(network.client, address, 7000, target)
