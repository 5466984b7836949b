# SPDX-License-Identifier: GPL-2.0-only
"""A guard's programs on a new cgroup, without the guard's DNS process."""

from __future__ import annotations

import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

from tests.support.cgroups import private_cgroup
from zfw_py.guard import programs
from zfw_py.guard.maps import STORE, Manifest, Maps
from zfw_py.kernel import cgroup
from zfw_py.lifecycle.programs import make_root, remove

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from zfw_py.guard.codec import Proxy
    from zfw_py.guard.model import Policy


@contextmanager
def installed(policy: Policy, proxies: Mapping[int, Proxy]) -> Iterator[tuple[Path, Maps]]:
    """Attach a guard's programs; yields the cgroup and the guard's maps."""
    make_root(STORE)
    with private_cgroup() as place:
        manifest = Manifest(
            id=programs.new_identifier(),
            kind="attach",
            cgroup=str(place),
            cgroup_id=cgroup.identifier(str(place)),
            is_cgroup_ours=False,
            proxy_cgroup="",
            created=time.time(),
            servers=[],
            policy=policy.as_object(),
        )

        def start(maps: Maps, _: Manifest) -> None:
            for cookie, proxy in proxies.items():
                maps.write_proxy(cookie, proxy)

        programs.install(manifest, programs.Rules.of(policy), start, logs_all=True)
        try:
            yield place, Maps(STORE.directory(manifest.id))
        finally:
            remove(programs.SYSTEM, manifest.id)
