# SPDX-License-Identifier: GPL-2.0-only
"""Debian's dnsmasq in a namespace, and the resolv.conf by which programs find a DNS server."""

from __future__ import annotations

import ctypes
import os
import socket
from contextlib import contextmanager
from typing import TYPE_CHECKING

import dns.message

from tests.support.daemons import running
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from tests.support.netns import Namespace

_MS_BIND, _MNT_DETACH = 0x1000, 2
_libc = ctypes.CDLL(None, use_errno=True)


@contextmanager
def dnsmasq(
    namespace: Namespace, log: Path, addresses: Sequence[str], *options: str, port: int = 53
) -> Iterator[Path]:
    """A DNS server at these addresses; yields its log, which has a line for each query."""
    command = [
        "/usr/sbin/dnsmasq",
        "--keep-in-foreground",
        "--conf-file=/dev/null",
        "--pid-file=",
        "--no-resolv",
        "--no-hosts",
        "--bind-interfaces",
        f"--listen-address={','.join(addresses)}",
        f"--port={port}",
        "--log-queries",
        f"--log-facility={log}",
        "--user=root",
        "--txt-record=big.example," + ",".join(["x" * 250] * 12),
        *options,
    ]
    output = log.with_suffix(".err")
    with running(namespace, output, *command) as process:

        def is_answered() -> bool:
            return process.poll() is not None or _is_answered(namespace, addresses[0], port)

        assert wait_until(is_answered), "dnsmasq does not answer"
        assert process.poll() is None, output.read_text()
        yield log


def _is_answered(namespace: Namespace, address: str, port: int) -> bool:
    question = dns.message.make_query("ready.example", "A").to_wire()
    with namespace.entered(), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.settimeout(0.1)
        probe.connect((address, port))
        try:
            probe.send(question)
            probe.recv(512)
        except (TimeoutError, ConnectionRefusedError):
            return False
    return True


@contextmanager
def resolv_conf(folder: Path, text: str) -> Iterator[None]:
    """In the block /etc/resolv.conf has this text for this process and its children.

    It needs a mount namespace of the run's own, as the fixture ``_private_bpffs`` creates one.
    """
    made = folder / "resolv.conf"
    made.write_text(text)
    place = os.path.realpath("/etc/resolv.conf").encode()
    if _libc.mount(bytes(made), place, None, _MS_BIND, None) != 0:
        raise OSError(ctypes.get_errno(), "bind mount over /etc/resolv.conf")
    try:
        yield
    finally:
        _libc.umount2(place, _MNT_DETACH)
