# SPDX-License-Identifier: GPL-2.0-only
"""Fixtures of the guard's tests."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.guard.support import world as worlds
from zfw_py.guard.service import Guard

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def world(_private_bpffs: None, tmp_path: Path) -> Iterator[worlds.World]:
    """Namespaces, servers and a cgroup for guarded programs; no guard outlives the test."""
    with worlds.world(tmp_path) as made:
        yield made
        Guard.detach_all()


@pytest.fixture
def service(world: worlds.World) -> Path:
    """A cgroup of another program's."""
    made = world.cgroup / "service"
    made.mkdir()
    return made
