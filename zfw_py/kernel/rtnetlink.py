# SPDX-License-Identifier: GPL-2.0-only
"""A session of rtnetlink(7), in the caller's network namespace.

Imports pyroute2, which takes 150 ms: nothing on the hot path imports this.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from zfw_py.errors import KernelError

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextmanager
def session(operation: str) -> Iterator[IPRoute]:
    """An open socket of rtnetlink.

    A NetlinkError from within becomes a KernelError that names the operation.
    """
    try:
        with IPRoute() as route:
            yield route
    except NetlinkError as error:
        raise KernelError(operation, error.code) from error
