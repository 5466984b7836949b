# SPDX-License-Identifier: GPL-2.0-only
"""The lines about a guard's decisions."""

from __future__ import annotations

from typing import TYPE_CHECKING

from zfw_py.cli import guard_log, output
from zfw_py.guard.events import GuardEvent

if TYPE_CHECKING:
    from pathlib import Path


def denied(
    rdtype: str, name: str = "other.example", *, pid: int = 7, time: float = 0
) -> GuardEvent:
    """A name that the DNS proxy refused to a process."""
    return GuardEvent(
        time=1_000 + time,
        pid=pid,
        command="curl",
        cgroup="/sys/fs/cgroup/app",
        hook="dns",
        protocol="udp",
        original=None,
        redirected=None,
        name=name,
        rdtype=rdtype,
        verdict="deny",
        reason="not_allowed",
        is_enforced=True,
    )


def test_a_denied_name_is_printed_once_whatever_a_resolver_asks(tmp_path: Path) -> None:
    printed = tmp_path / "printed"
    with printed.open("w") as text:
        sink = guard_log._sink(None, output.Events(text), has_all=False, has_time=False)
        # Each type, and each again of the next server.
        for rdtype in ("A", "AAAA", "A", "AAAA"):
            sink.emit(denied(rdtype))
        sink.emit(denied("A", "third.example"))
        sink.emit(denied("A", pid=8))
        sink.emit(denied("AAAA", time=11))
    assert printed.read_text().splitlines() == [
        "zfw guard: curl[7] denied: DNS A other.example: not allowed",
        "zfw guard: curl[7] denied: DNS A third.example: not allowed",
        "zfw guard: curl[8] denied: DNS A other.example: not allowed",
        "zfw guard: curl[7] denied: DNS AAAA other.example: not allowed",
    ]
