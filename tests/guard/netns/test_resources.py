# SPDX-License-Identifier: GPL-2.0-only
"""What a guard takes, and gives back: descriptors, room in its maps."""

from __future__ import annotations

import errno
import time
from ipaddress import IPv6Address
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.guard.support.world import NAMES, UPSTREAM, UPSTREAM6
from tests.support.command import ZFW
from tests.support.waiting import wait_until
from zfw_py.guard import layout, listing
from zfw_py.guard.codec import resolved_key, time_value
from zfw_py.guard.maps import STORE, Maps

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.guard.support.world import Shell, World

pytestmark = pytest.mark.kernel

ALLOWED = [word for name in NAMES for word in ("--allow", name)]
RUN = (
    *(str(ZFW), "guard", "run", "-q", "--dns-upstream", UPSTREAM, "--min-ttl", "5"),
    *(*ALLOWED, "--"),
)


@pytest.fixture
def shell(world: World) -> Iterator[Shell]:
    """A guarded one."""
    with world.shell(*RUN) as made:
        assert made.ask("true") == (0, "")
        yield made
        made.end()
        made.process.wait(60)


def supervisor() -> int:
    [status], _ = listing.guards()
    assert status.supervisor_pid is not None
    return status.supervisor_pid


def test_a_thousand_questions_leave_no_descriptor_open(world: World, shell: Shell) -> None:
    names = [*NAMES, "text.example", "big.example", "denied.example"]
    lines = [
        f"@{server} {name} {kind} {how}"
        for server in (UPSTREAM, UPSTREAM6)
        for kind in ("A", "AAAA", "TXT")
        for how in ("", "+tcp", "+noedns")
        for name in names
    ]
    (world.folder / "questions").write_text("\n".join(lines * (1 + 1000 // len(lines))))
    place = Path(f"/proc/{supervisor()}/fd")
    before = [each.readlink() for each in place.iterdir()]
    code, answers = shell.ask(f"dig +tries=1 -f {world.folder}/questions | grep -c status:")
    assert (code, int(answers)) == (0, len(lines) * (1 + 1000 // len(lines)))
    # One of the last connections may be about to be closed.
    wait_until(lambda: len(list(place.iterdir())) <= len(before))
    assert sorted(each.readlink() for each in place.iterdir()) == sorted(before)


@pytest.mark.slow
def test_a_full_table_of_addresses(world: World, shell: Shell) -> None:
    """What counts stays, and what does not makes room."""
    [status], _ = listing.guards()
    maps = Maps(f"{STORE.root}/{status.manifest.id}")
    table = maps.map("learnt")
    # It counts for five seconds.
    assert shell.ask(f"dig +short +tries=1 @{UPSTREAM} short.example") == (0, "10.9.0.14\n")
    [(short, _)] = table.items()
    keys = [resolved_key(IPv6Address(number).packed, 0) for number in range(layout.LEARNT - 1)]
    later = time_value(time.monotonic_ns() + 10**12)
    table.update_many(keys, [later] * len(keys))
    with pytest.raises(OSError, match="Argument list too long") as raised:
        maps.admit([IPv6Address("fd00::1").packed], frozenset(), 60)
    assert raised.value.errno == errno.E2BIG
    # Its client is told that it failed, and reaches nothing.
    table.update(short, later)
    assert shell.ask(f"dig +tries=1 @{UPSTREAM} both.example | grep -c SERVFAIL") == (0, "1\n")
    assert shell.ask("curl --silent --max-time 5 http://10.9.0.10")[0] == 7
    table.update(short, time_value(1))
    ask = f"dig +short +tries=1 @{UPSTREAM} both.example"
    assert wait_until(lambda: shell.ask(ask) == (0, "10.9.0.10\n"))
    assert shell.ask("curl --silent --output /dev/null http://10.9.0.10") == (0, "")
    assert table.lookup(short) is None


def test_a_hundred_thousand_prefixes(world: World) -> None:
    lines = [f'"10.{n >> 8 & 255}.{n & 255}.{n >> 16}/32",' for n in range(100_000)]
    policy = world.folder / "policy.toml"
    policy.write_text("\n".join(["allow = [", *lines, '"10.9.0.20"]']))
    curl = ("curl", "--silent", "--max-time", "9", "--output", "/dev/null")
    for address, code in (("10.9.0.20", 0), ("10.9.0.13", 7)):
        done = world.guarded(["--policy", str(policy)], *curl, f"http://{address}")
        assert done.returncode == code
    with world.shell(*RUN[:3], "--policy", str(policy), "--") as shell:
        assert shell.ask("true") == (0, "")
        assert world.zfw("list").stdout.split()[-5] == "100001"
        shell.end()
        assert shell.process.wait(60) == 0
