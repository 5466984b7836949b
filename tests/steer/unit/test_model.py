# SPDX-License-Identifier: GPL-2.0-only
"""What a mapping may say, and the document that apply reads."""

from __future__ import annotations

import json
from contextlib import nullcontext

import pytest

from zfw_py.errors import UsageError
from zfw_py.steer.model import (
    ANY_PORT,
    MAX_LABEL,
    AddressTarget,
    DocumentError,
    Entry,
    Mapping,
    MappingKey,
    Ports,
    ProcessTarget,
    UnitTarget,
    decode,
    entry_of,
    mapping_of,
    mappings_of,
    parse_label,
    parse_ports,
    parse_prefix,
    parse_short,
)
from zfw_py.values.prefix import Prefix

SSH = AddressTarget.parse("127.0.0.1:22")


def mapping(protocol: str, address: str, port: str, to: str, **options: bool) -> Mapping:
    return Mapping.make(
        MappingKey.parse(protocol, address, port), AddressTarget.parse(to), **options
    )


@pytest.mark.parametrize(
    ("text", "ports"),
    [
        ("1", Ports(1, 1)),
        ("65535", Ports(65535, 65535)),
        ("80-443", Ports(80, 443)),
        ("7-7", Ports(7, 7)),
        ("any", ANY_PORT),
    ],
)
def test_ports(text: str, ports: Ports) -> None:
    assert parse_ports(text) == ports
    assert parse_ports(str(ports)) == ports


@pytest.mark.parametrize(
    "text", ["", "0", "65536", "080", "-1", "1-", "-", "443-80", "http", "1-2-3", "\u0661", "1e3"]
)
def test_no_ports(text: str) -> None:
    with pytest.raises(UsageError, match="port"):
        parse_ports(text)


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("any", None),
        ("192.0.2.1", "192.0.2.1/32"),
        ("203.0.113.0/24", "203.0.113.0/24"),
        ("0.0.0.0/0", "0.0.0.0/0"),
        ("::/0", "::/0"),
        ("2001:DB8::/32", "2001:db8::/32"),
        ("::ffff:192.0.2.0/120", "192.0.2.0/24"),
        ("::ffff:192.0.2.7", "192.0.2.7/32"),
    ],
)
def test_prefixes(text: str, canonical: str | None) -> None:
    prefix = parse_prefix(text)
    assert (None if prefix is None else str(prefix)) == canonical


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("10.0.0.1/8", "host bits"),
        ("0.0.0.0", "no connection comes"),
        ("::", "no connection comes"),
        ("224.0.0.251", "multicast"),
        ("239.0.0.0/8", "multicast"),
        ("255.255.255.255", "broadcast"),
        ("ff02::1", "multicast"),
        ("::ffff:0:0/90", "host bits"),
        ("fe80::1%eth0", "not an IPv4"),
        ("localhost", "not an IPv4"),
        ("10.0.0.0/33", "prefix length"),
    ],
)
def test_no_prefixes(text: str, why: str) -> None:
    with pytest.raises(UsageError, match=why):
        parse_prefix(text)


@pytest.mark.parametrize(
    ("text", "again"),
    [
        ("127.0.0.1:22", "127.0.0.1:22"),
        ("0.0.0.0:22", "0.0.0.0:22"),
        ("[fd00::7]:22", "[fd00::7]:22"),
        ("[::]:22", "[::]:22"),
        # An IPv6 socket that is bound to this takes IPv4, as the other one does.
        ("[::ffff:127.0.0.1]:22", "127.0.0.1:22"),
    ],
)
def test_address_targets(text: str, again: str) -> None:
    assert str(AddressTarget.parse(text)) == again


@pytest.mark.parametrize(
    "text",
    ["", "22", "127.0.0.1", ":22", "fd00::7:22", "[fd00::7]", "[fd00::7]22", "[127.0.0.1]:22",
     "127.0.0.1:0", "127.0.0.1:65536", "127.0.0.1:ssh", "host:22", "127.0.0.1:22:22"],
)  # fmt: skip
def test_no_address_targets(text: str) -> None:
    with pytest.raises(UsageError, match="--to"):
        AddressTarget.parse(text)


def test_other_targets() -> None:
    assert ProcessTarget.of(7, 9) == ProcessTarget(7, 9)
    assert UnitTarget.parse("nginx").unit == "nginx.service"
    assert UnitTarget.parse("app@1.service") == UnitTarget("app@1.service")
    for text in ("", "../x.service", "a/b.service", "x.slice", "app@.service", "x" * 300):
        with pytest.raises(UsageError, match="--to-unit"):
            UnitTarget.parse(text)
    for pid in (0, -1, 1 << 23):
        with pytest.raises(UsageError, match="--to-pid"):
            ProcessTarget.of(pid, 0)


def test_labels() -> None:
    assert parse_label("") == ""
    assert parse_label("web-1.eu:a@b_c") == "web-1.eu:a@b_c"
    for text in ("a b", "-x", "\u00e9", "x" * (MAX_LABEL + 1), "a\n"):
        with pytest.raises(UsageError, match="--label"):
            parse_label(text)


def test_any_address_is_of_the_targets_family() -> None:
    assert mapping("tcp", "any", "5555", "0.0.0.0:22").key.prefix == Prefix.any(4)
    assert mapping("tcp", "any", "5555", "[::]:22").key.prefix == Prefix.any(6)
    both = Mapping.make(MappingKey.parse("tcp", "any", "5555"), UnitTarget("a.service"))
    assert both.key.prefixes == (Prefix.any(4), Prefix.any(6))


def test_ipv4_may_go_to_an_ipv6_socket_but_not_the_other_way() -> None:
    assert mapping("tcp", "192.0.2.1", "80", "[::1]:80").key.prefix is not None
    with pytest.raises(UsageError, match=r"an IPv4 socket, 127\.0\.0\.1:80, accepts no IPv6"):
        mapping("tcp", "2001:db8::1", "80", "127.0.0.1:80")


@pytest.mark.parametrize("port", ["54", "53-54", "any"])
def test_udp_whose_answers_would_come_from_another_port_is_refused(port: str) -> None:
    with pytest.raises(UsageError, match=r"UDP answers of 127\.0\.0\.1:53 come from port 53"):
        mapping("udp", "192.0.2.1", port, "127.0.0.1:53")
    with (
        pytest.raises(UsageError, match="steer that port alone") if port != "54" else nullcontext()
    ):
        Mapping.make(MappingKey.parse("udp", "192.0.2.1", port), UnitTarget("dns.service"))


def test_udp_to_its_own_port() -> None:
    assert str(mapping("udp", "192.0.2.1", "53", "127.0.0.1:53")) == (
        "udp 192.0.2.1 port 53 to 127.0.0.1:53"
    )


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("5555=0.0.0.0:22", ("tcp", "any", "5555")),
        ("5555=[::]:22", ("tcp", "any", "5555")),
        ("0.0.0.0:5555=127.0.0.1:22", ("tcp", "0.0.0.0/0", "5555")),
        ("[::]:5555=[fd00::7]:22", ("tcp", "::/0", "5555")),
        ("203.0.113.0/24:any=127.0.0.1:22", ("tcp", "203.0.113.0/24", "any")),
        ("udp:[2001:db8::1]:53=[fd00::7]:53", ("udp", "2001:db8::1", "53")),
        ("1000-2000=127.0.0.1:22", ("tcp", "any", "1000-2000")),
    ],
)
def test_short_form(text: str, parts: tuple[str, str, str]) -> None:
    *key, target = parse_short(text)
    assert tuple(key) == parts
    assert Mapping.make(MappingKey.parse(*key), target)


@pytest.mark.parametrize("text", ["", "5555", "=", "5555=", "[::5555=[::]:22", "[1]:2=[::]:22"])
def test_no_short_form(text: str) -> None:
    with pytest.raises(UsageError, match="-t"):
        parse_short(text)


def test_a_document_comes_back() -> None:
    made = [
        mapping("tcp", "any", "5555", "127.0.0.1:22", is_override=True),
        mapping("udp", "2001:db8::/64", "53", "[fd00::7]:53", is_fallthrough=True),
        Mapping.make(MappingKey.parse("tcp", "any", "any"), ProcessTarget(7, 99), "mine"),
        Mapping.make(MappingKey.parse("tcp", "10.0.0.0/8", "1-2"), UnitTarget("a.service")),
    ]
    listed = [
        entry_of(each) | {"state": "pending", "sockets": [], "counters": {"lookups": 1}}
        for each in made
    ]
    data = json.dumps(listed).encode()
    assert mappings_of(decode(data)) == made


def test_what_a_run_holds_is_not_read() -> None:
    held = entry_of(mapping("tcp", "any", "1", "127.0.0.1:22")) | {"run_pid": 7}
    assert decode(json.dumps([held]).encode()) == []


def test_a_process_without_a_start_time_gets_the_one_that_is_found() -> None:
    entry = Entry(protocol="tcp", address="any", port=80, to_pid=7)
    assert mapping_of(entry, 5).target == ProcessTarget(7, 5)
    assert mappings_of([entry], {7: 6})[0].target == ProcessTarget(7, 6)


@pytest.mark.parametrize(
    ("document", "why"),
    [
        ("{}", "document: expected `?array"),
        ("[", "expecting value|Expecting value"),
        ('[{"protocol": "sctp", "address": "any", "port": "1"}]', r"\[0\].protocol: "),
        ('[{"protocol": "tcp", "address": "any", "port": "1", "x": 1}]', r"\[0\].x: no such field"),
        ('[{"protocol": "tcp", "address": "any", "port": "1"}]', r"\[0\]: needs one of to"),
        (
            '[{"protocol": "tcp", "address": "any", "port": "x", "to": "127.0.0.1:1"}]',
            r"\[0\]: port",
        ),
        (
            '[{"protocol": "tcp", "address": "any", "port": 1, "to": "127.0.0.1:1"},'
            ' {"protocol": "tcp", "address": "0.0.0.0/0", "port": "1", "to_unit": "a.service"}]',
            r"\[1\]: tcp 0.0.0.0/0 port 1 is \[0\] as well",
        ),
    ],
)
def test_faults_are_named(document: str, why: str) -> None:
    with pytest.raises(DocumentError, match=why):
        mappings_of(decode(document.encode()))


def test_overlap_of_any_address_with_one_family_is_a_fault() -> None:
    entries = [
        Entry(protocol="tcp", address="any", port="1", to_unit="a.service"),
        Entry(protocol="tcp", address="::/0", port="1", to="[::1]:1"),
    ]
    with pytest.raises(DocumentError, match=r"\[1\]: tcp ::/0 port 1 is \[0\] as well"):
        mappings_of(entries)


def test_texts() -> None:
    assert str(MappingKey("tcp", None, ANY_PORT)) == "tcp any port any"
    assert isinstance(SSH, AddressTarget)
    assert SSH.family == 4
