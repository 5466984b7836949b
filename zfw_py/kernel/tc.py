# SPDX-License-Identifier: GPL-2.0-only
"""Traffic control, by rtnetlink: the qdisc clsact and its cls_bpf filters (tc-bpf(8)).

Reads without pyroute2; only what changes something imports it.
"""

from __future__ import annotations

import errno
from struct import Struct
from typing import TYPE_CHECKING, NamedTuple

from zfw_py.errors import Conflict, KernelError
from zfw_py.kernel import netlink

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from pyroute2 import IPRoute

_tcmsg = Struct("=BxxxiIII")  # struct tcmsg: family, ifindex, handle, parent, info
_u32 = Struct("=I")
# include/uapi/linux/rtnetlink.h and pkt_cls.h
_RTM_GETQDISC, _RTM_GETTFILTER = 38, 46
_TCA_KIND, _TCA_OPTIONS, _TCA_BPF_NAME, _TCA_BPF_ID = 1, 2, 7, 11

# Parents of clsact, include/uapi/linux/pkt_sched.h: TC_H_CLSACT and its minors.
_PARENTS = {"ingress": 0xFFFFFFF2, "egress": 0xFFFFFFF3}
_ETH_P_ALL = 3
_PREFERENCE = 1
# The handle of each system's filters: both can have filters on one interface.
FIREWALL_HANDLE = 0x7A66  # "zf"
DOCKER_DNS_HANDLE = 0x7A64  # "zd"


class Filter(NamedTuple):
    """A cls_bpf filter: the four values that identify it, the id of its program and its name.

    The name is the one that the filter was attached with.
    """

    ifindex: int
    direction: str
    preference: int
    handle: int
    program_id: int
    name: str


def bpf_filters(ifindex: int, direction: str) -> list[Filter]:
    """The cls_bpf filters of an interface, in their order; none if it has no clsact.

    Raises KernelError.
    """
    try:
        request = _tcmsg.pack(0, ifindex, 0, _PARENTS[direction], 0)
        messages = netlink.dump(netlink.ROUTE, _RTM_GETTFILTER, request)
    except OSError as error:
        if error.errno in (errno.EINVAL, errno.ENOENT, errno.ENODEV):
            return []
        raise KernelError("read the tc filters", error.errno or 0) from error
    found = []
    for message in messages:
        _, _, handle, _, info = _tcmsg.unpack_from(message)
        attributes = netlink.attributes(message[_tcmsg.size :])
        if netlink.text(attributes.get(_TCA_KIND, b"")) != "bpf":
            continue
        options = netlink.attributes(attributes.get(_TCA_OPTIONS, b""))
        if number := options.get(_TCA_BPF_ID):
            name = netlink.text(options.get(_TCA_BPF_NAME, b""))
            program_id = _u32.unpack(number)[0]
            found.append(Filter(ifindex, direction, info >> 16, handle, program_id, name))
    return found


def _with_qdisc(*kinds: str) -> set[int]:
    """The indexes of the interfaces that have a qdisc of one of these kinds."""
    try:
        messages = netlink.dump(netlink.ROUTE, _RTM_GETQDISC, _tcmsg.pack(0, 0, 0, 0, 0))
    except OSError as error:
        raise KernelError("read the qdiscs", error.errno or 0) from error
    return {
        _tcmsg.unpack_from(message)[1]
        for message in messages
        if netlink.text(netlink.attributes(message[_tcmsg.size :]).get(_TCA_KIND, b"")) in kinds
    }


def may_have_filters() -> set[int]:
    """The indexes of the interfaces on which ``bpf_filters`` may find one. Raises KernelError."""
    # The older qdisc ingress takes the same filters, of ingress alone.
    return _with_qdisc("clsact", "ingress")


def has_clsact(ifindex: int) -> bool:
    """Whether an interface has the qdisc clsact. Raises KernelError."""
    return ifindex in _with_qdisc("clsact")


def remove_empty_clsact(ifindex: int) -> None:
    """Remove clsact from an interface unless it has filters of any kind. Raises KernelError."""
    if not has_clsact(ifindex):
        return
    with _session("remove clsact") as route:
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
    from pyroute2.netlink.exceptions import NetlinkError

    with _session(f"attach through clsact ({direction})") as route:
        try:
            route.tc("add", "clsact", ifindex)
        except NetlinkError as error:
            if error.code != errno.EEXIST:
                raise
            if direction == "egress" and not has_clsact(ifindex):
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
    with _session(f"remove our tc filter ({found.direction})") as route:
        route.tc(
            "del-filter",
            "bpf",
            found.ifindex,
            handle=found.handle,
            parent=_PARENTS[found.direction],
            prio=found.preference,
            protocol=_ETH_P_ALL,
        )


def _session(operation: str) -> AbstractContextManager[IPRoute]:
    from zfw_py.kernel.rtnetlink import session

    return session(operation)
