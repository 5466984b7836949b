# SPDX-License-Identifier: GPL-2.0-only
"""zfw save, restore and systemd: what they print, and files that are not what they should be."""

from __future__ import annotations

import os
import stat
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.support.command import ZFW, captured
from zfw_py import Firewall
from zfw_py.systemd.firewall import CAPABILITIES
from zfw_py.systemd.steer import CAPABILITIES as STEER_CAPABILITIES

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.cli.conftest import Zfw
    from tests.support.netns import Namespace

kernel = pytest.mark.kernel

ONE = """\
version = 1

[settings.gw0]
ipv6 = true

[[attachments]]
interface = "gw0"

[[rules]]
destination = "10.0.0.1/32"
protocol = "tcp"
low_port = 22
action = "intercept"
tproxy_port = 5000
"""
SUMMARY = "1 rule, the settings of 1 interface, 1 attachment"


@pytest.fixture
def one(tmp_path: Path) -> Path:
    path = tmp_path / "one.toml"
    path.write_text(ONE)
    return path


@kernel
def test_there_and_back(zfw: Zfw, firewall: Firewall, one: Path, tmp_path: Path) -> None:
    assert zfw("restore", str(one)) == (0, "1 inserted, 0 changed, 0 deleted\n", "")
    assert zfw("restore", str(one)) == (0, "nothing to change\n", "")
    for name in ("saved.toml", "saved.json"):
        path = tmp_path / name
        assert zfw("save", str(path)) == (0, f"saved {SUMMARY}\n", "")
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert zfw("restore", str(path)) == (0, "nothing to change\n", "")
        first = path.read_bytes()
        assert zfw("save", str(path)).code == 0
        assert path.read_bytes() == first
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "one.toml",
        "saved.json",
        "saved.toml",
    ], "nothing temporary is left"
    assert (tmp_path / "saved.toml").read_text().endswith(ONE.partition("[[rules]]")[2])


@kernel
def test_stdout_and_stdin_are_json(
    zfw: Zfw, firewall: Firewall, one: Path, stdin: Callable[[str], None]
) -> None:
    zfw("restore", str(one))
    saved = zfw("save")
    assert saved == zfw("save", "-")
    assert (saved.code, saved.err) == (0, "")
    assert saved.out == (
        '{\n  "version": 1,\n  "settings": {\n    "gw0": {"ipv6": true}\n  },\n'
        '  "attachments": [\n    {"interface": "gw0", "mode": "tcx"}\n  ],\n  "rules": [\n'
        '    {"destination": "10.0.0.1/32", "protocol": "tcp", "low_port": 22,'
        ' "action": "intercept", "tproxy_port": 5000}\n  ]\n}\n'
    )
    firewall.flush()
    stdin(saved.out)
    assert zfw("restore") == (0, "1 inserted, 0 changed, 0 deleted\n", "")


@kernel
def test_what_changes_is_told(zfw: Zfw, firewall: Firewall, tmp_path: Path) -> None:
    path = tmp_path / "a.toml"
    path.write_text(
        "version = 1\n[settings.gw0]\nssh = false\n[[attachments]]\ninterface = 'lo'\n"
        + "".join(
            "[[rules]]\ndestination = '10.0.0.1'\nprotocol = 'udp'\naction = 'pass'\n"
            f"low_port = {low}\nhigh_port = {high}\n"
            for low, high in ((1, 9), *((n, n) for n in range(2, 9)), (0, 0))
        )
    )
    result = zfw("restore", str(path))
    assert (result.code, result.out) == (
        0,
        "gw0: ssh off\ngw0: ipv6 off\nattached lo ingress (tcx)\ndetached gw0 ingress (tcx)\n"
        "9 inserted, 0 changed, 0 deleted\n",
    )
    lines = result.err.splitlines()
    assert len(lines) == 7
    assert lines[0] == (
        "zfw: warning: rule ingress udp 10.0.0.1/32 port 2 pass can never match:"
        " earlier rules of its prefix cover it"
    )


@kernel
def test_an_interface_that_is_missing(zfw: Zfw, firewall: Firewall, one: Path) -> None:
    with one.open("a") as file:
        file.write('interfaces = ["gone0"]\nlimited = true\n')
        file.write('[settings.gone0]\nipv6 = true\n[[attachments]]\ninterface = "gone0"\n')
    assert zfw("restore", str(one)) == (
        5,
        "gone0: ipv6 on\n1 inserted, 0 changed, 0 deleted\n",
        "zfw: warning: Interface not found: gone0: not attached\n",
    )
    assert zfw("restore", str(one), "--wait", "1").code == 5
    assert zfw("restore", str(one), "--allow-absent") == (
        0,
        "nothing to change\n",
        "zfw: warning: Interface not found: gone0: not attached\n",
    )
    assert firewall.rules()[0].interfaces == ("gone0",)


@kernel
def test_it_waits_for_an_interface(
    zfw: Zfw, namespace: Namespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from zfw_py.cli.commands import restore

    path = tmp_path / "a.json"
    path.write_text('{"version": 1, "attachments": [{"interface": "late0"}]}')
    pauses = []

    def pause(seconds: float) -> None:
        pauses.append(seconds)
        if len(pauses) == 3:
            namespace.add_veth("late0", "late1")

    monkeypatch.setattr(restore, "sleep", pause)
    result = zfw("restore", "--wait", "3600", str(path))
    assert result == (0, "attached late0 ingress (tcx)\n0 inserted, 0 changed, 0 deleted\n", "")
    assert len(pauses) == 3


def test_check_needs_no_firewall_and_changes_nothing(zfw: Zfw, one: Path) -> None:
    assert zfw("restore", "--check", str(one)) == (0, f"valid: {SUMMARY}\n", "")


BAD = (
    ("a.toml", ONE + "route = 1\n", "{}: rules[0].route: expected bool, got int"),
    ("a.toml", ONE + "x = 1\n", "{}: rules[0].x: no such field"),
    ("a.toml", ONE + "[x\n", "{}:15: Expected ']' at the end of a table declaration"),
    ("a.json", '{"version": 1,\n}', "{}:2: "),  # the json module's words differ by version
    ("a.json", '{"version": 1,\n"x": 2}', "{}: x: no such field"),
    ("a.toml", "version = 7", "{}: version: 7 is unknown; this zfw reads documents of version 1"),
    ("a.yaml", ONE, "{}: its name does not end in .toml or .json"),
)


@kernel
def test_a_bad_document_changes_nothing(zfw: Zfw, firewall: Firewall, tmp_path: Path) -> None:
    before = firewall.save()
    for name, text, message in BAD:
        path = tmp_path / name
        path.write_text(text)
        for options in ((), ("--check",)):
            result = zfw("restore", *options, str(path))
            assert (result.code, result.out) == (2, "")
            assert result.err.startswith("zfw: " + message.format(path))
            assert result.err.count("\n") == 1
        assert firewall.save() == before


def test_files_that_cannot_be_read(zfw: Zfw, tmp_path: Path) -> None:
    none = tmp_path / "none.toml"
    assert zfw("restore", str(none)) == (5, "", f"zfw: {none}: no such file\n")
    folder = tmp_path / "folder.toml"
    folder.mkdir()
    assert zfw("restore", str(folder)) == (2, "", f"zfw: {folder}: Is a directory\n")


def test_a_pipe_or_a_device_is_read_with_a_bound(
    zfw: Zfw, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("zfw_py.firewall.document.MAX_BYTES", 4096)
    endless = tmp_path / "zero.toml"
    endless.symlink_to("/dev/zero")
    assert zfw("restore", str(endless)) == (2, "", f"zfw: {endless}: larger than 4096 bytes\n")
    fifo = tmp_path / "fifo.toml"
    os.mkfifo(fifo)
    with subprocess.Popen(["/bin/sh", "-c", f"printf 'version = 1' > {fifo}"]):
        assert zfw("restore", "--check", str(fifo)).code == 0


@kernel
def test_only_a_regular_file_is_replaced(zfw: Zfw, firewall: Firewall, tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.write_text("precious")
    link, fifo, folder = (tmp_path / f"{name}.json" for name in ("link", "fifo", "folder"))
    link.symlink_to(target)
    os.mkfifo(fifo)
    folder.mkdir()
    for path in (link, fifo, folder):
        assert zfw("save", str(path)) == (
            2,
            "",
            f"zfw: {path}: not a regular file\nhint: - is standard output\n",
        )
    assert target.read_text() == "precious"
    assert link.is_symlink()
    away = tmp_path / "away" / "a.toml"
    assert zfw("save", str(away)) == (5, "", f"zfw: {away}: no such directory\n")
    assert zfw("save", "/dev/null").code == 2


@kernel
def test_what_was_there_stays_if_it_cannot_be_written(
    zfw: Zfw, firewall: Firewall, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.toml"
    path.write_text("old")
    path.chmod(0o644)

    def full(fd: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        assert zfw("save", str(path)) == (1, "", f"zfw: {path}: No space left on device\n")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]
    assert zfw("save", str(path)).code == 0
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


@kernel
def test_without_a_firewall(zfw: Zfw, namespace: Namespace, tmp_path: Path) -> None:
    path = tmp_path / "a.toml"
    result = zfw("save", str(path))
    assert (result.code, result.out) == (3, "")
    assert not path.exists()
    path.write_text("version = 1\n")
    assert zfw("restore", str(path)) == (0, "0 inserted, 0 changed, 0 deleted\n", "")
    assert Firewall().is_installed()


# systemd

UNIT = "etc/systemd/system/zfw-restore.service"
LINK = "etc/systemd/system/sysinit.target.wants/zfw-restore.service"
FOLLOW = "etc/systemd/system/zfw-follow.service"
FOLLOW_LINK = "etc/systemd/system/sysinit.target.wants/zfw-follow.service"
RELOAD = "run systemctl daemon-reload to make systemd read the change\n"


def test_the_unit_is_installed_and_removed(zfw: Zfw, tmp_path: Path) -> None:
    unit, link = tmp_path / UNIT, tmp_path / LINK
    follow, follow_link = tmp_path / FOLLOW, tmp_path / FOLLOW_LINK
    installed = (
        0,
        f"installed {unit}, enabled for /etc/zfw/zfw.toml\ninstalled {follow}, enabled\n{RELOAD}",
        "",
    )
    for _ in range(2):
        assert zfw("systemd", "install", "--prefix", str(tmp_path)) == installed
        assert link.resolve() == unit
        assert stat.S_IMODE(unit.stat().st_mode) == 0o644
    found = {path for path in tmp_path.rglob("*") if not path.is_dir()}
    assert found == {unit, link, follow, follow_link}
    assert follow_link.resolve() == follow
    lines = unit.read_text().splitlines()
    for line in (
        f"ExecStart={ZFW} restore --wait 10 --allow-absent /etc/zfw/zfw.toml",
        "ConditionPathExists=/etc/zfw/zfw.toml",
        "Before=network-pre.target shutdown.target",
        "Wants=network-pre.target",
        "DefaultDependencies=no",
        "Type=oneshot",
        "RemainAfterExit=yes",
        f"CapabilityBoundingSet={' '.join(CAPABILITIES)}",
    ):
        assert line in lines
    assert any(line.startswith("After=") and "sys-fs-bpf.mount" in line for line in lines)
    assert zfw("systemd", "remove", "--prefix", str(tmp_path)) == (
        0,
        f"removed {unit}\nremoved {follow}\n{RELOAD}",
        "",
    )
    assert [path for path in tmp_path.rglob("*") if not path.is_dir()] == []
    assert zfw("systemd", "remove", "--prefix", str(tmp_path)) == (
        5,
        "",
        f"zfw: {unit}: not installed\n",
    )


def test_the_unit_that_follows(zfw: Zfw, tmp_path: Path) -> None:
    """In any order of boot: it needs neither the file, nor the network, nor a restore."""
    zfw("systemd", "install", "--prefix", str(tmp_path))
    lines = (tmp_path / FOLLOW).read_text().splitlines()
    for line in (
        f"ExecStart={ZFW} follow",
        "Type=notify",
        "Restart=on-failure",
        "Before=network-pre.target shutdown.target",
        "DefaultDependencies=no",
        f"CapabilityBoundingSet={' '.join(CAPABILITIES)}",
    ):
        assert line in lines
    (after,) = (line for line in lines if line.startswith("After="))
    assert "zfw-restore.service" in after
    assert not any(line.startswith(("Condition", "Requires=")) for line in lines)


def test_a_unit_of_an_older_version_is_removed_alone(zfw: Zfw, tmp_path: Path) -> None:
    """It had no follower."""
    zfw("systemd", "install", "--prefix", str(tmp_path))
    for path in (FOLLOW, FOLLOW_LINK):
        (tmp_path / path).unlink()
    unit = tmp_path / UNIT
    done = zfw("systemd", "remove", "--prefix", str(tmp_path))
    assert done == (0, f"removed {unit}\n{RELOAD}", "")


def test_the_unit_of_steer_is_its_own(zfw: Zfw, tmp_path: Path) -> None:
    unit = tmp_path / "etc/systemd/system/zfw-steer.service"
    link = unit.parent / "multi-user.target.wants/zfw-steer.service"
    installed = (0, f"installed {unit}, enabled for /etc/zfw/steer.json\n{RELOAD}", "")
    for _ in range(2):
        assert zfw("systemd", "install", "steer", "--prefix", str(tmp_path)) == installed
    assert link.resolve() == unit
    lines = unit.read_text().splitlines()
    for line in (
        f"ExecStartPre={ZFW} steer apply /etc/zfw/steer.json",
        f"ExecStart={ZFW} steer run",
        f"CapabilityBoundingSet={' '.join(STEER_CAPABILITIES)}",
    ):
        assert line in lines
    assert zfw("systemd", "remove", "--prefix", str(tmp_path)).code == 5
    assert zfw("systemd", "install", "steer", "--file", "/etc/steer.toml").err == (
        "zfw: /etc/steer.toml: its name does not end in .json\n"
    )
    assert zfw("systemd", "remove", "steer", "--prefix", str(tmp_path)).code == 0
    assert [path for path in tmp_path.rglob("*") if not path.is_dir()] == []


@pytest.mark.skipif(not Path("/usr/bin/systemd-analyze").exists(), reason="needs systemd-analyze")
def test_systemd_takes_the_unit_of_steer(zfw: Zfw, tmp_path: Path) -> None:
    zfw("systemd", "install", "steer", "--prefix", str(tmp_path))
    _verify(tmp_path / "etc/systemd/system/zfw-steer.service")


@pytest.mark.skipif(not Path("/usr/bin/systemd-analyze").exists(), reason="needs systemd-analyze")
def test_systemd_takes_the_unit(zfw: Zfw, tmp_path: Path) -> None:
    zfw("systemd", "install", "--prefix", str(tmp_path), "--file", "/etc/zfw/50%.json")
    unit = tmp_path / UNIT
    assert "/etc/zfw/50%%.json" in unit.read_text()
    _verify(unit)
    _verify(tmp_path / FOLLOW)


def _verify(unit: Path) -> None:
    done = captured("/usr/bin/systemd-analyze", "verify", unit)
    assert (done.returncode, unit.stem in done.stderr) == (0, False), done.stderr


@pytest.mark.parametrize(
    ("file", "message"),
    [
        ("zfw.toml", "--file: not an absolute path: zfw.toml"),
        ("/etc/zfw.conf", "/etc/zfw.conf: its name does not end in .toml or .json"),
        (
            "/a\nExecStart=/b.toml",
            "--file: path contains characters that systemd units cannot hold",
        ),
        (
            "/a b.toml",
            "--file: path contains characters that systemd units cannot hold"
            " (whitespace, quotes, \\, $, ;): '/a b.toml'\n",
        ),
    ],
)
def test_a_file_that_no_unit_can_name(zfw: Zfw, tmp_path: Path, file: str, message: str) -> None:
    result = zfw("systemd", "install", "--prefix", str(tmp_path), "--file", file)
    assert result.code == 2
    assert result.err.startswith(f"zfw: {message}")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("action", ["install", "remove"])
def test_what_others_put_there_stays(zfw: Zfw, tmp_path: Path, action: str) -> None:
    unit = tmp_path / UNIT
    unit.parent.mkdir(parents=True)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.write_text("[Service]\n")
    unit.write_text("[Service]\n")
    result = zfw("systemd", action, "--prefix", str(tmp_path))
    assert (result.code, unit.read_text()) == (6, "[Service]\n")
    unit.unlink()
    unit.symlink_to(elsewhere)
    assert zfw("systemd", action, "--prefix", str(tmp_path)).code == 6
    assert elsewhere.read_text() == "[Service]\n"
    assert unit.is_symlink()


def test_a_prefix_that_is_not_there(zfw: Zfw, tmp_path: Path) -> None:
    missing = tmp_path / "none"
    assert zfw("systemd", "install", "--prefix", str(missing)) == (
        5,
        "",
        f"zfw: --prefix: no such directory: {missing}\n",
    )
