# SPDX-License-Identifier: GPL-2.0-only
"""Programs that are attached by TCX, as BPF_PROG_QUERY lists them.

bpftool of Debian 12 does not know TCX.
"""

from __future__ import annotations

import ctypes
import socket
from struct import pack, unpack_from

from tests.support.kernels import skip_lacking
from zfw_py.kernel import bpf_links, bpf_maps

_PROG_QUERY = 16


def tcx_programs(interface: str, direction: str) -> list[int]:
    """The ids of the programs that are attached to an interface here, first to last."""
    ids = (ctypes.c_uint32 * 64)()
    # union bpf_attr of BPF_PROG_QUERY: target_ifindex, attach_type, query_flags,
    # attach_flags, prog_ids, count, and what may be left out.
    attribute = ctypes.create_string_buffer(
        pack(
            "=IIIIQI36x",
            socket.if_nametoindex(interface),
            {"ingress": bpf_links.TCX_INGRESS, "egress": bpf_links.TCX_EGRESS}[direction],
            0,
            0,
            ctypes.addressof(ids),
            len(ids),
        )
    )
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.syscall(bpf_maps._number, _PROG_QUERY, attribute, len(attribute)) == 0, (
        ctypes.get_errno()
    )
    return list(ids[: unpack_from("=I", attribute, 24)[0]])


def skip_without_tcx() -> None:
    """Skip the calling test on a kernel before 6.6, which has no TCX."""
    if not bpf_links.supports_tcx(1):
        skip_lacking("TCX", 6, 6)
