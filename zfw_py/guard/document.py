# SPDX-License-Identifier: GPL-2.0-only
"""Decodes a policy file, in TOML or JSON. Pure.

::

    default = "deny"                        # or "allow"
    allow = ["example.com:443", "10.0.0.0/8"]
    block = ["10.9.0.0/16"]
    dns_upstream = ["192.0.2.53", "[2001:db8::53]:5353"]
    refuse = "nxdomain"                     # or "refused"
    min_ttl = 300
    loopback = true
    log_only = false

Every field may be left out; ``Policy`` has the defaults.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

from msgspec import UNSET, Struct, UnsetType

from zfw_py.errors import UsageError
from zfw_py.guard.model import Default, Policy, Refusal, check_min_ttl, parse_entry
from zfw_py.values.endpoint import parse_server
from zfw_py.values.structured import DocumentError, Format, bounded, make, parse

if TYPE_CHECKING:
    from collections.abc import Callable

MAX_BYTES = 16 * 1024 * 1024

_Read = TypeVar("_Read")


class _PolicyFile(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The fields and their types; entries are not parsed yet."""

    default: Default | UnsetType = UNSET
    allow: tuple[str, ...] = ()
    block: tuple[str, ...] = ()
    dns_upstream: tuple[str, ...] = ()
    refuse: Refusal | UnsetType = UNSET
    min_ttl: int | UnsetType = UNSET
    loopback: bool = True
    log_only: bool = False


def decode(data: bytes, form: Format) -> Policy:
    """Decode a policy. Raises DocumentError with the line or the path of the first fault."""
    file = make(parse(data, form, MAX_BYTES), _PolicyFile)
    return Policy(
        allow=_each(file.allow, "allow", parse_entry),
        block=_each(
            file.block, "block", lambda text, option: parse_entry(text, option, is_block=True)
        ),
        default=None if file.default is UNSET else file.default,
        has_loopback=file.loopback,
        is_log_only=file.log_only,
        dns_upstreams=_each(file.dns_upstream, "dns_upstream", parse_server),
        refuse=None if file.refuse is UNSET else file.refuse,
        min_ttl=None if file.min_ttl is UNSET else _seconds(file.min_ttl),
    )


def _seconds(number: int) -> int:
    try:
        return check_min_ttl(number, "min_ttl")
    except UsageError as error:
        raise DocumentError(error.message.removeprefix("min_ttl: "), path="min_ttl") from None


def _each(
    texts: tuple[str, ...], field: str, read: Callable[[str, str], _Read]
) -> tuple[_Read, ...]:
    made = []
    for index, text in enumerate(texts):
        path = f"{field}[{index}]"
        try:
            made.append(read(text, path))
        except UsageError as error:
            message = error.message.removeprefix(f"{path}: ")
            raise DocumentError(bounded(message), path=path) from None
    return tuple(made)
