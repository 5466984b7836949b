# SPDX-License-Identifier: GPL-2.0-only
"""Kernel parameters of the caller's network namespace, by /proc/sys (proc(5))."""

from __future__ import annotations


def local_port_range() -> tuple[int, int]:
    """The lowest and highest port that the kernel gives to sockets by itself. Raises OSError."""
    with open("/proc/sys/net/ipv4/ip_local_port_range", encoding="ascii") as file:
        low, high = map(int, file.read().split())
    return low, high


def number(name: str) -> int | None:
    """The value of a parameter, such as "net/ipv4/conf/all/rp_filter"; None if there is none."""
    try:
        with open(f"/proc/sys/{name}", encoding="ascii") as file:
            return int(file.read())
    except FileNotFoundError:
        return None
