# SPDX-License-Identifier: GPL-2.0-only
"""An upgrade makes the maps, programs and attachments that an earlier version has not."""

from __future__ import annotations

import errno
import os
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING
from unittest.mock import patch

import pytest

from bpf.build import compile_bpf
from tests.lifecycle.support.subjects import SMALL_FIREWALL, FirewallSubject
from tests.support.killed import killed_at
from zfw_py import Firewall, LayoutMismatch, Prefix, Rule, RuleKey
from zfw_py.errors import KernelError
from zfw_py.firewall import programs as firewall_programs
from zfw_py.firewall.maps import Maps
from zfw_py.kernel import bpf_links
from zfw_py.lifecycle.attachment import NetnsHook

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from zfw_py.lifecycle.attachment import Attachment

pytestmark = [pytest.mark.kernel, pytest.mark.timeout(300)]

ADDED_MAP = "added_reasons"
PROGRAM = "later"
LATER_FIREWALL = (
    SMALL_FIREWALL + f'SEC("sk_lookup") int {PROGRAM}(void *ctx) {{ return ctx != 0; }}\n'
)


class EarlierFirewall(FirewallSubject):
    """A firewall without one of this version's maps, which a version to come takes over.

    That version has a program in addition, on the network namespace.
    """

    def __init__(self, stack: ExitStack, folder: Path) -> None:
        super().__init__(stack, folder)
        source, later = folder / "later.bpf.c", folder / "later.bpf.o"
        source.write_text(LATER_FIREWALL)
        compile_bpf(source, later)
        earlier = self.system

        def hook(directory: str) -> NetnsHook:
            netns = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
            stack.callback(os.close, netns)
            made = NetnsHook(directory, PROGRAM, bpf_links.SK_LOOKUP, netns)
            # The firewall takes a pin with the name of a link for an interface's.
            made.pin = f"{directory}/{PROGRAM}_link"
            return made

        def attachments(directory: str) -> Sequence[Attachment]:
            here = hook(directory)
            return [*earlier.attachments(directory), *([here] if here.program_id() else [])]

        def additions(directory: str) -> Iterator[Attachment]:
            yield from earlier.additions(directory)
            here = hook(directory)
            if here.program_id() is None:
                yield here

        self.later = earlier._replace(
            object=later,
            attachments=attachments,
            pinned=(*earlier.pinned, PROGRAM),
            added=(*earlier.added, PROGRAM),
            additions=additions,
        )

    def install(self) -> None:
        super().install()
        Path(self.directory(), ADDED_MAP).unlink()

    def _upgrade(self) -> None:
        with patch.object(firewall_programs, "SYSTEM", self.later):
            super()._upgrade()

    def is_later(self) -> bool:
        """Whether all is there that the version to come has; False if none of it is."""
        (identifier,) = self.identifiers
        wanted = {ADDED_MAP, PROGRAM, f"{PROGRAM}_link"}
        found = wanted & set(self.pins(identifier))
        assert found in (set(), wanted)
        return bool(found)


@pytest.fixture
def earlier(_private_bpffs: None, tmp_path: Path) -> Iterator[EarlierFirewall]:
    with ExitStack() as stack:
        made = EarlierFirewall(stack, tmp_path)
        made.install()
        stack.callback(made.remove)
        yield made


def test_maps_programs_and_attachments_are_added(earlier: EarlierFirewall) -> None:
    before = earlier.running()
    assert not earlier.is_later()
    earlier.upgrade()
    assert earlier.is_later()
    assert not set(earlier.running()) & set(before)
    assert not earlier.new_pins()
    assert earlier.probe() == "installed"


def test_an_upgrade_that_is_killed_is_harmless_and_the_next_completes_it(
    earlier: EarlierFirewall,
) -> None:
    steps = 0
    for number in range(1000):
        step = killed_at(number, earlier.upgrade, earlier.enter, is_maker=True)
        if step is None:
            break
        assert None not in earlier.running(), step
        assert earlier.probe() == "installed", step
        earlier.change()
        earlier.undo_change()
        earlier.upgrade()
        assert earlier.is_later(), step
        assert not earlier.new_pins(), step
        assert earlier.probe() == "installed", step
        earlier.remove()
        assert earlier.probe() == "before", step
        earlier.install()
        earlier.next_build()
        steps += 1
    assert earlier.is_later()
    assert steps > 10


def test_an_addition_that_fails_leaves_the_earlier_version(
    earlier: EarlierFirewall, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = earlier.running()

    def attach(self: object, program: int) -> None:
        raise OSError(errno.ENOMEM, "no memory")

    with monkeypatch.context() as patched:
        patched.setattr(NetnsHook, "attach", attach)
        with pytest.raises(KernelError, match="network namespace"):
            earlier.upgrade()
    assert earlier.running() == before
    assert not earlier.is_later()
    assert not earlier.new_pins()
    assert earlier.probe() == "installed"
    earlier.upgrade()
    assert earlier.is_later()


def test_what_was_not_upgraded_yet_is_read_and_written_on(earlier: EarlierFirewall) -> None:
    firewall = Firewall()
    rule = Rule(RuleKey(Prefix.parse("192.0.2.1"), "udp", 1))
    firewall.insert(rule)
    assert [each.key for each in firewall.rules()] == [rule.key]
    assert set(firewall.status().reasons.values()) == {(0, 0)}
    firewall.set([earlier._network.interface], "icmp_echo", True)
    with Maps(is_writer=False) as maps:
        assert maps.find(ADDED_MAP) is None
        with pytest.raises(LayoutMismatch, match=ADDED_MAP) as refused:
            maps.map(ADDED_MAP)
    assert refused.value.hint == "zfw upgrade adds it"
