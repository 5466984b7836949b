# SPDX-License-Identifier: GPL-2.0-only
"""Prefixes that the kernel delivers locally, by rtnetlink: addresses of lo and local routes."""

from __future__ import annotations

import errno
from ipaddress import ip_network
from socket import AF_INET, AF_INET6
from typing import TYPE_CHECKING, Any

from pyroute2.netlink.exceptions import NetlinkError

from zfw_py.kernel.rtnetlink import session

if TYPE_CHECKING:
    from pyroute2 import IPRoute

_LOOPBACK_IFINDEX = 1
_SCOPE_HOST = 254
_IFA_F_NODAD = 0x02
_TABLE_LOCAL = 255
_ROUTE_LOCAL = 2  # RTN_LOCAL
# ifa_proto and rtm_protocol of the addresses and routes that zfw adds. Other programs leave
# it 0 or use a number that iproute2 knows. "z"
_OUR_PROTOCOL = 0x7A


def overlapping_subnet(family: int, address: str, length: int) -> str | None:
    """A subnet of an interface that overlaps a prefix, or None; lo is left out.

    Raises KernelError.
    """
    host = 32 if family == 4 else 128
    wanted = ip_network(f"{address}/{length}")
    with session("read the addresses") as route:
        for message in route.get_addr(family=AF_INET if family == 4 else AF_INET6):
            if message["index"] == _LOOPBACK_IFINDEX or message["prefixlen"] == host:
                continue
            subnet = ip_network(
                f"{message.get_attr('IFA_ADDRESS')}/{message['prefixlen']}", strict=False
            )
            if wanted.overlaps(subnet):
                return str(subnet)
    return None


def _issession(family: int, length: int) -> bool:
    """Whether a route makes a prefix local, and not an address of lo.

    An IPv4 address of lo makes its whole prefix local, an IPv6 address only itself. Where
    an address will do, it is used: bind(2) refuses an IPv6 address that only a route makes
    local.
    """
    return family == 6 and length < 128


def _local(route: IPRoute, verb: str, family: int, address: str, length: int) -> None:
    if _issession(family, length):
        route.route(
            verb,
            dst=f"{address}/{length}",
            oif=_LOOPBACK_IFINDEX,
            table=_TABLE_LOCAL,
            type=_ROUTE_LOCAL,
            scope=_SCOPE_HOST,
            family=AF_INET6,
            proto=_OUR_PROTOCOL,
        )
        return
    arguments: dict[str, Any] = {"index": _LOOPBACK_IFINDEX, "proto": _OUR_PROTOCOL}
    if family == 4:
        arguments["scope"] = _SCOPE_HOST
    elif verb == "add":
        # IPv6 has no such scope. No program gets a deprecated address as its source unless
        # it binds to it.
        arguments["preferred_lft"] = 0
        # Duplicate address detection makes no sense on lo, and would delay bind(2).
        arguments["flags"] = _IFA_F_NODAD
    route.addr(verb, address=address, prefixlen=length, **arguments)


def is_ours(family: int, address: str, length: int) -> bool | None:
    """Whether ``add_local`` made a prefix local; None if it is not local. Raises KernelError.

    Before Linux 5.18 (47f0bd503210) the kernel does not keep ifa_proto. There an address
    of lo counts as another program's.
    """
    with session(f"look for {address}/{length}") as route:
        if _issession(family, length):
            for message in route.get_routes(family=AF_INET6, table=_TABLE_LOCAL):
                destination = message.get_attr("RTA_DST"), message["dst_len"]
                if destination == (address, length) and _is_on_loopback(message):
                    return bool(message["proto"] == _OUR_PROTOCOL)
            return None
        for message in route.get_addr(
            family=AF_INET if family == 4 else AF_INET6, index=_LOOPBACK_IFINDEX
        ):
            local = message.get_attr("IFA_LOCAL") or message.get_attr("IFA_ADDRESS")
            if (local, message["prefixlen"]) == (address, length):
                return bool(message.get_attr("IFA_PROTO") == _OUR_PROTOCOL)
    return None


def _is_on_loopback(message: Any) -> bool:
    return bool(message.get_attr("RTA_OIF") == _LOOPBACK_IFINDEX)


def add_local(family: int, address: str, length: int) -> bool:
    """Make a prefix local; False if it already is, by any program. Raises KernelError."""
    with session(f"make {address}/{length} local") as route:
        try:
            _local(route, "add", family, address, length)
        except NetlinkError as error:
            if error.code == errno.EEXIST:
                return False
            raise
    return True


def remove_local(family: int, address: str, length: int) -> None:
    """Undo ``add_local``, if no other program has done so. Raises KernelError."""
    with session(f"make {address}/{length} no longer local") as route:
        try:
            _local(route, "del", family, address, length)
        except NetlinkError as error:
            if error.code not in (errno.EADDRNOTAVAIL, errno.ESRCH, errno.ENOENT):
                raise
