# SPDX-License-Identifier: GPL-2.0-only
"""Each finding about the firewall: provoked, found, mended by its own command, gone."""

from __future__ import annotations

import os
import socket
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.firewall.support.attached import INTERFACE
from tests.firewall.support.listeners import Listener
from tests.support import doctor
from tests.support.netns import Namespace, Network
from tests.support.tcx import skip_without_tcx
from tests.support.waiting import wait_until
from zfw_py import OWN4, Firewall, Prefix, Rule, RuleKey
from zfw_py.cli.commands import doctor as command
from zfw_py.firewall.findings import host
from zfw_py.firewall.maps import STORE
from zfw_py.kernel import bpf_links, bpf_maps, sysctl, tc
from zfw_py.kernel.libbpf import BpfObject
from zfw_py.kernel.own_netns import netns_cookie

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.kernel

SERVICE = "100.72.0.4/32"
# A filter of handle 1, as tc(8) names it.
FIRST = ("pref", "1", "handle", "1", "bpf")


@pytest.fixture(scope="module")
def _running(_private_bpffs: None) -> Iterator[Network]:
    """One firewall for all tests: the verifier takes seconds."""
    with Network() as made, made.gateway.entered():
        made.gateway.sysctl(0, *(f"ipv4/conf/{each}/rp_filter" for each in ("all", INTERFACE)))
        Firewall().attach(INTERFACE)
        yield made
        Firewall().detach_all()


@pytest.fixture
def healthy(_running: Network) -> Iterator[Network]:
    """A machine on which nothing is wrong, and nothing is when the test ends."""
    firewall = Firewall()
    firewall.set([INTERFACE], "ipv6", True)
    assert doctor.findings() == []
    yield _running
    firewall.flush()
    for setting in ("outbound_filter", "per_interface_rules"):
        firewall.set([INTERFACE], setting, False)
    firewall.attach(INTERFACE, "both", "tcx" if has_tcx() else "clsact")
    _running.gateway.run("nft", "flush", "ruleset")
    firewall.refresh()


def has_tcx() -> bool:
    return bpf_links.supports_tcx(socket.if_nametoindex(INTERFACE))


def rule(destination: str = SERVICE, low: int = 443, **others: object) -> Rule:
    return Rule(RuleKey(Prefix.parse(destination), "tcp", low), **others)  # type: ignore[arg-type]


@contextmanager
def listener(address: str, port: int = 0, kind: int = socket.SOCK_STREAM) -> Iterator[int]:
    """A socket as any service opens it; its port."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, kind) as one:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        one.bind((address, port))
        if kind == socket.SOCK_STREAM:
            one.listen()
        yield one.getsockname()[1]


# A healthy machine


@pytest.mark.usefixtures("healthy")
def test_nothing_is_found_on_a_healthy_machine(stack: ExitStack) -> None:
    proxy = Listener(4, socket.SOCK_STREAM)
    stack.callback(proxy.socket.close)
    stack.enter_context(listener("127.0.0.1"))
    stack.enter_context(listener("10.9.0.1", 22))
    stack.enter_context(listener("10.9.0.1", 8080))
    stack.enter_context(listener("0.0.0.0", kind=socket.SOCK_DGRAM))
    Firewall().insert(rule(tproxy_port=proxy.port), route=True)
    Firewall().insert(rule("10.9.0.0/24", 8080))
    stack.enter_context(listener("10.9.0.1", 8081))
    Firewall().insert(Rule(RuleKey(OWN4, "tcp", 8081)))
    assert doctor.findings() == []


@pytest.mark.usefixtures("_private_bpffs")
def test_nothing_is_found_where_there_is_no_firewall() -> None:
    with Namespace() as elsewhere, elsewhere.entered():
        assert doctor.findings() == []


# Rules


@pytest.mark.usefixtures("healthy")
@pytest.mark.parametrize("destination", [SERVICE, "fd72::4/128"])
def test_a_rule_without_listener(destination: str) -> None:
    Firewall().insert(rule(destination, tproxy_port=43321), route=True)
    (what,) = doctor.mend("rule-without-listener")
    where = "::1" if ":" in destination else "127.0.0.1"
    assert f"no tcp socket listens on {where} port 43321" in what


@pytest.mark.usefixtures("healthy")
def test_a_listener_of_another_protocol_is_none(stack: ExitStack) -> None:
    port = stack.enter_context(listener("127.0.0.1", kind=socket.SOCK_DGRAM))
    Firewall().insert(rule(tproxy_port=port), route=True)
    doctor.mend("rule-without-listener")


@pytest.mark.usefixtures("healthy")
def test_a_service_on_every_address_is_no_proxy(stack: ExitStack) -> None:
    port = stack.enter_context(listener("0.0.0.0"))
    Firewall().insert(rule(tproxy_port=port), route=True)
    found = doctor.findings()
    assert [each["id"] for each in found] == ["listener-not-transparent"]
    assert f"0.0.0.0 port {port} of user 0 is not transparent" in found[0]["what"]
    doctor.run(found[0]["command"])
    # Now it is a service like another, which no client reaches.
    assert {each["id"] for each in doctor.findings()} == {"listener-without-rule"}


@pytest.mark.usefixtures("healthy")
def test_a_proxy_on_every_address_is_one(stack: ExitStack) -> None:
    proxy = Listener(4, socket.SOCK_STREAM, address="0.0.0.0")
    stack.callback(proxy.socket.close)
    Firewall().insert(rule(tproxy_port=proxy.port), route=True)
    assert doctor.findings() == []


@pytest.mark.usefixtures("healthy")
@pytest.mark.parametrize(
    ("destination", "word"),
    [
        (SERVICE, "--route"),
        ("100.72.0.0/16", "--route"),
        ("fd72::/64", "--route"),
        # An address of the clients' subnet, and any address, cannot be made local for all.
        ("10.9.0.77/32", "ip rule add"),
        ("0.0.0.0/0", "ip rule add"),
        ("fd09::77/128", "ip -6 rule add"),
    ],
)
def test_a_destination_that_is_not_local(
    healthy: Network, stack: ExitStack, destination: str, word: str
) -> None:
    proxy = Listener(6 if ":" in destination else 4, socket.SOCK_STREAM)
    stack.callback(proxy.socket.close)
    Firewall().insert(rule(destination, tproxy_port=proxy.port, service_id="a'b"))
    (found,) = doctor.findings()
    assert word in found["command"]
    (what,) = doctor.mend("destination-not-local")
    assert f"{destination} is not local for packets from {INTERFACE}" in what
    assert [each.service_id for each in Firewall().rules()] == ["a'b"]
    for family in ("-4", "-6"):
        healthy.gateway.run("ip", family, "rule", "del", "lookup", "100", check=False)
        healthy.gateway.run("ip", family, "route", "flush", "table", "100", check=False)


@pytest.mark.usefixtures("healthy")
def test_a_rule_that_can_never_match() -> None:
    Firewall().insert(rule("10.9.0.1/32", 1000, high_port=2000))
    Firewall().insert(rule("10.9.0.1/32", 1500, deny=True))
    (what,) = doctor.mend("rule-never-matches")
    assert "port 1500 deny can never match" in what
    assert [each.key.low_port for each in Firewall().rules()] == [1000]


@pytest.mark.usefixtures("healthy")
@pytest.mark.parametrize("address", ["10.9.0.1", "fd09::1", "0.0.0.0", "::"])
def test_a_listener_without_rule(stack: ExitStack, address: str) -> None:
    stack.enter_context(listener(address, 8080))
    texts = doctor.mend("listener-without-rule")
    reachable = {"0.0.0.0": ["10.9.0.1"], "::": ["10.9.0.1", "fd09::1"]}.get(address, [address])
    assert sorted(texts) == sorted(
        f"tcp port 8080 on {each} ({INTERFACE}) has no rule" for each in reachable
    )


@pytest.mark.usefixtures("healthy")
def test_a_dns_server_without_rule(stack: ExitStack) -> None:
    stack.enter_context(listener("10.9.0.1", 53, socket.SOCK_DGRAM))
    doctor.mend("listener-without-rule")


def test_listeners_that_share_a_port_before_6_6(
    healthy: Network, stack: ExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel of the test may be newer: what it has is replaced, the sockets are real."""
    proxies = []
    for _ in range(2):
        one = stack.enter_context(socket.socket())
        one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        one.bind(("127.0.0.1", proxies[0] if proxies else 0))
        one.listen()
        proxies.append(one.getsockname()[1])
    Firewall().insert(rule(tproxy_port=proxies[0]), route=True)
    monkeypatch.setattr(bpf_links, "supports_tcx", lambda ifindex: True)
    assert command.findings() == []
    monkeypatch.setattr(bpf_links, "supports_tcx", lambda ifindex: False)
    first, second = command.findings()
    assert (first.id, second.id) == ("reuseport-before-6.6", "kernel-without-tcx")
    doctor.run(first.command)
    assert [each.id for each in command.findings()] == ["kernel-without-tcx"]


# Attachments


@pytest.mark.usefixtures("healthy")
def test_an_interface_that_another_process_detached() -> None:
    skip_without_tcx()
    index = socket.if_nametoindex(INTERFACE)
    Path(f"{STORE.directory(netns_cookie())}/link_ingress_{index}").unlink()
    assert wait_until(lambda: len(Firewall().status().interfaces[0].attachments) == 1)
    assert doctor.mend("not-as-wanted") == [f"{INTERFACE}: ingress is not attached"]


@pytest.mark.usefixtures("healthy")
def test_a_program_in_front(stand_in_object: Path) -> None:
    skip_without_tcx()
    with BpfObject(stand_in_object) as loaded:
        loaded.load()
        link = bpf_links.create_link(
            loaded.programs()["ingress"],
            socket.if_nametoindex(INTERFACE),
            bpf_links.TCX_INGRESS,
            is_first=True,
        )
        try:
            (what,) = doctor.mend("program-ahead")
            assert what.startswith(f"{INTERFACE}: ingress: TCX program ")
            # The command took both directions off, and put both back.
            assert len(Firewall().status().interfaces[0].attachments) == 2
        finally:
            os.close(link)


def test_a_filter_in_front(healthy: Network, stand_in_object: Path) -> None:
    """The kernel runs the newest filter of a preference first."""
    skip_without_tcx()
    index = socket.if_nametoindex(INTERFACE)
    Firewall().detach(INTERFACE)
    with BpfObject(stand_in_object) as loaded:
        loaded.load()
        program = loaded.programs()["ingress"]
        tc.attach_clsact(index, "ingress", program, "other", handle=1)
        Firewall().attach(INTERFACE, mode="clsact")
        assert doctor.findings() == []
        healthy.gateway.run("tc", "filter", "del", "dev", INTERFACE, "ingress", *FIRST)
        tc.attach_clsact(index, "ingress", program, "other", handle=1)
        (what,) = doctor.mend("program-ahead")
        number = bpf_maps.object_id(program)
        assert what == f"{INTERFACE}: ingress: filter with program {number} runs before ours"
    healthy.gateway.run("tc", "qdisc", "del", "dev", INTERFACE, "clsact")


@pytest.mark.usefixtures("healthy")
def test_an_outbound_filter_without_egress_program() -> None:
    firewall = Firewall()
    firewall.set([INTERFACE], "outbound_filter", True)
    firewall.detach(INTERFACE, "egress")
    doctor.mend("filter-without-egress")


def test_an_address_that_came_and_one_that_went(healthy: Network) -> None:
    healthy.gateway.add_addresses(INTERFACE, "10.9.0.3/24")
    assert doctor.mend("address-out-of-date") == [f"{INTERFACE}: its addresses are out of date"]
    healthy.gateway.ip(f"address del 10.9.0.3/24 dev {INTERFACE}")
    doctor.mend("address-out-of-date")


def test_a_prefix_that_another_program_removed(healthy: Network, stack: ExitStack) -> None:
    proxy = Listener(4, socket.SOCK_STREAM)
    stack.callback(proxy.socket.close)
    Firewall().insert(rule("100.74.0.0/24", tproxy_port=proxy.port), route=True)
    Firewall().insert(Rule(RuleKey(OWN4, "tcp", 443), tproxy_port=proxy.port))
    assert doctor.findings() == []
    healthy.gateway.ip("address flush dev lo", "address add 127.0.0.1/8 dev lo")
    healthy.gateway.ip("address add ::1/128 dev lo")
    assert doctor.mend("not-local-any-more") == ["lo: 100.74.0.0/24 is not local any more"]


# The host


@pytest.mark.parametrize("name", ["all", INTERFACE])
def test_a_strict_rp_filter(healthy: Network, name: str) -> None:
    healthy.gateway.sysctl(1, f"ipv4/conf/{name}/rp_filter")
    (what,) = doctor.mend("rp-filter")
    assert what.startswith(f"{INTERFACE}: rp_filter is strict")
    healthy.gateway.sysctl(0, *(f"ipv4/conf/{each}/rp_filter" for each in ("all", INTERFACE)))


@pytest.mark.parametrize("family", ["inet", "ip", "ip6"])
@pytest.mark.parametrize("hook", ["input", "prerouting"])
def test_another_firewall(healthy: Network, family: str, hook: str) -> None:
    chain = f"{{ type filter hook {hook} priority 0; policy drop; }}"
    healthy.gateway.run("nft", f"add table {family} f; add chain {family} f c {chain}")
    healthy.gateway.run("nft", f"add rule {family} f c iifname eth7 counter accept")
    healthy.gateway.run("nft", f"add rule {family} f c iifname {INTERFACE} tcp dport 22 accept")
    (what,) = doctor.mend("other-firewall")
    assert what == f"{INTERFACE}: chain {family} f c at {hook} has the policy drop"


def test_another_firewall_that_accepts_is_none(healthy: Network) -> None:
    chain = "{ type filter hook input priority 0; policy accept; }"
    healthy.gateway.run("nft", f"add table inet f; add chain inet f c {chain}; add chain inet f d")
    assert doctor.findings() == []


@pytest.mark.usefixtures("healthy")
def test_a_full_table_of_connection_tracking(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel has one limit for all namespaces: the test must not change it."""
    values = {"net/netfilter/nf_conntrack_count": 95, "net/netfilter/nf_conntrack_max": 100}
    real = sysctl.number
    monkeypatch.setattr(host.sysctl, "number", lambda name: values.get(name, real(name)))
    (found,) = command.findings()
    assert (found.id, found.command) == (
        "conntrack-full",
        "sysctl -w net/netfilter/nf_conntrack_max=200",
    )
    values["net/netfilter/nf_conntrack_max"] = 200
    assert command.findings() == []


# Tables and pins


@pytest.mark.usefixtures("healthy")
def test_a_table_of_flows_that_is_nearly_full() -> None:
    before = Firewall().save().flows
    Firewall().set_flow_limits(max_flows=1024)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one:
        for port in range(2000, 2000 + 1000):
            one.sendto(b"x", ("10.9.0.2", port))
    (what,) = doctor.mend("flows-nearly-full")
    assert what.endswith("of 1024 other flows are tracked")
    assert before is not None
    Firewall().set_flow_limits(max_flows=131_072)


@pytest.mark.usefixtures("healthy")
def test_pins_that_nothing_uses() -> None:
    with Network() as gone, gone.gateway.entered():
        Firewall().attach(gone.interface, "ingress")
        cookie = netns_cookie()
    Path(f"{STORE.root}/new_1").mkdir()
    assert wait_until(lambda: len(doctor.findings()) == 2)
    assert sorted(doctor.mend("stale-pins")) == sorted(
        [
            f"{STORE.root}/new_1 was left by a process that was killed",
            f"{STORE.root}/{cookie} is of a network namespace that is gone",
        ]
    )
