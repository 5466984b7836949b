# SPDX-License-Identifier: GPL-2.0-only
"""Routes and sockets as the kernel reports them to one question."""

from __future__ import annotations

import os
import socket
from typing import TYPE_CHECKING

import pytest

from tests.support.netns import RoutedNetwork
from zfw_py.kernel.lookups import PacketRoute, route_of, sockets_on

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.kernel

PORT = 45671


def ipv4(text: str) -> bytes:
    return socket.inet_aton(text)


def ipv6(text: str) -> bytes:
    return socket.inet_pton(socket.AF_INET6, text)


@pytest.fixture
def router() -> Iterator[RoutedNetwork]:
    with RoutedNetwork() as made, made.gateway.entered():
        yield made


def test_routes(router: RoutedNetwork) -> None:
    inside, outside = (socket.if_nametoindex(name) for name in (router.inside, router.outside))
    assert route_of(4, ipv4("10.9.0.1")).kind == "local"
    assert route_of(6, ipv6("fd09::1")).kind == "local"
    assert route_of(4, ipv4("10.9.0.255")).kind == "broadcast"
    assert route_of(4, ipv4("10.8.0.9")) == PacketRoute("unicast", outside)
    assert route_of(6, ipv6("fd08::9")) == PacketRoute("unicast", outside)
    assert route_of(4, ipv4("198.51.100.1")) == PacketRoute("none")
    router.gateway.ip(
        "route add 198.51.100.0/24 via 10.8.0.2",
        "route add 203.0.113.0/25 via inet6 fd08::2 dev wan0",
        "route add blackhole 203.0.113.128/26",
        "route add prohibit 203.0.113.192/26",
    )
    assert route_of(4, ipv4("198.51.100.1")) == PacketRoute("unicast", outside, "10.8.0.2")
    assert route_of(4, ipv4("203.0.113.1")) == PacketRoute("unicast", outside, "fd08::2")
    assert route_of(4, ipv4("203.0.113.129")).kind == "blackhole"
    assert route_of(4, ipv4("203.0.113.193")).kind == "prohibit"
    # As a packet of the client's arrives.
    arriving = route_of(4, ipv4("10.8.0.9"), ipv4("10.9.0.2"), inside)
    assert arriving == PacketRoute("unicast", outside)
    router.gateway.sysctl(1, f"ipv4/conf/{router.outside}/rp_filter")
    forged = route_of(4, ipv4("10.9.0.1"), ipv4("10.9.0.2"), outside)
    assert forged == PacketRoute("source")


def test_sockets(namespace: object) -> None:
    assert sockets_on("tcp", PORT) == []
    with (
        socket.socket() as transparent,
        socket.create_server(("::", PORT), family=socket.AF_INET6, dualstack_ipv6=True) as both,
        socket.socket(type=socket.SOCK_DGRAM) as datagrams,
    ):
        transparent.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        transparent.setsockopt(socket.SOL_IP, 19, 1)  # IP_TRANSPARENT
        datagrams.bind(("127.0.0.1", PORT))
        assert both.fileno() >= 0
        (found,) = sockets_on("tcp", PORT) or ()
        assert (found.family, found.address, found.is_v6only) == (6, bytes(16), False)
        assert found.is_transparent is False
        (found,) = sockets_on("udp", PORT) or ()
        assert (found.family, found.address, found.uid) == (4, ipv4("127.0.0.1"), 0)
        both.close()
        transparent.bind(("127.0.0.1", PORT))
        transparent.listen()
        (found,) = sockets_on("tcp", PORT) or ()
        assert found.is_transparent is True
        assert found.inode == os.fstat(transparent.fileno()).st_ino
        # A connected socket waits for one peer alone.
        datagrams.connect(("127.0.0.1", 9))
        assert sockets_on("udp", PORT) == []
