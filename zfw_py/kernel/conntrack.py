# SPDX-License-Identifier: GPL-2.0-only
"""Connection tracking of the caller's network namespace, by nfnetlink.

It shows how the kernel translated a flow, whether iptables or nftables made the rules.
Imports pyroute2, as rtnetlink.py does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pyroute2.netlink.exceptions import NetlinkError
from pyroute2.netlink.nfnetlink.nfctsocket import NFCTAttrTuple, NFCTSocket

if TYPE_CHECKING:
    End = tuple[str, int]


def translated_destination(protocol: int, source: End, destination: End) -> End | None:
    """Address and port that an IPv4 flow is translated to; None if the flow is not tracked.

    ``source`` and ``destination`` are those of its packets before translation.
    """
    wanted = NFCTAttrTuple(
        saddr=source[0], sport=source[1], daddr=destination[0], dport=destination[1], proto=protocol
    )
    try:
        with NFCTSocket() as conntrack:
            found = conntrack.entry("get", tuple_orig=wanted)
    except (NetlinkError, OSError):
        # No such flow, or a kernel without connection tracking or without its netlink family.
        return None
    for message in found:
        reply = message.get_attr("CTA_TUPLE_REPLY")
        if reply is not None:
            # The source of the replies is the translated destination.
            address = reply.get_attr("CTA_TUPLE_IP").get_attr("CTA_IP_V4_SRC")
            port = reply.get_attr("CTA_TUPLE_PROTO").get_attr("CTA_PROTO_SRC_PORT")
            return address, port
    return None
