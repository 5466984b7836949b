# SPDX-License-Identifier: GPL-2.0-only
"""Fixtures of the tests of docker-dns."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.docker_dns.support.container import container
from tests.docker_dns.support.programs import Programs
from tests.docker_dns.support.world import World, docker_world

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def docker(_private_bpffs: None, tmp_path: Path) -> Iterator[World]:
    """A container's network with the daemon's resolver, and a server outside."""
    with docker_world(tmp_path) as made:
        yield made


@pytest.fixture(scope="module")
def loaded(_private_bpffs: None) -> Iterator[Programs]:
    """Loaded programs, which the tests of a file share; the tests run inside a container."""
    with container(), Programs() as made:
        yield made
