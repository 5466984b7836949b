# SPDX-License-Identifier: GPL-2.0-only
"""The boot and revert programs, laid out below a prefix and run as their callers run them.

ufw and systemctl are stand-ins that write down how they are called.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.firewall.support.listeners import tcp_listener
from tests.support.command import ZFW
from tests.support.waiting import PATIENCE
from zfw_py import Firewall, NotInstalled, Prefix, Rule, RuleKey
from zfw_py.compat import contents, install, places
from zfw_py.compat.router_config import MODE

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support.netns import Network

pytestmark = pytest.mark.kernel

FOREIGN = ("protocol", "ip", "u32", "match", "u32", "0", "0")

# For each call a line: the name, the arguments, what is on stdin, a variable of the caller's.
STAND_IN = """\
#!/bin/sh
echo "${0##*/} $* stdin=$(cat) canary=${CANARY-none}" >>@LOG@
"""
ROUTER = """\
# a router's
listeners:
- binding: edge
  address: tls:0.0.0.0:8443
- binding: tunnel
  options:
    mode: tproxy      # as it came
    resolver: [udp://10.9.0.1:53, "udp://100.127.255.254:53"]
    lanIf: @LAN@
link:
  listeners:
  - {binding: transport, bind: "tls:0.0.0.0:10080"}
web:
- name: health-check
  bindPoints:
  - {interface: 0.0.0.0:8081, address: 0.0.0.0:8081}
"""


class Machine:
    """A gateway with all laid out below a prefix, in whose namespace the test is."""

    def __init__(self, network: Network, root: Path) -> None:
        self.network = network
        self.root = root
        self.log = root / "log"
        root.mkdir()
        install.install(str(root))
        for path in (places.UFW, places.SYSTEMCTL):
            self.write(path, STAND_IN.replace("@LOG@", str(self.log)), 0o755)
        self.path(places.SYSTEMD_RUNS).mkdir(parents=True)

    def path(self, path: str) -> Path:
        return Path(f"{self.root}{path}")

    def write(self, path: str, text: str, mode: int = 0o644) -> Path:
        made = self.path(path)
        made.parent.mkdir(parents=True, exist_ok=True)
        made.write_bytes(text.encode())
        made.chmod(mode)
        return made

    def interfaces(self, *names: str, **more: object) -> None:
        entries = [{"Name": name, **more} for name in names]
        self.write(places.INTERFACES, json.dumps({"InternalInterfaces": entries}))

    def router(self, lan: str = "gw0") -> Path:
        self.write(places.ROUTER_UNIT, "[Service]\nExecStart=/x\n")
        return self.write(places.ROUTER_CONFIGS[1], ROUTER.replace("@LAN@", lan), 0o640)

    def run(self, name: str, *words: str) -> subprocess.CompletedProcess[str]:
        program = self.path(f"/opt/openziti/bin/{name}.py")
        return self.network.gateway.run(
            str(program),
            "--prefix",
            str(self.root),
            *words,
            check=False,
            env={"CANARY": "alive", "PYTHONPATH": "/nonexistent"},
            cwd="/",
        )

    def called(self) -> list[str]:
        """How the stand-ins were called since the last time."""
        lines = self.log.read_text().splitlines() if self.log.exists() else []
        self.log.unlink(missing_ok=True)
        return lines


@pytest.fixture
def machine(network: Network, tmp_path: Path) -> Machine:
    return Machine(network, tmp_path / "root")


def rules() -> set[tuple[str, str, int]]:
    assert all(rule.action == "pass" for rule in Firewall().rules("ingress"))
    return {
        (str(rule.key.destination), rule.key.protocol, rule.key.low_port)
        for rule in Firewall().rules("ingress")
    }


def shown(direction: str, interface: str = "gw0") -> str:
    """What a script looks at."""
    command = ["tc", "filter", "show", "dev", interface, direction]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout


def lo_addresses() -> list[str]:
    command = ["ip", "-json", "-4", "address", "show", "dev", "lo"]
    done = subprocess.run(command, capture_output=True, check=True, timeout=60)
    return [info["local"] for info in json.loads(done.stdout)[0]["addr_info"]]


def called(name: str, arguments: str) -> str:
    """A call with nothing on stdin and an environment that the caller has no part in."""
    return f"{name} {arguments} stdin= canary=none"


ROUTERS_RULES = {
    ("10.9.0.1/32", "tcp", 8443),
    ("10.9.0.1/32", "tcp", 10080),
    ("10.9.0.1/32", "tcp", 8081),
    ("10.9.0.1/32", "tcp", 53),
    ("10.9.0.1/32", "udp", 53),
    ("100.127.255.254/32", "tcp", 53),
    ("100.127.255.254/32", "udp", 53),
}


@pytest.mark.parametrize("lan", ["gw0", "[gw0]", "[gw0, nosuch]"])
def test_case_46_the_first_start_of_a_router(machine: Machine, lan: str) -> None:
    config = machine.router(lan)
    os.chown(config, 1234, 1235)
    done = machine.run("start_ebpf_router")
    is_missing = "nosuch" in lan
    assert (done.returncode, done.stderr) == (
        (5, "zfw: warning: Interface not found: nosuch\n") if is_missing else (0, "")
    )
    made = json.loads(machine.path(places.INTERFACES).read_text())
    assert [entry["Name"] for entry in made["InternalInterfaces"]] == (
        ["gw0", "nosuch"] if is_missing else ["gw0"]
    )
    assert config.read_text() == ROUTER.replace("@LAN@", lan).replace(
        "mode: tproxy ", f"mode: {MODE} "
    )
    status = config.stat()
    assert (status.st_uid, status.st_gid, status.st_mode & 0o7777) == (1234, 1235, 0o640)
    assert (
        machine.path(places.ROUTER_DROP_IN)
        .read_text()
        .endswith("[Service]\nExecStartPre=-/opt/openziti/bin/start_ebpf_router.py\n")
    )
    assert machine.called() == [
        called("ufw", "allow in on gw0 to any"),
        called("systemctl", "daemon-reload"),
        called("systemctl", "restart ziti-router.service"),
    ]
    assert rules() == ROUTERS_RULES


def test_case_36_and_37_scripts_see_that_it_is_attached(machine: Machine) -> None:
    machine.interfaces("gw0")
    for _ in range(2):
        assert machine.run("start_ebpf_router").returncode == 0
        for direction in ("ingress", "egress"):
            lines = [line for line in shown(direction).splitlines() if " handle " in line]
            assert len(lines) == 1
            assert f"zfw_{direction}" in lines[0]
    (status,) = Firewall().status().interfaces
    assert {a.mode for a in status.attachments.values()} == {"clsact"}


def test_case_35_and_52_the_laid_out_command_answers_scripts(machine: Machine) -> None:
    zfw = str(machine.path(places.ZFW_LINK))
    gateway = machine.network.gateway
    for words in (("-L", "-E"), ("-Q",)):
        assert gateway.run(zfw, *words, check=False, env={}).returncode == 1
    machine.interfaces("gw0")
    assert machine.run("start_ebpf_tunnel").returncode == 69
    jobs = machine.path("/etc/cron.d/zfw_refresh").read_text().splitlines()
    commands = [line.split()[7:9] for line in jobs if not line.startswith("#")]
    assert commands == [["-L", "-E"], ["-L", "-G"]]
    gateway.run("ip", "address", "add", "10.77.0.1/24", "dev", "gw0")
    for words in commands:
        assert gateway.run(zfw, *words, env={}).returncode == 0
    (status,) = Firewall().status().interfaces
    assert "10.77.0.1" in status.addresses
    assert gateway.run(zfw, "-Q", env={}).returncode == 0


def test_case_50_with_one_interface_missing_the_others_are_set_up_every_time(
    machine: Machine,
) -> None:
    machine.router()
    machine.interfaces("nosuch", "gw0")
    for _ in range(2):
        done = machine.run("start_ebpf_router")
        assert (done.returncode, done.stderr) == (5, "zfw: warning: Interface not found: nosuch\n")
        assert rules() == ROUTERS_RULES
        (status,) = Firewall().status().interfaces
        assert set(status.attachments) == {"ingress", "egress"}
    machine.interfaces("gw0")
    for _ in range(2):
        done = machine.run("start_ebpf_router")
        assert (done.returncode, done.stderr) == (0, "")
        assert "running already: removed 7 ingress rules" in done.stdout
        assert rules() == ROUTERS_RULES


def test_with_every_interface_missing_nothing_is_made(machine: Machine) -> None:
    machine.router()
    machine.interfaces("nosuch")
    done = machine.run("start_ebpf_router")
    assert done.returncode == 5
    assert done.stderr.splitlines() == [
        "zfw: warning: Interface not found: nosuch",
        "zfw: warning: no interface is attached: no rules were added",
    ]
    assert not Firewall().is_installed()


def test_case_41_the_routers_own_ports_are_open_and_no_others(machine: Machine) -> None:
    machine.router()
    machine.interfaces("gw0")
    assert machine.run("start_ebpf_router").returncode == 0
    with (
        tcp_listener(port=8443, address="0.0.0.0"),
        tcp_listener(port=8444, address="0.0.0.0"),
        machine.network.client.entered(),
    ):
        socket.create_connection(("10.9.0.1", 8443), timeout=PATIENCE).close()
        with pytest.raises(TimeoutError):
            socket.create_connection(("10.9.0.1", 8444), timeout=0.3)


def test_case_40_a_start_flushes_ingress_with_its_routes_and_nothing_else(
    machine: Machine,
) -> None:
    machine.router()
    machine.interfaces("gw0")
    assert machine.run("start_ebpf_router").returncode == 0
    firewall = Firewall()
    key = RuleKey(Prefix.parse("172.31.9.9/32"), "tcp", 80)
    firewall.insert(Rule(key, tproxy_port=5000), route=True)
    egress = RuleKey(Prefix.parse("192.0.2.0/24"), "tcp", 443, direction="egress")
    firewall.insert(Rule(egress))
    firewall.set(["gw0"], "icmp_echo", True)
    assert {"172.31.9.9", "100.127.255.254"} <= set(lo_addresses())
    assert machine.run("start_ebpf_router").returncode == 0
    assert rules() == ROUTERS_RULES
    assert [rule.key for rule in firewall.rules("egress")] == [egress]
    (status,) = firewall.status().interfaces
    assert status.settings["icmp_echo"]
    assert "172.31.9.9" not in lo_addresses()
    assert "100.127.255.254" in lo_addresses()


def test_case_40_the_tunnels_start_keeps_the_routes(machine: Machine) -> None:
    machine.interfaces("gw0")
    assert machine.run("start_ebpf_tunnel").returncode == 69
    key = RuleKey(Prefix.parse("172.31.9.9/32"), "tcp", 80)
    Firewall().insert(Rule(key, tproxy_port=5000), route=True)
    assert machine.run("start_ebpf_tunnel").returncode == 69
    assert rules() == set()
    assert "172.31.9.9" in lo_addresses()


@pytest.mark.parametrize("is_tracked", [True, False])
@pytest.mark.parametrize("is_per_interface", [True, False])
def test_case_39_an_interfaces_settings(
    machine: Machine, is_tracked: bool, is_per_interface: bool
) -> None:
    machine.interfaces(
        "gw0", OutboundPassThroughTrack=is_tracked, PerInterfaceRules=is_per_interface
    )
    assert machine.run("start_ebpf_router").returncode == 0
    (status,) = Firewall().status().interfaces
    assert ("egress" in status.attachments) == is_tracked
    assert status.settings["per_interface_rules"] == is_per_interface


def test_case_44_tunnel_mode_is_left_out_and_told(machine: Machine) -> None:
    machine.interfaces("gw0")
    done = machine.run("start_ebpf_tunnel")
    assert (done.returncode, done.stderr) == (
        69,
        "zfw: warning: skipped, not in this version of zfw:"
        " tunnel mode (zfw -T): interception into the tunnel interface\n",
    )
    (status,) = Firewall().status().interfaces
    assert set(status.attachments) == {"ingress"}
    assert "SuccessExitStatus=69" in (
        machine.path("/etc/systemd/system/ziti-fw-init.service").read_text().splitlines()
    )


def test_case_43_a_controllers_ports_are_open_and_its_guard_is_told_missing(
    machine: Machine,
) -> None:
    machine.write(
        places.CONTROLLER_CONFIGS[1],
        "edge: {api: {address: 'ctrl.example:1280'}}\nweb:\n- bindPoints:\n"
        "  - interface: 0.0.0.0:443\n",
    )
    machine.write(places.SALT_CONFIG, "rest_cherrypy:\n  port: 8000\n")
    machine.write(
        places.UFW_RULES, "*nat\n-A PREROUTING -p tcp --dport 80 -j REDIRECT --to-port 443\n"
    )
    done = machine.run("start_ebpf_controller", "--lanIf", "gw0")
    assert (done.returncode, done.stderr) == (
        69,
        "zfw: warning: skipped, not in this version of zfw:"
        " DDoS protection (zfw --ddos-dport-add) of TCP 80, 443, 1280\n",
    )
    assert rules() == {("10.9.0.1/32", "tcp", port) for port in (80, 443, 1280, 8000)}
    assert machine.called() == [
        called("ufw", "allow in on gw0 to any"),
        called("systemctl", "daemon-reload"),
        called("systemctl", "enable fw-init.service"),
    ]
    drop_in = machine.path(places.CONTROLLER_DROP_IN)
    assert drop_in.read_text().splitlines()[-2:] == [
        "ExecStart=",
        "ExecStart=/opt/openziti/bin/start_ebpf_controller.py --lanIf gw0",
    ]
    assert machine.run("start_ebpf_controller", "--lanIf", "gw0").returncode == 69
    assert machine.called() == [called("ufw", "allow in on gw0 to any")]
    assert machine.run("revert_ebpf_controller").returncode == 0
    assert machine.called() == [
        called("ufw", "--force delete allow in on gw0 to any"),
        called("systemctl", "disable fw-init.service"),
        called("systemctl", "daemon-reload"),
    ]
    assert not drop_in.parent.exists()
    for words in ((), ("--lanIf", "a/b")):
        done = machine.run("start_ebpf_controller", *words)
        assert done.returncode == 2
        assert "--lanIf" in done.stderr


def test_case_45_the_users_rules_come_last_and_may_overrule(machine: Machine) -> None:
    machine.interfaces("gw0", PerInterfaceRules=True)
    machine.write(
        places.USER_RULES,
        f'#!/bin/sh\n[ -z "$(cat)" ] && [ -z "$CANARY" ] || exit 3\n'
        f"{ZFW} -x gw0 && {ZFW} -e gw0 && {ZFW} -6 gw0 && {ZFW} -P gw0 -d &&"
        f" {ZFW} -I -c 192.0.2.1 -m 32 -l 443 -h 443 -t 0 -p tcp\n",
        0o744,
    )
    for _ in range(2):
        done = machine.run("start_ebpf_router")
        assert (done.returncode, done.stderr) == (0, "")
        (status,) = Firewall().status().interfaces
        assert not status.settings["ssh"]
        assert not status.settings["per_interface_rules"]
        assert status.settings["icmp_echo"]
        assert status.settings["ipv6"]
        assert rules() == {("192.0.2.1/32", "tcp", 443)}


@pytest.mark.parametrize(
    ("text", "mode", "owner", "error"),
    [
        ("#!/bin/sh\nexit 7\n", 0o744, 0, "failed with exit code 7"),
        ("#!/bin/sh\nkill -9 $$\n", 0o744, 0, "was ended by signal 9"),
        ("#!/bin/sh\ntouch @ROOT@/ran\n", 0o644, 0, ": not executable"),
        ("#!/bin/sh\ntouch @ROOT@/ran\n", 0o777, 0, "can be written by others than root"),
        ("#!/bin/sh\ntouch @ROOT@/ran\n", 0o755, 1000, "is not root's"),
        ("touch @ROOT@/ran\n", 0o744, 0, None),
    ],
)
def test_case_45_users_rules_that_fail_or_are_not_roots(
    machine: Machine, text: str, mode: int, owner: int, error: str | None
) -> None:
    machine.interfaces("gw0")
    path = machine.write(places.USER_RULES, text.replace("@ROOT@", str(machine.root)), mode)
    os.chown(path, owner, owner)
    done = machine.run("start_ebpf_router")
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) <= 2
    if error is not None:
        assert done.stderr.startswith(f"zfw: warning: {path}")
        assert error in done.stderr
    assert not (machine.root / "ran").exists()
    assert "gw0" in [interface.name for interface in Firewall().status().interfaces]


def test_case_45_a_link_in_place_of_the_users_rules_is_not_run(machine: Machine) -> None:
    machine.interfaces("gw0")
    victim = machine.write("/elsewhere.sh", f"#!/bin/sh\ntouch {machine.root}/ran\n", 0o755)
    machine.path(places.USER_RULES).symlink_to(victim)
    done = machine.run("start_ebpf_router")
    assert done.returncode == 1
    assert done.stderr.endswith("user_rules.sh is a link, which is not followed\n")
    assert not (machine.root / "ran").exists()


@pytest.mark.parametrize("is_there", [False, True])
def test_case_47_ufw_may_be_missing_or_fail(machine: Machine, is_there: bool) -> None:
    machine.interfaces("gw0", "lo")
    if is_there:
        machine.write(places.UFW, "#!/bin/sh\nexit 1\n", 0o755)
    else:
        machine.path(places.UFW).unlink()
    done = machine.run("start_ebpf_router")
    told = "zfw: warning: ufw allow in on gw0 to any: exit code 1\n" if is_there else ""
    assert (done.returncode, done.stderr) == (int(is_there), told)
    assert {i.name for i in Firewall().status().interfaces} == {"gw0", "lo"}


def test_case_48_revert_sets_all_back_and_leaves_others_filters(machine: Machine) -> None:
    config = machine.router()
    before = config.read_bytes()
    gateway = machine.network.gateway
    gateway.run("tc", "qdisc", "add", "dev", "gw0", "clsact")
    gateway.run("tc", "filter", "add", "dev", "gw0", "ingress", "pref", "7", *FOREIGN)
    foreign = shown("ingress")
    assert foreign
    machine.write(places.USER_RULES, "#!/bin/sh\n", 0o744)
    assert machine.run("start_ebpf_router").returncode == 0
    assert config.read_bytes() != before
    assert shown("ingress") != foreign
    machine.called()

    done = machine.run("revert_ebpf_router")
    assert (done.returncode, done.stderr) == (0, "")
    assert machine.called() == [
        called("ufw", "--force delete allow in on gw0 to any"),
        called("systemctl", "daemon-reload"),
        called("systemctl", "restart ziti-router.service"),
    ]
    assert shown("ingress") == foreign
    assert shown("egress") == ""
    with pytest.raises(NotInstalled):
        Firewall().status()
    assert "100.127.255.254" not in lo_addresses()
    assert config.read_bytes() == before
    for path in (places.INTERFACES, places.USER_RULES):
        assert not machine.path(path).exists()
    assert not machine.path(places.ROUTER_DROP_IN).parent.exists()

    done = machine.run("revert_ebpf_router")
    assert (done.returncode, done.stderr) == (0, "")
    assert machine.called() == []
    assert install.remove(str(machine.root)).kept == []


def test_case_48_a_unit_that_the_replaced_command_edited(machine: Machine) -> None:
    machine.router()
    unit = (
        "[Service]\nExecStartPre=/keep\n"
        "ExecStartPre=-/opt/openziti/bin/start_ebpf_router.py\nExecStart=/x\n"
    )
    path = machine.write(places.ROUTER_UNIT, unit)
    assert machine.run("start_ebpf_router").returncode == 0
    assert machine.called() == [called("ufw", "allow in on gw0 to any")]
    assert not machine.path(places.ROUTER_DROP_IN).exists()
    assert machine.run("revert_ebpf_router").returncode == 0
    assert path.read_text() == "[Service]\nExecStartPre=/keep\nExecStart=/x\n"
    assert machine.called()[-2:] == [
        called("systemctl", "daemon-reload"),
        called("systemctl", "restart ziti-router.service"),
    ]


def test_case_48_revert_goes_on_where_something_is_broken(machine: Machine) -> None:
    machine.interfaces("gw0")
    assert machine.run("start_ebpf_router").returncode == 0
    machine.write(places.INTERFACES, "{")
    config = machine.write(places.ROUTER_CONFIGS[1], "a: [\n")
    done = machine.run("revert_ebpf_router")
    assert done.returncode == 1
    interfaces, broken = done.stderr.splitlines()
    assert interfaces.startswith(f"zfw: warning: {machine.path(places.INTERFACES)}:1: ")
    assert broken.startswith(f"zfw: warning: {config}:")
    assert not Firewall().is_installed()
    assert not machine.path(places.INTERFACES).exists()


def test_the_tunnels_revert_leaves_the_router_alone(machine: Machine) -> None:
    config = machine.router()
    before = config.read_bytes()
    machine.interfaces("gw0")
    assert machine.run("start_ebpf_tunnel").returncode == 69
    assert machine.run("revert_ebpf_tunnel").returncode == 0
    assert not Firewall().is_installed()
    assert config.read_bytes() == before
    assert not machine.path(places.INTERFACES).exists()


def test_a_router_that_intercepts_nothing_keeps_its_mode(machine: Machine) -> None:
    config = machine.router()
    config.write_text(config.read_text().replace("mode: tproxy ", "mode: host "))
    before = config.read_bytes()
    assert machine.run("start_ebpf_router").returncode == 0
    assert machine.run("revert_ebpf_router").returncode == 0
    assert config.read_bytes() == before


def test_without_systemd_it_is_told_and_no_failure(machine: Machine) -> None:
    machine.router()
    machine.path(places.SYSTEMD_RUNS).rmdir()
    done = machine.run("start_ebpf_router")
    assert (done.returncode, done.stderr) == (
        0,
        "zfw: warning: systemd is not running: skipped systemctl daemon-reload\n"
        "zfw: warning: systemd is not running: skipped systemctl restart ziti-router.service\n",
    )


@pytest.mark.parametrize(
    ("path", "text"),
    [
        (places.INTERFACES, '{"InternalInterfaces":\n[{"Name": 5}]}'),
        (places.INTERFACES, "{\n"),
        (places.ROUTER_CONFIGS[1], "listeners:\n- binding: edge\n  address: tls:x:y\n"),
        (places.ROUTER_CONFIGS[1], "a: [\n"),
    ],
)
def test_bad_configuration_changes_nothing(machine: Machine, path: str, text: str) -> None:
    config = machine.router()
    machine.interfaces("gw0")
    file = machine.write(path, text)
    before = config.read_bytes()
    done = machine.run("start_ebpf_router")
    assert (done.returncode, done.stdout) == (2, "")
    assert len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith(f"zfw: {file}:")
    assert not Firewall().is_installed()
    assert config.read_bytes() == before
    assert machine.called() == []


def test_without_configuration_nothing_is_done(machine: Machine) -> None:
    for name in ("start_ebpf_router", "start_ebpf_tunnel"):
        done = machine.run(name)
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr.splitlines() == [
            f"zfw: {machine.path(places.INTERFACES)}: no such file",
            f"hint: copy {places.INTERFACES}.sample and name your interfaces in it",
        ]
    assert not Firewall().is_installed()


@pytest.fixture
def _readable(tmp_path: Path) -> Iterator[None]:
    """The test's directories, for somebody else to come in."""
    above = [(path, path.stat().st_mode) for path in (tmp_path, *tmp_path.parents)]
    changed = [(path, mode) for path, mode in above if mode & 0o005 != 0o005]
    for path, mode in changed:
        path.chmod(mode | 0o055)
    yield
    for path, mode in changed:
        path.chmod(mode & 0o7777)


@pytest.mark.usefixtures("_readable")
def test_without_root_nothing_is_done(machine: Machine) -> None:
    machine.interfaces("gw0")
    program = machine.path("/opt/openziti/bin/start_ebpf_router.py")
    with pytest.raises(PermissionError):
        machine.network.gateway.run(str(program), user=65534, group=65534)
    for verb in ("start", "revert"):
        program = machine.path(f"/opt/openziti/bin/{verb}_ebpf_router.py")
        done = machine.network.gateway.run(
            contents.interpreter(),
            "-I",
            str(program),
            "--prefix",
            str(machine.root),
            check=False,
            user=65534,
            group=65534,
        )
        assert (done.returncode, done.stderr) == (77, "zfw: this needs root\n")
    assert machine.path(places.INTERFACES).exists()
