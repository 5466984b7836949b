# SPDX-License-Identifier: GPL-2.0-only
"""Dumps by netlink, compared with pyroute2's."""

from __future__ import annotations

import errno
import os
from struct import pack
from typing import TYPE_CHECKING

import pytest
from pyroute2 import IPRoute

from zfw_py.kernel import netlink, tc
from zfw_py.kernel.own_netns import interface_addresses

if TYPE_CHECKING:
    from tests.support.netns import Network

pytestmark = pytest.mark.kernel

RTM_GETLINK, IFLA_IFNAME, IFINFOMSG = 18, 3, 16


def names() -> list[str]:
    messages = netlink.dump(netlink.ROUTE, RTM_GETLINK, bytes(IFINFOMSG))
    return [netlink.text(netlink.attributes(each[IFINFOMSG:])[IFLA_IFNAME]) for each in messages]


def test_a_dump_in_many_parts_is_whole(network: Network) -> None:
    with network.gateway.entered(), IPRoute() as route:
        for number in range(60):  # of about 1500 bytes each
            route.link("add", ifname=f"v{number}", kind="veth", peer={"ifname": f"w{number}"})
        assert sorted(names()) == sorted(interface_addresses())
        assert len(names()) > 120


def test_qdiscs_and_filters(network: Network) -> None:
    with network.gateway.entered(), IPRoute() as route:
        assert tc.may_have_filters() == set()
        index = route.link_lookup(ifname=network.interface)[0]
        assert tc.bpf_filters(index, "ingress") == []
        route.tc("add", "clsact", index)
        assert tc.may_have_filters() == {index}
        assert tc.has_clsact(index)
        assert tc.bpf_filters(index, "ingress") == []
        tc.remove_empty_clsact(index)
        assert not tc.has_clsact(index)
        route.tc("add", "ingress", index)
        assert tc.may_have_filters() == {index}
        assert not tc.has_clsact(index)


def test_what_the_kernel_refuses_is_an_error() -> None:
    with pytest.raises(OSError, match=os.strerror(errno.EOPNOTSUPP)):
        netlink.dump(netlink.ROUTE, RTM_GETLINK + 900, bytes(IFINFOMSG))


def test_attributes() -> None:
    data = pack("=HH3sx", 7, 1, b"ab\0") + pack("=HHI", 8, 0x8002, 5) + pack("=HH", 0, 0)
    assert netlink.attributes(data) == {1: b"ab\0", 2: pack("=I", 5)}
    assert netlink.text(b"ab\0") == "ab"
