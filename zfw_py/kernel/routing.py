# SPDX-License-Identifier: GPL-2.0-only
"""Interfaces and routes of the caller's network namespace, read by rtnetlink."""

from __future__ import annotations

import errno
from socket import AF_INET
from typing import NamedTuple

from pyroute2.netlink.exceptions import NetlinkError

from zfw_py.errors import NotFound
from zfw_py.kernel.own_netns import ETHERNET_TYPES
from zfw_py.kernel.rtnetlink import session

# Link types whose packets begin with the IP header, those of dev_is_mac_header_xmit() in
# the kernel. include/uapi/linux/if_arp.h has the numbers.
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
    """An interface. ``has_ethernet`` is None if its packets begin with another kind of header."""

    name: str
    ifindex: int
    link_type: int
    is_up: bool
    has_ethernet: bool | None
    ipv4: list[str]


class Route(NamedTuple):
    """A route. ``kind`` is "unicast", "local" or "other"; ``source`` is that of its packets."""

    kind: str
    ifindex: int | None
    source: str | None


def interfaces() -> list[str]:
    """The names of all interfaces. Raises KernelError."""
    with session("list the interfaces") as route:
        return [str(message.get_attr("IFLA_IFNAME")) for message in route.get_links()]


def bridge_of(ifindex: int) -> str | None:
    """The bridge that an interface is a port of, if it is one. Raises KernelError."""
    with session(f"look at interface {ifindex}") as route:
        (message,) = route.get_links(ifindex)
        kind = message.get_nested("IFLA_LINKINFO", "IFLA_INFO_SLAVE_KIND")
        if kind != "bridge":
            return None
        (master,) = route.get_links(message.get_attr("IFLA_MASTER"))
        return str(master.get_attr("IFLA_IFNAME"))


def interface(name: str) -> Interface:
    """The interface of this name. Raises NotFound, KernelError."""
    with session(f"look at interface {name}") as route:
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
            has_ethernet=(link_type in ETHERNET_TYPES)
            if link_type in ETHERNET_TYPES + _WITHOUT_HEADER
            else None,
            ipv4=[
                str(address.get_attr("IFA_LOCAL"))
                for address in route.get_addr(family=AF_INET, index=message["index"])
            ],
        )


def route_to(address: str, ifindex: int | None = None) -> Route | None:
    """The route to an IPv4 address, or None. Raises KernelError.

    With ``ifindex`` it is the route by that interface, of the routing tables. Without a
    route there, the kernel would take the address for that of a neighbour on the link.
    """
    by = {} if ifindex is None else {"oif": ifindex}
    with session(f"look for the route to {address}") as route:
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
