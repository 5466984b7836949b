# SPDX-License-Identifier: GPL-2.0-only
"""What changes in the system while no command is typed: the follower keeps the firewall right.

Without one, nothing is open in silence: the status says what differs, and exits with 21.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import time
from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest

from tests.firewall.support.attached import attached, use_object
from tests.firewall.support.faults import is_killed_at
from tests.firewall.support.following import SOON, Follower, connects, listener
from tests.support.killed import killed_at
from tests.support.netns import Namespace
from tests.support.waiting import wait_until
from zfw_py import Firewall, Prefix, Rule, RuleKey
from zfw_py.cli.app import main
from zfw_py.firewall.document import AttachmentEntry, Document, Settings
from zfw_py.firewall.interfaces import Interfaces
from zfw_py.firewall.maps import Maps
from zfw_py.kernel.own_netns import netns_cookie
from zfw_py.systemd.firewall import CAPABILITIES

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.support.netns import Network

pytestmark = pytest.mark.kernel

# A bridge without ports stands for a device of any type: every kernel has it.
WEB = 80
MODES = ["tcx", "clsact"]


@pytest.fixture
def follower(network: Network) -> Iterator[Follower]:
    with Follower(network.gateway) as made:
        yield made


@pytest.fixture
def servers(network: Network) -> Iterator[None]:
    """Of the gateway: SSH, which the firewall passes, and another one, which it does not."""
    with listener(), listener(port=WEB):
        yield


def status(capsys: pytest.CaptureFixture[str]) -> tuple[int, list[str]]:
    """The exit code of the status, and its differences."""
    capsys.readouterr()
    code = main(["status"])
    lines = capsys.readouterr().err.splitlines()
    assert code == (21 if lines else 0)
    return code, [line.removeprefix("zfw: warning: ") for line in lines]


def is_attached(name: str, *directions: str) -> bool:
    def there() -> bool:
        try:
            return {each for each, _, _ in attached(name)} >= {*(directions or ("ingress",))}
        except (AssertionError, OSError):
            return False

    return wait_until(there, SOON)


def is_filtered(network: Network, address: str) -> bool:
    """SSH to an address passes soon, and nothing else does."""
    return connects(network.client, address) and not connects(
        network.client, address, WEB, patience=0.2
    )


# Addresses


@pytest.mark.usefixtures("servers")
def test_ssh_passes_to_an_address_that_comes_after_the_restore(
    network: Network, follower: Follower
) -> None:
    """As at boot: the firewall is restored before the network is up."""
    network.gateway.ip("address flush dev gw0")
    Firewall().restore(Document(version=1, attachments=(AttachmentEntry(interface="gw0"),)))
    network.gateway.ip("address add 10.9.0.1/24 dev gw0")
    assert is_filtered(network, "10.9.0.1")


@pytest.mark.usefixtures("servers")
def test_ssh_passes_to_an_address_that_came_before_the_follower(network: Network) -> None:
    network.gateway.ip("address flush dev gw0")
    Firewall().attach("gw0", "ingress")
    network.gateway.ip("address add 10.9.0.1/24 dev gw0")
    with Follower(network.gateway):
        assert is_filtered(network, "10.9.0.1")


@pytest.mark.usefixtures("servers")
def test_ssh_passes_to_a_new_lease_and_to_an_ipv6_address_of_slaac(
    network: Network, follower: Follower
) -> None:
    Firewall().attach("gw0", "ingress")
    Firewall().set(["gw0"], "ipv6", True)
    network.gateway.ip(
        "address del 10.9.0.1/24 dev gw0",
        "address add 10.9.0.77/24 dev gw0",
        "address add fd09::1234/64 dev gw0 nodad valid_lft 600 preferred_lft 300",
    )
    for address in ("10.9.0.77", "fd09::1234"):
        assert is_filtered(network, address)
    network.gateway.ip("address del fd09::1234/64 dev gw0", "address add fd09::1234/64 dev lo")
    assert wait_until(lambda: not connects(network.client, "fd09::1234", patience=0.1), SOON), (
        "it is no address of the interface any more"
    )


def test_without_a_follower_the_status_says_that_addresses_are_stale(
    network: Network, capsys: pytest.CaptureFixture[str]
) -> None:
    Firewall().attach("gw0", "ingress")
    assert status(capsys) == (0, [])
    network.gateway.ip("address add 10.9.0.77/24 dev gw0")
    stale = "gw0: its addresses are out of date: zfw follow --once"
    assert status(capsys) == (21, [stale])
    main(["status", "--json"])
    assert json.loads(capsys.readouterr().out)["differences"] == [
        {
            "interface": "gw0",
            "what": "its addresses are out of date",
            "command": "zfw follow --once",
        }
    ]
    assert main(["follow", "--once"]) == 0
    assert status(capsys) == (0, [])


# Devices


@pytest.mark.parametrize("mode", MODES)
def test_a_device_that_is_made_anew_under_its_name_is_attached_again(
    namespace: Namespace, mode: str
) -> None:
    """As ppp0 each night, and wg0 and tun0 when they reconnect."""
    namespace.ip("link add ppp0 type bridge")
    Firewall().attach("ppp0", "both", mode)
    with Follower(namespace):
        for _ in range(3):
            namespace.ip("link del ppp0", "link add ppp0 type bridge")
            assert is_attached("ppp0", "ingress", "egress")
            assert {each for _, each, _ in attached("ppp0")} == {mode}


def test_a_tun_device_is_attached_at_each_start_of_its_program(namespace: Namespace) -> None:
    fd = namespace.open_tun("tun0")
    Firewall().attach("tun0", "ingress")
    os.close(fd)
    with Follower(namespace):
        fd = namespace.open_tun("tun0")
        assert is_attached("tun0")
        os.close(fd)


def test_without_a_follower_a_device_made_anew_is_not_open_in_silence(
    namespace: Namespace, capsys: pytest.CaptureFixture[str]
) -> None:
    namespace.ip("link add ppp0 type bridge")
    Firewall().attach("ppp0", "both", "clsact")
    namespace.ip("link del ppp0")
    assert status(capsys) == (
        21,
        [
            "ppp0: there is no such interface, and no zfw follow runs that attaches it later;"
            " if it shall not be attached: zfw detach ppp0"
        ],
    )
    namespace.ip("link add ppp0 type bridge")
    code, lines = status(capsys)
    assert code == 21
    assert lines == ["ppp0: ingress and egress are not attached: zfw attach ppp0 --mode clsact"]
    saved = Firewall().save()
    assert [(each.interface, each.direction) for each in saved.attachments] == [
        ("ppp0", "egress"),
        ("ppp0", "ingress"),
    ]
    Firewall().detach("ppp0", "egress")
    lines = ["ppp0: ingress is not attached: zfw attach ppp0 --direction ingress --mode clsact"]
    assert status(capsys) == (21, lines)
    assert main(["attach", "ppp0", "--mode", "clsact"]) == 0
    assert status(capsys) == (0, [])


def test_a_followed_device_may_be_absent(
    namespace: Namespace, capsys: pytest.CaptureFixture[str]
) -> None:
    """As ppp0 or wg0 while the connection is down: nothing is to be done, so the code is 0."""

    def install() -> None:
        attachments = tuple(AttachmentEntry(interface=name) for name in ("lo", "ppp0", "wg0"))
        Firewall().restore(Document(version=1, attachments=attachments))

    with Follower(namespace):
        install()
        assert status(capsys) == (0, [])
        main(["status"])
        assert "interfaces that do not exist: ppp0, wg0\n" in capsys.readouterr().out
        namespace.ip("link add ppp0 type bridge")
        assert is_attached("ppp0")
        assert status(capsys) == (0, [])
        assert Firewall().status().absent == ["wg0"]
        Firewall().detach_all()
        install()
        assert status(capsys) == (0, [])
    assert not Firewall().status().is_followed
    code, lines = status(capsys)
    assert (code, len(lines)) == (21, 1)
    assert lines[0].startswith("wg0: there is no such interface, and no zfw follow runs")


def test_what_was_detached_is_not_attached_again(namespace: Namespace) -> None:
    namespace.ip("link add ppp0 type bridge", "link add ppp1 type bridge")
    for name in ("ppp0", "ppp1"):
        Firewall().attach(name, "both")
    namespace.ip("link del ppp0")
    Firewall().detach("ppp0")
    Firewall().detach("ppp1", "egress")
    assert Firewall().save().attachments == (AttachmentEntry(interface="ppp1", mode="tcx"),)
    with Follower(namespace):
        namespace.ip("link del ppp1")
        namespace.ip("link add ppp0 type bridge", "link add ppp1 type bridge")
        assert is_attached("ppp1")
        assert [each for each, _, _ in attached("ppp1")] == ["ingress"]
        assert attached("ppp0") == []


def test_the_follower_attaches_what_a_restore_did_not_find(namespace: Namespace) -> None:
    """Devices may come at any time after the boot, or never."""
    document = Document(
        version=1,
        settings={"late0": Settings(ipv6=True)},
        attachments=(
            AttachmentEntry(interface="late0"),
            AttachmentEntry(interface="late0", direction="egress", mode="clsact"),
            AttachmentEntry(interface="never0"),
        ),
    )
    with Follower(namespace):
        assert Firewall().restore(document).missing == ["late0", "never0"]
        namespace.ip("link add late0 type bridge")
        assert is_attached("late0", "ingress", "egress")
        assert [(each, mode) for each, mode, _ in attached("late0")] == [
            ("ingress", "tcx"),
            ("egress", "clsact"),
        ]
        (late,) = Firewall().status().interfaces
        assert late.settings["ipv6"]
    assert {(e.interface, e.direction) for e in Firewall().save().attachments} == {
        (e.interface, e.direction) for e in document.attachments
    }
    Firewall().restore(Document(version=1))
    assert Firewall().save().attachments == ()


@pytest.mark.usefixtures("servers")
def test_a_renamed_interface_stays_filtered_and_keeps_what_its_name_had(
    network: Network, follower: Follower, capsys: pytest.CaptureFixture[str]
) -> None:
    Firewall().attach("gw0", "ingress")
    Firewall().set(["gw0"], "ipv6", True)
    Firewall().set(["gw0"], "per_interface_rules", True)
    Firewall().insert(Rule(RuleKey(Prefix.parse("fd09::/64"), "tcp", WEB), interfaces=("gw0",)))
    network.gateway.ip("link set gw0 down", "link set gw0 name wan0", "link set wan0 up")
    network.gateway.ip(
        "address replace fd09::9/64 dev wan0 nodad", "address add 10.9.0.9/24 dev wan0"
    )
    assert is_filtered(network, "10.9.0.9")
    for port in (22, WEB):
        assert connects(network.client, "fd09::9", port)
    assert status(capsys) == (0, [])
    saved = Firewall().save()
    assert [each.interface for each in saved.attachments] == ["wan0"]
    assert saved.settings == {"wan0": Settings(ipv6=True, per_interface_rules=True)}
    assert saved.rules[0].interfaces == ("wan0",)
    # A command that gives the new name changes what is in force.
    assert main(["set", "wan0", "--ssh", "off"]) == 0
    assert not connects(network.client, "10.9.0.9", patience=0.2)
    assert Firewall().save().settings["wan0"] == Settings(
        ipv6=True, per_interface_rules=True, ssh=False
    )
    assert main(["detach", "wan0"]) == 0
    assert Firewall().save().attachments == ()


def test_swapped_names_have_what_belongs_to_the_name(
    namespace: Namespace, capsys: pytest.CaptureFixture[str]
) -> None:
    """At whatever moment the follower looks: neither device is ever without a program."""
    namespace.ip("link add a0 type bridge", "link add b0 type bridge")
    Firewall().attach("a0", "ingress")
    Firewall().attach("b0", "ingress")
    Firewall().set(["a0"], "icmp_echo", True)
    with Follower(namespace):
        for _ in range(3):
            indexes = socket.if_nametoindex("a0"), socket.if_nametoindex("b0")
            for step in ("a0 name t0", "b0 name a0", "t0 name b0"):
                namespace.ip(f"link set {step}")
                time.sleep(0.1)
            assert (socket.if_nametoindex("b0"), socket.if_nametoindex("a0")) == indexes
            assert wait_until(lambda: status(capsys) == (0, []), SOON)
            found = {each.name: each for each in Firewall().status().interfaces}
            assert found.keys() == {"a0", "b0"}
            assert found["a0"].settings["icmp_echo"]
            assert not found["b0"].settings["icmp_echo"]
            assert (found["b0"].ifindex, found["a0"].ifindex) == indexes
            assert len(attached("a0")) == len(attached("b0")) == 1


def test_a_new_device_with_the_old_name_is_filtered_and_the_renamed_one_stays_so(
    namespace: Namespace, capsys: pytest.CaptureFixture[str]
) -> None:
    namespace.ip("link add a0 type bridge")
    Firewall().attach("a0", "ingress")
    with Follower(namespace):
        namespace.ip("link set a0 name b0", "link add a0 type bridge")
        assert is_attached("a0")
        assert attached("b0")
    assert status(capsys) == (
        21,
        [
            "b0: ingress is attached, and not recorded as wanted; zfw detach b0 detaches it,"
            " and this records it: zfw attach b0 --direction ingress"
        ],
    )
    assert main(["attach", "b0"]) == 0
    assert status(capsys) == (0, [])


def test_clsact_that_another_program_removed_comes_back(namespace: Namespace) -> None:
    namespace.ip("link add d0 type bridge")
    Firewall().attach("d0", "both", "clsact")
    with Follower(namespace):
        namespace.run("tc", "qdisc", "del", "dev", "d0", "clsact")
        assert is_attached("d0", "ingress", "egress")


@pytest.mark.parametrize("how", ["lo down", "lo flushed"])
def test_a_prefix_of_route_that_another_program_removed_is_local_again(
    namespace: Namespace, capsys: pytest.CaptureFixture[str], how: str
) -> None:
    """As a network manager does when it starts again."""
    commands = ["address flush dev lo", "address add 127.0.0.1/8 dev lo"]
    if how == "lo down":
        commands = ["link set lo down", "link set lo up"]
    namespace.ip("link add d0 type bridge")
    Firewall().attach("d0")
    destinations = {"100.72.0.0/16": "100.72.9.9", "fd72::1/128": "fd72::1", "fd73::/64": "fd73::9"}
    for destination in destinations:
        key = RuleKey(Prefix.parse(destination), "tcp", 80)
        Firewall().insert(Rule(key, tproxy_port=43321), route=True)
    Firewall().bind(Prefix.parse("100.73.0.1"))

    def is_local() -> bool:
        found = [
            namespace.run("ip", "route", "get", to, check=False) for to in destinations.values()
        ]
        return all(each.stdout.startswith("local") for each in found)

    assert is_local()
    namespace.ip(*commands)
    found, lines = status(capsys)
    assert found == 21
    assert "lo: fd72::1/128 is not local any more: zfw follow --once" in lines
    with Follower(namespace) as follower:
        assert wait_until(lambda: is_local() and status(capsys) == (0, []), SOON)
        namespace.ip(*commands)
        assert wait_until(lambda: is_local() and status(capsys) == (0, []), SOON)
        follower.end()
    assert follower.output.count("made fd72::1/128 local again") == 2
    Firewall().detach_all()
    assert not is_local()


# Interfaces that are moved to another namespace, as into a container


@pytest.fixture
def elsewhere(_private_bpffs: None) -> Iterator[Namespace]:
    with Namespace() as made:
        yield made


def is_answered(client: Namespace, address: str) -> bool:
    """Whether an ICMP echo request is answered at once."""
    # Type 8, code 0, checksum, identifier and sequence number 1.
    request = bytes([8, 0, 0xF7, 0xFD, 0, 1, 0, 1])
    with client.entered(), socket.socket(socket.AF_INET, socket.SOCK_RAW, 1) as probe:
        probe.settimeout(0.2)
        probe.sendto(request, (address, 0))
        try:
            return probe.recv(100)[20] == 0
        except TimeoutError:
            return False


def move(network: Network, elsewhere: Namespace) -> None:
    """Into the other namespace, where it gets its address and its state again."""
    network.gateway.ip(f"link set gw0 netns {elsewhere.path}")
    elsewhere.ip("address add 10.9.0.1/24 dev gw0", "link set gw0 up")


def move_back(network: Network, elsewhere: Namespace) -> None:
    elsewhere.ip(f"link set gw0 netns {network.gateway.path}")
    network.gateway.ip("address add 10.9.0.1/24 dev gw0", "link set gw0 up")


@pytest.mark.parametrize("is_followed", [True, False])
def test_a_moved_interface_is_not_shut_by_what_is_written_where_it_was(
    network: Network, elsewhere: Namespace, capsys: pytest.CaptureFixture[str], is_followed: bool
) -> None:
    """Its programs go along, and go on deciding by the settings that it had."""
    Firewall().attach("gw0")
    Firewall().set(["gw0"], "icmp_echo", True)
    with ExitStack() as held:
        if is_followed:
            held.enter_context(Follower(network.gateway))
        with elsewhere.entered():
            ssh, web = held.enter_context(listener()), held.enter_context(listener(port=WEB))
        move(network, elsewhere)
        time.sleep(0.3)
        if not is_followed:
            Firewall().insert(Rule(RuleKey(Prefix.parse("192.0.2.1"), "tcp", 1)))
        assert is_filtered(network, "10.9.0.1")
        assert wait_until(lambda: is_answered(network.client, "10.9.0.1"), SOON)
        assert status(capsys) == (
            21,
            [
                "gw0: it is in another network namespace, and is still filtered by this firewall;"
                " if it shall not be attached: zfw detach gw0"
            ],
        )
        assert {e.interface for e in Firewall().save().attachments} == {"gw0"}
        ssh.close()
        web.close()
        held.enter_context(listener())
        held.enter_context(listener(port=WEB))
        move_back(network, elsewhere)
        if not is_followed:
            assert status(capsys)[0] in (0, 21)
            Firewall().refresh()
        assert is_filtered(network, "10.9.0.1")

        def is_right() -> bool:
            if not is_followed:
                # The address of IPv6 that the interface gives itself may come after the first one.
                Firewall().refresh()
            return status(capsys) == (0, [])

        assert wait_until(is_right, SOON)


def test_a_moved_interface_keeps_its_settings_under_another_index(
    network: Network, elsewhere: Namespace, capsys: pytest.CaptureFixture[str]
) -> None:
    """As in a container, whose own interface has the same index."""
    Firewall().attach("gw0")
    Firewall().set(["gw0"], "icmp_echo", True)
    elsewhere.ip(f"link add other0 index {socket.if_nametoindex('gw0')} type bridge")
    with Follower(network.gateway):
        move(network, elsewhere)
        with elsewhere.entered(), listener(port=WEB):
            assert wait_until(lambda: is_answered(network.client, "10.9.0.1"), SOON)
            assert not connects(network.client, "10.9.0.1", WEB, patience=0.2)
        move_back(network, elsewhere)
        with listener(), listener(port=WEB):
            assert is_filtered(network, "10.9.0.1")
        assert wait_until(lambda: is_answered(network.client, "10.9.0.1"), SOON)
        assert wait_until(lambda: status(capsys) == (0, []), SOON)


@pytest.mark.parametrize("has_same_index", [True, False])
def test_a_moved_interface_can_be_detached(
    network: Network,
    elsewhere: Namespace,
    capsys: pytest.CaptureFixture[str],
    has_same_index: bool,
) -> None:
    Firewall().attach("gw0")
    if not has_same_index:
        elsewhere.ip(f"link add other0 index {socket.if_nametoindex('gw0')} type bridge")
    move(network, elsewhere)
    with elsewhere.entered(), listener(port=WEB):
        assert not connects(network.client, "10.9.0.1", WEB, patience=0.2)
    capsys.readouterr()
    assert main(["detach", "gw0"]) == 0
    with elsewhere.entered(), listener(port=WEB):
        assert connects(network.client, "10.9.0.1", WEB)
    assert status(capsys) == (0, [])
    assert main(["detach", "gw0"]) == 5


@pytest.mark.parametrize("has_own", [False, True], ids=["no-firewall-there", "firewall-there"])
def test_a_moved_interface_is_shown_and_detached_where_it_is(
    network: Network, elsewhere: Namespace, capsys: pytest.CaptureFixture[str], has_own: bool
) -> None:
    Firewall().attach("gw0")
    cookie = netns_cookie()
    move(network, elsewhere)
    with elsewhere.entered(), listener(port=WEB):
        if has_own:
            Firewall().attach("gw0", "ingress")
        assert not connects(network.client, "10.9.0.1", WEB, patience=0.2)
        capsys.readouterr()
        assert main(["status"]) == (21 if has_own else 3)
        warned = (
            "zfw: warning: gw0: ingress and egress are attached by the firewall of another network"
            f" namespace (cookie {cookie}), from where it was moved: zfw detach gw0\n"
        )
        assert warned in capsys.readouterr().err
        assert main(["detach", "gw0"]) == 0
        assert connects(network.client, "10.9.0.1", WEB)
        assert capsys.readouterr().out.splitlines() == [
            *["detached gw0 ingress (tcx)"] * (1 if has_own else 0),
            "detached gw0 egress (tcx)",
            "detached gw0 ingress (tcx)",
        ]
        assert main(["detach", "gw0"]) == (5 if has_own else 3)
        assert "moved" not in capsys.readouterr().err
    (_, lines) = status(capsys)
    assert [line.partition(":")[2].partition(",")[0] for line in lines] == [
        " there is no such interface"
    ]
    move_back(network, elsewhere)
    Firewall().follow()
    assert [each for each, _, _ in attached("gw0")] == ["ingress", "egress"]


def test_a_restore_detaches_a_moved_interface_that_the_document_does_not_have(
    network: Network, elsewhere: Namespace
) -> None:
    Firewall().attach("gw0")
    document = Firewall().save()
    move(network, elsewhere)
    assert Firewall().restore(document).missing == ["gw0"]
    with elsewhere.entered(), listener(port=WEB):
        assert not connects(network.client, "10.9.0.1", WEB, patience=0.2)
        with network.gateway.entered():
            Firewall().restore(Document(version=1))
        assert connects(network.client, "10.9.0.1", WEB)


def test_another_interface_with_the_index_and_the_name_of_a_moved_one(
    network: Network, elsewhere: Namespace, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each has its programs: neither takes those of the other."""
    Firewall().attach("gw0")
    index = socket.if_nametoindex("gw0")
    with Follower(network.gateway):
        move(network, elsewhere)
        network.gateway.ip(f"link add gw0 index {index} type bridge")
        assert is_attached("gw0", "ingress", "egress")
        with elsewhere.entered():
            assert [each for each, _, _ in attached("gw0")] == ["ingress", "egress"]
            with listener(), listener(port=WEB):
                assert not connects(network.client, "10.9.0.1", WEB, patience=0.2)
    assert status(capsys) == (0, [])
    Firewall().detach_all()
    with elsewhere.entered():
        assert attached("gw0") == []


def test_a_move_removes_clsact_and_the_follower_attaches_anew(
    network: Network, elsewhere: Namespace, capsys: pytest.CaptureFixture[str]
) -> None:
    """There, the firewall does not filter. Back here, it is filtered at once."""
    Firewall().attach("gw0", "ingress", "clsact")
    with Follower(network.gateway), ExitStack() as held:
        move(network, elsewhere)
        assert Firewall().status().absent == ["gw0"]
        for port in (22, WEB):
            held.enter_context(listener(port=port))
        move_back(network, elsewhere)
        assert is_attached("gw0")
        assert is_filtered(network, "10.9.0.1")
        assert status(capsys) == (0, [])


# The follower itself


def test_it_may_be_started_before_there_is_a_firewall_and_outlive_it(
    namespace: Namespace,
) -> None:
    with Follower(namespace) as follower:
        for _ in range(2):
            namespace.ip("link add d0 type bridge")
            Firewall().attach("d0", "ingress")
            namespace.ip("link del d0", "link add d0 type bridge")
            assert is_attached("d0")
            Firewall().detach_all()
            namespace.ip("link del d0")
        assert follower.end() == 0
        assert follower.output.splitlines() == ["attached d0 ingress by tcx"] * 2


def test_one_that_was_killed_needs_only_to_be_started(namespace: Namespace) -> None:
    namespace.ip("link add d0 type bridge")
    Firewall().attach("d0", "ingress")
    with Follower(namespace) as follower:
        assert follower.end(signal.SIGKILL) == -signal.SIGKILL
    namespace.ip("link del d0", "link add d0 type bridge")
    assert not attached("d0")
    with Follower(namespace):
        assert is_attached("d0")


def test_an_interface_that_cannot_be_attached_does_not_stop_the_others(
    namespace: Namespace,
) -> None:
    """It is tried again until it can."""
    for name in ("a0", "b0"):
        namespace.ip(f"link add {name} type bridge")
        Firewall().attach(name, "egress", "clsact")
    namespace.ip("link del a0", "link del b0", "link add a0 type bridge")
    namespace.run("tc", "qdisc", "add", "dev", "a0", "ingress")
    with Follower(namespace) as follower:
        namespace.ip("link add b0 type bridge")
        assert is_attached("b0", "egress")
        namespace.run("tc", "qdisc", "del", "dev", "a0", "ingress")
        assert is_attached("a0", "egress")
        follower.end()
    assert follower.output.count("the interface has an ingress qdisc in its place") == 1


@pytest.mark.timeout(300)
def test_a_storm_of_events_costs_little_and_loses_nothing(namespace: Namespace) -> None:
    """More than the socket's buffer holds: the follower looks at the system, not at messages."""
    namespace.ip("link add d0 type bridge", "link set d0 up", "link add ppp0 type bridge")
    Firewall().attach("d0", "ingress")
    Firewall().attach("ppp0", "ingress")
    with Follower(namespace) as follower:
        before = follower.seconds
        os.kill(follower.process.pid, signal.SIGSTOP)
        batch = [
            line
            for number in range(1000)
            for line in (f"link set d0 mtu {1400 + number % 2}", f"link set d0 alias x{number}")
        ]
        namespace.run("ip", "-batch", "-", input="\n".join(batch))
        namespace.ip("link del ppp0", "link add ppp0 type bridge", "address add 10.5.0.1/24 dev d0")
        os.kill(follower.process.pid, signal.SIGCONT)
        assert is_attached("ppp0")
        assert wait_until(
            lambda: (
                [
                    address
                    for each in Firewall().status().interfaces
                    if each.name == "d0"
                    for address in each.addresses
                    if "." in address
                ]
                == ["10.5.0.1"]
            ),
            SOON,
        )
        assert follower.seconds - before < 1
        assert follower.memory < 40 * 1024


def test_what_an_older_version_attached_is_recorded_by_the_upgrade(
    namespace: Namespace,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    newer_object: Path,
) -> None:
    """The follower then starts anew: its own files may be those of another version."""
    namespace.ip("link add d0 type bridge")
    Firewall().attach("d0", "both", "clsact")
    Firewall().attach("d0", "ingress", "tcx")
    with Maps(is_writer=True) as maps:
        Interfaces(maps).want("d0", {})  # it has no such record
    with Follower(namespace) as follower:
        use_object(monkeypatch, newer_object)
        assert main(["upgrade"]) == 0
        assert status(capsys) == (0, [])
        namespace.ip("link del d0", "link add d0 type bridge")
        assert is_attached("d0", "ingress", "egress")
        assert {each: mode for each, mode, _ in attached("d0")} == {
            "ingress": "tcx",
            "egress": "clsact",
        }
        assert wait_until(lambda: follower.is_ready_again, 10)
        assert follower.end() == 0


# Killed in between


@pytest.mark.slow
@pytest.mark.parametrize("mode", MODES)
def test_an_attach_or_detach_that_is_killed_is_never_open_in_silence(
    namespace: Namespace, capsys: pytest.CaptureFixture[str], mode: str
) -> None:
    namespace.ip("link add d0 type bridge", "link add e0 type bridge")
    Firewall().attach("e0", "ingress")

    def attach() -> None:
        Firewall().attach("d0", "both", mode)

    def detach() -> None:
        Firewall().detach("d0")

    for action in (attach, detach):
        for number in range(100):
            if action is detach:
                attach()
            step = killed_at(number, action, lambda: None, is_maker=True)
            found = {each for each, _, _ in attached("d0")}
            wanted = {e.direction for e in Firewall().save().attachments if e.interface == "d0"}
            code, lines = status(capsys)
            if step is None:
                assert (code, lines) == (0, [])
                break
            if found != {"ingress", "egress"} and code == 0:
                assert found == wanted == set(), step
            Firewall().follow()
            if action is attach or attached("d0"):
                action()  # which completes what was killed
            assert status(capsys) == (0, []), step
            if action is attach:
                detach()
        else:
            raise AssertionError("it never ends")


@pytest.mark.slow
def test_a_restore_that_is_killed_is_completed_by_the_next_one(
    namespace: Namespace,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    namespace.ip("link add d0 type bridge", "link add e0 type bridge")
    one = Document(version=1, attachments=(AttachmentEntry(interface="d0"),))
    other = Document(
        version=1,
        attachments=(
            AttachmentEntry(interface="d0", direction="egress"),
            AttachmentEntry(interface="e0"),
            AttachmentEntry(interface="later0"),
        ),
    )
    Firewall().restore(one)
    for number in range(100):
        with monkeypatch.context() as patched:
            is_done = not is_killed_at(patched, number, lambda: Firewall().restore(other))
        Firewall().restore(other)
        saved = [(e.interface, e.direction) for e in Firewall().save().attachments]
        assert saved == [("d0", "egress"), ("e0", "ingress"), ("later0", "ingress")]
        assert [line.split(":")[0] for line in status(capsys)[1]] == ["later0"]
        Firewall().restore(one)
        assert status(capsys) == (0, [])
        if is_done:
            break
    else:
        raise AssertionError("it never ends")


def test_the_capabilities_of_the_unit_suffice(namespace: Namespace) -> None:
    """And 30 MB of memory, where all is attached by TCX."""
    namespace.ip("link add d0 type bridge", "link add e0 type bridge")
    Firewall().attach("d0")
    Firewall().attach("e0", mode="clsact")
    Firewall().detach("d0")  # with the tables of flows
    Firewall().attach("d0")
    names = ",".join(["-all", *(f"+{name.removeprefix('CAP_').lower()}" for name in CAPABILITIES)])
    limited = ("setpriv", f"--bounding-set={names}", f"--inh-caps={names}", "--no-new-privs", "--")
    for is_small in (False, True):
        if is_small:
            Firewall().detach("e0")
        with Follower(namespace, *limited) as follower:
            namespace.ip("link del d0", "link del e0")
            namespace.ip("link add d0 type bridge", "link add e0 type bridge")
            assert is_attached("d0", "ingress", "egress")
            assert is_small or is_attached("e0", "ingress", "egress")
            assert not is_small or follower.memory < 30 * 1024
