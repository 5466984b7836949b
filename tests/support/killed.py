# SPDX-License-Identifier: GPL-2.0-only
"""Processes that are killed right before their n-th change of the system."""

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
    """Call an action in a new process, and kill that before its n-th change, from 0.

    ``enter`` is called in the process first. If ``is_maker`` is false, a process that it forks
    is killed instead, before that one's n-th change; then all of its forked processes must end.
    Returns the change that was about to be made, None if there were fewer changes.
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
            code = 0  # the action reports that its child was killed
        finally:
            os._exit(code)
    os.close(write_end)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if is_maker:
        # The processes that it has forked may live on, and keep the pipe open.
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
