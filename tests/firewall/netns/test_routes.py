# SPDX-License-Identifier: GPL-2.0-only
"""``--route`` and ``bind``: a prefix is local for as long as it is needed, and no other is."""

from __future__ import annotations

import json
import socket
from typing import TYPE_CHECKING

import pytest

from tests.compat.support.fake_router import CommandLine
from tests.firewall.support.faults import WRITES, die, is_killed
from tests.support.netns import Namespace
from zfw_py import (
    Conflict,
    Delete,
    Firewall,
    Insert,
    KernelError,
    NotFound,
    Prefix,
    Rule,
    RuleKey,
    RuleNotFound,
)
from zfw_py.firewall.maps import Maps
from zfw_py.kernel import bpf_maps, local_delivery

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

pytestmark = pytest.mark.kernel

# Of an address and a prefix of each family.
DESTINATIONS = ["172.31.9.9/32", "172.30.0.0/16", "fd31::9/128", "fd30::/32"]
every_destination = pytest.mark.parametrize("destination", DESTINATIONS)
# Made local by an address, and by a route.
either_way = pytest.mark.parametrize("destination", ["172.31.9.9/32", "fd31::9/128", "fd30::/32"])


@pytest.fixture(scope="module")
def _gateway(_private_bpffs: None) -> Iterator[Namespace]:
    """A namespace with an interface of two subnets, and a firewall on it."""
    with Namespace() as made, made.entered():
        made.add_veth("gw0", "gw1")
        made.set_up("gw0", "10.9.0.1/24", "fd09::1/64")
        Firewall().attach("gw0", "ingress")
        yield made
        Firewall().detach_all()


@pytest.fixture
def gateway(_gateway: Namespace) -> Iterator[Namespace]:
    """The test is there; nothing is local that was not at the start."""
    with _gateway.entered():
        start = local_prefixes(_gateway)
        yield _gateway
        Firewall().flush()
        with Maps(is_writer=True) as maps:
            left = [key for key, _ in maps.map("routes").items()]
            for key in left:
                maps.map("routes").delete(key)
        for prefix in local_prefixes(_gateway) - start:
            change_lo(_gateway, "del", prefix)


def local_prefixes(namespace: Namespace) -> set[str]:
    """Addresses of lo, and IPv6 prefixes that are local through it."""
    shown = json.loads(namespace.run("ip", "-json", "address", "show", "dev", "lo").stdout)
    found = {f"{info['local']}/{info['prefixlen']}" for link in shown for info in link["addr_info"]}
    routes = namespace.run(
        "ip", "-json", "-6", "route", "show", "table", "local", "type", "local", "dev", "lo"
    )
    for route in json.loads(routes.stdout or "[]"):
        # What an address of an interface brings, the kernel has put there.
        if route.get("protocol") != "kernel":
            found.add(str(Prefix.parse(route["dst"])))
    return found


def change_lo(namespace: Namespace, verb: str, prefix: str) -> None:
    """Make a prefix local as an administrator does, or no longer so."""
    if ":" in prefix and not prefix.endswith("/128"):
        namespace.run("ip", "-6", "route", verb, "local", prefix, "dev", "lo")
    else:
        scope = () if ":" in prefix or verb == "del" else ("scope", "host")
        namespace.run("ip", "address", verb, prefix, "dev", "lo", *scope)


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
    """How many rules hold each prefix, and those that none does."""
    with Maps(is_writer=False) as maps:
        return {
            key[:16].hex(): int.from_bytes(value[:4], "little")
            for key, value in maps.map("routes").items()
        }


@every_destination
def test_a_rule_with_route_makes_its_destination_local_until_it_is_deleted(
    gateway: Namespace, destination: str
) -> None:
    firewall = Firewall()
    inserted = firewall.insert(rule(destination), route=True)
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
    assert not firewall.rules()[0].is_routed
    firewall.insert(rule(destination), route=True)
    assert firewall.rules()[0].is_routed
    assert list(references().values()) == [1]
    assert is_local(gateway, destination)


@every_destination
def test_what_was_local_before_stays(gateway: Namespace, destination: str) -> None:
    """The router's own addresses, or the administrator's."""
    change_lo(gateway, "add", destination)
    firewall = Firewall()
    firewall.insert(rule(destination), route=True)
    firewall.delete(rule(destination).key)
    assert is_local(gateway, destination)
    firewall.insert(rule(destination), route=True)
    firewall.flush()
    assert is_local(gateway, destination)
    assert references() == {}


def test_an_address_that_a_route_made_local_before_stays_so(gateway: Namespace) -> None:
    """The administrator's route and our address are side by side, and ours goes alone."""
    route = ("local", "fd31::9/128", "dev", "lo", "proto", "static")
    gateway.run("ip", "-6", "route", "add", *route)
    for come, go in (
        (
            lambda: Firewall().insert(rule("fd31::9/128"), route=True),
            lambda: Firewall().delete(rule("fd31::9/128").key),
        ),
        (
            lambda: Firewall().bind(Prefix.parse("fd31::9")),
            lambda: Firewall().unbind(Prefix.parse("fd31::9")),
        ),
    ):
        come()
        go()
        chosen = gateway.run("ip", "-json", "route", "get", "fd31::9").stdout
        assert json.loads(chosen)[0]["type"] == "local"
    gateway.run("ip", "-6", "route", "del", *route)


@every_destination
def test_what_somebody_else_has_removed_is_no_error(gateway: Namespace, destination: str) -> None:
    """As a router does that removes a prefix which another service still uses."""
    firewall = Firewall()
    firewall.insert(rule(destination), route=True)
    change_lo(gateway, "del", destination)
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
    assert not Firewall().rules()[0].is_routed
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
    firewall.attach("lo", "ingress")
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

    original = local_delivery.add_local
    edits = [Insert(rule(f"172.31.9.{i}/32"), route=True) for i in range(3)]
    with monkeypatch.context() as patched:
        patched.setattr(local_delivery, "add_local", add_local)
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

    def update_many(self: bpf_maps.Map, keys: list[bytes], values: list[bytes]) -> None:
        raise OSError(7, "Argument list too long")

    with monkeypatch.context() as patched:
        patched.setattr(bpf_maps.Map, "update_many", update_many)
        with pytest.raises(Exception, match="172\\.31\\.9\\.9"):
            Firewall().insert(rule("172.31.9.9/32"), route=True)
    assert Firewall().rules() == []
    assert local_prefixes(gateway) == start
    assert references() == {}


def test_a_delete_whose_route_cannot_be_removed_changes_nothing(
    gateway: Namespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = rule("172.31.9.8/32"), rule("172.31.9.9/32")
    Firewall().apply([Insert(first, route=True), Insert(second, route=True)])
    before = references()
    removed: list[object] = []

    def remove_local(*arguments: object) -> None:
        if removed:
            raise KernelError("remove it", 12)
        removed.append(arguments)
        original(*arguments)

    original = local_delivery.remove_local
    with monkeypatch.context() as patched:
        patched.setattr(local_delivery, "remove_local", remove_local)
        with pytest.raises(KernelError):
            Firewall().apply([Delete(first.key), Delete(second.key)])
    assert removed
    assert [(each.key, each.is_routed) for each in Firewall().rules()] == [
        (first.key, True),
        (second.key, True),
    ]
    assert references() == before
    assert is_local(gateway, "172.31.9.8/32")
    assert is_local(gateway, "172.31.9.9/32")
    with Maps(is_writer=False) as maps:
        assert maps.state().in_progress == 0
    Firewall().apply([Delete(first.key), Delete(second.key)])
    assert references() == {}
    assert not is_local(gateway, "172.31.9.8/32")


def killed_before(
    monkeypatch: pytest.MonkeyPatch, number: int, action: Callable[[], object]
) -> bool:
    """Whether a child was killed before its n-th write of a map, address or route."""

    def act() -> None:
        left = number

        def counted(original: Callable[..., object]) -> Callable[..., object]:
            def call(*arguments: object) -> object:
                nonlocal left
                if left == 0:
                    die()
                left -= 1
                return original(*arguments)

            return call

        for name in WRITES:
            monkeypatch.setattr(bpf_maps.Map, name, counted(getattr(bpf_maps.Map, name)))
        for name in ("is_ours", "add_local", "remove_local"):
            monkeypatch.setattr(local_delivery, name, counted(getattr(local_delivery, name)))
        action()

    return is_killed(act)


def settle(firewall: Firewall) -> None:
    """The next edit, whatever it is of, puts right what a writer that died has left."""
    firewall.insert(rule("203.0.113.1"))
    firewall.delete(rule("203.0.113.1").key)


@pytest.mark.parametrize("foreign", [False, True], ids=["ours", "foreign"])
@either_way
@pytest.mark.parametrize("verb", ["insert", "delete", "flush"])
def test_a_kill_leaves_no_route_that_nobody_would_remove_and_takes_no_other_s(
    gateway: Namespace,
    monkeypatch: pytest.MonkeyPatch,
    verb: str,
    destination: str,
    foreign: bool,
) -> None:
    """After the next edit, rules and routes agree again; without rules, ours is gone."""
    firewall = Firewall()
    routed = rule(destination)
    actions: dict[str, Callable[[], object]] = {
        "insert": lambda: firewall.insert(routed, route=True),
        "delete": lambda: firewall.delete(routed.key),
        "flush": lambda: firewall.flush("ingress"),
    }
    if foreign:
        change_lo(gateway, "add", destination)
    for number in range(100):
        if verb != "insert":
            firewall.insert(routed, route=True)
        is_killed = killed_before(monkeypatch, number, actions[verb])
        settle(firewall)
        if firewall.rules():
            assert is_local(gateway, destination) or not firewall.rules()[0].is_routed
            firewall.delete(routed.key)
        what = f"{verb} killed before write {number}"
        assert is_local(gateway, destination) == foreign, what
        assert references() == {}, what
        if not is_killed:
            assert number > 3, "nothing was written"
            return
    raise AssertionError("it never ends")


@every_destination
def test_what_somebody_else_makes_local_where_a_writer_died_stays(
    gateway: Namespace, monkeypatch: pytest.MonkeyPatch, destination: str
) -> None:
    """It was not there when the writer looked, and ours never was: the mark tells."""
    firewall = Firewall()
    for number in range(100):
        is_killed = killed_before(
            monkeypatch, number, lambda: firewall.insert(rule(destination), route=True)
        )
        assert is_killed, "never between the record and the address"
        if references() and not is_local(gateway, destination):
            break
        settle(firewall)
        firewall.flush()
    change_lo(gateway, "add", destination)
    settle(firewall)
    firewall.flush()
    assert is_local(gateway, destination)
    assert references() == {}


# Bound


@every_destination
def test_case_57_a_bound_prefix_is_local_until_it_was_unbound_as_often(
    gateway: Namespace, destination: str
) -> None:
    firewall, prefix = Firewall(), Prefix.parse(destination)
    assert [firewall.bind(prefix) for _ in range(3)] == [1, 2, 3]
    assert firewall.bound() == {prefix: 3}
    for left in (2, 1, 0):
        assert is_local(gateway, destination)
        assert firewall.unbind(prefix) == left
    assert not is_local(gateway, destination)
    assert firewall.bound() == {}
    with pytest.raises(NotFound, match="it is not bound"):
        firewall.unbind(prefix)
    assert references() == {}


@pytest.mark.parametrize("address", ["172.31.9.9/32", "fd31::9/128"])
def test_case_57_a_service_speaks_from_its_bound_address(gateway: Namespace, address: str) -> None:
    host = address.partition("/")[0]
    family = socket.AF_INET6 if ":" in host else socket.AF_INET

    def speak() -> None:
        with socket.socket(family, socket.SOCK_STREAM) as made:
            made.bind((host, 0))

    with pytest.raises(OSError, match="assign requested address"):
        speak()
    Firewall().bind(Prefix.parse(address))
    speak()
    Firewall().unbind_all()
    with pytest.raises(OSError, match="assign requested address"):
        speak()


def test_an_address_of_ipv6_is_not_looked_for_on_the_link_first(gateway: Namespace) -> None:
    """Nobody could bind it until that was over."""
    Firewall().bind(Prefix.parse("fd31::9/128"))
    shown = json.loads(gateway.run("ip", "-json", "address", "show", "dev", "lo").stdout)
    (ours,) = [each for each in shown[0]["addr_info"] if each["local"] == "fd31::9"]
    assert ours["nodad"] is True


@either_way
@pytest.mark.parametrize("is_made", [False, True], ids=["before", "after"])
def test_detach_all_takes_what_a_killed_writer_made_local_and_no_other_s(
    namespace: Namespace, monkeypatch: pytest.MonkeyPatch, destination: str, is_made: bool
) -> None:
    """Killed before or after it made it local, and no edit in between has put it right."""
    firewall = Firewall()
    firewall.attach("lo", "ingress")
    original = local_delivery.add_local

    def add_local(*arguments: object) -> None:
        if is_made:
            original(*arguments)
        die()

    def bind() -> None:
        monkeypatch.setattr(local_delivery, "add_local", add_local)
        firewall.bind(Prefix.parse(destination))

    assert is_killed(bind)
    assert is_local(namespace, destination) == is_made
    if not is_made:
        change_lo(namespace, "add", destination)
    firewall.detach_all()
    assert is_local(namespace, destination) != is_made


def test_a_bound_address_is_chosen_by_nobody_who_does_not_ask_for_it(gateway: Namespace) -> None:
    """IPv6 has no scope host: it is deprecated instead."""
    gateway.run("ip", "-6", "route", "add", "2001:db8::/32", "dev", "gw0")
    Firewall().bind(Prefix.parse("2001:db8::1"))
    chosen = json.loads(gateway.run("ip", "-json", "route", "get", "2001:db8::2").stdout)
    assert chosen[0]["prefsrc"] == "fd09::1"
    gateway.run("ip", "-6", "route", "del", "2001:db8::/32", "dev", "gw0")
    Firewall().unbind_all()


@every_destination
@pytest.mark.parametrize("first", ["rule", "bind"])
@pytest.mark.parametrize("last", ["rule", "bind"])
def test_a_rule_and_a_bind_of_one_prefix_do_not_take_it_from_each_other(
    gateway: Namespace, destination: str, first: str, last: str
) -> None:
    firewall, prefix = Firewall(), Prefix.parse(destination)
    come: dict[str, Callable[[], object]] = {
        "rule": lambda: firewall.insert(rule(destination), route=True),
        "bind": lambda: firewall.bind(prefix),
    }
    go: dict[str, Callable[[], object]] = {
        "rule": lambda: firewall.delete(rule(destination).key),
        "bind": lambda: firewall.unbind(prefix),
    }
    other = {"rule": "bind", "bind": "rule"}
    come[first]()
    come[other[first]]()
    assert is_local(gateway, destination)
    go[other[last]]()
    assert is_local(gateway, destination)
    go[last]()
    assert not is_local(gateway, destination)
    assert references() == {}


@every_destination
def test_unbinding_all_keeps_what_rules_need_and_flushing_what_is_bound(
    gateway: Namespace, destination: str
) -> None:
    firewall, prefix = Firewall(), Prefix.parse(destination)
    other = Prefix.parse("172.29.0.1")
    firewall.insert(rule(destination), route=True)
    for _ in range(2):
        firewall.bind(prefix)
    firewall.bind(other)
    assert firewall.unbind_all() == 2
    assert firewall.unbind_all() == 0
    assert is_local(gateway, destination)
    assert not is_local(gateway, str(other))
    assert len(firewall.rules()) == 1
    firewall.bind(prefix)
    for flush in (firewall.flush, lambda: firewall.flush("ingress")):
        flush()
        assert is_local(gateway, destination)
    assert firewall.bound() == {prefix: 1}
    firewall.unbind(prefix)
    assert not is_local(gateway, destination)
    assert references() == {}


@every_destination
def test_what_was_local_before_it_was_bound_stays(gateway: Namespace, destination: str) -> None:
    change_lo(gateway, "add", destination)
    firewall, prefix = Firewall(), Prefix.parse(destination)
    firewall.bind(prefix)
    firewall.unbind(prefix)
    assert is_local(gateway, destination)
    firewall.bind(prefix)
    firewall.unbind_all()
    assert is_local(gateway, destination)
    assert references() == {}


@pytest.mark.parametrize("prefix", ["10.9.0.0/24", "10.0.0.0/8", "0.0.0.0/0", "fd09::/64"])
def test_a_subnet_of_an_interface_cannot_be_bound_but_one_address_of_it_can(
    gateway: Namespace, prefix: str
) -> None:
    start = local_prefixes(gateway)
    with pytest.raises(Conflict, match=r"subnet (10\.9\.0\.0/24|fd09::/64)"):
        Firewall().bind(Prefix.parse(prefix))
    assert local_prefixes(gateway) == start
    assert references() == {}
    for address in ("10.9.0.7/32", "fd09::7/128"):
        Firewall().bind(Prefix.parse(address))
        assert is_local(gateway, address)
        Firewall().unbind(Prefix.parse(address))
    assert local_prefixes(gateway) == start


def test_what_the_kernel_does_not_take_is_not_bound(gateway: Namespace) -> None:
    with pytest.raises(KernelError, match=r"ff02::1/128"):
        Firewall().bind(Prefix.parse("ff02::1"))
    assert Firewall().bound() == {}
    assert Firewall().bind(Prefix.parse("172.31.9.9")) == 1


def test_many_bind_and_unbind_at_once_and_all_are_counted(gateway: Namespace) -> None:
    zfw = CommandLine(gateway)
    words = ("172.31.9.9", "-m", "32")
    for flag in ("-B", "-J"):
        running = [zfw.start(flag, *words) for _ in range(16)]
        assert [process.communicate()[1] for process in running] == [""] * 16
        assert {process.returncode for process in running} == {0}
        expected = {Prefix.parse("172.31.9.9"): 16} if flag == "-B" else {}
        assert Firewall().bound() == expected
    assert not is_local(gateway, "172.31.9.9/32")


@pytest.mark.parametrize("foreign", [False, True], ids=["ours", "foreign"])
@either_way
@pytest.mark.parametrize(
    "verb", ["bind", "bind again", "unbind", "unbind one of two", "unbind all"]
)
@pytest.mark.parametrize("routed", [False, True], ids=["unrouted", "routed"])
def test_case_57_a_kill_leaves_every_bind_whole_or_undone(
    gateway: Namespace,
    monkeypatch: pytest.MonkeyPatch,
    verb: str,
    destination: str,
    foreign: bool,
    routed: bool,
) -> None:
    """What is bound is local after the next edit, what is not is not, and no foreign one goes."""
    firewall, prefix = Firewall(), Prefix.parse(destination)
    actions: dict[str, Callable[[], object]] = {
        "bind": lambda: firewall.bind(prefix),
        "bind again": lambda: firewall.bind(prefix),
        "unbind": lambda: firewall.unbind(prefix),
        "unbind one of two": lambda: firewall.unbind(prefix),
        "unbind all": firewall.unbind_all,
    }
    before = {"bind": 0, "unbind one of two": 2}.get(verb, 1)
    after = {"bind": 1, "bind again": 2, "unbind one of two": 1}.get(verb, 0)
    if foreign:
        change_lo(gateway, "add", destination)
    if routed:
        firewall.insert(rule(destination), route=True)
    for number in range(100):
        for _ in range(before):
            firewall.bind(prefix)
        is_killed = killed_before(monkeypatch, number, actions[verb])
        settle(firewall)
        what = f"{verb} killed before write {number}"
        count = firewall.bound().get(prefix, 0)
        assert count in (before, after), what
        assert is_killed or count == after
        assert is_local(gateway, destination) == (foreign or routed or count > 0), what
        firewall.unbind_all()
        assert is_local(gateway, destination) == (foreign or routed), what
        if not is_killed:
            break
    else:
        raise AssertionError("it never ends")
    if routed:
        firewall.delete(rule(destination).key)
    assert is_local(gateway, destination) == foreign
    assert references() == {}


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
