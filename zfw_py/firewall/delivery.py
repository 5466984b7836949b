# SPDX-License-Identifier: GPL-2.0-only
"""The program ``deliver`` on the network namespace: what has lost its listener gets it back.

It is attached as long as ``ingress`` is attached to some interface.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from zfw_py.kernel import bpf_links
from zfw_py.kernel.namespaces import hold
from zfw_py.lifecycle import programs
from zfw_py.lifecycle.attachment import NetnsHook

if TYPE_CHECKING:
    from collections.abc import Iterator

PROGRAM = "deliver"


class Deliver(NetnsHook):
    """Its pin has no name of a link: earlier versions take these for interfaces."""

    def __init__(self, directory: str, netns: int = -1) -> None:
        """``netns`` is a descriptor of the network namespace, needed to attach alone."""
        super().__init__(directory, PROGRAM, bpf_links.SK_LOOKUP, netns)
        self.pin = f"{directory}/{PROGRAM}_link"


class _Here(Deliver):
    """To be attached to the network namespace of the caller."""

    def attach(self, program: int) -> None:
        """Attach a program."""
        self._netns = hold()
        try:
            super().attach(program)
        finally:
            os.close(self._netns)


def attached(directory: str) -> Iterator[Deliver]:
    """The attachment, if there is one."""
    hook = Deliver(directory)
    if hook.program_id() is not None:
        yield hook


def missing(directory: str) -> Iterator[Deliver]:
    """The attachment to make in the caller's network namespace, if there is none."""
    if Deliver(directory).program_id() is None:
        yield _Here(directory)


def attach(directory: str, program: int) -> None:
    """Attach it, unless it is attached. Raises KernelError."""
    for hook in missing(directory):
        programs.attach(hook, program)


def detach(directory: str) -> None:
    """Detach it, if it is attached."""
    Deliver(directory).detach()
