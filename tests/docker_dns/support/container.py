# SPDX-License-Identifier: GPL-2.0-only
"""A container as the programs of docker-dns see it: a namespace with an uplink and sockets."""

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
    """A namespace, which the caller enters, with both ends of the uplink and the server in it.

    10.9.0.2 (eth0, index 2) -- (outside0, index 3) 10.9.0.1
    """
    with Namespace() as made:
        made.add_veth("eth0 index 2", "outside0 index 3")
        made.set_up("eth0", f"{SOURCE}/24")
        made.set_up("outside0", f"{SERVER}/24")
        with made.entered():
            yield made


def opened(described: LocalSocket) -> socket.socket:
    """Open a socket that the model describes; one of TCP listens if it has no peer."""
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
