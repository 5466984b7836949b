# SPDX-License-Identifier: GPL-2.0-only
"""Waiting for a condition, long enough for a busy machine."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

PATIENCE = 60.0  # seconds


def wait_until(condition: Callable[[], object], patience: float = PATIENCE) -> bool:
    """Whether a condition becomes true within ``patience`` seconds."""
    end = time.monotonic() + patience
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.002)
    return True
