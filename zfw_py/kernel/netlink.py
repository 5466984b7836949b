# SPDX-License-Identifier: GPL-2.0-only
"""rtnetlink: TC filters, and the addresses and routes that make a prefix local.

Imports pyroute2, which takes 150 ms, as sock_diag.py alone does besides: nothing
on the per-rule path comes here.
"""

from __future__ import annotations

import errno
from contextlib import contextmanager
from ipaddress import ip_network
from socket import AF_INET, AF_INET6
from typing import TYPE_CHECKING, Any, NamedTuple

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError
from pyroute2.netlink.rtnl.tcmsg import sched_bpf

from zfw_py.errors import Conflict, KernelError

if TYPE_CHECKING:
    from collections.abc import Iterator

# What include/uapi/linux/pkt_cls.h has after TCA_BPF_FLAGS, and pyroute2 lacks:
# the program's id tells our filters from others'.
sched_bpf.options.nla_map = (
    *sched_bpf.options.nla_map,
    ("TCA_BPF_FLAGS_GEN", "uint32"),
    ("TCA_BPF_TAG", "hex"),
    ("TCA_BPF_ID", "uint32"),
)

# Parents of clsact, include/uapi/linux/pkt_sched.h: TC_H_CLSACT and its minors.
_PARENTS = {"ingress": 0xFFFFFFF2, "egress": 0xFFFFFFF3}
_ETH_P_ALL = 3
_PREFERENCE = 1
# Of a system's filters: those of several can be on one interface.
FIREWALL_HANDLE = 0x7A66  # "zf"
DOCKER_DNS_HANDLE = 0x7A64  # "zd"
_LOOPBACK_IFINDEX = 1
_SCOPE_HOST = 254
_IFA_F_NODAD = 0x02
_TABLE_LOCAL = 255
_ROUTE_LOCAL = 2  # RTN_LOCAL
# Marks addresses and routes of ours, as ifa_proto and rtm_protocol; those of
# others leave it 0 or use numbers that iproute2 knows. "z"
_OUR_PROTOCOL = 0x7A


class Filter(NamedTuple):
    """A cls_bpf filter: what names it, and its program."""

    ifindex: int
    direction: str
    preference: int
    handle: int
    program_id: int


@contextmanager
def _route(operation: str) -> Iterator[IPRoute]:
    try:
        with IPRoute() as route:
            yield route
    except NetlinkError as error:
        raise KernelError(operation, error.code) from error


def bpf_filters(ifindex: int, direction: str) -> list[Filter]:
    """The cls_bpf filters of an interface; none where it has no clsact."""
    found = []
    with _route("read the tc filters") as route:
        try:
            messages = list(route.get_filters(index=ifindex, parent=_PARENTS[direction]))
        except NetlinkError as error:
            if error.code in (errno.EINVAL, errno.ENOENT, errno.ENODEV):
                return []
            raise
    for message in messages:
        options = message.get_attr("TCA_OPTIONS")
        if message.get_attr("TCA_KIND") != "bpf" or options is None:
            continue
        program_id = options.get_attr("TCA_BPF_ID")
        if program_id is not None:
            found.append(
                Filter(ifindex, direction, message["info"] >> 16, message["handle"], program_id)
            )
    return found


def _has_clsact(route: IPRoute, ifindex: int) -> bool:
    return any(
        message.get_attr("TCA_KIND") == "clsact" for message in route.get_qdiscs(index=ifindex)
    )


def has_clsact(ifindex: int) -> bool:
    """Whether an interface has the qdisc that filters hang from."""
    with _route("read the qdiscs") as route:
        return _has_clsact(route, ifindex)


def remove_empty_clsact(ifindex: int) -> None:
    """Remove the qdisc if no filter hangs from it, of whatever kind."""
    with _route("remove clsact") as route:
        if not _has_clsact(route, ifindex):
            return
        for parent in _PARENTS.values():
            if list(route.get_filters(index=ifindex, parent=parent)):
                return
        route.tc("del", "clsact", ifindex)


def attach_clsact(
    ifindex: int, direction: str, program_fd: int, name: str, handle: int = FIREWALL_HANDLE
) -> None:
    """Attach by a cls_bpf filter of ours, or exchange its program; other filters stay."""
    with _route(f"attach through clsact ({direction})") as route:
        try:
            route.tc("add", "clsact", ifindex)
        except NetlinkError as error:
            if error.code != errno.EEXIST:
                raise
            if direction == "egress" and not _has_clsact(route, ifindex):
                raise Conflict(
                    "attach through clsact (egress): the interface has an ingress qdisc"
                    " in its place"
                ) from error
        try:
            route.tc(
                "replace-filter",
                "bpf",
                ifindex,
                handle=handle,
                fd=program_fd,
                name=name,
                parent=_PARENTS[direction],
                prio=_PREFERENCE,
                protocol=_ETH_P_ALL,
                direct_action=True,
            )
        except NetlinkError as error:
            if error.code in (errno.EINVAL, errno.EEXIST):
                raise Conflict(
                    f"attach through clsact ({direction}): a filter of another kind holds"
                    f" preference {_PREFERENCE}"
                ) from error
            raise


def delete_filter(found: Filter) -> None:
    """Remove exactly this filter."""
    with _route(f"remove our tc filter ({found.direction})") as route:
        route.tc(
            "del-filter",
            "bpf",
            found.ifindex,
            handle=found.handle,
            parent=_PARENTS[found.direction],
            prio=found.preference,
            protocol=_ETH_P_ALL,
        )


def overlapping_subnet(family: int, address: str, length: int) -> str | None:
    """A subnet of an interface other than lo that shares addresses with a prefix."""
    host = 32 if family == 4 else 128
    wanted = ip_network(f"{address}/{length}")
    with _route("read the addresses") as route:
        for message in route.get_addr(family=AF_INET if family == 4 else AF_INET6):
            if message["index"] == _LOOPBACK_IFINDEX or message["prefixlen"] == host:
                continue
            subnet = ip_network(
                f"{message.get_attr('IFA_ADDRESS')}/{message['prefixlen']}", strict=False
            )
            if wanted.overlaps(subnet):
                return str(subnet)
    return None


def _is_route(family: int, length: int) -> bool:
    """Whether a prefix is made local by a route, and not by an address of lo.

    An IPv4 address makes its whole prefix local, an IPv6 address itself alone.
    It has to be an address where it can be: bind(2) takes no IPv6 address that
    is local by a route only.
    """
    return family == 6 and length < 128


def _local(route: IPRoute, verb: str, family: int, address: str, length: int) -> None:
    if _is_route(family, length):
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
        # IPv6 has no such scope: deprecated, it is nobody's source unless asked for.
        arguments["preferred_lft"] = 0
        # lo has nobody to ask whether it is taken; until it had been, nobody could bind it.
        arguments["flags"] = _IFA_F_NODAD
    route.addr(verb, address=address, prefixlen=length, **arguments)


def is_ours(family: int, address: str, length: int) -> bool | None:
    """Whether a prefix was made local by ``add_local``; None if it is not local.

    Before Linux 5.18 (47f0bd503210) an address of lo keeps no mark, and is
    taken for somebody else's.
    """
    with _route(f"look for {address}/{length}") as route:
        if _is_route(family, length):
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
    """Make a prefix local; False if it was made so before, by whoever."""
    with _route(f"make {address}/{length} local") as route:
        try:
            _local(route, "add", family, address, length)
        except NetlinkError as error:
            if error.code == errno.EEXIST:
                return False
            raise
    return True


def remove_local(family: int, address: str, length: int) -> None:
    """Undo ``add_local``; it is no error if somebody else has."""
    with _route(f"make {address}/{length} no longer local") as route:
        try:
            _local(route, "del", family, address, length)
        except NetlinkError as error:
            if error.code not in (errno.EADDRNOTAVAIL, errno.ESRCH, errno.ENOENT):
                raise
