# SPDX-License-Identifier: GPL-2.0-only
"""What ``zfw doctor`` finds about the steering of the caller's network namespace."""

from __future__ import annotations

from typing import TYPE_CHECKING

from zfw_py.errors import NotInstalled
from zfw_py.kernel import bpf_links
from zfw_py.lifecycle.stale import abandoned, unfinished
from zfw_py.steer.programs import SYSTEM
from zfw_py.steer.service import Steering
from zfw_py.values.finding import Registry

if TYPE_CHECKING:
    from collections.abc import Iterator

    from zfw_py.steer.listing import SteeringStatus
    from zfw_py.values.finding import Finding

REGISTRY: Registry[SteeringStatus] = Registry()
# About all network namespaces of the machine.
MACHINE: Registry[None] = Registry()

# The firewall's program for packets that packet sockets share; it does not choose a socket for
# what steer has a mapping for, unless a rule intercepts it.
_DELIVER = "deliver"
# What applies the mappings again to programs that are attached anew.
_SAVED = "/run/zfw-steer-doctor.json"


def findings() -> list[Finding]:
    """All that is found. Changes nothing. Raises PermissionDenied, LayoutMismatch, KernelError."""
    found: list[Finding] = []
    try:
        found += REGISTRY.find(Steering().status())
    except NotInstalled:
        pass  # only this network namespace has none
    return [*found, *MACHINE.find(None)]


@REGISTRY.kind(
    "steer-detached",
    "error",
    "Connections get to the sockets that the kernel finds by itself, as if there were no mapping.",
)
def detached(status: SteeringStatus) -> Iterator[tuple[str, str]]:
    """A steering whose sk_lookup program was detached by another process."""
    if status.is_detached:
        command = (
            f"zfw steer list --json > {_SAVED} && zfw steer detach"
            f" && zfw steer apply {_SAVED}; rm {_SAVED}"
        )
        yield "the program lookup was detached by another process: nothing is steered", command


@REGISTRY.kind(
    "steer-program-ahead",
    "warning",
    "zfw steer leaves a connection for which another program has chosen a socket. The command"
    " detaches that program.",
)
def program_ahead(status: SteeringStatus) -> Iterator[tuple[str, str]]:
    """An sk_lookup program of other software that runs before the one that steers."""
    if status.program_id not in status.order:
        return
    for number in status.order[: status.order.index(status.program_id)]:
        if bpf_links.program_name(number) != _DELIVER:
            link = bpf_links.link_of(number)
            command = f"bpftool link detach id {link}" if link else ""
            yield f"sk_lookup program {number} runs before the one that steers", command


@MACHINE.kind(
    "steer-stale-pins",
    "note",
    "The pins keep maps and programs in memory that nothing uses. The next steering that is made"
    " removes them.",
)
def stale_pins(_: None) -> Iterator[tuple[str, str]]:
    """Pins of a steering whose network namespace is gone, or of a killed process."""
    yield from unfinished(SYSTEM)
    yield from abandoned(SYSTEM)


KINDS = [*REGISTRY.kinds, *MACHINE.kinds]
