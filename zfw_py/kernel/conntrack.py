# SPDX-License-Identifier: GPL-2.0-only
"""What address translation makes of a flow, by the caller's namespace's connection tracking.

Whatever the rules were made with, iptables of either kind or nftables: it is the
outcome that is asked for. Imports pyroute2, as netlink.py does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pyroute2.netlink.exceptions import NetlinkError
from pyroute2.netlink.nfnetlink.nfctsocket import NFCTAttrTuple, NFCTSocket

if TYPE_CHECKING:
    End = tuple[str, int]


def translated_destination(protocol: int, source: End, destination: End) -> End | None:
    """Where a flow of IPv4 goes to in truth, or None if nothing is known of it.

    ``source`` and ``destination`` are as the packets had them before translation.
    """
    wanted = NFCTAttrTuple(
        saddr=source[0], sport=source[1], daddr=destination[0], dport=destination[1], proto=protocol
    )
    try:
        with NFCTSocket() as conntrack:
            found = conntrack.entry("get", tuple_orig=wanted)
    except (NetlinkError, OSError):
        # There is no such flow, no connection tracking, or no netlink to ask it by.
        return None
    for message in found:
        reply = message.get_attr("CTA_TUPLE_REPLY")
        if reply is not None:
            # Answers come from there.
            address = reply.get_attr("CTA_TUPLE_IP").get_attr("CTA_IP_V4_SRC")
            port = reply.get_attr("CTA_TUPLE_PROTO").get_attr("CTA_PROTO_SRC_PORT")
            return address, port
    return None
