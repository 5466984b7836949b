# SPDX-License-Identifier: GPL-2.0-only
"""What the options of zfw docker-dns mean."""

from __future__ import annotations

import pytest

from zfw_py.docker_dns.model import MAX_DOMAINS, Redirect
from zfw_py.errors import UsageError
from zfw_py.values.endpoint import Server

SERVER = Server(4, bytes([10, 0, 0, 1]), 53)


def test_what_is_meant_without_options() -> None:
    made = Redirect.parse("10.0.0.1")
    assert made == Redirect(SERVER, Server(4, bytes([127, 0, 0, 11]), 53), "eth0", (), "redirect")


def test_all_of_them() -> None:
    made = Redirect.parse("10.0.0.1:5353", "127.0.0.53:54", "net1", ["Example.COM."], "redirect")
    assert made.server == Server(4, SERVER.address, 5353)
    assert made.resolver == Server(4, bytes([127, 0, 0, 53]), 54)
    assert (made.interface, made.domains, made.tcp) == ("net1", ("example.com",), "redirect")


def test_tcp_goes_by_the_domains() -> None:
    assert Redirect.parse("10.0.0.1", domains=["a.example"]).tcp == "builtin"
    assert Redirect.parse("10.0.0.1", tcp="builtin").tcp == "builtin"


def test_domains_are_canonical_and_told_once() -> None:
    made = Redirect.parse("10.0.0.1", domains=["B.example", "b.EXAMPLE.", "a.example", "bücher.de"])
    assert made.domains == ("b.example", "a.example", "xn--bcher-kva.de")


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({"to": "::1"}, "--to: IPv6 is unsupported, the resolver and its server are IPv4"),
        ({"to": "[2001:db8::1]:53"}, "--to: IPv6 is unsupported"),
        ({"resolver": "::1"}, "--from: IPv6 is unsupported"),
        ({"to": "dns.example"}, "--to: "),
        ({"to": "10.0.0.1:0"}, "--to: the port of '10.0.0.1:0' is not within 1 to 65535"),
        ({"to": "0.0.0.0"}, "--to: not the address of one server"),
        ({"to": "224.0.0.1"}, "--to: not the address of one server"),
        ({"to": "127.0.0.11"}, "--to: 127.0.0.11:53 is the resolver whose queries"),
        ({"to": "127.0.0.11:5353"}, "--to: 127.0.0.11:5353 is the resolver whose queries"),
        ({"to": "127.0.0.1"}, "--to: 127.0.0.1:53 is a loopback address"),
        ({"interface": ""}, "--interface: not an interface's name: ''"),
        ({"interface": "a" * 16}, "--interface: not an interface's name"),
        ({"interface": "a/b"}, "--interface: not an interface's name"),
        ({"interface": ".."}, "--interface: not an interface's name"),
        ({"domains": ["."]}, "--only-domain: '.' is every name; leave the option out"),
        ({"domains": ["*.example"]}, "--only-domain: 'example' covers all names below it"),
        ({"domains": ["a..example"]}, "--only-domain: an empty label"),
        ({"domains": ["a.example:53"]}, "--only-domain: not a name: 'a.example:53'"),
        ({"domains": ["10.0.0.0/8"]}, "--only-domain: not a name: '10.0.0.0/8'"),
        ({"domains": ["a b"]}, "--only-domain: blanks"),
        ({"domains": ["x" * 64]}, "--only-domain: a label of more than 63 octets"),
        (
            {"domains": [f"n{number}.example" for number in range(MAX_DOMAINS + 1)]},
            f"--only-domain: {MAX_DOMAINS + 1} names; {MAX_DOMAINS} at most",
        ),
    ],
)
def test_what_makes_no_sense(arguments: dict[str, object], told: str) -> None:
    with pytest.raises(UsageError) as refused:
        Redirect.parse(**({"to": "10.0.0.1"} | arguments))
    assert refused.value.message.startswith(told)
    assert "\n" not in refused.value.message
