# SPDX-License-Identifier: GPL-2.0-only
"""Internet sockets of a network namespace or a process, by sock_diag(7).

Imports pyroute2, which takes 150 ms: nothing on the hot path imports this.
"""

from __future__ import annotations

import errno
import sys
from contextlib import contextmanager
from socket import (
    AF_INET,
    AF_INET6,
    AF_PACKET,
    IPPROTO_ICMP,
    IPPROTO_ICMPV6,
    IPPROTO_RAW,
    IPPROTO_SCTP,
    IPPROTO_TCP,
    IPPROTO_UDP,
    IPPROTO_UDPLITE,
)
from typing import TYPE_CHECKING, Any, NamedTuple

from pyroute2.netlink import NLM_F_DUMP, NLM_F_REQUEST, NLMSG_DONE, nlmsg
from pyroute2.netlink.diag import SOCK_DIAG_BY_FAMILY, DiagSocket, inet_diag_msg, inet_diag_req
from pyroute2.netlink.exceptions import NetlinkError
from pyroute2.netlink.marshal import Marshal

from zfw_py.errors import KernelError, NotFound
from zfw_py.kernel.namespaces import call_in, path_of
from zfw_py.kernel.process_sockets import descriptors_of, protocol_name

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

# include/linux/socket.h and include/uapi/linux/in.h; not in Python's socket.
AF_XDP = 44
IPPROTO_MPTCP = 262

# The protocols that sock_diag lists. For UDP and raw sockets it needs kernel modules.
PROTOCOLS = (IPPROTO_TCP, IPPROTO_UDP, IPPROTO_UDPLITE, IPPROTO_RAW, IPPROTO_MPTCP)

# The states, by number (include/net/tcp_states.h). A UDP or raw socket is
# ESTABLISHED if it is connected, else CLOSE.
_STATES = (
    "UNKNOWN",
    "ESTABLISHED",
    "SYN_SENT",
    "SYN_RECV",
    "FIN_WAIT1",
    "FIN_WAIT2",
    "TIME_WAIT",
    "CLOSE",
    "CLOSE_WAIT",
    "LAST_ACK",
    "LISTEN",
    "CLOSING",
)
# Also TCP sockets that are bound but neither listen nor connect, which are in state CLOSE:
# TCPF_BOUND_INACTIVE, since Linux 6.8 (91051f003948).
_ALL_STATES = (1 << len(_STATES)) - 1 | 1 << 13

# Family and protocol by the kernel's name (proto.name, as in /proc/net/protocols).
_KINDS = {
    "TCP": (AF_INET, IPPROTO_TCP),
    "TCPv6": (AF_INET6, IPPROTO_TCP),
    "UDP": (AF_INET, IPPROTO_UDP),
    "UDPv6": (AF_INET6, IPPROTO_UDP),
    "UDP-Lite": (AF_INET, IPPROTO_UDPLITE),
    "UDPLITEv6": (AF_INET6, IPPROTO_UDPLITE),
    "RAW": (AF_INET, IPPROTO_RAW),
    "RAWv6": (AF_INET6, IPPROTO_RAW),
    "MPTCP": (AF_INET, IPPROTO_MPTCP),
    "MPTCPv6": (AF_INET6, IPPROTO_MPTCP),
    "PING": (AF_INET, IPPROTO_ICMP),
    "PINGv6": (AF_INET6, IPPROTO_ICMPV6),
    "SCTP": (AF_INET, IPPROTO_SCTP),
    "SCTPv6": (AF_INET6, IPPROTO_SCTP),
    "PACKET": (AF_PACKET, 0),
    "XDP": (AF_XDP, 0),
}
_NAMES = {
    IPPROTO_TCP: "TCP",
    IPPROTO_UDP: "UDP",
    IPPROTO_UDPLITE: "UDP-Lite",
    IPPROTO_RAW: "raw",
    IPPROTO_MPTCP: "MPTCP",
    IPPROTO_ICMP: "ping",
    IPPROTO_ICMPV6: "ping",
    IPPROTO_SCTP: "SCTP",
}


class Socket(NamedTuple):
    """One row of a sock_diag dump. Fields that the kernel did not report are None.

    Of some sockets only ``inode``, ``family`` and ``protocol`` are known.
    """

    inode: int  # of its file; 0 without one, such as a connection that no program has accepted yet
    family: int  # AF_INET, AF_INET6, AF_PACKET or AF_XDP
    protocol: int  # IPPROTO_*; IPPROTO_RAW for raw sockets of all protocols, 0 without one
    state: str | None = None  # of _STATES
    local: tuple[str, int] | None = None  # address and port
    remote: tuple[str, int] | None = None
    ifindex: int | None = None  # of the interface that the socket is bound to, or 0
    is_v6only: bool | None = None  # reported for IPv6 sockets without a peer
    cookie: int | None = None  # SO_COOKIE; the kernel never reuses one while the machine runs
    cgroup_id: int | None = None  # of the cgroup that the socket was created in, since Linux 5.8

    @property
    def kind(self) -> str:
        """The protocol and family in words: ``TCP``, ``UDP (IPv6)``, ``raw``, ``packet``."""
        if self.family in (AF_PACKET, AF_XDP):
            return "packet" if self.family == AF_PACKET else "XDP"
        name = _NAMES.get(self.protocol, f"protocol {self.protocol}")
        return f"{name} (IPv6)" if self.family == AF_INET6 else name


class _DiagRequest(inet_diag_req):  # type: ignore[misc]
    """struct inet_diag_req_v2 with its attributes (include/uapi/linux/inet_diag.h)."""

    nla_map = (
        ("INET_DIAG_REQ_NONE", "none"),
        ("INET_DIAG_REQ_BYTECODE", "hex"),
        ("INET_DIAG_REQ_SK_BPF_STORAGES", "hex"),
        ("INET_DIAG_REQ_PROTOCOL", "uint32"),
    )


class _Done(nlmsg):  # type: ignore[misc]
    """The end of a dump: 0 or a negative error."""

    fields = (("error", "i"),)


class _DiagMarshal(Marshal):  # type: ignore[misc]
    """Decodes a message by its type, and the end of a dump as the error that it may hold.

    pyroute2's own looks at the family, so it decodes an error as data, and nothing in
    pyroute2 reads the result of a dump.
    """

    msg_map = {  # noqa: RUF012 - a class attribute of pyroute2's
        SOCK_DIAG_BY_FAMILY: inet_diag_msg,
        NLMSG_DONE: _Done,
    }

    def parse_one_message(self, *arguments: Any) -> Any:
        message = super().parse_one_message(*arguments)
        if isinstance(message, _Done) and message["error"]:
            message["header"]["error"] = NetlinkError(-message["error"])
        return message


@contextmanager
def _diag() -> Iterator[DiagSocket]:
    try:
        with DiagSocket() as diag:
            diag.set_marshal(_DiagMarshal())
            diag.bind()
            yield diag
    except NetlinkError as error:
        raise KernelError("list the sockets", error.code) from error
    except OSError as error:
        raise KernelError("list the sockets", error.errno or 0) from error


def _dump(
    diag: DiagSocket, family: int, protocol: int, states: int = _ALL_STATES
) -> list[Socket] | None:
    """The sockets of a family and protocol; None if this kernel does not list that protocol."""
    request = _DiagRequest()
    request["sdiag_family"] = family
    request["idiag_states"] = states
    # The field has 8 bits; since Linux 5.9 (3f935c75eb52) the attribute comes first.
    request["sdiag_protocol"] = protocol & 0xFF
    if protocol > 0xFF:
        request["attrs"] = [("INET_DIAG_REQ_PROTOCOL", protocol)]
    answers = diag.nlm_request(request, SOCK_DIAG_BY_FAMILY, NLM_F_REQUEST | NLM_F_DUMP)
    try:
        return [_socket(message, protocol) for message in answers]
    except NetlinkError as error:
        if error.code in (errno.ENOENT, errno.EOPNOTSUPP):
            return None
        raise


def _socket(message: Any, protocol: int) -> Socket:
    cookie = message["idiag_cookie"]
    if sys.byteorder == "big":  # two numbers of 32 bits, the lower one first
        cookie = (cookie & 0xFFFFFFFF) << 32 | cookie >> 32
    v6only = message.get_attr("INET_DIAG_SKV6ONLY")
    state = message["idiag_state"]
    return Socket(
        inode=message["idiag_inode"],
        family=message["idiag_family"],
        protocol=protocol,
        state=_STATES[state],
        local=(message["idiag_src"], message["idiag_sport"]),
        remote=(message["idiag_dst"], message["idiag_dport"]),
        ifindex=message["idiag_if"],
        is_v6only=None if v6only is None else bool(v6only),
        cookie=cookie,
        cgroup_id=message.get_attr("INET_DIAG_CGROUP_ID"),
    )


def sockets(protocols: Iterable[int] = PROTOCOLS) -> list[Socket]:
    """The sockets of these protocols, IPv4 and IPv6, in the caller's network namespace.

    The kernel lists sockets that a packet may be delivered to: bound or connected ones. A
    protocol that this kernel does not list adds none, see ``is_listed``. Raises KernelError.
    """
    found: list[Socket] = []
    with _diag() as diag:
        for protocol in protocols:
            for family in (AF_INET, AF_INET6):
                found.extend(_dump(diag, family, protocol) or ())
    return found


def listeners(protocols: Iterable[int]) -> list[Socket]:
    """TCP sockets that listen, and all of the other protocols; otherwise as ``sockets``.

    A busy host has many TCP connections. The kernel leaves them out of the dump.
    """
    listening = 1 << _STATES.index("LISTEN")
    found: list[Socket] = []
    with _diag() as diag:
        for protocol in protocols:
            states = listening if protocol == IPPROTO_TCP else _ALL_STATES
            for family in (AF_INET, AF_INET6):
                found.extend(_dump(diag, family, protocol, states) or ())
    return found


def is_listed(protocol: int) -> bool:
    """Whether this kernel lists sockets of a protocol at all."""
    with _diag() as diag:
        return _dump(diag, AF_INET, protocol, states=0) is not None


def sockets_near(pid: int, protocols: Iterable[int] = PROTOCOLS) -> list[Socket]:
    """The sockets in the network namespace of a process, those of all processes there.

    Raises NotFound if there is no such process, PermissionDenied, KernelError.
    """
    wanted = tuple(protocols)
    try:
        return call_in(path_of(pid), lambda: sockets(wanted))
    except NotFound:
        raise NotFound(f"no such process: {pid}") from None


def sockets_of(pid: int) -> list[Socket]:
    """The internet, packet and XDP sockets that a process has a descriptor of.

    Only inode, family and protocol are known of a socket that is neither bound nor
    connected, was made in another network namespace, or has a protocol that the kernel
    does not list. The protocol of a raw socket is always IPPROTO_RAW. Sockets in transit
    through a Unix socket are missing. Raises NotFound if there is no such process,
    PermissionDenied, KernelError.
    """
    held = _held(pid)
    protocols = {protocol for _, protocol in held.values()} & set(PROTOCOLS)
    listed = sockets_near(pid, protocols) if protocols else []
    # The TCP subflows of an MPTCP socket have its inode.
    known = {(each.inode, each.protocol): each for each in listed}
    return [
        known.get((inode, protocol), Socket(inode, family, protocol))
        for inode, (family, protocol) in sorted(held.items())
    ]


def _held(pid: int) -> dict[int, tuple[int, int]]:
    """Family and protocol of a process's sockets of the families above, by inode.

    This does not take the sockets: pidfd_getfd(2) would write the caller's net_cls class to
    them.
    """
    held = {}
    for inode, number in descriptors_of(pid):
        kind = _KINDS.get(protocol_name(pid, number))
        if kind:
            held[inode] = kind
    return held
