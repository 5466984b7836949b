# SPDX-License-Identifier: GPL-2.0-only
"""What the firewall would do with a packet: a test run of its program."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING, NamedTuple

from zfw_py.errors import UsageError
from zfw_py.firewall import layout
from zfw_py.firewall.flow_codec import decode_decision, encode_test_context
from zfw_py.firewall.model import DIRECTIONS
from zfw_py.kernel import bpf_maps, bpf_run

if TYPE_CHECKING:
    from zfw_py.firewall.maps import Maps

VERDICTS = ("pass", "drop", "assign")
TRACKS = ("none", "renew", "open", "adopt", "if_ruled", "unless_ruled")


class Decision(NamedTuple):
    """A decision of the program. ``slot`` is that of the rule that decided, or None.

    ``track`` says what the packet does to the entry of its flow: "none"; "renew" the one that
    exists; "open" a new one, or "adopt" one in the middle of a flow; "if_ruled", "unless_ruled"
    to adopt one if an ingress rule lets the packet in, or if none is for its answer.
    """

    verdict: str
    reason: str
    slot: int | None
    track: str = "none"


class Programs:
    """The explain programs of both directions, open until ``close`` or the end of a with block."""

    def __init__(self, maps: Maps) -> None:
        """Open the pinned ones. Raises OSError."""
        self._fds: dict[str, int] = {}
        try:
            for direction in DIRECTIONS:
                self._fds[direction] = bpf_maps.open_pin(f"{maps.directory}/explain_{direction}")
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Programs:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the programs."""
        while self._fds:
            os.close(self._fds.popitem()[1])

    def decide(
        self, frame: bytes, ifindex: int, direction: str = "ingress", ingress_ifindex: int = 0
    ) -> Decision:
        """Run the program of a direction; arguments and errors are those of ``explain``."""
        context = encode_test_context(ifindex, ingress_ifindex)
        try:
            answer = bpf_run.run(self._fds[direction], frame, context).context
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            raise UsageError(
                f"a frame of {len(frame)} bytes is too short for the kernel"
            ) from error
        verdict, reason, slot, track = decode_decision(answer)
        return Decision(
            VERDICTS[verdict],
            layout.REASONS[reason],
            None if slot == layout.NO_SLOT else slot,
            TRACKS[track],
        )


def explain(
    maps: Maps,
    frame: bytes,
    ifindex: int,
    direction: str = "ingress",
    ingress_ifindex: int = 0,
) -> Decision:
    """Run the program for one frame, from its Ethernet header on, at an interface.

    A frame has an Ethernet header also where those of the interface have none (tun, wireguard).
    ``ingress_ifindex`` is the interface that a leaving frame came in by, 0 if this host sends
    it. Both interfaces, and the sockets that the program looks up, are those of the caller's
    network namespace. Raises UsageError for a frame that bpf_prog_test_run_skb() refuses:
    shorter than an Ethernet header, or than the IPv4 or IPv6 header that its type announces.
    """
    with Programs(maps) as programs:
        return programs.decide(frame, ifindex, direction, ingress_ifindex)
