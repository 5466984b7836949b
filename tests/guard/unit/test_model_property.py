# SPDX-License-Identifier: GPL-2.0-only
"""Policies against a scan over all their entries, and what is written against what is read."""

from __future__ import annotations

import json
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_network
from typing import TYPE_CHECKING, Literal, NamedTuple, TypeVar

import dns.name
import pytest
import tomli_w
from hypothesis import event, example, given, settings
from hypothesis import strategies as st

from zfw_py.errors import UsageError
from zfw_py.guard.document import decode
from zfw_py.guard.model import (
    ANY_PORT,
    NameEntry,
    Policy,
    PrefixEntry,
    Reach,
    parse_entry,
)
from zfw_py.values.endpoint import parse_server
from zfw_py.values.structured import DocumentError, Format

if TYPE_CHECKING:
    from collections.abc import Callable

_Read = TypeVar("_Read")

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

FORMS: tuple[Format, ...] = ("toml", "json")
MAPPED = IPv6Network("::ffff:0:0/96")
PORTS = (53, 80, 443)

# Of so few bytes that they lie within each other, also around and within ::ffff:0:0/96.
_octets = st.sampled_from((0, 0, 1, 0x7F, 0x80, 0xFF))
_octets4 = st.lists(_octets, min_size=4, max_size=4).map(bytes)
_octets16 = st.lists(_octets, min_size=16, max_size=16).map(bytes)
addresses: st.SearchStrategy[Address] = st.one_of(
    _octets4.map(IPv4Address),
    _octets4.map(lambda octets: IPv6Address(bytes(10) + b"\xff\xff" + octets)),
    _octets16.map(IPv6Address),
    st.ip_addresses(),
)
some_ports = st.none() | st.sampled_from(PORTS)
booleans = st.booleans()


@st.composite
def networks(draw: st.DrawFn) -> Network:
    address = draw(addresses)
    length = draw(st.integers(0, address.max_prefixlen))
    return ip_network(f"{address}/{length}", strict=False)


class Prefixed(NamedTuple):
    network: Network
    port: int | None
    is_block: bool

    @property
    def text(self) -> str:
        if self.port is None:
            return str(self.network)
        text = f"[{self.network}]" if self.network.version == 6 else str(self.network)
        return f"{text}:{self.port}"


class Named(NamedTuple):
    labels: tuple[str, ...]
    port: int | None
    is_block: bool

    @property
    def text(self) -> str:
        name = ".".join(self.labels) or "."
        return name if self.port is None else f"{name}:{self.port}"


prefixed = st.builds(Prefixed, networks(), some_ports, st.just(value=False)) | st.builds(
    Prefixed, networks(), st.none(), st.just(value=True)
)
few_labels = st.lists(st.sampled_from(("a", "b", "ab", "xn--a")), max_size=4).map(tuple)
named = st.builds(Named, few_labels, some_ports, st.just(value=False)) | st.builds(
    Named, few_labels, st.none(), st.just(value=True)
)


def policy_of(
    entries: list[Prefixed] | list[Named] | list[Prefixed | Named],
    default: Literal["deny", "allow"] | None = None,
    *,
    has_loopback: bool = False,
) -> Policy:
    return Policy(
        allow=tuple(parse_entry(entry.text, "") for entry in entries if not entry.is_block),
        block=tuple(
            parse_entry(entry.text, "", is_block=True) for entry in entries if entry.is_block
        ),
        default=default,
        has_loopback=has_loopback,
    )


# Without 127.0.0.11.
LOOPBACK = [
    Prefixed(IPv4Network("127.0.0.0/8"), None, is_block=False),
    Prefixed(IPv6Network("::1"), None, is_block=False),
]
DOCKER_DNS = IPv4Address("127.0.0.11")


def attempt(read: Callable[[], _Read]) -> _Read | UsageError:
    """What comes of reading; any other exception is a fault."""
    try:
        return read()
    except UsageError as error:
        return error


# Prefixes


def decided(entries: list[Prefixed], address: Address, port: int) -> str:
    """What the entries say, one length after the other, each with a look at all entries."""
    if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
        address = address.ipv4_mapped

    def as_meant(network: Network) -> Network:
        if isinstance(network, IPv6Network) and network.subnet_of(MAPPED):
            return IPv4Network((network.network_address.packed[12:], network.prefixlen - 96))
        return network

    for length in range(address.max_prefixlen, -1, -1):
        here = [
            entry
            for entry in entries
            if as_meant(entry.network).prefixlen == length and address in as_meant(entry.network)
        ]
        if any(entry.is_block for entry in here):
            return "block"
        if any(entry.port in (None, port) for entry in here):
            return "allow"
    return "none"


def looked_up(flat: dict[tuple[bytes, int], Reach], address: Address, port: int) -> str:
    """As the kernel's trie would: the longest prefix that has the address, and no other."""
    packed = address.packed
    value = int.from_bytes(packed if len(packed) == 16 else MAPPED[0].packed[:12] + packed, "big")
    for length in range(128, -1, -1):
        key = (value >> (128 - length) << (128 - length)).to_bytes(16, "big")
        reach = flat.get((key, length))
        if reach is not None:
            return "allow" if port in reach.ports else reach.otherwise
    return "none"


@given(st.lists(prefixed, max_size=12), st.lists(addresses, max_size=4), booleans)
@example(
    [Prefixed(IPv6Network("::/0"), None, is_block=False)],
    [IPv4Address("10.0.0.1"), IPv6Address("2001:db8::1"), IPv6Address("::ffff:10.0.0.1")],
    False,
)
@settings(deadline=None)
def test_one_look_up_tells_what_all_entries_say(
    entries: list[Prefixed], others: list[Address], has_loopback: bool
) -> None:
    flat = policy_of(entries, has_loopback=has_loopback).flatten()
    implied = LOOPBACK if has_loopback else []
    others += [DOCKER_DNS, IPv4Address("127.0.0.10")]
    for network in [entry.network for entry in (*entries, *implied)]:
        others += [network.network_address, network.broadcast_address]
    for address in others:
        for port in (*PORTS, 22):
            meant = entries if address == DOCKER_DNS else [*entries, *implied]
            expected = decided(meant, address, port)
            event(expected)
            assert looked_up(flat, address, port) == expected, (address, port)


@given(st.lists(prefixed, max_size=12))
def test_what_is_flattened_is_as_a_trie_takes_it(entries: list[Prefixed]) -> None:
    flat = policy_of(entries).flatten()
    meant = {
        (entry.network.network_address, entry.network.prefixlen)
        if isinstance(entry.network, IPv6Network)
        else (
            IPv6Address(MAPPED[0].packed[:12] + entry.network[0].packed),
            entry.network.prefixlen + 96,
        )
        for entry in entries
    }
    for entry in entries:
        address, length = entry.network[0], entry.network.prefixlen
        if isinstance(address, IPv6Address):
            if address.ipv4_mapped is None or length < 96:
                continue
            address, length = address.ipv4_mapped, length - 96
        if entry.is_block:
            inner = address.packed
            meant.add((IPv6Address(b"\0\x64\xff\x9b" + bytes(8) + inner), 96 + length))
            meant.add((IPv6Address(b"\x20\x02" + inner + bytes(10)), 16 + length))
    made = {(IPv6Address(address), length) for address, length in flat}
    assert meant <= made <= meant | {(MAPPED[0], 96)}
    for (address, length), reach in flat.items():
        assert len(address) == 16
        IPv6Network((address, length))  # host bits that are set are an error
        assert list(reach.ports) == sorted(set(reach.ports))
        assert reach.otherwise in ("none", "allow", "block")
        assert not (reach.ports and reach.otherwise == "allow")


@given(
    st.lists(prefixed, max_size=8).flatmap(
        lambda entries: st.tuples(st.just(entries), st.permutations(entries))
    )
)
def test_the_order_of_entries_is_of_no_account(
    orders: tuple[list[Prefixed], list[Prefixed]],
) -> None:
    entries, shuffled = orders
    assert policy_of(shuffled).flatten() == policy_of(entries).flatten()


# Names


def ports_by_scan(
    entries: list[Named], labels: tuple[str, ...], *, is_allowed: bool
) -> frozenset[int] | None:
    """What the entries say, with a look at all of them. 0 stands for any port."""
    covering = [
        entry for entry in entries if labels[len(labels) - len(entry.labels) :] == entry.labels
    ]
    covering = [entry for entry in covering if len(entry.labels) <= len(labels)]
    longest = max((len(entry.labels) for entry in covering), default=None)
    if longest is None:
        return ANY_PORT if is_allowed else None
    here = [entry for entry in covering if len(entry.labels) == longest]
    if any(entry.is_block for entry in here):
        return None
    if any(entry.port is None for entry in here):
        return ANY_PORT
    return frozenset(entry.port for entry in here if entry.port is not None)


@given(
    st.lists(named, max_size=10),
    st.lists(st.sampled_from(("a", "b", "ab", "xn--a", "c")), max_size=6).map(tuple),
    st.sampled_from(("deny", "allow", None)),
    booleans,
    booleans,
)
def test_a_name_has_the_ports_that_all_entries_give_it(
    entries: list[Named],
    labels: tuple[str, ...],
    default: Literal["deny", "allow"] | None,
    is_upper: bool,
    is_absolute: bool,
) -> None:
    is_allowed = default == "allow" or (
        default is None and bool(entries) and all(entry.is_block for entry in entries)
    )
    name = ".".join(labels)
    expected = ports_by_scan(entries, labels, is_allowed=is_allowed)
    event(str(expected))
    text = (name.upper() if is_upper else name) + ("." if is_absolute else "")
    assert policy_of(entries, default).ports_of_name(text) == expected


@given(
    st.lists(
        st.binary(min_size=1, max_size=12) | st.sampled_from((b"a.b", b"\\", b"B")), max_size=4
    ),
    st.lists(named, max_size=4),
)
def test_any_name_of_the_wire_is_told_by_its_labels(raw: list[bytes], entries: list[Named]) -> None:
    """Whatever is in a label, as dnspython writes it."""
    labels = tuple(label.decode("latin-1").lower() for label in raw)
    expected = ports_by_scan(entries, labels, is_allowed=False)
    text = dns.name.Name((*raw, b"")).to_text()
    assert policy_of(entries, "deny").ports_of_name(text) == expected


# Reading and writing


@given(prefixed | named)
def test_an_entry_that_is_written_is_read_back(entry: Prefixed | Named) -> None:
    made = parse_entry(entry.text, "", is_block=entry.is_block)
    assert parse_entry(str(made), "", is_block=entry.is_block) == made
    assert made.port == entry.port


@given(addresses, st.integers(0, 128), some_ports)
def test_a_prefix_with_host_bits_is_an_error_that_tells_the_right_one(
    address: Address, length: int, port: int | None
) -> None:
    length = min(length, address.max_prefixlen)
    right = ip_network(f"{address}/{length}", strict=False)
    text = Prefixed(right, port, is_block=False).text.replace(str(right), f"{address}/{length}")
    made = attempt(lambda: parse_entry(text, "--allow"))
    canonical = parse_entry(str(right), "")
    assert isinstance(canonical, PrefixEntry)
    if address == right.network_address:
        assert made == PrefixEntry(canonical.prefix, port)
    else:
        assert isinstance(made, UsageError)
        assert made.message.endswith(
            f"host bits are set in '{address}/{length}'; the prefix is {canonical.prefix}"
        )


@given(addresses, some_ports)
def test_a_server_that_is_written_is_read_back(address: Address, port: int | None) -> None:
    text = str(address)
    if port is not None:
        text = f"[{text}]:{port}" if address.version == 6 else f"{text}:{port}"
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    meant = mapped or address
    if meant.is_multicast or meant.is_unspecified or meant == IPv4Address("255.255.255.255"):
        with pytest.raises(UsageError, match="not the address of one server"):
            parse_server(text, "")
        return
    made = parse_server(text, "")
    assert (made.family, made.address, made.port) == (meant.version, meant.packed, port or 53)
    assert parse_server(str(made), "") == made


any_text = (
    st.text(max_size=40)
    | st.text("0123456789abcdef.:/[]*-_", max_size=24)
    | st.text("aZ1.-\u00fc\u00df\u3002\uff11\u200d\u00ad\u0308\ud800", max_size=12)
)


@given(any_text, booleans, booleans)
@example("\u00df.example", True, False)
@example("[::ffff:1.2.3.4/97]:1", False, False)
@settings(deadline=None)
def test_any_text_is_an_entry_that_is_read_back_or_a_usage_error(
    text: str, has_idna: bool, is_block: bool
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dns.name, "have_idna_2008", has_idna)
        entry = attempt(lambda: parse_entry(text, "--allow", is_block=is_block))
    event(type(entry).__name__)
    if isinstance(entry, UsageError):
        assert entry.message.startswith("--allow: ")
        assert "\n" not in entry.message
        return
    written = str(entry)
    assert written.isascii()
    assert parse_entry(written, "") == entry
    made = Policy(allow=(entry,))
    if isinstance(entry, NameEntry):
        expected = ANY_PORT if entry.port is None else {entry.port}
        assert made.ports_of_name(entry.name) == expected
        assert made.ports_of_name(f"x.{entry.name}") == expected
    else:
        expected_reach = Reach((), "allow") if entry.port is None else Reach((entry.port,), "none")
        assert made.flatten()[entry.prefix.mapped] == expected_reach


@given(any_text)
def test_any_text_is_a_server_that_is_read_back_or_a_usage_error(text: str) -> None:
    server = attempt(lambda: parse_server(text, "--dns-upstream"))
    if isinstance(server, UsageError):
        assert server.message.startswith("--dns-upstream: ")
    else:
        assert parse_server(str(server), "") == server


@st.composite
def policies(draw: st.DrawFn) -> Policy:
    made = policy_of(
        draw(st.lists(prefixed | named, max_size=8)),
        draw(st.sampled_from(("deny", "allow", None))),
    )
    texts = draw(st.lists(st.sampled_from(("192.0.2.1", "::1", "[fd00::1]:54", "127.0.0.1:1"))))
    return Policy(
        allow=made.allow,
        block=made.block,
        default=made.default,
        has_loopback=draw(booleans),
        is_log_only=draw(booleans),
        dns_upstreams=tuple(parse_server(text, "") for text in texts),
    )


@given(policies())
def test_a_policy_round_trips(policy: Policy) -> None:
    raw = policy.as_object()
    for form, text in (("toml", tomli_w.dumps(raw)), ("json", json.dumps(raw))):
        again = decode(text.encode(), form)  # type: ignore[arg-type]
        assert again == policy
        assert again.as_object() == raw


@given(policies(), policies(), policies())
def test_merging_one_after_the_other_or_all_at_once(a: Policy, b: Policy, c: Policy) -> None:
    assert a.merged(b).merged(c) == a.merged(b.merged(c))
    assert set(a.merged(b).allow) == {*a.allow, *b.allow}
    assert set(a.merged(b).block) == {*a.block, *b.block}


_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | any_text,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=6,
)


@given(
    st.dictionaries(
        st.sampled_from(("default", "allow", "block", "dns_upstream", "loopback", "log_only", "x")),
        _json | st.lists(any_text),
    )
)
@settings(deadline=None)
def test_whatever_json_is_read_is_a_policy_or_an_error_with_a_path(raw: dict[str, object]) -> None:
    made = attempt(lambda: decode(json.dumps(raw).encode(), "json"))
    event(type(made).__name__)
    if isinstance(made, UsageError):
        assert isinstance(made, DocumentError)
        assert made.path
        assert "\n" not in made.message
    else:
        assert decode(json.dumps(made.as_object()).encode(), "json") == made


@given(st.binary(max_size=200) | any_text.map(lambda text: text.encode("utf-8", "ignore")))
def test_whatever_is_read_is_a_policy_or_a_document_error(data: bytes) -> None:
    for form in FORMS:
        assert isinstance(attempt(lambda form=form: decode(data, form)), Policy | DocumentError)
