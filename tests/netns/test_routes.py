# SPDX-License-Identifier: GPL-2.0-only
"""``--route``: a destination is made local for as long as a rule needs it, and no other is."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING

import pytest

from tests.support.fake_router import CommandLine
from tests.support.netns import Namespace
from zfw_py import (
    Delete,
    Firewall,
    Insert,
    KernelError,
    Prefix,
    Rule,
    RuleKey,
    RuleNotFound,
)
from zfw_py.firewall.tables import Tables
from zfw_py.kernel import bpf, netlink

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

pytestmark = [
    pytest.mark.kernel,
    pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning"),
]

# Of an address and a prefix of each family.
DESTINATIONS = ["172.31.9.9/32", "172.30.0.0/16", "fd31::9/128", "fd30::/32"]
every_destination = pytest.mark.parametrize("destination", DESTINATIONS)


@pytest.fixture(scope="module")
def _gateway(_private_bpffs: None) -> Iterator[Namespace]:
    """A namespace with an interface of two subnets, and a firewall on it."""
    made = Namespace()
    with made.entered():
        made.run("ip", "link", "add", "gw0", "type", "veth", "peer", "name", "gw1")
        made.run("ip", "address", "add", "10.9.0.1/24", "dev", "gw0")
        made.run("ip", "address", "add", "fd09::1/64", "dev", "gw0", "nodad")
        made.run("ip", "link", "set", "gw0", "up")
        Firewall().attach("gw0")
        yield made
        Firewall().detach_all()
    made.close()


@pytest.fixture
def gateway(_gateway: Namespace) -> Iterator[Namespace]:
    """The test is there; nothing is local that was not at the start."""
    with _gateway.entered():
        start = local_prefixes(_gateway)
        yield _gateway
        Firewall().flush()
        with Tables(is_writer=True) as tables:
            left = [key for key, _ in tables.map("routes").items()]
            for key in left:
                tables.map("routes").delete(key)
        for prefix in local_prefixes(_gateway) - start:
            if ":" in prefix:
                _gateway.run("ip", "-6", "route", "del", "local", prefix, "dev", "lo")
            else:
                _gateway.run("ip", "address", "del", prefix, "dev", "lo")


def local_prefixes(namespace: Namespace) -> set[str]:
    """Addresses of lo, and IPv6 prefixes that are local through it."""
    shown = json.loads(namespace.run("ip", "-json", "-4", "address", "show", "dev", "lo").stdout)
    found = {f"{info['local']}/{info['prefixlen']}" for link in shown for info in link["addr_info"]}
    routes = namespace.run(
        "ip", "-json", "-6", "route", "show", "table", "local", "type", "local", "dev", "lo"
    )
    for route in json.loads(routes.stdout or "[]"):
        # What an address of an interface brings, the kernel has put there.
        if route.get("protocol") != "kernel":
            found.add(str(Prefix.parse(route["dst"])))
    return found


def is_local(namespace: Namespace, destination: str) -> bool:
    return destination in local_prefixes(namespace)


def rule(destination: str, port: int = 80, protocol: str = "tcp", **options: str) -> Rule:
    source = options.pop("source", None)
    key = RuleKey(
        Prefix.parse(destination),
        protocol,
        port,
        source=Prefix.parse(source) if source else None,
        **options,
    )
    return Rule(key)


def references() -> dict[str, int]:
    """How many rules hold each route, and those that none does."""
    with Tables(is_writer=False) as tables:
        return {
            key[:16].hex(): int.from_bytes(value[:4], "little")
            for key, value in tables.map("routes").items()
        }


@every_destination
def test_a_rule_with_route_makes_its_destination_local_until_it_is_deleted(
    gateway: Namespace, destination: str
) -> None:
    firewall = Firewall()
    inserted = firewall.insert(rule(destination), route=True)
    assert inserted.is_newly_routed
    assert inserted.warnings() == []
    assert is_local(gateway, destination)
    assert firewall.rules()[0].is_routed
    address = Prefix.parse(destination).address_text
    chosen = gateway.run("ip", "-json", "route", "get", address).stdout
    assert json.loads(chosen)[0]["type"] == "local"
    firewall.delete(rule(destination).key)
    assert not is_local(gateway, destination)
    assert references() == {}


@every_destination
def test_without_route_nothing_is_made_local(gateway: Namespace, destination: str) -> None:
    start = local_prefixes(gateway)
    Firewall().insert(rule(destination))
    assert local_prefixes(gateway) == start
    assert not Firewall().rules()[0].is_routed


@every_destination
def test_rules_that_share_a_destination_share_the_route(
    gateway: Namespace, destination: str
) -> None:
    firewall = Firewall()
    any_source = "10.0.0.0/8" if "." in destination else "fd00::/8"
    rules = [
        rule(destination, 80),
        rule(destination, 443),
        rule(destination, 80, "udp"),
        rule(destination, 80, source=any_source),
    ]
    for each in rules:
        firewall.insert(each, route=True)
    assert list(references().values()) == [4]
    for each in rules[1:]:
        firewall.delete(each.key)
        assert is_local(gateway, destination)
    firewall.delete(rules[0].key)
    assert not is_local(gateway, destination)
    assert references() == {}


@every_destination
def test_a_rule_that_is_changed_holds_its_route_once(gateway: Namespace, destination: str) -> None:
    firewall = Firewall()
    for _ in range(3):
        firewall.insert(rule(destination), route=True)
    assert list(references().values()) == [1]
    # Without --route it keeps what it holds; with it, it begins to hold.
    firewall.insert(rule(destination))
    assert is_local(gateway, destination)
    firewall.delete(rule(destination).key)
    assert not is_local(gateway, destination)
    firewall.insert(rule(destination))
    assert firewall.insert(rule(destination), route=True).is_newly_routed
    assert is_local(gateway, destination)


@every_destination
def test_what_was_local_before_stays(gateway: Namespace, destination: str) -> None:
    """The router's own addresses, or the administrator's."""
    if "." in destination:
        gateway.run("ip", "address", "add", destination, "dev", "lo", "scope", "host")
    else:
        gateway.run("ip", "-6", "route", "add", "local", destination, "dev", "lo")
    firewall = Firewall()
    firewall.insert(rule(destination), route=True)
    firewall.delete(rule(destination).key)
    assert is_local(gateway, destination)
    firewall.insert(rule(destination), route=True)
    firewall.flush()
    assert is_local(gateway, destination)
    assert references() == {}


@every_destination
def test_what_somebody_else_has_removed_is_no_error(gateway: Namespace, destination: str) -> None:
    """As a router does that removes a prefix which another service still uses."""
    firewall = Firewall()
    firewall.insert(rule(destination), route=True)
    if "." in destination:
        gateway.run("ip", "address", "del", destination, "dev", "lo")
    else:
        gateway.run("ip", "-6", "route", "del", "local", destination, "dev", "lo")
    firewall.delete(rule(destination).key)
    assert references() == {}


@every_destination
def test_delete_without_route_leaves_it_in_place_and_flush_takes_it(
    gateway: Namespace, destination: str
) -> None:
    firewall = Firewall()
    firewall.insert(rule(destination), route=True)
    firewall.delete(rule(destination).key, route=False)
    assert is_local(gateway, destination)
    # A rule that needs it again finds it, and it is still ours to remove.
    firewall.insert(rule(destination), route=True)
    firewall.delete(rule(destination).key)
    assert not is_local(gateway, destination)
    firewall.insert(rule(destination), route=True)
    firewall.delete(rule(destination).key, route=False)
    firewall.flush("ingress")
    assert not is_local(gateway, destination)
    assert references() == {}


@every_destination
@pytest.mark.parametrize("direction", [None, "ingress"])
def test_flush_with_and_without_routes(
    gateway: Namespace, destination: str, direction: str | None
) -> None:
    firewall = Firewall()
    firewall.insert(rule(destination), route=True)
    firewall.insert(rule(destination, 443), route=True)
    assert firewall.flush(direction, routes=False) == 2
    assert is_local(gateway, destination)
    assert firewall.flush(direction, routes=True) == 0
    assert not is_local(gateway, destination)
    assert references() == {}


def test_flush_of_one_direction_keeps_the_other_s_routes(gateway: Namespace) -> None:
    firewall = Firewall()
    firewall.insert(rule("172.31.9.9/32"), route=True)
    firewall.insert(rule("172.31.9.9/32", direction="egress"), route=True)
    firewall.insert(rule("172.31.9.8/32", direction="egress"), route=True)
    firewall.flush("ingress")
    assert is_local(gateway, "172.31.9.9/32")
    assert is_local(gateway, "172.31.9.8/32")
    firewall.flush("egress")
    assert not is_local(gateway, "172.31.9.9/32")
    assert not is_local(gateway, "172.31.9.8/32")


def test_flush_removes_no_prefix_that_it_did_not_add(gateway: Namespace) -> None:
    """Not those of rules without --route either: PEERS, defect 24."""
    gateway.run("ip", "address", "add", "172.31.9.9/32", "dev", "lo", "scope", "host")
    Firewall().insert(rule("172.31.9.9/32"))
    Firewall().flush()
    assert is_local(gateway, "172.31.9.9/32")


@pytest.mark.parametrize(
    "destination",
    ["10.9.0.0/24", "10.9.0.7/32", "10.9.0.0/16", "0.0.0.0/0", "fd09::/64", "fd09::7/128", "::/0"],
)
def test_a_subnet_of_an_interface_is_not_made_local(gateway: Namespace, destination: str) -> None:
    """It would be cut off from its neighbours. The rule is made, and the warning says why."""
    start = local_prefixes(gateway)
    inserted = Firewall().insert(rule(destination), route=True)
    (warning,) = inserted.warnings()
    assert destination in warning
    assert ("10.9.0.0/24" if "." in destination else "fd09::/64") in warning
    assert not inserted.is_newly_routed
    assert local_prefixes(gateway) == start
    assert references() == {}
    Firewall().delete(rule(destination).key)
    assert local_prefixes(gateway) == start


def test_removing_a_secondary_address_removes_no_other(gateway: Namespace) -> None:
    """10.19.1.0/24 and 10.19.0.0/16 on lo; the kernel takes away secondaries with their primary."""
    firewall = Firewall()
    for destination in ("10.19.0.0/16", "10.19.0.0/24", "10.19.0.0/32", "10.19.0.1/32"):
        firewall.insert(rule(destination), route=True)
    firewall.delete(rule("10.19.0.0/16").key)
    assert not is_local(gateway, "10.19.0.0/16")
    for destination in ("10.19.0.0/24", "10.19.0.0/32", "10.19.0.1/32"):
        assert is_local(gateway, destination), destination


def test_detach_all_removes_what_it_made_and_nothing_else(
    namespace: Namespace,
) -> None:
    namespace.run("ip", "address", "add", "172.31.9.1/32", "dev", "lo", "scope", "host")
    start = local_prefixes(namespace)
    firewall = Firewall()
    firewall.attach("lo")
    for destination in ("172.31.9.1/32", *DESTINATIONS):
        firewall.insert(rule(destination), route=True)
    firewall.insert(rule("172.31.9.4/32"), route=True)
    firewall.delete(rule("172.31.9.4/32").key, route=False)
    firewall.detach_all()
    assert local_prefixes(namespace) == start


# Failing and killed


def test_a_batch_that_cannot_be_done_makes_nothing_local(gateway: Namespace) -> None:
    start = local_prefixes(gateway)
    edits = [Insert(rule("172.31.9.9/32"), route=True), Delete(rule("172.31.9.8/32").key)]
    with pytest.raises(RuleNotFound):
        Firewall().apply(edits)
    assert local_prefixes(gateway) == start
    assert references() == {}


@pytest.mark.parametrize("failing", [0, 1, 2])
def test_a_route_that_cannot_be_made_takes_the_batch_back(
    gateway: Namespace, monkeypatch: pytest.MonkeyPatch, failing: int
) -> None:
    start = local_prefixes(gateway)
    calls = []

    def add_local(*arguments: object) -> bool:
        calls.append(arguments)
        if len(calls) == failing + 1:
            raise KernelError("make it local", 12)
        return original(*arguments)

    original = netlink.add_local
    edits = [Insert(rule(f"172.31.9.{i}/32"), route=True) for i in range(3)]
    with monkeypatch.context() as patched:
        patched.setattr(netlink, "add_local", add_local)
        with pytest.raises(KernelError):
            Firewall().apply(edits)
    assert Firewall().rules() == []
    assert local_prefixes(gateway) == start
    assert references() == {}


def test_an_insert_that_fails_holds_no_route(
    gateway: Namespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The address is there before the rule is; without the rule it goes."""
    start = local_prefixes(gateway)

    def update_many(self: bpf.Map, keys: list[bytes], values: list[bytes]) -> None:
        raise OSError(7, "Argument list too long")

    with monkeypatch.context() as patched:
        patched.setattr(bpf.Map, "update_many", update_many)
        with pytest.raises(Exception, match="172\\.31\\.9\\.9"):
            Firewall().insert(rule("172.31.9.9/32"), route=True)
    assert Firewall().rules() == []
    assert local_prefixes(gateway) == start
    assert references() == {}


def killed_before(
    monkeypatch: pytest.MonkeyPatch, number: int, action: Callable[[], object]
) -> bool:
    """Whether a child was killed before its n-th write of a map, address or route."""
    child = os.fork()
    if child == 0:
        left = number

        def counted(original: Callable[..., object]) -> Callable[..., object]:
            def call(*arguments: object) -> object:
                nonlocal left
                if left == 0:
                    os._exit(9)
                left -= 1
                return original(*arguments)

            return call

        try:
            for name in ("update", "delete", "update_many", "delete_many"):
                monkeypatch.setattr(bpf.Map, name, counted(getattr(bpf.Map, name)))
            for name in ("add_local", "remove_local"):
                monkeypatch.setattr(netlink, name, counted(getattr(netlink, name)))
            action()
            os._exit(0)
        finally:
            os._exit(1)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert code in (0, 9)
    return code == 9


ROUTED = rule("172.31.9.9/32")


@pytest.mark.parametrize("verb", ["insert", "delete", "flush"])
def test_a_kill_leaves_no_route_that_nobody_would_remove(
    gateway: Namespace, monkeypatch: pytest.MonkeyPatch, verb: str
) -> None:
    """After the next edit, rules and routes agree again; without rules, no route is left."""
    firewall = Firewall()
    actions: dict[str, Callable[[], object]] = {
        "insert": lambda: firewall.insert(ROUTED, route=True),
        "delete": lambda: firewall.delete(ROUTED.key),
        "flush": lambda: firewall.flush("ingress"),
    }
    for number in range(100):
        if verb != "insert":
            firewall.insert(ROUTED, route=True)
        is_killed = killed_before(monkeypatch, number, actions[verb])
        # The next edit settles it.
        firewall.insert(rule("203.0.113.1"))
        firewall.delete(rule("203.0.113.1").key)
        is_there = bool(firewall.rules())
        if is_there:
            assert is_local(gateway, "172.31.9.9/32") or not firewall.rules()[0].is_routed
            firewall.delete(ROUTED.key)
        assert not is_local(gateway, "172.31.9.9/32"), f"{verb} killed before write {number}"
        assert references() == {}
        if not is_killed:
            return
    raise AssertionError("it never ends")


# The classic command


def test_the_classic_command_binds_and_unbinds(gateway: Namespace) -> None:
    zfw = CommandLine(gateway)
    key = ("-c", "172.31.9.9", "-m", "32", "-p", "tcp", "-l", "80")
    made = zfw("-I", *key, "-h", "80", "-t", "0", "-r")
    assert made.returncode == 0
    assert is_local(gateway, "172.31.9.9/32")
    assert zfw("-D", *key, "-r").returncode == 0
    assert not is_local(gateway, "172.31.9.9/32")


def test_the_classic_delete_and_flush_without_r_leave_it_until_one_with_r(
    gateway: Namespace,
) -> None:
    zfw = CommandLine(gateway)
    for number, leaving in ((8, ("-D",)), (9, ("-F", "-z", "ingress"))):
        key = ("-c", f"172.31.9.{number}", "-m", "32", "-p", "tcp", "-l", "80")
        assert zfw("-I", *key, "-h", "80", "-t", "0", "-r").returncode == 0
        assert zfw(*leaving, *(key if leaving == ("-D",) else ())).returncode == 0
        assert is_local(gateway, f"172.31.9.{number}/32")
    assert zfw("-F", "-z", "ingress", "-r").returncode == 0
    assert not is_local(gateway, "172.31.9.8/32")
    assert not is_local(gateway, "172.31.9.9/32")


def test_the_classic_insert_warns_of_a_subnet_on_stderr_and_is_done(gateway: Namespace) -> None:
    zfw = CommandLine(gateway)
    key = ("-c", "10.9.0.7", "-m", "32", "-p", "tcp", "-l", "80")
    made = zfw("-I", *key, "-h", "80", "-t", "0", "-r")
    assert made.returncode == 0
    assert "10.9.0.0/24" in made.stderr
    assert len(made.stderr.splitlines()) == 1
    assert len(Firewall().rules()) == 1
