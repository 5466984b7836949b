# SPDX-License-Identifier: GPL-2.0-only
"""Processes that a test forks to run one of its functions; they never outlive the test."""

from __future__ import annotations

import json
import os
import signal
import traceback
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

from zfw_py.errors import ZfwError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import TextIO

NOBODY = 65534


class Child(NamedTuple):
    """A process that has called its function, and waits until it is killed."""

    pid: int
    told: Any  # what the function returned, as JSON carries it


@contextmanager
def child(action: Callable[[], object]) -> Iterator[Child]:
    """A process that has called ``action``, for the length of a with block.

    If the action raises a ZfwError, ``told`` is "Class: message". Any other error fails the test.
    """
    read_end, write_end = os.pipe()
    # If this process is killed, the kernel closes its end, and the child exits.
    stay, leave = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(leave)
        failure = None
        told: object = None
        try:
            told = action()
        except ZfwError as error:
            told = f"{type(error).__name__}: {error}"
        except BaseException:  # noqa: BLE001
            failure = traceback.format_exc()
        with os.fdopen(write_end, "w") as pipe:
            json.dump([failure, told], pipe)
        os.read(stay, 1)
        os._exit(0)
    os.close(write_end)
    os.close(stay)
    try:
        with os.fdopen(read_end) as pipe:
            report = pipe.read()
        assert report, "the child was killed"
        failure, told = json.loads(report)
        assert failure is None, failure
        yield Child(pid, told)
    finally:
        os.close(leave)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


@contextmanager
def staged_child(stages: Callable[[], Iterator[object]]) -> Iterator[Callable[[], Any]]:
    """A process that runs a generator; yields a function that runs it to its next yield.

    The function returns what was yielded, as JSON carries it. An error in the generator fails
    the test.
    """
    ordered, order = os.pipe()
    told, tell = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.close(order)
            os.close(told)
            with os.fdopen(tell, "w") as pipe:
                _go_through(stages(), ordered, pipe)
        finally:
            os._exit(0)
    os.close(ordered)
    os.close(tell)
    try:
        with os.fdopen(told) as pipe:

            def go_on() -> Any:
                os.write(order, b"+")
                line = pipe.readline()
                assert line, "the child was killed"
                failure, value = json.loads(line)
                assert failure is None, failure
                return value

            yield go_on
    finally:
        os.close(order)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def _go_through(stages: Iterator[object], ordered: int, pipe: TextIO) -> None:
    while os.read(ordered, 1):
        failure, value = None, None
        try:
            value = next(stages)
        except BaseException:  # noqa: BLE001
            failure = traceback.format_exc()
        pipe.write(json.dumps([failure, value]) + "\n")
        pipe.flush()


def in_child(action: Callable[[], object]) -> Any:
    """Call an action in a new process; its result, or a ZfwError as "Class: message"."""
    with child(action) as done:
        return done.told


def drop_privileges(group: int = NOBODY) -> None:
    """Make this process, a child, one of an unprivileged user."""
    os.setgroups([])
    os.setgid(group)
    os.setuid(NOBODY)
