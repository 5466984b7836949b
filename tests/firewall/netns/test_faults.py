# SPDX-License-Identifier: GPL-2.0-only
"""Edits of rules that are killed, or of which a write fails: the rules are as before or after."""

from __future__ import annotations

import errno
import os
import random
import signal
import time
from functools import partial
from typing import TYPE_CHECKING

import pytest

from tests.firewall.support.contents import (
    HERE,
    INTERFACE,
    OTHER,
    Contents,
    check_datapath,
    crowd,
    fill,
    key,
    listing,
    rule,
)
from tests.firewall.support.faults import can_fail, fail_at, is_killed_at
from zfw_py import (
    Delete,
    Firewall,
    Insert,
    KernelError,
    MapFull,
    NotFound,
    Prefix,
    Rule,
    RuleNotFound,
)
from zfw_py.firewall import layout

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.firewall.support.frames import Gateway

pytestmark = pytest.mark.kernel

INLINE, MEDIUM = layout.INLINE_RULES, layout.MEDIUM_RULES

# What there is before, and what is then done to it.
OPERATIONS: dict[str, tuple[list[Rule], list[Insert | Delete]]] = {
    "first rule": ([], [Insert(rule(1, service_id="new"))]),
    "last rule": ([rule(1)], [Delete(key(1))]),
    "one more": (crowd(1), [Insert(rule(1))]),
    "other ports and action": ([rule(1, 5)], [Insert(rule(1, 9, deny=True))]),
    "other listener and service": (
        [rule(1, tproxy_port=1000, service_id="old")],
        [Insert(rule(1, 9, tproxy_port=2000, service_id="new"))],
    ),
    "inline to medium": (crowd(INLINE), [Insert(rule(1))]),
    "medium to inline": (crowd(INLINE + 1), [Delete(key(1000))]),
    "within medium": (crowd(INLINE + 2), [Insert(rule(1000, 1009, service_id="new"))]),
    "medium to large": (crowd(MEDIUM), [Insert(rule(1))]),
    "large to medium": (crowd(MEDIUM + 1), [Delete(key(1000))]),
    "inline to large": (crowd(1), [Insert(each) for each in crowd(MEDIUM + 1, 20000)]),
    "large to nothing": (crowd(MEDIUM + 1), [Delete(each.key) for each in crowd(MEDIUM + 1)]),
    "an interface": ([rule(1)], [Insert(rule(1, interfaces=(INTERFACE,)))]),
    "an interface less": (
        [rule(1, interfaces=(INTERFACE, "lo"))],
        [Delete(key(1), ("lo",))],
    ),
    "the last interface": ([rule(1, interfaces=(INTERFACE,))], [Delete(key(1), (INTERFACE,))]),
}


# Killed


def killed_after(seconds: float, action: Callable[[], None]) -> None:
    """Fork, and kill the child that does the action over and over."""
    child = os.fork()
    if child == 0:
        try:
            while True:
                action()
        finally:
            # Not back into pytest, whatever happened.
            os._exit(1)
    time.sleep(seconds)
    os.kill(child, signal.SIGKILL)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL


def one_by_one(seed: int) -> Callable[[], None]:
    """Inserts and deletes, at random, of few keys: every size class comes and goes."""
    rng = random.Random(seed)

    def step() -> None:
        firewall = Firewall()
        low = 100 * rng.randrange(8)
        destination = rng.choice((HERE, OTHER))
        try:
            if rng.random() < 0.6:
                high = low + rng.randrange(150)
                firewall.insert(rule(low, high, destination, service_id=f"{low}-{high}"))
            else:
                firewall.delete(key(low, destination))
        except RuleNotFound:
            pass

    return step


def by_batches(seed: int) -> Callable[[], None]:
    """Batches whose rules stand and fall together: one service id each, in two prefixes."""
    rng = random.Random(seed)

    def step() -> None:
        number = str(rng.randrange(1_000_000))
        lows = rng.sample(range(0, 4000, 10), rng.choice((3, 40, 200)))
        present = Firewall().rules()
        edits: list[Insert | Delete] = [Delete(each.key) for each in present]
        for destination in (HERE, OTHER):
            edits += [Insert(rule(p, p + 5, destination, service_id=number)) for p in lows]
        Firewall().apply(edits)

    return step


@pytest.mark.parametrize("seed", range(24))
def test_a_kill_at_any_moment_leaves_whole_rules(gateway: Gateway, seed: int) -> None:
    killed_after(random.Random(seed).uniform(0.001, 0.04), one_by_one(seed))
    for each in Firewall().rules():
        # The service id was written with the ports: they still belong together.
        assert each.service_id == f"{each.key.low_port}-{each.high_port}"
    check_datapath()
    gateway.firewall.insert(rule(7))
    Contents().check()
    check_datapath()


@pytest.mark.parametrize("seed", range(24))
def test_a_kill_in_a_batch_leaves_each_rule_whole_and_the_next_writer_repairs(
    gateway: Gateway, seed: int
) -> None:
    killed_after(random.Random(seed).uniform(0.002, 0.06), by_batches(seed))
    by_destination: dict[Prefix, set[str]] = {}
    for each in Firewall().rules():
        by_destination.setdefault(each.key.destination, set()).add(each.service_id)
    assert all(len(ids) == 1 for ids in by_destination.values()), "a prefix is of one batch"
    check_datapath()
    gateway.firewall.insert(rule(4321))
    Contents().check()
    check_datapath()


@pytest.mark.parametrize("name", OPERATIONS)
def test_a_kill_before_any_write_leaves_the_old_or_the_new(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    before, edits = OPERATIONS[name]
    fill(before)
    old = listing()
    gateway.firewall.apply(edits)
    new = listing()
    for number in range(100):
        gateway.firewall.flush("ingress")
        fill(before)
        is_over = not is_killed_at(monkeypatch, number, partial(gateway.firewall.apply, edits))
        assert listing() in (old, new), f"killed before write {number}"
        check_datapath()
        # The next writer finds what is left and makes it good.
        gateway.firewall.insert(rule(5, destination=OTHER))
        gateway.firewall.delete(key(5, OTHER))
        assert listing() in (old, new), f"repaired after a kill before write {number}"
        Contents().check()
        check_datapath()
        if is_over:
            assert number > 2, "nothing was written"
            return
    raise AssertionError("it never ends")


def test_a_kill_in_a_flush_leaves_the_next_writer_nothing_but_to_repair(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    for direction in (None, "ingress"):
        for number in range(100):
            fill([*crowd(INLINE + 1), rule(1, destination=OTHER)])
            old = listing()
            flush = partial(gateway.firewall.flush, direction)
            is_over = not is_killed_at(monkeypatch, number, flush)
            assert listing() in (old, [])
            check_datapath()
            gateway.firewall.insert(rule(5, destination=OTHER))
            gateway.firewall.delete(key(5, OTHER))
            Contents().check()
            if is_over:
                break
        else:
            raise AssertionError("it never ends")


# Failing


def check_each_failing_write(
    gateway: Gateway,
    monkeypatch: pytest.MonkeyPatch,
    before: list[Rule],
    edits: list[Insert | Delete],
    number_of_error: int,
) -> None:
    """Let one write of the edits fail, each in turn: all rules are as before the edits."""

    def fails() -> None:
        raise OSError(number_of_error, os.strerror(number_of_error))

    fill(before)
    old = listing()
    gateway.firewall.apply(edits)
    new = listing()
    for number in range(100):
        gateway.firewall.flush("ingress")
        fill(before)
        with monkeypatch.context() as patched:
            left = fail_at(patched, number, fails, can_fail)
            try:
                gateway.firewall.apply(edits)
                is_raised = False
            except (MapFull, KernelError):
                is_raised = True
        if left[0] >= 0:
            assert not is_raised
            return
        # A full map of prefixes is exchanged for a larger one, and the write done again.
        assert listing() == (old if is_raised else new)
        assert is_raised or number_of_error == errno.E2BIG
        Contents().check()
        check_datapath()
    raise AssertionError("it never ends")


@pytest.mark.parametrize("number_of_error", [errno.E2BIG, errno.ENOMEM])
@pytest.mark.parametrize("name", OPERATIONS)
def test_a_write_that_fails_is_told_of_and_all_is_as_before(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch, name: str, number_of_error: int
) -> None:
    before, edits = OPERATIONS[name]

    check_each_failing_write(gateway, monkeypatch, before, edits, number_of_error)


def test_an_edit_that_is_interrupted_from_the_keyboard_is_taken_back(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(crowd(INLINE))
    old = listing()

    def interrupt() -> None:
        raise KeyboardInterrupt

    # Write 0 is the state, which begins the edit.
    for number in range(1, 5):
        with monkeypatch.context() as patched:
            fail_at(patched, number, interrupt)
            with pytest.raises(KeyboardInterrupt):
                gateway.firewall.insert(rule(1))
        assert listing() == old
        Contents().check()


def test_a_batch_with_an_edit_that_cannot_be_done_does_nothing(gateway: Gateway) -> None:
    fill(crowd(3))
    old = listing()
    contents = Contents()
    edits = [Insert(rule(1)), Delete(key(1000)), Insert(rule(2, destination=OTHER))]
    for impossible in (
        Delete(key(4242)),
        Delete(key(1, Prefix.parse("203.0.113.1"))),
        Delete(key(1010), (INTERFACE,)),
        Insert(rule(9, interfaces=("nosuchif",))),
    ):
        with pytest.raises(NotFound):
            gateway.firewall.apply([*edits, impossible])
        assert listing() == old
        assert Contents().prefixes == contents.prefixes
        Contents().check()


@pytest.mark.parametrize("number_of_error", [errno.E2BIG, errno.ENOMEM])
def test_a_batch_of_many_prefixes_that_fails_is_taken_back_wholly(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch, number_of_error: int
) -> None:
    """New prefixes of one rule and of more, changed ones, and one that goes."""
    before = [rule(1, service_id="a"), rule(1, 5, OTHER), rule(1, 1, Prefix.parse("10.0.0.0/8"))]
    news = [Prefix.parse(f"203.0.113.{number}") for number in range(30)]
    edits: list[Insert | Delete] = [Insert(rule(port, 9, new)) for new in news for port in (1, 2)]
    edits += [Insert(rule(1, 1, Prefix.parse(f"198.51.{n}.0/24"))) for n in range(30)]
    edits += [Insert(rule(1, 9, service_id="b")), Insert(rule(7, 9, OTHER)), Delete(key(1))]
    edits += [Delete(key(1, Prefix.parse("10.0.0.0/8")))]
    check_each_failing_write(gateway, monkeypatch, before, edits, number_of_error)
