# SPDX-License-Identifier: GPL-2.0-only
"""The fixtures of the systems that are tested here."""

from __future__ import annotations

from tests.docker_dns.conftest import docker as docker
from tests.guard.conftest import world as world
