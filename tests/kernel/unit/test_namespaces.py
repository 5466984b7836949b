# SPDX-License-Identifier: GPL-2.0-only
"""Calls in other network namespaces, as far as they need no privilege."""

from __future__ import annotations

import errno
import threading

import pytest

from zfw_py.errors import KernelError
from zfw_py.kernel import namespaces


def test_a_thread_that_cannot_be_started_is_an_error_of_the_kernel(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refused(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refused)
    with pytest.raises(KernelError) as raised:
        namespaces.call_in("/proc/self/ns/net", lambda: None)
    assert raised.value.errno == errno.EAGAIN
