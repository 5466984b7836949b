# SPDX-License-Identifier: GPL-2.0-only
"""Fixtures of steer's tests."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from zfw_py.errors import NotInstalled
from zfw_py.steer.service import Steering

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support.netns import Network


@pytest.fixture
def steering(network: Network) -> Iterator[Steering]:
    """The steering of the gateway, inside which the test runs; removed when the test ends."""
    made = Steering()
    yield made
    try:
        made.detach()
    except NotInstalled:
        pass
