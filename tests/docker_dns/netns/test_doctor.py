# SPDX-License-Identifier: GPL-2.0-only
"""Each finding about redirects: provoked, found, mended by its own command, gone."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.docker_dns.support.world import DockerNetwork
from tests.support import doctor
from tests.support.waiting import wait_until
from zfw_py.docker_dns.maps import STORE
from zfw_py.docker_dns.model import Redirect
from zfw_py.docker_dns.service import DnsRedirect, RedirectOptions

if TYPE_CHECKING:
    from tests.docker_dns.support.world import World

pytestmark = pytest.mark.kernel


def test_a_redirect_whose_namespace_is_gone(docker: World) -> None:
    docker.redirect()
    assert doctor.findings() == []
    with DockerNetwork() as gone:
        asked = Redirect.parse("10.77.0.53")
        DnsRedirect(gone.path).create(asked, RedirectOptions(is_probed=False))
    assert wait_until(lambda: doctor.findings() != [])
    (what,) = doctor.mend("docker-dns-broken")
    assert what.endswith("its network namespace is gone")
    assert len(DnsRedirect.all()) == 1


def test_a_redirect_whose_program_is_gone(docker: World) -> None:
    about = docker.redirect("corp.example", mode="tcx")
    next(Path(STORE.directory(about.id)).glob("link_*")).unlink()
    assert wait_until(lambda: doctor.findings() != [])
    doctor.mend("docker-dns-broken")
    (status,) = DnsRedirect.all()
    assert status.manifest.domains == ["corp.example"]
    assert (status.manifest.server, status.problem) == (about.server, "")


def test_pins_that_a_killed_process_left(docker: World) -> None:
    docker.redirect()
    path = Path(STORE.root, "new_1")
    path.mkdir()
    assert doctor.mend("docker-dns-stale-pins") == [f"{path} was left by a process that was killed"]
