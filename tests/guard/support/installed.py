# SPDX-License-Identifier: GPL-2.0-only
"""A guard's programs on a new cgroup, without the guard's DNS process."""

from __future__ import annotations

import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

from tests.support.cgroups import private_cgroup
from zfw_py.guard import programs
from zfw_py.guard.maps import STORE, About, Tables
from zfw_py.kernel import cgroup
from zfw_py.lifecycle.programs import make_root, remove

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from zfw_py.guard.codec import Proxy
    from zfw_py.guard.model import Policy


@contextmanager
def installed(policy: Policy, proxies: Mapping[int, Proxy]) -> Iterator[tuple[Path, Tables]]:
    """Attach a guard's programs; yields the cgroup and the guard's maps."""
    make_root(STORE)
    with private_cgroup() as place:
        about = About(
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

        def start(tables: Tables, _: About) -> None:
            for cookie, proxy in proxies.items():
                tables.write_proxy(cookie, proxy)

        programs.install(about, programs.Rules.of(policy), start, tells_all=True)
        try:
            yield place, Tables(STORE.directory(about.id))
        finally:
            remove(programs.SYSTEM, about.id)
