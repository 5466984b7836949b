# SPDX-License-Identifier: GPL-2.0-only
"""Interfaces and routes of the caller's network namespace, by rtnetlink. Only asks.

Imports pyroute2, which takes 150 ms: nothing on the per-rule path comes here.
"""

from __future__ import annotations

import errno
from contextlib import contextmanager
from socket import AF_INET
from typing import TYPE_CHECKING, NamedTuple

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from zfw_py.errors import KernelError, NotFound

if TYPE_CHECKING:
    from collections.abc import Iterator

# include/uapi/linux/if_arp.h. The second list is dev_is_mac_header_xmit() of the kernel:
# their packets begin with the IP header.
_WITH_ETHERNET = (1, 772)  # ARPHRD_ETHER, ARPHRD_LOOPBACK
_WITHOUT_HEADER = (512, 519, 768, 769, 776, 778, 823, 0xFFFE, 0xFFFF)  # PPP to VOID
_IFF_UP = 1
_RTM_F_FIB_MATCH = 0x2000
# RTN_UNICAST and RTN_LOCAL of include/uapi/linux/rtnetlink.h
_UNICAST, _LOCAL = 1, 2
_KINDS = {_UNICAST: "unicast", _LOCAL: "local"}
_NO_ROUTE = (
    errno.ENETUNREACH,
    errno.EHOSTUNREACH,
    errno.EACCES,  # a prohibit route
    errno.EINVAL,  # a blackhole route
    errno.EAGAIN,  # a throw route
    errno.ENODEV,
)


class Interface(NamedTuple):
    """An interface. ``has_ethernet`` is None where its packets begin with another header."""

    name: str
    ifindex: int
    link_type: int
    is_up: bool
    has_ethernet: bool | None
    ipv4: list[str]


class Route(NamedTuple):
    """A route: ``kind`` is "unicast", "local" or "other"; ``source`` what packets get by it."""

    kind: str
    ifindex: int | None
    source: str | None


@contextmanager
def _opened(operation: str) -> Iterator[IPRoute]:
    try:
        with IPRoute() as route:
            yield route
    except NetlinkError as error:
        raise KernelError(operation, error.code) from error


def interfaces() -> list[str]:
    """The names of all."""
    with _opened("list the interfaces") as route:
        return [str(message.get_attr("IFLA_IFNAME")) for message in route.get_links()]


def interface(name: str) -> Interface:
    """One by its name. Raises NotFound."""
    with _opened(f"look at interface {name}") as route:
        found = route.link_lookup(ifname=name)
        if not found:
            raise NotFound(f"no interface {name}")
        (message,) = route.get_links(found[0])
        link_type = message["ifi_type"]
        return Interface(
            name=name,
            ifindex=message["index"],
            link_type=link_type,
            is_up=bool(message["flags"] & _IFF_UP),
            has_ethernet=(link_type in _WITH_ETHERNET)
            if link_type in _WITH_ETHERNET + _WITHOUT_HEADER
            else None,
            ipv4=[
                str(address.get_attr("IFA_LOCAL"))
                for address in route.get_addr(family=AF_INET, index=message["index"])
            ],
        )


def route_to(address: str, ifindex: int | None = None) -> Route | None:
    """The way to an IPv4 address; with ``ifindex`` the one by that interface. None: there is none.

    Of the routing tables, where the kernel itself would take an address that no route
    by the interface has for a neighbour on its link.
    """
    by = {} if ifindex is None else {"oif": ifindex}
    with _opened(f"look for the route to {address}") as route:
        try:
            if by:
                list(route.route("get", dst=address, flags=_RTM_F_FIB_MATCH, **by))
            (message,) = route.route("get", dst=address, **by)
        except NetlinkError as error:
            if error.code in _NO_ROUTE:
                return None
            raise
    return Route(
        kind=_KINDS.get(message["type"], "other"),
        ifindex=message.get_attr("RTA_OIF"),
        source=message.get_attr("RTA_PREFSRC"),
    )
