# SPDX-License-Identifier: GPL-2.0-only
"""Waiting for what has to happen, on a machine that has other things to do."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

PATIENCE = 60.0


def wait_until(condition: Callable[[], object], patience: float = PATIENCE) -> bool:
    """Whether the condition comes true before patience ends."""
    end = time.monotonic() + patience
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.005)
    return True
