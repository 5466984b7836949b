# SPDX-License-Identifier: GPL-2.0-only
"""A program on its hook: a class for each kind of attachment that the kernel has.

Each has ``program``, the program's name in the object, and

- ``attach(fd)``: attach a program; other programs on the hook stay. Raises OSError, and
  where the hook is another program's alone, Conflict.
- ``replace(fd)``: exchange the program; every packet or call meets the old one or the new one.
- ``program_id()``: the id of the program that the kernel runs there, None if none of ours.
- ``detach()``: detach now; no error if it is detached already.

A link that is only unpinned keeps its program attached for a moment: ``detach`` asks for it.
"""

from __future__ import annotations

import errno
import os
from contextlib import contextmanager
from struct import Struct
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from zfw_py.kernel import bpf_links, bpf_maps, tc
from zfw_py.lifecycle.store import replace_pin, unlink

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from zfw_py.kernel.tc import Filter

_Result = TypeVar("_Result")

PIN = "link_"  # prefix of the pins of links; bpffs takes no dots in names
_TCX_TYPES = {"ingress": bpf_links.TCX_INGRESS, "egress": bpf_links.TCX_EGRESS}

# struct bpf_link_info: type, id, prog_id, 4 bytes of padding, then a union by type.
_link_info = Struct("=IIIxxxxQ")
_LINK_CGROUP = 3  # enum bpf_link_type


def here(function: Callable[[], _Result]) -> _Result:
    """Call a function where the caller is: in the network namespace of the attachment."""
    return function()


@contextmanager
def opened(pin: str) -> Iterator[int]:
    """A descriptor of what is pinned at a path. Raises FileNotFoundError, OSError."""
    fd = bpf_maps.open_pin(pin)
    try:
        yield fd
    finally:
        os.close(fd)


class _Link(NamedTuple):
    """What the kernel says of a link. ``target`` is 0 once its target is gone.

    The target is an interface's index, a cgroup's id or a network namespace's inode.
    """

    link_id: int
    program_id: int
    target: int


def _read_link(fd: int) -> _Link:
    kind, link_id, program_id, target = _link_info.unpack(bpf_maps.object_info(fd, _link_info.size))
    # tcx.ifindex and netns.netns_ino have 4 bytes, cgroup.cgroup_id has 8.
    return _Link(link_id, program_id, target if kind == _LINK_CGROUP else target & 0xFFFFFFFF)


class _PinnedLink:
    """What links of every kind have in common: a pin that keeps them."""

    def __init__(self, directory: str, program: str, name: str | None = None) -> None:
        """``name``: of the pin, where it is not the program's."""
        self.program = program
        self.pin = f"{directory}/{PIN}{name or program}"

    def _keep(self, link: int) -> None:
        try:
            # A link whose target is gone may still be pinned there.
            unlink(self.pin)
            # Unpinned, the link and with it the program would go with this process.
            bpf_maps.pin(link, self.pin)
        finally:
            os.close(link)

    def replace(self, program: int) -> None:
        with opened(self.pin) as link:
            bpf_links.update_link(link, program)

    def _link(self) -> _Link | None:
        try:
            with opened(self.pin) as link:
                return _read_link(link)
        except FileNotFoundError:
            return None

    @property
    def target(self) -> int:
        """The interface, cgroup or network namespace that the link is on; 0 if on none."""
        found = self._link()
        return 0 if found is None else found.target

    def link_id(self) -> int:
        """The link's id; 0 if there is none."""
        found = self._link()
        return 0 if found is None else found.link_id

    def program_id(self) -> int | None:
        found = self._link()
        return None if found is None or found.target == 0 else found.program_id

    def detach(self) -> None:
        try:
            with opened(self.pin) as link:
                bpf_links.detach_link(link)
        except FileNotFoundError:
            return
        except OSError as error:
            # ENOLINK: the target is gone, and the link was detached with it.
            if error.errno not in (errno.ENOLINK, errno.ENOENT):
                raise
        unlink(self.pin)


class Tcx(_PinnedLink):
    """On an interface by a TCX link, since Linux 6.6 (e420bed02507)."""

    def __init__(
        self,
        directory: str,
        program: str,
        ifindex: int,
        direction: str,
        name: str | None = None,
        call: Callable[[Callable[[], None]], None] = here,
        *,
        is_first: bool = False,
    ) -> None:
        """``call`` calls a function from within the interface's network namespace.

        ``is_first``: attached before the programs that are there, not after them.
        """
        super().__init__(directory, program, name)
        self._is_first = is_first
        self.ifindex = ifindex
        self.direction = direction
        self.attach_type = _TCX_TYPES[direction]
        self._call = call

    def __str__(self) -> str:
        return f"{self.program} by TCX"

    def attach(self, program: int) -> None:
        """Attach a program."""
        self._call(
            lambda: self._keep(
                bpf_links.create_link(
                    program, self.ifindex, self.attach_type, is_first=self._is_first
                )
            )
        )


class CgroupHook(_PinnedLink):
    """On a cgroup, beside programs of others: they and those of cgroups around it run as well."""

    def __init__(self, directory: str, program: str, attach_type: int, cgroup: int = -1) -> None:
        """``cgroup`` is a descriptor of it, needed to attach alone."""
        super().__init__(directory, program)
        self.attach_type = attach_type
        self._cgroup = cgroup

    def __str__(self) -> str:
        return f"{self.program} to the cgroup"

    def attach(self, program: int) -> None:
        """Attach a program."""
        self._keep(bpf_links.create_link(program, self._cgroup, self.attach_type))


class NetnsHook(_PinnedLink):
    """On a network namespace: sk_lookup, since Linux 5.9 (e9ddbb7707ff)."""

    def __init__(self, directory: str, program: str, attach_type: int, netns: int = -1) -> None:
        """``netns`` is a descriptor of it, needed to attach alone."""
        super().__init__(directory, program)
        self._attach_type = attach_type
        self._netns = netns

    def __str__(self) -> str:
        return f"{self.program} to the network namespace"

    def attach(self, program: int) -> None:
        """Attach a program."""
        self._keep(bpf_links.create_link(program, self._netns, self._attach_type))


class Tracing(_PinnedLink):
    """On the tracepoint that the program was compiled for. Its link cannot be updated."""

    def __str__(self) -> str:
        return f"{self.program} to its tracepoint"

    def attach(self, program: int) -> None:
        """Attach a program."""
        self._keep(bpf_links.attach_tracing(program))

    def replace(self, program: int) -> None:
        """Attach the new one beside the old one: for a moment both run."""
        link = bpf_links.attach_tracing(program)
        try:
            replace_pin(link, self.pin)
        finally:
            os.close(link)

    def program_id(self) -> int | None:
        """The id of the program that runs there."""
        found = self._link()
        return None if found is None else found.program_id

    def detach(self) -> None:
        """The kernel detaches it with its last pin and descriptor."""
        unlink(self.pin)


class Clsact:
    """On an interface by a filter that hangs from its qdisc clsact.

    Nothing is pinned: the filter is ours if its program is one of ``ours``.
    """

    def __init__(
        self,
        program: str,
        ifindex: int,
        direction: str,
        handle: int,
        ours: Callable[[], set[int]],
        call: Callable[[Callable[[], object]], object] = here,
    ) -> None:
        """``call`` calls a function from within the interface's network namespace."""
        self.program = program
        self.ifindex = ifindex
        self.direction = direction
        self._handle = handle
        self._ours = ours
        self._call = call

    def __str__(self) -> str:
        return f"{self.program} through clsact"

    def attach(self, program: int) -> None:
        """Attach a program."""
        self._call(
            lambda: tc.attach_clsact(
                self.ifindex, self.direction, program, f"zfw_{self.program}", self._handle
            )
        )

    # The kernel exchanges a filter of the same handle and preference in one step.
    replace = attach

    def _filters(self) -> list[Filter]:
        ours = self._ours()
        found: list[Filter] = []
        self._call(
            lambda: found.extend(
                each
                for each in tc.bpf_filters(self.ifindex, self.direction)
                if each.program_id in ours
            )
        )
        return found

    def program_id(self) -> int | None:
        """The id of the program that runs there."""
        found = self._filters()
        return found[0].program_id if found else None

    def detach(self) -> None:
        """Remove the filter; the qdisc stays."""
        for found in self._filters():
            self._call(lambda one=found: tc.delete_filter(one))  # type: ignore[misc]


Attachment = Tcx | CgroupHook | NetnsHook | Tracing | Clsact
