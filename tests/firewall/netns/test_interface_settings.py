# SPDX-License-Identifier: GPL-2.0-only
"""Settings belong to an interface's name: they outlive the device, and its index."""

from __future__ import annotations

import json
import socket
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from tests.support.netns import Namespace
from zfw_py import Firewall
from zfw_py.cli.app import main
from zfw_py.firewall.settings import SETTINGS

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.kernel

NAME, PEER = "wan9", "peer9"
ADDRESS, NEIGHBOUR, NEIGHBOUR_MAC = "10.5.0.1", "10.5.0.2", "02:00:00:00:00:02"
# What is not the default of each.
OTHERWISE = {name: name != "ssh" for name in SETTINGS}


def make(namespace: Namespace, name: str = NAME, peer: str = PEER) -> int:
    """A device with an address and a neighbour that nobody is; its index."""
    namespace.add_veth(name, peer)
    namespace.set_up(peer)
    namespace.set_up(name, f"{ADDRESS}/24")
    namespace.add_neighbour(name, NEIGHBOUR, NEIGHBOUR_MAC)
    return socket.if_nametoindex(name)


def remake(namespace: Namespace) -> int:
    """The device again, under another index."""
    old = socket.if_nametoindex(NAME)
    namespace.run("ip", "link", "del", NAME)
    # The kernel may give the next device the same index again.
    namespace.add_veth("between", "between-peer")
    new = make(namespace)
    assert new != old
    return new


@pytest.fixture
def firewall(namespace: Namespace) -> Firewall:
    """Attached to a device all of whose settings are not the default."""
    make(namespace)
    made = Firewall()
    made.attach(NAME, "both")
    for setting, on in OTHERWISE.items():
        made.set([NAME], setting, on)
    return made


@contextmanager
def arriving() -> Iterator[socket.socket]:
    """What leaves by the device and arrives at its peer: IPv4."""
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x0800)) as sniffer:
        sniffer.bind((PEER, 0x0800))
        sniffer.setblocking(False)
        yield sniffer


def leaves(payload: bytes) -> bool:
    """Whether a datagram of ours gets out; it is delivered before the call returns."""
    with arriving() as sniffer, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as own:
        own.sendto(payload, (NEIGHBOUR, 5000))
        try:
            while payload not in sniffer.recv(2000):
                pass
        except BlockingIOError:
            return False
        return True


def settings(firewall: Firewall) -> dict[str, dict[str, bool]]:
    return {each.name: each.settings for each in firewall.status().interfaces}


def refused(firewall: Firewall) -> int:
    return firewall.status().reasons["egress_no_rule"][0]


def test_settings_outlive_the_device(namespace: Namespace, firewall: Firewall) -> None:
    assert settings(firewall)[NAME] == OTHERWISE
    index = remake(namespace)
    firewall.refresh()
    (status,) = (each for each in firewall.status().interfaces if each.name == NAME)
    assert (status.settings, status.ifindex) == (OTHERWISE, index)
    assert status.attachments == {}
    assert ADDRESS in status.addresses


@pytest.mark.parametrize("mode", ["auto", "clsact"])
def test_a_new_device_is_filtered_from_its_first_packet_on(
    namespace: Namespace, firewall: Firewall, mode: str
) -> None:
    assert not leaves(b"by the old device")
    for number in range(3):
        index = remake(namespace) if number == 0 else _again(namespace)
        assert leaves(b"nothing is attached to it yet")
        before = refused(firewall)
        firewall.attach(NAME, "both", mode)
        assert not leaves(b"by the new device")
        assert refused(firewall) == before + 1
        assert socket.if_nametoindex(NAME) == index


def _again(namespace: Namespace) -> int:
    namespace.run("ip", "link", "del", NAME)
    return make(namespace)


@pytest.mark.parametrize("command", [["refresh"], ["set"], ["insert"], ["-L", "-E"]])
def test_a_device_that_takes_the_name_is_filtered_after_a_command(
    namespace: Namespace, firewall: Firewall, command: list[str]
) -> None:
    """It was attached under another name, with that one's settings."""
    namespace.run("ip", "link", "del", NAME)
    make(namespace, "other9", PEER)
    firewall.attach("other9", "both")
    assert leaves(b"the other name does not filter")
    namespace.run("ip", "link", "set", "other9", "down")
    namespace.run("ip", "link", "set", "other9", "name", NAME)
    namespace.run("ip", "link", "set", NAME, "up")
    namespace.add_neighbour(NAME, NEIGHBOUR, NEIGHBOUR_MAC)
    if command == ["refresh"]:
        firewall.refresh()
    elif command == ["set"]:
        assert main(["set", NAME, "--verbose", "off"]) == 0
    elif command == ["insert"]:
        assert main(["insert", "-c", "192.0.2.1", "-p", "tcp", "-l", "1", "-t", "0"]) == 0
    else:
        from zfw_py.cli.classic.run import run

        assert run(command) == 0
    before = refused(firewall)
    assert not leaves(b"this one does")
    assert refused(firewall) == before + 1


def test_settings_are_kept_while_there_is_no_device(
    namespace: Namespace, firewall: Firewall
) -> None:
    namespace.run("ip", "link", "del", NAME)
    firewall.refresh()
    make(namespace)
    firewall.attach(NAME, "both")
    assert settings(firewall)[NAME] == OTHERWISE
    assert not leaves(b"filtered")


def test_a_setting_that_is_turned_off_stays_off(namespace: Namespace, firewall: Firewall) -> None:
    firewall.set([NAME], "outbound_filter", False)
    remake(namespace)
    firewall.attach(NAME, "both")
    assert settings(firewall)[NAME] == OTHERWISE | {"outbound_filter": False}
    assert leaves(b"not filtered")


def test_the_status_shows_them(
    namespace: Namespace, firewall: Firewall, capsys: pytest.CaptureFixture[str]
) -> None:
    index = remake(namespace)
    firewall.attach(NAME, "both")
    capsys.readouterr()
    assert main(["status", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    (interface,) = (each for each in shown["interfaces"] if each["name"] == NAME)
    assert interface["settings"] == OTHERWISE
    assert interface["ifindex"] == index
    assert main(["status"]) == 0
    text = capsys.readouterr().out
    (line,) = (line for line in text.splitlines() if line.startswith(NAME))
    words = [name.replace("_", "-") for name, on in OTHERWISE.items() if on]
    assert line.split()[1] == str(index)
    assert set(line.split()[4].split(",")) == set(words)
    assert ADDRESS in line.split()[5].split(",")
