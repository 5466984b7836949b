# SPDX-License-Identifier: GPL-2.0-only
"""Traffic control, by rtnetlink: the qdisc clsact and its cls_bpf filters (tc-bpf(8))."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, NamedTuple

from pyroute2.netlink.exceptions import NetlinkError
from pyroute2.netlink.rtnl.tcmsg import sched_bpf

from zfw_py.errors import Conflict
from zfw_py.kernel.rtnetlink import session

if TYPE_CHECKING:
    from pyroute2 import IPRoute

# These follow TCA_BPF_FLAGS in include/uapi/linux/pkt_cls.h, and pyroute2 does not know
# them. The id of its program identifies a filter of zfw.
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
# The handle of each system's filters: both can have filters on one interface.
FIREWALL_HANDLE = 0x7A66  # "zf"
DOCKER_DNS_HANDLE = 0x7A64  # "zd"


class Filter(NamedTuple):
    """A cls_bpf filter: the four numbers that identify it, and the id of its program."""

    ifindex: int
    direction: str
    preference: int
    handle: int
    program_id: int


def bpf_filters(ifindex: int, direction: str) -> list[Filter]:
    """The cls_bpf filters of an interface; none if it has no clsact. Raises KernelError."""
    found = []
    with session("read the tc filters") as route:
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
    """Whether an interface has the qdisc clsact. Raises KernelError."""
    with session("read the qdiscs") as route:
        return _has_clsact(route, ifindex)


def remove_empty_clsact(ifindex: int) -> None:
    """Remove clsact from an interface unless it has filters of any kind. Raises KernelError."""
    with session("remove clsact") as route:
        if not _has_clsact(route, ifindex):
            return
        for parent in _PARENTS.values():
            if list(route.get_filters(index=ifindex, parent=parent)):
                return
        route.tc("del", "clsact", ifindex)


def attach_clsact(
    ifindex: int, direction: str, program_fd: int, name: str, handle: int = FIREWALL_HANDLE
) -> None:
    """Attach a program by a cls_bpf filter, or replace the program of the one with this handle.

    Adds clsact if the interface has none; other filters stay. Raises Conflict if a filter of
    another kind or a qdisc is in the way, KernelError.
    """
    with session(f"attach through clsact ({direction})") as route:
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
    """Remove this filter. Raises KernelError."""
    with session(f"remove our tc filter ({found.direction})") as route:
        route.tc(
            "del-filter",
            "bpf",
            found.ifindex,
            handle=found.handle,
            parent=_PARENTS[found.direction],
            prio=found.preference,
            protocol=_ETH_P_ALL,
        )
