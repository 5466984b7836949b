# SPDX-License-Identifier: GPL-2.0-only
"""A container as docker_dns finds it, without an engine: a namespace with an uplink, sockets."""

from __future__ import annotations

import socket
from contextlib import contextmanager
from typing import TYPE_CHECKING

from tests.docker_dns.support.programs import SERVER, SOURCE
from tests.docker_dns.support.reference import TCP, LocalSocket
from tests.support.netns import Namespace

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextmanager
def container() -> Iterator[Namespace]:
    """The caller is inside. 10.9.0.2 (eth0, index 2) -- (outside0) the server, here as well."""
    made = Namespace()
    try:
        pair = ("eth0", "index", "2", "type", "veth", "peer", "name", "outside0", "index", "3")
        made.run("ip", "link", "add", *pair)
        for name, address in (("eth0", SOURCE), ("outside0", SERVER)):
            made.run("ip", "address", "add", f"{address}/24", "dev", name)
            made.run("ip", "link", "set", name, "up")
        with made.entered():
            yield made
    finally:
        made.close()


def opened(described: LocalSocket) -> socket.socket:
    """The socket, in the caller's namespace; TCP listens if it has no peer."""
    protocol, address, port, peer = described
    made = socket.socket(
        socket.AF_INET, socket.SOCK_STREAM if protocol == TCP else socket.SOCK_DGRAM
    )
    try:
        made.bind((str(address or ""), port))
        if peer:
            made.connect((str(peer[0]), peer[1]))
        elif protocol == TCP:
            made.listen()
    except OSError:
        made.close()
        raise
    return made
