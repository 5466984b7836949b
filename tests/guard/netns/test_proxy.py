# SPDX-License-Identifier: GPL-2.0-only
"""The guard's proxy between Debian's dig and dnsmasq, in two network namespaces.

Its sockets are the client's 127.0.0.1 and ::1, port 53; it runs, and asks dnsmasq, in the gateway.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest

from tests.guard.support.resolving import PATIENCE, Policy, Running, bound_pair
from tests.support.daemons import running
from tests.support.waiting import wait_until
from zfw_py.values.endpoint import Endpoint

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.support.netns import Network

pytestmark = pytest.mark.kernel

DNSMASQ = "127.0.0.1"
TEXT = "x" * 250
CONFIGURATION = f"""
no-resolv
no-hosts
user=root
group=root
pid-file
log-queries
log-facility=-
listen-address={DNSMASQ}
bind-interfaces
edns-packet-max=1232
local=/test/
host-record=www.test,192.0.2.1,2001:db8::1,300
address=/brief.test/192.0.2.2
cname=alias.test,www.test
cname=cloaked.test,x.tracker.example
host-record=x.tracker.example,192.0.2.9
host-record=other.example,192.0.2.10
txt-record=small.test,some text
"""
# Its lines are no longer than 1,024 bytes.
CONFIGURATION += "".join(f"txt-record=big.test,{n},{TEXT},{TEXT},{TEXT}\n" for n in range(4))


@pytest.fixture
def policy() -> Policy:
    """``test`` is allowed, and all that is in it."""
    made = Policy()
    made.blocked.add("tracker.example")
    return made


@pytest.fixture
def log(tmp_path: Path) -> Path:
    """What dnsmasq writes down."""
    return tmp_path / "dnsmasq.log"


@pytest.fixture
def proxied(network: Network, policy: Policy, tmp_path: Path, log: Path) -> Iterator[Network]:
    """The proxy answers the client's programs."""
    configuration = tmp_path / "dnsmasq.conf"
    configuration.write_text(CONFIGURATION)
    command = ("/usr/sbin/dnsmasq", "--keep-in-foreground", f"--conf-file={configuration}")
    with running(network.gateway, log, *command) as dnsmasq:
        ask = ("dig", "+short", "+tries=1", "+time=1", f"@{DNSMASQ}", "up.brief.test")

        def answers() -> bool:
            return network.gateway.run(*ask, check=False).stdout == "192.0.2.2\n"

        assert wait_until(lambda: dnsmasq.poll() is not None or answers(), PATIENCE)
        assert dnsmasq.poll() is None, log.read_text()
        with network.client.entered():
            sockets = [bound_pair(address, 53) for address in ("127.0.0.1", "::1")]
        proxy = policy.proxy()
        with Running(proxy, [Endpoint(DNSMASQ, 53)], sockets[0]) as made:
            made.serve(*sockets[1])
            yield network


def dig(network: Network, *arguments: str) -> str:
    """What dig, in the client's namespace, prints."""
    return network.client.run("dig", "+time=15", "+tries=2", *arguments).stdout


def dig_proxy(network: Network, *arguments: str) -> str:
    return dig(network, "@127.0.0.1", *arguments)


def found(pattern: str, printed: str) -> str:
    match = re.search(pattern, printed)
    assert match, printed
    return match[1]


def status(printed: str) -> str:
    return found(r"status: (\w+)", printed)


def asked_of_dnsmasq(log: Path, name: str) -> int:
    return len(re.findall(rf" query\[\w+\] {re.escape(name)} from ", log.read_text()))


@pytest.mark.parametrize("server", ["127.0.0.1", "::1"])
@pytest.mark.parametrize("transport", ["udp", "tcp"])
def test_addresses_are_handed_out_and_admitted(
    proxied: Network, policy: Policy, server: str, transport: str
) -> None:
    arguments = (f"@{server}", "+tcp" if transport == "tcp" else "+notcp", "+short", "www.test")
    assert dig(proxied, *arguments, "A") == "192.0.2.1\n"
    assert dig(proxied, *arguments, "AAAA") == "2001:db8::1\n"
    admitted = [(addresses[0].hex(), lifetime) for addresses, _, lifetime in policy.admitted]
    assert admitted == [("0" * 20 + "ffffc0000201", 301), ("20010db8" + "0" * 23 + "1", 301)]
    assert [(event.client[0], event.transport) for event in policy.events] == [
        (server, transport)
    ] * 2


def test_a_time_to_live_of_0_is_handed_out_and_lasts_for_a_connect(
    proxied: Network, policy: Policy
) -> None:
    assert found(r"\s(\d+)\s+IN\s+A\s+192\.0\.2\.2", dig_proxy(proxied, "a.brief.test")) == "0"
    assert policy.admitted[0][2] == 5


def test_a_chain_is_handed_out(proxied: Network, policy: Policy) -> None:
    printed = dig_proxy(proxied, "+short", "alias.test")
    assert printed == "www.test.\n192.0.2.1\n"
    assert len(policy.admitted) == 1


def test_a_chain_to_a_blocked_name_is_not(proxied: Network, policy: Policy) -> None:
    printed = dig_proxy(proxied, "cloaked.test")
    assert status(printed) == "NXDOMAIN"
    assert "EDE: 15 (Blocked)" in printed
    assert "192.0.2.9" not in printed
    assert policy.admitted == []


def test_a_name_without_a_rule_is_not_asked_for(proxied: Network, log: Path) -> None:
    printed = dig_proxy(proxied, "other.example")
    assert status(printed) == "NXDOMAIN"
    assert "EDE: 18 (Prohibited)" in printed
    assert "EDE" not in dig_proxy(proxied, "+noedns", "other.example")
    assert asked_of_dnsmasq(log, "other.example") == 0


def test_a_name_that_is_not_there(proxied: Network) -> None:
    assert status(dig_proxy(proxied, "no.test")) == "NXDOMAIN"
    printed = dig_proxy(proxied, "www.test", "MX")
    assert (status(printed), found(r"ANSWER: (\d+)", printed)) == ("NOERROR", "0")


def test_text(proxied: Network) -> None:
    assert dig_proxy(proxied, "+short", "small.test", "TXT") == '"some text"\n'


def test_what_is_large_comes_over_tcp_from_end_to_end(
    proxied: Network, policy: Policy, log: Path
) -> None:
    """dnsmasq truncates, the proxy asks over TCP; the proxy truncates, and dig asks over TCP."""
    printed = dig_proxy(proxied, "big.test", "TXT")
    assert printed.count(TEXT) == 12
    assert "(TCP)" in printed
    assert [event.transport for event in policy.events] == ["udp", "tcp"]
    # Both ways twice: it lives for 0 seconds and is not kept.
    assert asked_of_dnsmasq(log, "big.test") == 4
    with_room = dig_proxy(proxied, "+bufsize=4096", "+ignore", "big.test", "TXT")
    assert with_room.count(TEXT) == 12
    assert "(UDP)" in with_room
    without = dig_proxy(proxied, "+noedns", "+ignore", "big.test", "TXT")
    assert (without.count(TEXT), found(r"flags: (qr \w+)", without)) == (0, "qr tc")


def test_dnssec_is_asked_for_and_told(proxied: Network) -> None:
    printed = dig_proxy(proxied, "+dnssec", "www.test")
    assert status(printed) == "NOERROR"
    assert found(r"EDNS: (version: 0, flags: do; udp: 1232)", printed)
    assert "192.0.2.1" in printed
    plain = dig_proxy(proxied, "www.test")
    assert found(r"EDNS: (version: 0, flags:; udp: 1232)", plain)


def test_an_answer_is_asked_for_once(proxied: Network, policy: Policy, log: Path) -> None:
    assert "\t300\t" in dig_proxy(proxied, "www.test").replace(" ", "\t")
    policy.now += 100
    printed = dig_proxy(proxied, "WWW.TEST")
    assert found(r"WWW\.TEST\.\s+(\d+)\s+IN\s+A", printed) == "200"
    assert asked_of_dnsmasq(log, "www.test") == 1
    assert [event.is_cached for event in policy.events] == [False, True]


def test_other_things_that_dig_can_send(proxied: Network) -> None:
    assert status(dig_proxy(proxied, "+opcode=5", "www.test")) == "NOTIMP"
    assert status(dig_proxy(proxied, "+edns=1", "+noednsnegotiation", "www.test")) == "BADVERS"
    assert status(dig_proxy(proxied, "+qid=77", "CH", "version.bind", "TXT")) == "REFUSED"
    assert "Transfer failed" in dig_proxy(proxied, "test", "AXFR")
    assert "RFC8482" in dig_proxy(proxied, "www.test", "ANY")
    subnet = dig_proxy(proxied, "+subnet=192.0.2.0/24", "+cookie", "+padding=128", "www.test")
    assert status(subnet) == "NOERROR"


def test_several_questions_share_a_connection(proxied: Network, policy: Policy) -> None:
    names = ("www.test", "alias.test", "a.brief.test", "no.test")
    printed = dig_proxy(proxied, "+tcp", "+keepopen", "+short", *names)
    assert printed == "192.0.2.1\nwww.test.\n192.0.2.1\n192.0.2.2\n"
    assert len({event.client for event in policy.events}) == 1
