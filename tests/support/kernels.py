# SPDX-License-Identifier: GPL-2.0-only
"""What the running kernel is too old for; a newer one that seems to lack it is a failure."""

from __future__ import annotations

import os

import pytest


def is_before(major: int, minor: int) -> bool:
    """Whether the running kernel is older than a release."""
    running = tuple(int(part) for part in os.uname().release.split("-")[0].split(".")[:2])
    return running < (major, minor)


def needs_kernel(major: int, minor: int) -> pytest.MarkDecorator:
    """Skip a test on kernels that lack what it is about, and on no other."""
    return pytest.mark.skipif(is_before(major, minor), reason=f"needs Linux {major}.{minor}")


def skip_lacking(what: str, major: int, minor: int) -> None:
    """For what a look has not found: skip where it cannot be, and fail where it must be.

    The look may be code of ours, and wrong.
    """
    if not is_before(major, minor):
        pytest.fail(f"no {what} was found, which Linux has since {major}.{minor}")
    pytest.skip(f"no {what} before Linux {major}.{minor}")
