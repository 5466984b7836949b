# SPDX-License-Identifier: GPL-2.0-only
"""bpf(2): the system call itself, maps and pins. Hot.

A router runs a command for each rule that it inserts, and each imports this module. So
it needs ctypes and nothing more; links and runs of programs have modules of their own.
Attributes are packed as union bpf_attr of include/uapi/linux/bpf.h has them. A call that
fails raises OSError; the callers know the rule or interface that it was about, and raise
errors that name it.
"""

from __future__ import annotations

import ctypes
import posix
from struct import Struct

from zfw_py.kernel.libc import last_error, libc

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

# enum bpf_cmd
_MAP_CREATE = 0
_MAP_LOOKUP_ELEM = 1
_MAP_UPDATE_ELEM = 2
_MAP_DELETE_ELEM = 3
_OBJ_PIN = 6
_OBJ_GET = 7
_PROG_GET_FD_BY_ID = 13
_MAP_GET_FD_BY_ID = 14
_OBJ_GET_INFO_BY_FD = 15
_MAP_LOOKUP_BATCH = 24
_MAP_UPDATE_BATCH = 26
_MAP_DELETE_BATCH = 27

# enum bpf_map_type
_PER_CPU_TYPES = (5, 6, 10)  # hash, array, LRU hash

# Flags of update and open_pin.
ANY = 0
READ_ONLY = 8  # BPF_F_RDONLY

_ENOENT = 2
_ENOSPC = 28
_ENOTSUPP = 524  # the kernel's own, not in errno.h

# The system call's number: arch/*/entry/syscalls, asm-generic/unistd.h.
_NUMBERS = {
    "x86_64": 321,
    "aarch64": 280,
    "riscv64": 280,
    "loongarch64": 280,
    "armv7l": 386,
    "ppc64le": 361,
    "ppc64": 361,
    "s390x": 351,
}

_syscall = libc.syscall
_number = ctypes.c_long(_NUMBERS.get(posix.uname().machine, -1))

_element = Struct("=IxxxxQQQ")
_batch = Struct("=QQQQIIQQ")
_object = Struct("=QIIi")
_u32 = Struct("=I")


def bpf(command: int, data: ctypes.Array[ctypes.c_char]) -> int:
    """The system call; ``command`` is of enum bpf_cmd. Raises OSError."""
    result: int = _syscall(_number, command, data, len(data))
    if result < 0:
        errno = last_error()
        raise OSError(errno, posix.strerror(errno))
    return result


def attribute(data: bytes) -> ctypes.Array[ctypes.c_char]:
    """A union bpf_attr with these first bytes; the kernel takes the rest for zero."""
    return ctypes.create_string_buffer(data, len(data))


_possible_cpus = 0


def possible_cpus() -> int:
    """The number of possible CPUs: how many values an element of a per-CPU map has."""
    # The kernel fixes it at boot. A command opens several such maps, so it is read once.
    global _possible_cpus
    if not _possible_cpus:
        with open("/sys/devices/system/cpu/possible") as file:
            _possible_cpus = int(file.read().strip().split(",")[-1].split("-")[-1]) + 1
    return _possible_cpus


class Map:
    """An open map. Keys and values are bytes of exactly the map's sizes.

    A value of a per-CPU map is the values of all possible CPUs, each padded to 8 bytes.
    Every method raises OSError if the kernel refuses the call.
    """

    __slots__ = ("fd", "flags", "key_size", "max_entries", "type", "value_size")

    fd: int
    type: int
    key_size: int
    value_size: int
    max_entries: int
    flags: int

    def __init__(self, fd: int) -> None:
        """The object owns the descriptor and closes it."""
        self.fd = fd
        # struct bpf_map_info: type, id, key_size, value_size, max_entries, map_flags
        info = object_info(fd, 24)
        self.type, _, self.key_size, self.value_size, self.max_entries, self.flags = _info.unpack(
            info
        )
        if self.type in _PER_CPU_TYPES:
            self.value_size = (self.value_size + 7) // 8 * 8 * possible_cpus()

    @property
    def spec(self) -> tuple[int, int, int, int, int]:
        """Type, key size, value size (of one CPU), max_entries, flags, as in layout.MAPS."""
        size = self.value_size
        if self.type in _PER_CPU_TYPES:
            size //= possible_cpus()
        return self.type, self.key_size, size, self.max_entries, self.flags

    def close(self) -> None:
        """Close the descriptor. The map exists while it is pinned or a program uses it."""
        if self.fd >= 0:
            posix.close(self.fd)
            self.fd = -1

    def __del__(self) -> None:
        self.close()

    def lookup(self, key: bytes) -> bytes | None:
        """The value of a key, or None if the map has no such key."""
        value = ctypes.create_string_buffer(self.value_size)
        try:
            self._element(_MAP_LOOKUP_ELEM, key, value)
        except OSError as error:
            if error.errno == _ENOENT:
                return None
            raise
        return value.raw

    def update(self, key: bytes, value: bytes, flags: int = ANY) -> None:
        """Set a key's value atomically: a program reads the old value or the new one."""
        if len(value) != self.value_size:
            raise ValueError(f"value of {len(value)} bytes in a map of {self.value_size}")
        self._element(_MAP_UPDATE_ELEM, key, ctypes.create_string_buffer(value, len(value)), flags)

    def delete(self, key: bytes) -> bool:
        """Remove a key; False if the map has no such key."""
        try:
            self._element(_MAP_DELETE_ELEM, key, None)
        except OSError as error:
            if error.errno == _ENOENT:
                return False
            raise
        return True

    def _element(
        self, command: int, key: bytes, value: ctypes.Array[ctypes.c_char] | None, flags: int = 0
    ) -> None:
        if len(key) != self.key_size:
            raise ValueError(f"key of {len(key)} bytes in a map of {self.key_size}")
        key_buffer = ctypes.create_string_buffer(key, len(key))
        address = ctypes.addressof(value) if value is not None else 0
        bpf(
            command,
            attribute(_element.pack(self.fd, ctypes.addressof(key_buffer), address, flags)),
        )

    def items(self, chunk: int = 4096) -> Iterator[tuple[bytes, bytes]]:
        """Every key and value, read in batches of ``chunk`` elements (since 5.6).

        The kernel reads whole buckets of a hash map. If a batch is too small for a bucket,
        this tries again with twice the room.
        """
        chunk = min(chunk, self.max_entries)
        # The token by which a batch continues is 4 bytes for a hash map, else a key.
        size = max(self.key_size, 4)
        token = ctypes.create_string_buffer(size)
        next_token = ctypes.create_string_buffer(size)
        is_first = True
        while True:
            keys = ctypes.create_string_buffer(self.key_size * chunk)
            values = ctypes.create_string_buffer(self.value_size * chunk)
            data = attribute(
                _batch.pack(
                    0 if is_first else ctypes.addressof(token),
                    ctypes.addressof(next_token),
                    ctypes.addressof(keys),
                    ctypes.addressof(values),
                    chunk,
                    self.fd,
                    0,
                    0,
                )
            )
            is_last = False
            try:
                bpf(_MAP_LOOKUP_BATCH, data)
            except OSError as error:
                if error.errno == _ENOSPC:
                    chunk *= 2
                    continue
                if error.errno != _ENOENT:
                    raise
                is_last = True
            count = _u32.unpack_from(data, 32)[0]
            key_bytes, value_bytes = keys.raw, values.raw
            for i in range(count):
                yield (
                    key_bytes[i * self.key_size : (i + 1) * self.key_size],
                    value_bytes[i * self.value_size : (i + 1) * self.value_size],
                )
            if is_last:
                return
            ctypes.memmove(token, next_token, size)
            is_first = False

    def update_many(self, keys: Sequence[bytes], values: Sequence[bytes]) -> None:
        """Set many keys. Not atomic: after an OSError some may be set."""
        self._batch(_MAP_UPDATE_BATCH, keys, values)

    def delete_many(self, keys: Sequence[bytes]) -> None:
        """Remove many keys. Each must be there; after an OSError some may be removed."""
        self._batch(_MAP_DELETE_BATCH, keys, None)

    def _batch(self, command: int, keys: Sequence[bytes], values: Sequence[bytes] | None) -> None:
        step = max(1, min(len(keys), (1 << 22) // (self.key_size + self.value_size)))
        for start in range(0, len(keys), step):
            some = keys[start : start + step]
            some_values = None if values is None else values[start : start + step]
            # For one element a batch costs the kernel more than the call for one element.
            if len(some) > 1 and self._batch_once(command, some, some_values):
                continue
            for number, key in enumerate(some):
                if some_values is None:
                    self.delete(key)
                else:
                    self.update(key, some_values[number])

    def _batch_once(
        self, command: int, keys: Sequence[bytes], values: Sequence[bytes] | None
    ) -> bool:
        """One system call for all; False if the kernel has no batches for this type of map.

        For maps of maps that is before 5.19.
        """
        key_buffer = ctypes.create_string_buffer(b"".join(keys), len(keys) * self.key_size)
        value_address = 0
        if values is not None:
            joined = b"".join(values)
            value_buffer = ctypes.create_string_buffer(joined, len(joined))
            value_address = ctypes.addressof(value_buffer)
        data = attribute(
            _batch.pack(0, 0, ctypes.addressof(key_buffer), value_address, len(keys), self.fd, 0, 0)
        )
        try:
            bpf(command, data)
        except OSError as error:
            if error.errno == _ENOTSUPP:
                return False
            raise
        return True


_info = Struct("=IIIIII")


def object_info(fd: int, size: int) -> bytes:
    """The first ``size`` bytes of struct bpf_map_info, bpf_prog_info or bpf_link_info."""
    info = ctypes.create_string_buffer(size)
    bpf(
        _OBJ_GET_INFO_BY_FD,
        attribute(Struct("=IIQ").pack(fd, size, ctypes.addressof(info))),
    )
    return info.raw


def object_id(fd: int) -> int:
    """The id of a map or program."""
    number: int = _u32.unpack_from(object_info(fd, 8), 4)[0]
    return number


def open_pin(path: str, flags: int = ANY) -> int:
    """A descriptor of the object that is pinned at ``path``; the caller closes it.

    With READ_ONLY it takes only the permission to read the pin.
    """
    name = ctypes.create_string_buffer(path.encode())
    return bpf(_OBJ_GET, attribute(_object.pack(ctypes.addressof(name), 0, flags, 0)))


def open_program(number: int) -> int:
    """A descriptor of a loaded program, by its id. Needs CAP_SYS_ADMIN."""
    return bpf(_PROG_GET_FD_BY_ID, attribute(Struct("=III").pack(number, 0, 0)))


def pin(fd: int, path: str) -> None:
    """Pin an object. The path must not exist, else FileExistsError."""
    name = ctypes.create_string_buffer(path.encode())
    bpf(_OBJ_PIN, attribute(_object.pack(ctypes.addressof(name), fd, 0, 0)))


def open_map(path: str, flags: int = ANY) -> Map:
    """The map that is pinned at ``path``; ``flags`` are those of ``open_pin``."""
    return Map(open_pin(path, flags))


def open_map_by_id(number: int) -> Map:
    """A map by its id. A look-up in a map of maps returns the id of an inner map."""
    return Map(bpf(_MAP_GET_FD_BY_ID, attribute(Struct("=III").pack(number, 0, 0))))


def create_map(spec: tuple[int, int, int, int, int], name: str) -> Map:
    """Create a map. ``spec`` is that of ``Map.spec``, ``name`` at most 15 characters."""
    map_type, key_size, value_size, max_entries, flags = spec
    data = Struct("=IIIIIII16s").pack(
        map_type, key_size, value_size, max_entries, flags, 0, 0, name.encode()
    )
    return Map(bpf(_MAP_CREATE, attribute(data)))
