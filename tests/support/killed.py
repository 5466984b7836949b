# SPDX-License-Identifier: GPL-2.0-only
"""Processes that are killed right before the n-th thing that they change."""

from __future__ import annotations

import os
import posix
import signal
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

from pyroute2 import IPRoute

from zfw_py.errors import ZfwError
from zfw_py.kernel import bpf_maps, cgroup, rtnetlink

if TYPE_CHECKING:
    from collections.abc import Callable

# enum bpf_cmd: those that change something
_CHANGES = {
    2: "update",
    3: "delete",
    6: "pin",
    17: "trace",
    26: "update",
    27: "delete",
    28: "link",
    29: "exchange",
    34: "detach",
}


def killed_at(
    number: int, action: Callable[[], object], enter: Callable[[], object], *, is_maker: bool
) -> str | None:
    """Run an action in a process of its own, and kill that before its n-th change, from 0.

    ``enter`` is called there first. If not ``is_maker``, it is not that process that is
    killed but one that it forks, before its n-th change; all that it forks has to end
    then. What was about to be done; None if there were not so many changes.
    """
    read_end, write_end = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(read_end)
        code = 1
        try:
            enter()
            _kill_before(number, write_end, os.getpid() if is_maker else None)
            action()
            code = 0
        except ZfwError:
            code = 0  # what the action says of a process that was killed
        finally:
            os._exit(code)
    os.close(write_end)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if is_maker:
        # What it has forked may live on.
        os.set_blocking(read_end, False)
    with os.fdopen(read_end, "rb") as file:
        told = (file.read() or b"").decode()
    assert code in (0, -signal.SIGKILL), f"{code}, before {told}"
    assert not is_maker or (code != 0) == bool(told)
    return told or None


def _kill_before(number: int, tell: int, maker: int | None) -> None:
    left = [number]
    before = os.getpid()

    def count(what: str) -> None:
        if (os.getpid() == maker) if maker else (os.getpid() != before):
            left[0] -= 1
            if left[0] == -1:
                os.write(tell, what.encode())
                os.kill(os.getpid(), signal.SIGKILL)

    def counted(what: str, original: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            count(f"{what} {arguments[:2]}")
            return original(*arguments, **options)

        return call

    for module in (os, posix):
        for name in ("mkdir", "rename", "unlink", "rmdir", "fork"):
            patch.object(module, name, counted(name, getattr(posix, name))).start()
    patch.object(signal, "pidfd_send_signal", counted("signal", signal.pidfd_send_signal)).start()
    patch.object(cgroup, "move", counted("move", cgroup.move)).start()

    def counted_route() -> Any:
        made = IPRoute()
        made.tc = counted("tc", made.tc)
        return made

    patch.object(rtnetlink, "IPRoute", counted_route).start()
    original = bpf_maps.bpf

    def counted_bpf(command: int, attribute: Any) -> int:
        if command in _CHANGES:
            count(f"bpf {_CHANGES[command]}")
        return original(command, attribute)

    patch.object(bpf_maps, "bpf", counted_bpf).start()
