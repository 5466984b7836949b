# SPDX-License-Identifier: GPL-2.0-only
"""bpf(2): links, which attach programs, and what is attached where. Cold."""

from __future__ import annotations

import ctypes
import errno
import os
from struct import Struct

from zfw_py.kernel import bpf_maps

# enum bpf_cmd
_PROG_QUERY = 16
_RAW_TRACEPOINT_OPEN = 17
_LINK_CREATE = 28
_LINK_UPDATE = 29
_LINK_GET_FD_BY_ID = 30
_LINK_GET_NEXT_ID = 31
_LINK_DETACH = 34

# enum bpf_attach_type; TCX since 6.6 (e420bed02507)
CGROUP_INET_EGRESS = 1
CGROUP_INET_SOCK_CREATE = 2
CGROUP_SOCK_OPS = 3
CGROUP_INET4_BIND = 8
CGROUP_INET6_BIND = 9
CGROUP_INET4_CONNECT = 10
CGROUP_INET6_CONNECT = 11
CGROUP_INET4_POST_BIND = 12
CGROUP_INET6_POST_BIND = 13
CGROUP_UDP4_SENDMSG = 14
CGROUP_UDP6_SENDMSG = 15
CGROUP_UDP4_RECVMSG = 19
CGROUP_UDP6_RECVMSG = 20
CGROUP_SETSOCKOPT = 22
TRACE_ITER = 28
CGROUP_INET4_GETPEERNAME = 29
CGROUP_INET6_GETPEERNAME = 30
CGROUP_INET_SOCK_RELEASE = 34
SK_LOOKUP = 36
TCX_INGRESS = 46
TCX_EGRESS = 47

# BPF_F_ALLOW_MULTI of cgroup programs: the kernel runs each one, also those of the cgroups
# around and within.
ALLOW_MULTI = 2

_u32 = Struct("=I")


# BPF_F_BEFORE of TCX links (6.6, 053c8e1f235d): without a relative, before all others.
_BEFORE = 8


def create_link(program_fd: int, target: int, attach_type: int, *, is_first: bool = False) -> int:
    """Attach a program by a link; the descriptor of the link, which the caller closes.

    ``target`` is an interface's index for TCX, the descriptor of a cgroup's directory, or
    that of a network namespace for SK_LOOKUP. Programs that are attached already stay.
    ``is_first``, for TCX alone: the program runs before them, not after.
    """
    flags = _BEFORE if is_first else 0
    data = Struct("=IIII32x").pack(program_fd, target, attach_type, flags)
    return bpf_maps.bpf(_LINK_CREATE, bpf_maps.attribute(data))


def attach_tracing(program_fd: int) -> int:
    """Attach a program to the tracepoint that it was loaded for; the descriptor of the link.

    ``update_link`` cannot replace the program of such a link: attach the new program by a
    link of its own, then detach the old one.
    """
    data = Struct("=QIxxxx").pack(0, program_fd)
    return bpf_maps.bpf(_RAW_TRACEPOINT_OPEN, bpf_maps.attribute(data))


def update_link(link_fd: int, program_fd: int) -> None:
    """Replace a link's program atomically: each packet meets either the old or the new one."""
    bpf_maps.bpf(_LINK_UPDATE, bpf_maps.attribute(Struct("=IIII").pack(link_fd, program_fd, 0, 0)))


def detach_link(link_fd: int) -> None:
    """Detach a link's program at once. Closing and unpinning a link does so a little later."""
    bpf_maps.bpf(_LINK_DETACH, bpf_maps.attribute(_u32.pack(link_fd)))


def supports_tcx(ifindex: int) -> bool:
    """Whether the kernel has TCX, which is since 6.6. An earlier one refuses the query."""
    try:
        bpf_maps.bpf(_PROG_QUERY, bpf_maps.attribute(Struct("=II56x").pack(ifindex, TCX_INGRESS)))
    except OSError as error:
        if error.errno == errno.EINVAL:
            return False
        raise
    return True


def attached_to_interface(ifindex: int, attach_type: int) -> list[tuple[int, int]]:
    """The TCX programs on an interface in the order in which they run: their ids and their links'.

    The id of a link is 0 where a program was attached without one. Empty where there is no such
    interface, or no TCX.
    """
    room = 16
    while True:
        programs = ctypes.create_string_buffer(4 * room)
        links = ctypes.create_string_buffer(4 * room)
        # target_ifindex, attach_type, query_flags, attach_flags, prog_ids, count, 4 bytes of
        # padding, prog_attach_flags, link_ids, link_attach_flags, revision
        attribute = bpf_maps.attribute(
            Struct("=IIIIQIxxxxQQQQ").pack(
                ifindex,
                attach_type,
                0,
                0,
                ctypes.addressof(programs),
                room,
                0,
                ctypes.addressof(links),
                0,
                0,
            )
        )
        try:
            bpf_maps.bpf(_PROG_QUERY, attribute)
        except OSError as error:
            if error.errno == errno.ENOSPC:
                room *= 2
                continue
            if error.errno in (errno.ENODEV, errno.ENOENT, errno.EINVAL):
                return []
            raise
        (count,) = _u32.unpack_from(attribute, 24)
        return [
            (_u32.unpack_from(programs.raw, 4 * i)[0], _u32.unpack_from(links.raw, 4 * i)[0])
            for i in range(count)
        ]


def attached_to_netns(target: int, attach_type: int) -> list[int]:
    """The ids of the programs on a network namespace, in the order in which they run.

    ``target`` is a descriptor of the namespace.
    """
    room = 16
    while True:
        ids = ctypes.create_string_buffer(4 * room)
        attribute = bpf_maps.attribute(
            Struct("=IIIIQI28x").pack(target, attach_type, 0, 0, ctypes.addressof(ids), room)
        )
        try:
            bpf_maps.bpf(_PROG_QUERY, attribute)
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
            room *= 2
            continue
        (count,) = _u32.unpack_from(attribute, 24)
        return [number for (number,) in _u32.iter_unpack(ids.raw[: 4 * count])]


def attached_to_cgroup(target: int, attach_type: int) -> tuple[int, int]:
    """How many programs are attached to a cgroup itself, and with which flags.

    ``target`` is a descriptor of the cgroup's directory.
    """
    # target_fd, attach_type, query_flags, attach_flags, prog_ids, prog_cnt
    attribute = bpf_maps.attribute(Struct("=IIIIQI28x").pack(target, attach_type, 0, 0, 0, 0))
    bpf_maps.bpf(_PROG_QUERY, attribute)
    flags, _, count = Struct("=IQI").unpack_from(attribute, 12)
    return count, flags


def is_program(fd: int) -> bool:
    """Whether a descriptor is that of a program, and not of a map or link (proc(5), fdinfo)."""
    with open(f"/proc/self/fdinfo/{fd}") as file:
        return any(line.startswith("prog_type:") for line in file)


# struct bpf_prog_info: 64 bytes, then the name.
_NAME_OFFSET, _NAME_SIZE = 64, 16
# struct bpf_link_info: type, id, prog_id
_link_info = Struct("=III")


def program_name(number: int) -> str:
    """The name of a loaded program, at most 15 characters; empty if it is gone.

    Raises OSError. Needs CAP_SYS_ADMIN.
    """
    try:
        fd = bpf_maps.open_program(number)
    except FileNotFoundError:
        return ""
    try:
        info = bpf_maps.object_info(fd, _NAME_OFFSET + _NAME_SIZE)
    finally:
        os.close(fd)
    return info[_NAME_OFFSET:].partition(b"\0")[0].decode()


def link_of(program_id: int) -> int:
    """The id of a link that has a program attached; 0 if there is none.

    Raises OSError. Needs CAP_SYS_ADMIN.
    """
    number = 0
    while True:
        data = bpf_maps.attribute(Struct("=III").pack(number, 0, 0))
        try:
            bpf_maps.bpf(_LINK_GET_NEXT_ID, data)
        except FileNotFoundError:
            return 0
        number = _u32.unpack_from(data, 4)[0]
        try:
            fd = bpf_maps.bpf(
                _LINK_GET_FD_BY_ID, bpf_maps.attribute(Struct("=III").pack(number, 0, 0))
            )
        except FileNotFoundError:
            continue  # it has gone meanwhile
        try:
            _, link_id, program = _link_info.unpack(bpf_maps.object_info(fd, _link_info.size))
        finally:
            os.close(fd)
        if program == program_id:
            return int(link_id)
