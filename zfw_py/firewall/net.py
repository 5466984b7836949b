# SPDX-License-Identifier: GPL-2.0-only
"""The net below the programs on interfaces: ``deliver``, on the network namespace.

The kernel runs it for a packet that has no socket. It is attached as long as ``ingress`` is
attached to some interface.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from zfw_py.kernel import bpf_links
from zfw_py.lifecycle import programs
from zfw_py.lifecycle.attachment import NetnsHook

if TYPE_CHECKING:
    from collections.abc import Iterator

PROGRAM = "deliver"


class Net(NetnsHook):
    """Its pin has no name of a link: earlier versions take these for interfaces."""

    def __init__(self, directory: str, netns: int = -1) -> None:
        """``netns`` is a descriptor of the network namespace, needed to attach alone."""
        super().__init__(directory, PROGRAM, bpf_links.SK_LOOKUP, netns)
        self.pin = f"{directory}/{PROGRAM}_link"


class _Here(Net):
    """To be attached to the network namespace of the caller."""

    def attach(self, program: int) -> None:
        """Attach a program."""
        self._netns = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        try:
            super().attach(program)
        finally:
            os.close(self._netns)


def attached(directory: str) -> Iterator[Net]:
    """The net, if it is attached."""
    net = Net(directory)
    if net.program_id() is not None:
        yield net


def missing(directory: str) -> Iterator[Net]:
    """The net, to be attached here, if it is not."""
    if Net(directory).program_id() is None:
        yield _Here(directory)


def attach(directory: str, program: int) -> None:
    """Attach it, unless it is attached. Raises KernelError."""
    for net in missing(directory):
        programs.attach(net, program)


def detach(directory: str) -> None:
    """Detach it, if it is attached."""
    Net(directory).detach()
