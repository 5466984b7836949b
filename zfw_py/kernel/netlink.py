# SPDX-License-Identifier: GPL-2.0-only
"""Questions by netlink(7), without a library.

For what a listing reads: importing pyroute2, which the modules that change something use, takes
six times as long as the start of the interpreter.
"""

from __future__ import annotations

import errno
import os
import socket
from struct import Struct
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

# Protocols, include/uapi/linux/netlink.h
ROUTE = 0
SOCK_DIAG = 4
NETFILTER = 12

_header = Struct("=IHHII")  # struct nlmsghdr: length, type, flags, sequence, port
_attribute = Struct("=HH")  # struct nlattr: length, type
_error = Struct("=i")
# include/uapi/linux/netlink.h
_NLM_F_REQUEST, _NLM_F_DUMP, _NLM_F_DUMP_INTR = 0x1, 0x300, 0x10
_NLMSG_ERROR, _NLMSG_DONE = 2, 3
_TYPE_MASK = 0x3FFF  # without NLA_F_NESTED and NLA_F_NET_BYTEORDER
# A dump fills at most 32 KiB (netlink_dump() in net/netlink/af_netlink.c).
_LARGEST = 1 << 16
_ATTEMPTS = 10


def dump(protocol: int, kind: int, request: bytes) -> list[bytes]:
    """What the kernel has of one kind, in the caller's network namespace.

    ``request`` is the family's header, as struct tcmsg. Each item begins with the same header.
    Raises OSError, EINTR if the kernel's state changed during each of ten dumps.
    """
    for _ in range(_ATTEMPTS):
        if (found := _dump_once(protocol, kind, request)) is not None:
            return found
    raise OSError(errno.EINTR, os.strerror(errno.EINTR))


def _dump_once(protocol: int, kind: int, request: bytes) -> list[bytes] | None:
    """None if the state changed between two parts of the dump."""
    found: list[bytes] = []
    is_whole = True
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, protocol) as one:
        one.bind((0, 0))
        length = _header.size + len(request)
        one.send(_header.pack(length, kind, _NLM_F_REQUEST | _NLM_F_DUMP, 1, 0) + request)
        while True:
            data, _, flags, _ = one.recvmsg(_LARGEST)
            if flags & socket.MSG_TRUNC:
                raise OSError(errno.EMSGSIZE, os.strerror(errno.EMSGSIZE))
            for kind_found, message_flags, payload in _messages(data):
                is_whole = is_whole and not message_flags & _NLM_F_DUMP_INTR
                if kind_found in (_NLMSG_ERROR, _NLMSG_DONE):
                    # Either has a negative error number, or 0.
                    if payload and (number := -_error.unpack_from(payload)[0]):
                        raise OSError(number, os.strerror(number))
                    return found if is_whole else None
                found.append(payload)


def get(protocol: int, kind: int, request: bytes) -> bytes:
    """The one message that answers a request, without its netlink header. Raises OSError."""
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, protocol) as one:
        one.bind((0, 0))
        length = _header.size + len(request)
        one.send(_header.pack(length, kind, _NLM_F_REQUEST, 1, 0) + request)
        kind_found, _, payload = next(_messages(one.recv(_LARGEST)))
    if kind_found == _NLMSG_ERROR:
        number = -_error.unpack_from(payload)[0]
        raise OSError(number, os.strerror(number))
    return payload


def attribute(kind: int, value: bytes) -> bytes:
    """An attribute of a request."""
    length = _attribute.size + len(value)
    return _attribute.pack(length, kind) + value + bytes(_aligned(length) - length)


def _messages(data: bytes) -> Iterator[tuple[int, int, bytes]]:
    """The type, flags and payload of each message."""
    offset = 0
    while offset + _header.size <= len(data):
        length, kind, flags, _, _ = _header.unpack_from(data, offset)
        if length < _header.size:
            raise OSError(errno.EBADMSG, os.strerror(errno.EBADMSG))
        yield kind, flags, data[offset + _header.size : offset + length]
        offset += _aligned(length)


def attributes(data: bytes) -> dict[int, bytes]:
    """The attributes in a message behind its header, or in an attribute, by their type."""
    return dict(attribute_list(data))


def attribute_list(data: bytes) -> Iterator[tuple[int, bytes]]:
    """As ``attributes``, where a type may occur several times."""
    offset = 0
    while offset + _attribute.size <= len(data):
        length, kind = _attribute.unpack_from(data, offset)
        if length < _attribute.size:
            return
        yield kind & _TYPE_MASK, data[offset + _attribute.size : offset + length]
        offset += _aligned(length)


def text(value: bytes) -> str:
    """The text of an attribute that ends with a NUL."""
    return value.partition(b"\0")[0].decode(errors="surrogateescape")


def _aligned(length: int) -> int:
    return (length + 3) & ~3
