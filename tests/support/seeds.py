# SPDX-License-Identifier: GPL-2.0-only
"""The seeds of a differential test that runs on new input each time."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator


def new_seeds(per_seed: int) -> Iterator[tuple[int, int]]:
    """Yield new seeds, and how many comparisons to do with each: ``per_seed`` or fewer.

    The environment may set the first seed, which is printed, by ZFW_DIFFERENTIAL_SEED, and the
    number of all comparisons by ZFW_DIFFERENTIAL_COMPARISONS.
    """
    seed = int(os.environ.get("ZFW_DIFFERENTIAL_SEED", time.time_ns() // 1000))
    left = int(os.environ.get("ZFW_DIFFERENTIAL_COMPARISONS", per_seed))
    print(f"ZFW_DIFFERENTIAL_SEED={seed}")
    while left > 0:
        yield seed, min(left, per_seed)
        left -= per_seed
        seed += 1
