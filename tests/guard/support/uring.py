# SPDX-License-Identifier: GPL-2.0-only
"""io_uring by its system calls: the kernel does one operation at a time for the caller.

See io_uring(7), io_uring_setup(2), io_uring_enter(2).
"""

from __future__ import annotations

import ctypes
import mmap
import os
import struct
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from socket import socket as Socket

_SETUP, _ENTER = 425, 426  # numbers of system calls, the same on all but alpha
_OP_SENDMSG, _OP_CONNECT, _OP_SOCKET, _OP_COMMAND = 9, 16, 45, 46
_SOCKET_SETSOCKOPT = 3
_SETUP_SQPOLL, _FEATURE_SINGLE_MMAP = 2, 1
_ENTER_GETEVENTS, _ENTER_SQ_WAKEUP = 1, 2
_SQES = 0x10000000
_ENTRIES = 4
_ENTRY = struct.Struct("=BBHiQQII Q4xIQ8x")
_COMPLETION = struct.Struct("=QiI")

_libc = ctypes.CDLL(None, use_errno=True)


def _call(number: int, *arguments: object) -> int:
    result: int = _libc.syscall(number, *arguments)
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result


class Ring:
    """A ring. With ``is_polled`` a kernel thread polls for submissions."""

    def __init__(self, *, is_polled: bool = False) -> None:
        parameters = bytearray(120)
        struct.pack_into("=II", parameters, 8, _SETUP_SQPOLL if is_polled else 0, 0)
        self._is_polled = is_polled
        place = (ctypes.c_char * len(parameters)).from_buffer(parameters)
        self._fd = _call(_SETUP, _ENTRIES, ctypes.byref(place))
        (features,) = struct.unpack_from("=I", parameters, 20)
        assert features & _FEATURE_SINGLE_MMAP, "before Linux 5.4"
        self._sq = struct.unpack_from("=7I", parameters, 40)
        self._cq = struct.unpack_from("=6I", parameters, 80)
        sq_entries, cq_entries = struct.unpack_from("=II", parameters, 0)
        size = max(self._sq[6] + 4 * sq_entries, self._cq[5] + _COMPLETION.size * cq_entries)
        self._ring = mmap.mmap(self._fd, size)
        self._entries = mmap.mmap(self._fd, _ENTRY.size * sq_entries, offset=_SQES)

    def close(self) -> None:
        """Unmap and close the ring."""
        self._entries.close()
        self._ring.close()
        os.close(self._fd)

    def _word(self, offset: int) -> int:
        return int(struct.unpack_from("=I", self._ring, offset)[0])

    def _do(
        self,
        code: int,
        fd: int,
        offset: int,
        address: int,
        length: int,
        option: tuple[int, int] = (0, 0),
    ) -> int:
        """Submit an operation, and wait for its result. Raises OSError."""
        _, tail_at, mask_at, _, _, _, array_at = self._sq
        tail = self._word(tail_at)
        place = tail & self._word(mask_at)
        _ENTRY.pack_into(
            self._entries,
            place * _ENTRY.size,
            *(code, 0, 0, fd, offset, address, length, 0, 1, *option),
        )
        struct.pack_into("=I", self._ring, array_at + 4 * place, place)
        struct.pack_into("=I", self._ring, tail_at, tail + 1)
        flags = _ENTER_GETEVENTS | (_ENTER_SQ_WAKEUP if self._is_polled else 0)
        _call(_ENTER, self._fd, 1, 1, flags, None, 0)
        cq_head_at, _, cq_mask_at, _, _, cqes_at = self._cq
        head = self._word(cq_head_at)
        place = cqes_at + (head & self._word(cq_mask_at)) * _COMPLETION.size
        _, result, _ = _COMPLETION.unpack_from(self._ring, place)
        struct.pack_into("=I", self._ring, cq_head_at, head + 1)
        if result < 0:
            raise OSError(-result, os.strerror(-result))
        return int(result)

    def socket(self, family: int, kind: int) -> int:
        """socket(2): the descriptor."""
        return self._do(_OP_SOCKET, family, kind, 0, 0)

    def setsockopt(self, made: Socket, level: int, name: int, value: int) -> None:
        """setsockopt(2) with an int."""
        number = ctypes.c_int(value)
        option = (ctypes.sizeof(number), ctypes.addressof(number))
        self._do(_OP_COMMAND, made.fileno(), _SOCKET_SETSOCKOPT, name << 32 | level, 0, option)

    def connect(self, made: Socket, address: bytes) -> None:
        """connect(2), to a struct sockaddr."""
        to = ctypes.create_string_buffer(address, len(address))
        self._do(_OP_CONNECT, made.fileno(), len(address), ctypes.addressof(to), 0)

    def sendmsg(self, made: Socket, data: bytes, address: bytes) -> None:
        """sendmsg(2), to a struct sockaddr."""
        to = ctypes.create_string_buffer(address, len(address))
        content = ctypes.create_string_buffer(data, len(data))
        vector = (ctypes.c_size_t * 2)(ctypes.addressof(content), len(data))
        message = (ctypes.c_size_t * 7)(
            ctypes.addressof(to), len(address), ctypes.addressof(vector), 1, 0, 0, 0
        )
        self._do(_OP_SENDMSG, made.fileno(), 0, ctypes.addressof(message), 1)
