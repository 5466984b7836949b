# SPDX-License-Identifier: GPL-2.0-only
"""Whether the kernel delivers a packet that arrives to this host, by rtnetlink."""

from __future__ import annotations

from socket import AF_INET, if_nametoindex, inet_pton
from struct import Struct

from zfw_py.errors import KernelError
from zfw_py.kernel import netlink
from zfw_py.kernel.lookups import route_of

# include/uapi/linux/rtnetlink.h and if_addr.h
_RTM_GETADDR = 22
_IFA_ADDRESS, _IFA_LOCAL = 1, 2
_ifaddrmsg = Struct("=BBBBI")  # family, prefix length, flags, scope, index
_OTHER_HOST = "192.0.2.2"  # RFC 5737


def is_delivered(family: int, address: bytes, to: tuple[str, int], interface: str) -> bool | None:
    """Whether a packet that arrives at an interface is for this host.

    ``address`` has 4 or 16 bytes; ``to`` is "tcp" or "udp" and the destination port. By all
    rules and tables of routes, except for rules that look at a mark. None if the kernel would
    refuse the packet because of its source. Raises OSError where there is no such interface,
    KernelError.
    """
    ifindex = if_nametoindex(interface)
    source = _neighbour(ifindex) if family == 4 else None
    kind = route_of(family, address, source, ifindex, to).kind
    return None if kind == "source" else kind == "local"


def _neighbour(ifindex: int) -> bytes:
    """An IPv4 address of the interface's subnet that is not this host's, else any address."""
    try:
        messages = netlink.dump(
            netlink.ROUTE, _RTM_GETADDR, _ifaddrmsg.pack(AF_INET, 0, 0, 0, ifindex)
        )
    except OSError as error:
        raise KernelError("read the addresses", error.errno or 0) from error
    for message in messages:
        _, length, _, _, index = _ifaddrmsg.unpack_from(message)
        attributes = netlink.attributes(message[_ifaddrmsg.size :])
        local = attributes.get(_IFA_LOCAL, b"")
        if index != ifindex or not local:
            continue
        if attributes.get(_IFA_ADDRESS, local) != local:
            return attributes[_IFA_ADDRESS]  # the other end of a point-to-point link
        if length <= 31:
            number = int.from_bytes(local, "big") ^ (1 if length == 31 else 3)
            return number.to_bytes(4, "big")
    return inet_pton(AF_INET, _OTHER_HOST)
