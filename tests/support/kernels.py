# SPDX-License-Identifier: GPL-2.0-only
"""Skips for features that the running kernel is too old for."""

from __future__ import annotations

import os

import pytest


def is_before(major: int, minor: int) -> bool:
    """Whether the running kernel is older than a release."""
    running = tuple(int(part) for part in os.uname().release.split("-")[0].split(".")[:2])
    return running < (major, minor)


def needs_kernel(major: int, minor: int) -> pytest.MarkDecorator:
    """A mark that skips a test on kernels before a release."""
    return pytest.mark.skipif(is_before(major, minor), reason=f"needs Linux {major}.{minor}")


def skip_lacking(what: str, major: int, minor: int) -> None:
    """Skip for a feature that was not found, but fail on a kernel that must have it.

    Code of zfw may have looked for the feature, and may be wrong.
    """
    if not is_before(major, minor):
        pytest.fail(f"no {what} was found, which Linux has since {major}.{minor}")
    pytest.skip(f"no {what} before Linux {major}.{minor}")
