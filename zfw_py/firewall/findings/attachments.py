# SPDX-License-Identifier: GPL-2.0-only
"""Findings about where the firewall's programs are, and what runs before them."""

from __future__ import annotations

from socket import if_indextoname
from typing import TYPE_CHECKING

from zfw_py.firewall import wanted
from zfw_py.kernel import bpf_links, tc
from zfw_py.values.finding import Registry

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from zfw_py.firewall.findings.look import Look
    from zfw_py.firewall.wanted import Difference

REGISTRY: Registry[Look] = Registry()


def _pairs(differences: Iterable[Difference]) -> Iterator[tuple[str, str]]:
    for each in differences:
        yield f"{each.interface}: {each.what}", each.command


@REGISTRY.kind(
    "not-as-wanted",
    "error",
    "An interface without the program is open: its packets meet no rule.",
)
def not_as_wanted(look: Look) -> Iterator[tuple[str, str]]:
    """An interface that is not attached as it was asked for."""
    return _pairs(wanted.unlike_wanted(look.maps, look.interfaces, look.attached))


@REGISTRY.kind(
    "program-ahead",
    "warning",
    "The first program that says pass ends the chain: packets can go past the firewall, which"
    " counts none of them.",
)
def program_ahead(look: Look) -> Iterator[tuple[str, str]]:
    """A TCX program or a clsact filter of other software that runs before the firewall."""
    yield from _pairs(wanted.ahead(look.attached))
    for each in look.attached:
        if each.mode != "clsact" or not bpf_links.supports_tcx(each.ifindex):
            continue
        filters = [found.program_id for found in tc.bpf_filters(each.ifindex, each.direction)]
        if others := filters[: filters.index(each.program_id)]:
            name = if_indextoname(each.ifindex)
            numbers = ", ".join(map(str, others))
            what = f"{name}: {each.direction}: filter with program {numbers} runs before ours"
            yield what, f"zfw attach {name} --direction {each.direction} --mode tcx"


@REGISTRY.kind(
    "filter-without-egress",
    "warning",
    "The outbound filter is evaluated by the egress program. Without one, all packets leave.",
)
def filter_without_egress(look: Look) -> Iterator[tuple[str, str]]:
    """An interface with the setting outbound-filter and without an egress program."""
    return _pairs(wanted.idle_filters(look.interfaces, look.attached))


@REGISTRY.kind(
    "address-out-of-date",
    "warning",
    "SSH and DHCP pass to the addresses that the programs know. To one that has come since they"
    " do not pass; to one that has gone they do. zfw follow keeps the addresses up to date.",
)
def address_out_of_date(look: Look) -> Iterator[tuple[str, str]]:
    """An address of an attached interface that is gone or new, or an index that has changed."""
    return _pairs(wanted.out_of_date(look.interfaces, look.attached))


@REGISTRY.kind(
    "not-local-any-more",
    "error",
    "A network manager that starts again removes routes and addresses of lo. The kernel then"
    " delivers no packet to the prefix. zfw follow makes it local again.",
)
def not_local_any_more(look: Look) -> Iterator[tuple[str, str]]:
    """A prefix that --route or -B made local, and that is local no more."""
    return _pairs(wanted.not_local(look.maps))
