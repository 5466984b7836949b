# SPDX-License-Identifier: GPL-2.0-only
"""What the firewall would do with a packet: asks the program itself."""

from __future__ import annotations

import errno
import os
from struct import pack_into, unpack_from
from typing import TYPE_CHECKING, NamedTuple

from zfw_py.errors import UsageError
from zfw_py.firewall import layout
from zfw_py.kernel import bpf_maps, bpf_run

if TYPE_CHECKING:
    from zfw_py.firewall.maps import Tables

VERDICTS = ("pass", "drop", "assign")
TRACKS = ("none", "renew", "open", "adopt")

# struct __sk_buff, include/uapi/linux/bpf.h; a test may set ifindex and cb.
_SK_BUFF_SIZE = 192
_INGRESS_IFINDEX, _IFINDEX, _CB = 36, 40, 48


class Decision(NamedTuple):
    """What is decided. ``slot`` is that of the rule that decided, or None.

    ``track`` says what the packet does to the entry of its flow: "none"; "renew" one
    that is there; "open" or "adopt" make one, the latter wherever in its flow it is.
    """

    verdict: str
    reason: str
    slot: int | None
    track: str = "none"


def explain(
    tables: Tables,
    frame: bytes,
    ifindex: int,
    direction: str = "ingress",
    ingress_ifindex: int = 0,
) -> Decision:
    """Ask about one frame, which starts with its Ethernet header, at an interface.

    Of one that leaves, ``ingress_ifindex`` is the interface that it came by, 0 if this
    host sends it. The interface is in the caller's network namespace, where the sockets are
    looked up as well. Raises UsageError for a frame that the kernel does not take
    for a test: less than the Ethernet header, or less than a whole IPv4 or IPv6
    header where the frame says that it carries one (bpf_prog_test_run_skb()).
    """
    context = bytearray(_SK_BUFF_SIZE)
    pack_into("=I", context, _IFINDEX, ifindex)
    pack_into("=I", context, _INGRESS_IFINDEX, ingress_ifindex)
    fd = bpf_maps.open_pin(f"{tables.directory}/explain_{direction}")
    try:
        answer = bpf_run.run(fd, frame, bytes(context)).context
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        raise UsageError(f"a frame of {len(frame)} bytes is too short for the kernel") from error
    finally:
        os.close(fd)
    verdict, reason, slot, track = unpack_from("=IIII", answer, _CB)
    return Decision(
        VERDICTS[verdict],
        layout.REASONS[reason],
        None if slot == layout.NO_SLOT else slot,
        TRACKS[track],
    )
