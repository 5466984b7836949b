# SPDX-License-Identifier: GPL-2.0-only
"""The type of a way out, its registry, and the destinations of the ways."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from tests.guard.support.world import UPSTREAM, UPSTREAM6

if TYPE_CHECKING:
    from collections.abc import Callable

OPEN = {4: "10.9.0.15", "mapped": "::ffff:10.9.0.15", 6: "fd09::15"}
PORTED = {4: "10.9.0.13", "mapped": "::ffff:10.9.0.13", 6: "fd09::13"}
DENIED = {4: "10.9.0.20", "mapped": "::ffff:10.9.0.20", 6: "fd09::20"}
OWN = {4: "10.9.0.2", "mapped": "::ffff:10.9.0.2", 6: "fd09::2"}
LOOPBACK = {4: "127.0.0.1", "mapped": "::ffff:127.0.0.1", 6: "::1"}
NAME_SERVER = {4: UPSTREAM, "mapped": f"::ffff:{UPSTREAM}", 6: UPSTREAM6}
INTERFACE = "eth0"
MSG_FASTOPEN = 0x20000000
# The policy for these destinations. OWN is allowed too: an open subnet includes the host.
POLICY = [
    *("--allow", OPEN[4], "--allow", OPEN[6]),
    *("--allow", f"{PORTED[4]}:80", "--allow", f"[{PORTED[6]}]:80"),
    *("--allow", OWN[4], "--allow", OWN[6]),
]


class Way(NamedTuple):
    """A way out: ``go`` sends a payload. ``is_open``: the policy allows its destination.

    A packet that has left by this way contains ``sign``.
    """

    go: Callable[[bytes], None]
    is_open: bool
    sign: bytes


WAYS: dict[str, Way] = {}


def _go(function: Callable[[bytes, int | str], None], family: int | str, data: bytes) -> None:
    function(data, family)


def way(*families: int | str, is_open: bool = False, sign: bytes = b"") -> Callable[[Any], Any]:
    """Register a function of a payload, or a function of payload and family for each family.

    ``sign`` is for a way whose packets do not contain the payload.
    """

    def register(function: Any) -> Any:
        name = function.__name__
        if not families:
            WAYS[name] = Way(function, is_open, sign or payload(name))
        for family in families:
            WAYS[f"{name}_{family}"] = Way(
                partial(_go, function, family),
                is_open,
                sign or payload(f"{name}_{family}"),
            )
        return function

    return register


def payload(name: str) -> bytes:
    """The payload of a way, which differs from that of every other way."""
    return f"<{name}>".encode()
