# SPDX-License-Identifier: GPL-2.0-only
"""Which sockets escape a cgroup's programs, and how that is told."""

from __future__ import annotations

from socket import AF_INET, AF_INET6, AF_PACKET, IPPROTO_RAW, IPPROTO_TCP, IPPROTO_UDP

import pytest

from zfw_py.guard.foreign_sockets import ForeignSocket, is_foreign
from zfw_py.kernel.sock_diag import AF_XDP, IPPROTO_MPTCP, Socket

HERE, WITHIN, ELSEWHERE = 100, 101, 7


def tcp(cgroup_id: int | None) -> Socket:
    return Socket(
        inode=5,
        family=AF_INET,
        protocol=IPPROTO_TCP,
        state="ESTABLISHED",
        local=("10.0.0.1", 4000),
        remote=("10.0.0.2", 443),
        ifindex=0,
        cookie=9,
        cgroup_id=cgroup_id,
    )


@pytest.mark.parametrize(
    ("socket", "answer"),
    [
        (tcp(HERE), False),
        (tcp(WITHIN), False),
        (tcp(ELSEWHERE), True),
        (tcp(1), True),  # the root cgroup, around all
        (tcp(None), True),  # nobody can tell
        (Socket(5, AF_INET6, IPPROTO_RAW), True),
        # Wherever it was made.
        (Socket(5, AF_PACKET, 0), True),
        (Socket(5, AF_XDP, 0), True),
    ],
)
def test_a_socket_is_foreign_unless_it_was_made_in_the_cgroup_or_within(
    socket: Socket, answer: bool
) -> None:
    assert is_foreign(socket, {HERE, WITHIN}) is answer


@pytest.mark.parametrize(
    ("socket", "told", "is_certain"),
    [
        (
            tcp(ELSEWHERE),
            "was created outside of the cgroup: TCP 10.0.0.1:4000 to 10.0.0.2:443",
            True,
        ),
        (
            Socket(5, AF_INET6, IPPROTO_MPTCP, "LISTEN", ("::1", 80), ("::", 0), 0, True, 9, 7),
            "was created outside of the cgroup: MPTCP (IPv6) [::1]:80",
            True,
        ),
        (
            Socket(5, AF_INET, IPPROTO_UDP),
            "may have been created outside of the cgroup: UDP",
            False,
        ),
        (
            Socket(5, AF_INET6, IPPROTO_RAW),
            "may have been created outside of the cgroup: raw (IPv6)",
            False,
        ),
        (Socket(5, AF_PACKET, 0), "no cgroup's programs see: packet", True),
        (Socket(5, AF_XDP, 0), "no cgroup's programs see: XDP", True),
        (
            Socket(5, AF_INET, 99),
            "may have been created outside of the cgroup: protocol 99",
            False,
        ),
    ],
)
def test_it_is_told_in_one_line(socket: Socket, told: str, is_certain: bool) -> None:
    found = ForeignSocket(12, "curl", socket)
    assert str(found) == f"process 12 (curl) holds a socket that {told}"
    assert found.is_certain is is_certain
