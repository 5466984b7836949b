# SPDX-License-Identifier: GPL-2.0-only
"""Reads resolv.conf(5), and follows its changes."""

from __future__ import annotations

import os
from stat import S_ISREG
from typing import TYPE_CHECKING

from zfw_py.errors import NotFound
from zfw_py.guard.dns.upstream import is_usable
from zfw_py.values.endpoint import DNS_PORT, Endpoint

if TYPE_CHECKING:
    from collections.abc import Callable

RESOLV_CONF = "/etc/resolv.conf"
# The C library reads as many (MAXNS).
_MOST_SERVERS = 3
_MOST_BYTES = 65_536
# O_NONBLOCK: of a FIFO without a writer, open(2) would wait.
_READ = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY


def open_own(path: str = RESOLV_CONF) -> int:
    """A descriptor of the file, for ``ResolvConf``. Raises OSError."""
    return os.open(path, _READ)


def servers_in(data: bytes) -> list[Endpoint]:
    """The name servers in a file's text, at most three.

    Skips lines and addresses that it cannot parse, as the C library does.
    """
    found = []
    for line in data.decode("utf-8", "replace").splitlines():
        words = line.split()
        if len(words) > 1 and words[0] == "nameserver":
            server = Endpoint(words[1], DNS_PORT)
            if is_usable(server):
                found.append(server)
    return found[:_MOST_SERVERS]


def system_upstreams(path: str = RESOLV_CONF) -> list[Endpoint]:
    """The name servers in the file now. Raises NotFound if there is none."""
    found = ResolvConf(lambda: open_own(path), [])()
    if not found:
        raise NotFound(f"{path} names no server", hint="--dns-upstream ADDR[:PORT] names one")
    return found


class ResolvConf:
    """The name servers of a resolv.conf, which may be written or replaced at any time.

    While the file is not there, or names no server, the servers are those from before.
    """

    def __init__(self, open_file: Callable[[], int], servers: list[Endpoint]) -> None:
        """``open_file`` returns a new descriptor or raises OSError; ``servers``: until then."""
        self._open = open_file
        self._servers = servers
        self._version: tuple[int, ...] = ()

    def __call__(self) -> list[Endpoint]:
        """The servers now. Opens the file each time, and reads it if it is another one."""
        try:
            fd = self._open()
        except OSError:
            return self._servers
        try:
            status = os.fstat(fd)
            version = (status.st_dev, status.st_ino, status.st_mtime_ns, status.st_size)
            if version != self._version and S_ISREG(status.st_mode):
                found = servers_in(os.read(fd, _MOST_BYTES))
                self._version = version
                self._servers = found or self._servers
        except OSError:
            pass  # as if the file were not there
        finally:
            os.close(fd)
        return self._servers
