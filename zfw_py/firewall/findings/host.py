# SPDX-License-Identifier: GPL-2.0-only
"""Findings about the kernel and other packet filters beside the firewall."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING

from zfw_py.kernel import bpf_links, nftables, sysctl
from zfw_py.values.finding import Registry

if TYPE_CHECKING:
    from collections.abc import Iterator

    from zfw_py.firewall.findings.look import Look

REGISTRY: Registry[Look] = Registry()

_STRICT, _LOOSE = 1, 2
_FULL = 0.9


@REGISTRY.kind(
    "rp-filter",
    "note",
    "After the firewall has passed a packet, the kernel drops it if the answer would leave by"
    " another interface (rp_filter). With several uplinks or tunnels that is the usual case,"
    " and no counter of the firewall shows it.",
)
def rp_filter(look: Look) -> Iterator[tuple[str, str]]:
    """An attached interface with strict rp_filter, its own or that of all interfaces."""
    common = sysctl.number("net/ipv4/conf/all/rp_filter") or 0
    for name in look.filtered:
        own = sysctl.number(f"net/ipv4/conf/{name}/rp_filter") or 0
        # The kernel takes the greater one (IN_DEV_RPFILTER, ip-sysctl.rst).
        if max(common, own) == _STRICT:
            what = f"{name}: rp_filter is strict (all: {common}, {name}: {own})"
            yield what, shlex.join(["sysctl", "-w", f"net/ipv4/conf/{name}/rp_filter={_LOOSE}"])


@REGISTRY.kind(
    "other-firewall",
    "warning",
    "A chain with the policy drop evaluates each packet after the firewall has passed or"
    " intercepted it. Without a rule for the interface it may drop it, and the firewall counts"
    " it as passed. The tables of iptables-legacy are not read: netlink does not show them.",
)
def other_firewall(look: Look) -> Iterator[tuple[str, str]]:
    """A chain of nftables or iptables-nft that drops by default, on an attached interface."""
    for chain in nftables.dropping_chains():
        for name in look.filtered:
            if name not in chain.accepts:
                place = f"{chain.family} {chain.table} {chain.name}"
                command = f"nft insert rule {place} iifname {shlex.quote(name)} accept"
                yield f"{name}: chain {place} at {chain.hook} has the policy drop", command


@REGISTRY.kind(
    "kernel-without-tcx",
    "note",
    "Before Linux 6.6 the firewall uses clsact. Filters of other software with the same"
    " preference can run before it, and a listener with SO_REUSEPORT gets no packets.",
)
def kernel_without_tcx(look: Look) -> Iterator[tuple[str, str]]:
    """A kernel that lacks TCX."""
    indexes = list(look.filtered.values())
    if indexes and not bpf_links.supports_tcx(indexes[0]):
        yield "the kernel has no TCX", ""


@REGISTRY.kind(
    "conntrack-full",
    "warning",
    "When the table of connection tracking is full, the kernel drops packets of new flows after"
    " the firewall has passed them, and logs nf_conntrack: table full.",
)
def conntrack_full(look: Look) -> Iterator[tuple[str, str]]:
    """Connection tracking in the way: its table is nearly full."""
    count = sysctl.number("net/netfilter/nf_conntrack_count")
    most = sysctl.number("net/netfilter/nf_conntrack_max")
    if count is not None and most and count >= _FULL * most:
        command = f"sysctl -w net/netfilter/nf_conntrack_max={2 * most}"
        yield f"connection tracking has {count} entries of {most}", command
