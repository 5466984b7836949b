# SPDX-License-Identifier: GPL-2.0-only
"""bpf(2): programs that user space runs itself, by BPF_PROG_TEST_RUN and iterators. Cold."""

from __future__ import annotations

import ctypes
import os
from struct import Struct
from typing import NamedTuple

from zfw_py.kernel import bpf_maps
from zfw_py.kernel.bpf_links import TRACE_ITER, create_link

# enum bpf_cmd
_PROG_TEST_RUN = 10
_ITER_CREATE = 33

# prog_fd, retval, data_size_in, data_size_out, data_in, data_out, repeat,
# duration, ctx_size_in, ctx_size_out, ctx_in, ctx_out, flags, cpu, batch_size
_test = Struct("=IIIIQQIIIIQQIIIxxxx")


class Result(NamedTuple):
    """What a run returned and left behind."""

    returned: int  # unsigned
    context: bytes
    packet: bytes
    nanoseconds: int  # of one run


def run(
    program_fd: int,
    packet: bytes,
    context: bytes,
    *,
    room: int = 0,
    repeat: int = 1,
    flags: int = 0,
) -> Result:
    """BPF_PROG_TEST_RUN: run a program on a packet; its last result and what it changed.

    ``context`` is a struct __sk_buff or, for a socket look-up (without a packet, since 5.14,
    7c32e8f8bc33), a struct bpf_sk_lookup, with the fields that the kernel lets a test set.
    ``room`` is how many bytes the packet may have afterwards, or ENOSPC; 0 returns none.
    With ``repeat`` each run gets the packet that the one before it left. All runs of a call
    share one socket, which no other call uses. ``flags`` are BPF_F_TEST_*. Raises OSError;
    EOPNOTSUPP for a look-up that chose a socket of a reuseport group.
    """
    data_in = ctypes.create_string_buffer(packet, len(packet))
    data_out = ctypes.create_string_buffer(room)
    context_in = ctypes.create_string_buffer(context, len(context))
    context_out = ctypes.create_string_buffer(len(context))
    attribute = bpf_maps.attribute(
        _test.pack(
            program_fd,
            0,
            len(packet),
            room,
            ctypes.addressof(data_in) if packet else 0,
            ctypes.addressof(data_out) if room else 0,
            repeat,
            0,
            len(context),
            len(context),
            ctypes.addressof(context_in),
            ctypes.addressof(context_out),
            flags,
            0,
            0,
        )
    )
    bpf_maps.bpf(_PROG_TEST_RUN, attribute)
    returned, length, duration = Struct("=4xI4xI20xI").unpack_from(attribute)
    return Result(returned, context_out.raw, data_out.raw[:length], duration)


def call(program_fd: int, argument: bytes) -> tuple[int, bytes]:
    """Run a program of the type syscall, since 5.14 (79a7f8bdb159).

    Returns its result as an unsigned number, and the argument as the program left it.
    """
    given = ctypes.create_string_buffer(argument, len(argument))
    attribute = bpf_maps.attribute(
        _test.pack(
            program_fd, 0, 0, 0, 0, 0, 0, 0, len(argument), 0, ctypes.addressof(given), 0, 0, 0, 0
        )
    )
    bpf_maps.bpf(_PROG_TEST_RUN, attribute)
    return Struct("=4xI").unpack_from(attribute)[0], given.raw


def run_iterator(program_fd: int) -> bytes:
    """Run an iterator's program for each object there is; the bytes that it wrote.

    An iterator of sockets visits those of the caller's network namespace.
    """
    link = create_link(program_fd, 0, TRACE_ITER)
    try:
        reader = bpf_maps.bpf(_ITER_CREATE, bpf_maps.attribute(Struct("=II").pack(link, 0)))
    finally:
        os.close(link)
    written = []
    try:
        while data := os.read(reader, 1 << 16):
            written.append(data)
    finally:
        os.close(reader)
    return b"".join(written)
