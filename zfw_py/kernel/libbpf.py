# SPDX-License-Identifier: GPL-2.0-only
"""libbpf by ctypes: load a BPF object and get its descriptors; read a ring buffer."""

from __future__ import annotations

import ctypes
from functools import cache
from typing import TYPE_CHECKING, Self

from zfw_py.errors import KernelError, VerifierError, ZfwError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path
    from types import TracebackType

# By its name, since ctypes.util.find_library() would run a compiler or ldconfig.
_LIBRARY = "libbpf.so.1"
_LOG_SIZE = 1 << 20

# ring_buffer_sample_fn of libbpf.h: context, data, size. A negative result ends the reading.
_SAMPLE = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t)


@cache
def library() -> ctypes.CDLL:
    """The library, its functions declared. Raises ZfwError where it is missing."""
    try:
        lib = ctypes.CDLL(_LIBRARY, use_errno=True)
    except OSError:
        raise ZfwError(f"{_LIBRARY} is missing", hint="Debian: apt install libbpf1") from None
    pointer, text = ctypes.c_void_p, ctypes.c_char_p
    for name, result, arguments in (
        ("bpf_object__open_file", pointer, [text, pointer]),
        ("bpf_object__load", ctypes.c_int, [pointer]),
        ("bpf_object__close", None, [pointer]),
        ("bpf_object__next_program", pointer, [pointer, pointer]),
        ("bpf_object__next_map", pointer, [pointer, pointer]),
        ("bpf_program__name", text, [pointer]),
        ("bpf_program__fd", ctypes.c_int, [pointer]),
        ("bpf_program__set_log_buf", ctypes.c_int, [pointer, pointer, ctypes.c_size_t]),
        ("bpf_map__name", text, [pointer]),
        ("bpf_map__fd", ctypes.c_int, [pointer]),
        ("bpf_map__reuse_fd", ctypes.c_int, [pointer, ctypes.c_int]),
        ("bpf_map__set_max_entries", ctypes.c_int, [pointer, ctypes.c_uint32]),
        ("ring_buffer__new", pointer, [ctypes.c_int, pointer, pointer, pointer]),
        ("ring_buffer__epoll_fd", ctypes.c_int, [pointer]),
        ("ring_buffer__consume", ctypes.c_int, [pointer]),
        ("ring_buffer__free", None, [pointer]),
        ("libbpf_set_print", pointer, [pointer]),
    ):
        function = getattr(lib, name)
        function.restype = result
        function.argtypes = arguments
    # No messages on stderr: errors are raised from errno and the logs of the programs.
    lib.libbpf_set_print(None)
    return lib


class BpfObject:
    """An open BPF object file; a context manager that closes it and its descriptors.

    Pin a map or program that has to outlive it.
    """

    def __init__(self, path: Path) -> None:
        """Open the file. Raises ZfwError if it is missing or no BPF object."""
        self._lib = library()
        self._path = path
        self._object = self._lib.bpf_object__open_file(str(path).encode(), None)
        if not self._object:
            raise KernelError(f"open BPF object {path.name}", ctypes.get_errno())
        self._logs = {
            name: (program, ctypes.create_string_buffer(_LOG_SIZE))
            for name, program in self._each("program")
        }
        for program, log in self._logs.values():
            self._lib.bpf_program__set_log_buf(program, log, _LOG_SIZE)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._lib.bpf_object__close(self._object)

    def _each(self, what: str) -> list[tuple[str, int]]:
        found, item = [], None
        while item := getattr(self._lib, f"bpf_object__next_{what}")(self._object, item):
            found.append((getattr(self._lib, f"bpf_{what}__name")(item).decode(), item))
        return found

    def reuse_maps(self, descriptors: dict[str, int]) -> None:
        """Use these maps, by name, instead of new ones. Call it before ``load``."""
        for name, item in self._each("map"):
            if name in descriptors and self._lib.bpf_map__reuse_fd(item, descriptors[name]) != 0:
                raise KernelError(f"reuse map {name}", ctypes.get_errno())

    def size_map(self, name: str, max_entries: int) -> None:
        """Set the ``max_entries`` of a map. Call it before ``load``."""
        item = dict(self._each("map"))[name]
        if self._lib.bpf_map__set_max_entries(item, max_entries) != 0:
            raise KernelError(f"size map {name}", ctypes.get_errno())

    def load(self) -> None:
        """Create the maps and load the programs.

        Raises VerifierError with the log of the program that was refused.
        """
        if self._lib.bpf_object__load(self._object) == 0:
            return
        errno = ctypes.get_errno()
        # libbpf loads one program after the other and closes all of them when the kernel
        # refuses one, which is the last that has a log.
        for name, (program, log) in reversed(self._logs.items()):
            if log.value and self._lib.bpf_program__fd(program) < 0:
                raise VerifierError(name, errno, log.value.decode("utf-8", "replace"))
        raise KernelError(
            f"load BPF object {self._path.name}",
            errno,
            hint="the kernel needs BPF and its JIT (CONFIG_BPF_SYSCALL), 5.15 or later",
        )

    def maps(self) -> dict[str, int]:
        """Descriptors of the maps by name."""
        return {name: self._lib.bpf_map__fd(item) for name, item in self._each("map")}

    def programs(self) -> dict[str, int]:
        """Descriptors of the programs by name."""
        return {name: self._lib.bpf_program__fd(item) for name, item in self._each("program")}


class RingBuffer:
    """The reader of a BPF ring buffer, which has only one; a context manager that ends it.

    ``fileno()`` can be polled: it is readable while there are records.
    """

    def __init__(self, map_fd: int, take: Callable[[bytes], None]) -> None:
        """``take`` is called with each record from within ``consume``. Raises KernelError."""
        self._lib = library()
        self._failure: BaseException | None = None
        self._left: int | None = None

        def on_record(_context: int | None, data: int, size: int) -> int:
            try:
                take(ctypes.string_at(data, size))
            except BaseException as error:  # noqa: BLE001 - cannot pass through C
                self._failure = error
                return -1
            if self._left is not None:
                self._left -= 1
            return -1 if self._left == 0 else 0

        # A reference, since libbpf calls it until the ring buffer is freed.
        self._on_record = _SAMPLE(on_record)
        self._ring = self._lib.ring_buffer__new(map_fd, self._on_record, None, None)
        if not self._ring:
            raise KernelError("open the ring buffer", ctypes.get_errno())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._lib.ring_buffer__free(self._ring)

    def fileno(self) -> int:
        """The descriptor to poll."""
        return int(self._lib.ring_buffer__epoll_fd(self._ring))

    def consume(self, most: int | None = None) -> None:
        """Read records until there are no more, or ``most`` of them.

        Raises the error that ``take`` raised, or KernelError.
        """
        self._left = most
        done = self._lib.ring_buffer__consume(self._ring)
        if self._failure is not None:
            failure, self._failure = self._failure, None
            raise failure
        if done < 0 and self._left != 0:
            raise KernelError("read the ring buffer", -done)
