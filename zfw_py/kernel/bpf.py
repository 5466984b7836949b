# SPDX-License-Identifier: GPL-2.0-only
"""bpf(2): maps, pins, links and test runs, straight through the system call.

Hot: imported for every rule that a router inserts, so it is ctypes and nothing
more. Attributes are packed as union bpf_attr of include/uapi/linux/bpf.h has
them; a call that fails raises OSError, and who knows the rule or interface it
was about says so in its own words.
"""

from __future__ import annotations

import ctypes
import posix
from struct import Struct

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
_PROG_TEST_RUN = 10
_PROG_GET_FD_BY_ID = 13
_MAP_GET_FD_BY_ID = 14
_OBJ_GET_INFO_BY_FD = 15
_PROG_QUERY = 16
_RAW_TRACEPOINT_OPEN = 17
_MAP_LOOKUP_BATCH = 24
_MAP_UPDATE_BATCH = 26
_MAP_DELETE_BATCH = 27
_LINK_CREATE = 28
_LINK_UPDATE = 29
_ITER_CREATE = 33
_LINK_DETACH = 34

# enum bpf_map_type
ARRAY_OF_MAPS = 12
_PER_CPU_TYPES = (5, 6, 10)

ANY = 0
READ_ONLY = 8  # BPF_F_RDONLY

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
_TRACE_ITER = 28
CGROUP_INET4_GETPEERNAME = 29
CGROUP_INET6_GETPEERNAME = 30
CGROUP_INET_SOCK_RELEASE = 34
SK_LOOKUP = 36
TCX_INGRESS = 46
TCX_EGRESS = 47

# BPF_F_ALLOW_MULTI of cgroup programs: each runs, and what is around and further in as well.
ALLOW_MULTI = 2

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

_libc = ctypes.CDLL(None, use_errno=True)
_syscall = _libc.syscall
_number = ctypes.c_long(_NUMBERS.get(posix.uname().machine, -1))

_element = Struct("=IxxxxQQQ")
_batch = Struct("=QQQQIIQQ")
_object = Struct("=QIIi")
_u32 = Struct("=I")


def _bpf(command: int, attribute: ctypes.Array[ctypes.c_char]) -> int:
    result: int = _syscall(_number, command, attribute, len(attribute))
    if result < 0:
        errno = ctypes.get_errno()
        raise OSError(errno, posix.strerror(errno))
    return result


def _attribute(data: bytes, size: int = 0) -> ctypes.Array[ctypes.c_char]:
    return ctypes.create_string_buffer(data, max(size, len(data)))


def possible_cpus() -> int:
    """How many values an element of a per-CPU map has (sysfs: possible)."""
    with open("/sys/devices/system/cpu/possible") as file:
        return int(file.read().strip().split(",")[-1].split("-")[-1]) + 1


class Map:
    """An open map. Keys and values are bytes of exactly the map's sizes.

    A per-CPU map's value is one after the other, each padded to 8 bytes.
    """

    __slots__ = ("fd", "flags", "key_size", "max_entries", "type", "value_size")

    fd: int
    type: int
    key_size: int
    value_size: int
    max_entries: int
    flags: int

    def __init__(self, fd: int) -> None:
        """Take over a descriptor; it is closed with the map."""
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
        """Type, key size, value size (of one CPU), max_entries, flags: as layout.MAPS has them."""
        size = self.value_size
        if self.type in _PER_CPU_TYPES:
            size //= possible_cpus()
        return self.type, self.key_size, size, self.max_entries, self.flags

    def close(self) -> None:
        """Close the descriptor; the map lives on while it is pinned or used."""
        if self.fd >= 0:
            posix.close(self.fd)
            self.fd = -1

    def __del__(self) -> None:
        self.close()

    def lookup(self, key: bytes) -> bytes | None:
        """The value of a key, or None."""
        value = ctypes.create_string_buffer(self.value_size)
        try:
            self._element(_MAP_LOOKUP_ELEM, key, value)
        except OSError as error:
            if error.errno == _ENOENT:
                return None
            raise
        return value.raw

    def update(self, key: bytes, value: bytes, flags: int = ANY) -> None:
        """Set a key's value, in one step for those who read."""
        if len(value) != self.value_size:
            raise ValueError(f"value of {len(value)} bytes in a map of {self.value_size}")
        self._element(_MAP_UPDATE_ELEM, key, ctypes.create_string_buffer(value, len(value)), flags)

    def delete(self, key: bytes) -> bool:
        """Remove a key; False if it was not there."""
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
        _bpf(
            command,
            _attribute(_element.pack(self.fd, ctypes.addressof(key_buffer), address, flags)),
        )

    def items(self, chunk: int = 4096) -> Iterator[tuple[bytes, bytes]]:
        """Every key and value.

        In batches (since 5.6); a hash map's batch takes whole buckets, so one
        that is too small for a bucket is tried again with twice the room.
        """
        chunk = min(chunk, self.max_entries)
        # A hash map's token is 4 bytes, another's a key.
        size = max(self.key_size, 4)
        token = ctypes.create_string_buffer(size)
        next_token = ctypes.create_string_buffer(size)
        is_first = True
        while True:
            keys = ctypes.create_string_buffer(self.key_size * chunk)
            values = ctypes.create_string_buffer(self.value_size * chunk)
            attribute = _attribute(
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
                _bpf(_MAP_LOOKUP_BATCH, attribute)
            except OSError as error:
                if error.errno == _ENOSPC:
                    chunk *= 2
                    continue
                if error.errno != _ENOENT:
                    raise
                is_last = True
            count = _u32.unpack_from(attribute, 32)[0]
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
        """Set many; on an error some may be set, and the OSError is raised."""
        self._batch(_MAP_UPDATE_BATCH, keys, values)

    def delete_many(self, keys: Sequence[bytes]) -> None:
        """Remove many, all of which are there."""
        self._batch(_MAP_DELETE_BATCH, keys, None)

    def _batch(self, command: int, keys: Sequence[bytes], values: Sequence[bytes] | None) -> None:
        step = max(1, min(len(keys), (1 << 22) // (self.key_size + self.value_size)))
        for start in range(0, len(keys), step):
            some = keys[start : start + step]
            some_values = None if values is None else values[start : start + step]
            # A short batch costs the kernel more than an element does.
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
        """Do it in one system call; False if the kernel has none (maps of maps before 5.19)."""
        key_buffer = ctypes.create_string_buffer(b"".join(keys), len(keys) * self.key_size)
        value_address = 0
        if values is not None:
            joined = b"".join(values)
            value_buffer = ctypes.create_string_buffer(joined, len(joined))
            value_address = ctypes.addressof(value_buffer)
        attribute = _attribute(
            _batch.pack(0, 0, ctypes.addressof(key_buffer), value_address, len(keys), self.fd, 0, 0)
        )
        try:
            _bpf(command, attribute)
        except OSError as error:
            if error.errno == _ENOTSUPP:
                return False
            raise
        return True


_info = Struct("=IIIIII")


def object_info(fd: int, size: int) -> bytes:
    """The first ``size`` bytes of struct bpf_map_info, bpf_prog_info or bpf_link_info."""
    info = ctypes.create_string_buffer(size)
    _bpf(
        _OBJ_GET_INFO_BY_FD,
        _attribute(Struct("=IIQ").pack(fd, size, ctypes.addressof(info))),
    )
    return info.raw


def is_program(fd: int) -> bool:
    """Whether a descriptor is a program's, and not a map's or a link's (proc(5), fdinfo)."""
    with open(f"/proc/self/fdinfo/{fd}") as file:
        return any(line.startswith("prog_type:") for line in file)


def object_id(fd: int) -> int:
    """The id of a map or program: the second word of its info."""
    number: int = _u32.unpack_from(object_info(fd, 8), 4)[0]
    return number


def open_pin(path: str, flags: int = ANY) -> int:
    """A descriptor of what is pinned at ``path``; with READ_ONLY who may only read it can."""
    name = ctypes.create_string_buffer(path.encode())
    return _bpf(_OBJ_GET, _attribute(_object.pack(ctypes.addressof(name), 0, flags, 0)))


def open_program(number: int) -> int:
    """A descriptor of a loaded program, by its id. Needs CAP_SYS_ADMIN."""
    return _bpf(_PROG_GET_FD_BY_ID, _attribute(Struct("=III").pack(number, 0, 0)))


def pin(fd: int, path: str) -> None:
    """Pin an object; the path must not exist."""
    name = ctypes.create_string_buffer(path.encode())
    _bpf(_OBJ_PIN, _attribute(_object.pack(ctypes.addressof(name), fd, 0, 0)))


def open_map(path: str, flags: int = ANY) -> Map:
    """The map pinned at ``path``; ``flags`` as of ``open_pin``."""
    return Map(open_pin(path, flags))


def open_map_by_id(number: int) -> Map:
    """A map by its id: an inner map, as its outer map's look-up names it."""
    return Map(_bpf(_MAP_GET_FD_BY_ID, _attribute(Struct("=III").pack(number, 0, 0))))


def create_map(spec: tuple[int, int, int, int, int], name: str) -> Map:
    """A new map, neither pinned nor in a map. ``name``: up to 15 letters."""
    map_type, key_size, value_size, max_entries, flags = spec
    data = Struct("=IIIIIII16s").pack(
        map_type, key_size, value_size, max_entries, flags, 0, 0, name.encode()
    )
    return Map(_bpf(_MAP_CREATE, _attribute(data)))


def supports_tcx(ifindex: int) -> bool:
    """Whether the kernel has TCX: asks, as 6.6 and later answer and earlier refuse."""
    try:
        _bpf(_PROG_QUERY, _attribute(Struct("=II56x").pack(ifindex, TCX_INGRESS)))
    except OSError as error:
        if error.errno == 22:
            return False
        raise
    return True


def attached_to_netns(target: int, attach_type: int) -> list[int]:
    """The ids of the programs on a network namespace (its descriptor), in the order they run in."""
    room = 16
    while True:
        ids = ctypes.create_string_buffer(4 * room)
        attribute = _attribute(
            Struct("=IIIIQI28x").pack(target, attach_type, 0, 0, ctypes.addressof(ids), room)
        )
        try:
            _bpf(_PROG_QUERY, attribute)
        except OSError as error:
            if error.errno != _ENOSPC:
                raise
            room *= 2
            continue
        (count,) = _u32.unpack_from(attribute, 24)
        return [number for (number,) in _u32.iter_unpack(ids.raw[: 4 * count])]


def attached_to_cgroup(target: int, attach_type: int) -> tuple[int, int]:
    """How many programs are attached to a cgroup itself, and with which flags."""
    # target_fd, attach_type, query_flags, attach_flags, prog_ids, prog_cnt
    attribute = _attribute(Struct("=IIIIQI28x").pack(target, attach_type, 0, 0, 0, 0))
    _bpf(_PROG_QUERY, attribute)
    flags, _, count = Struct("=IQI").unpack_from(attribute, 12)
    return count, flags


def create_link(program_fd: int, target: int, attach_type: int) -> int:
    """Attach a program by a link; the descriptor of the link.

    The target is an interface's index for TCX, a directory's descriptor for a cgroup,
    a network namespace's for sk_lookup. Other programs' links stay as they are.
    """
    data = Struct("=IIII32x").pack(program_fd, target, attach_type, 0)
    return _bpf(_LINK_CREATE, _attribute(data))


def attach_tracing(program_fd: int) -> int:
    """Attach a program to the tracepoint that it was made for; the descriptor of the link.

    Such a link keeps its program: it is exchanged by attaching the new one beside it.
    """
    return _bpf(_RAW_TRACEPOINT_OPEN, _attribute(Struct("=QIxxxx").pack(0, program_fd)))


def run_iterator(program_fd: int) -> bytes:
    """Run an iterator's program for all that there is; what it wrote.

    Of sockets: those of the network namespace that the caller is in.
    """
    link = create_link(program_fd, 0, _TRACE_ITER)
    try:
        reader = _bpf(_ITER_CREATE, _attribute(Struct("=II").pack(link, 0)))
    finally:
        posix.close(link)
    written = []
    try:
        while data := posix.read(reader, 1 << 16):
            written.append(data)
    finally:
        posix.close(reader)
    return b"".join(written)


def update_link(link_fd: int, program_fd: int) -> None:
    """Exchange a link's program; every packet meets the old one or the new one."""
    _bpf(_LINK_UPDATE, _attribute(Struct("=IIII").pack(link_fd, program_fd, 0, 0)))


def detach_link(link_fd: int) -> None:
    """Take a link's program off now; closing or unpinning a link does so a little later."""
    _bpf(_LINK_DETACH, _attribute(_u32.pack(link_fd)))


def test_run(
    program_fd: int,
    data: bytes,
    context: bytes,
    repeat: int = 1,  # noqa: PT028 - no test
) -> tuple[int, bytes]:
    """BPF_PROG_TEST_RUN of a packet: the program's last result and the context afterwards.

    ``context`` is a struct __sk_buff with what the kernel lets a test set. All runs
    of a call share a socket, which no other call has.
    """
    result, _, context_out, _ = run_packet(program_fd, data, context, 0, repeat)
    return result, context_out


def run_packet(
    program_fd: int, data: bytes, context: bytes, room: int, repeat: int = 1, flags: int = 0
) -> tuple[int, bytes, bytes, int]:
    """As ``test_run``, with the packet afterwards and the nanoseconds that a run took.

    ``room`` is how many bytes the packet may have then, or ENOSPC. Of more runs than one
    each has the packet that the run before it has left. ``flags``: BPF_F_TEST_*.
    """
    return _run(program_fd, data, context, room, repeat, flags)


def test_run_lookup(
    program_fd: int,
    context: bytes,
    repeat: int = 1,  # noqa: PT028 - no test
) -> tuple[int, bytes]:
    """BPF_PROG_TEST_RUN of a socket look-up, since 5.14 (7c32e8f8bc33): likewise.

    ``context`` is a struct bpf_sk_lookup, whose cookie is that of the socket that was
    chosen, or 0, afterwards. One of a reuseport group cannot be told: EOPNOTSUPP.
    """
    result, _, context_out, _ = _run(program_fd, b"", context, 0, repeat, 0)
    return result, context_out


def call(program_fd: int, argument: bytes) -> tuple[int, bytes]:
    """Call a program of the type syscall, since 5.14 (79a7f8bdb159).

    Its result as an unsigned number, and the argument as it left it.
    """
    given = ctypes.create_string_buffer(argument, len(argument))
    attribute = _attribute(
        _test.pack(
            program_fd, 0, 0, 0, 0, 0, 0, 0, len(argument), 0, ctypes.addressof(given), 0, 0, 0, 0
        )
    )
    _bpf(_PROG_TEST_RUN, attribute)
    return _u32.unpack_from(attribute, 4)[0], given.raw


# prog_fd, retval, data_size_in, data_size_out, data_in, data_out, repeat,
# duration, ctx_size_in, ctx_size_out, ctx_in, ctx_out, flags, cpu, batch_size
_test = Struct("=IIIIQQIIIIQQIIIxxxx")


def _run(
    program_fd: int, data: bytes, context: bytes, room: int, repeat: int, flags: int
) -> tuple[int, bytes, bytes, int]:
    data_in = ctypes.create_string_buffer(data, len(data))
    data_out = ctypes.create_string_buffer(room)
    context_in = ctypes.create_string_buffer(context, len(context))
    context_out = ctypes.create_string_buffer(len(context))
    attribute = _attribute(
        _test.pack(
            program_fd,
            0,
            len(data),
            room,
            ctypes.addressof(data_in) if data else 0,
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
    _bpf(_PROG_TEST_RUN, attribute)
    result, length, duration = Struct("=4xI4xI20xI").unpack_from(attribute)
    return result, data_out.raw[:length], context_out.raw, duration
