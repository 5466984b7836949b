# SPDX-License-Identifier: GPL-2.0-only
"""The process that keeps a guard, as others see it."""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING

from tests.support.children import staged_child
from zfw_py.abi.guard_codec import Keeper
from zfw_py.guard import processes

if TYPE_CHECKING:
    from collections.abc import Iterator


def test_a_process_that_lost_the_first_signal_is_ended_by_the_next() -> None:
    def keeper() -> Iterator[object]:
        # As asyncio has it while there is a loop, and as it leaves it.
        def lose(*_: object) -> None:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)

        signal.signal(signal.SIGTERM, lose)
        yield processes.this_process()

    with staged_child(keeper) as go_on:
        made = Keeper(*go_on())
        assert processes.is_alive(made)
        processes.end(made)
        ended = os.waitid(os.P_PID, made.pid, os.WEXITED | os.WNOWAIT)
        assert ended is not None
        # Not SIGKILL, for which there would have been five seconds to wait.
        assert ended.si_status == signal.SIGTERM
        assert not processes.is_alive(made)
