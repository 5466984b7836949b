# SPDX-License-Identifier: GPL-2.0-only
"""``zfw -A``: the administrator's own rules file is run, if nobody else can have written it."""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING

import pytest

from tests.compat.support.fake_router import CommandLine
from tests.support.command import ZFW
from zfw_py import Firewall
from zfw_py.cli.classic import run as classic_run
from zfw_py.compat import places
from zfw_py.kernel.subprocesses import run_own

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.support.netns import Namespace, Network

pytestmark = pytest.mark.kernel

NOBODY = 65534


@pytest.fixture
def script(
    firewall: Firewall, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[str], Path]:
    """Write the rules file that -A runs, in the place that it has for this test."""
    path = tmp_path / "user_rules.sh"
    monkeypatch.setattr(places, "USER_RULES", str(path))

    def write(text: str) -> Path:
        path.write_text(text)
        path.chmod(0o755)
        return path

    return write


def refused(capfd: pytest.CaptureFixture[str]) -> str:
    """The one line on stderr with which -A fails, its code 1, and nothing on stdout."""
    assert classic_run.run(["-A"]) == 1
    done = capfd.readouterr()
    assert done.out == ""
    line = done.err.splitlines()[0]
    assert line.startswith("zfw: ")
    return line.removeprefix("zfw: ")


def test_case_45_the_rules_file_is_run_with_no_input_and_little_environment(
    script: Callable[[str], Path],
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("LD_PRELOAD_NOT", "1")
    path = script('#!/bin/sh\necho "$0 $#"\nreadlink /proc/self/fd/0\nenv | sort\n')
    assert classic_run.run(["-A"]) == 0
    done = capfd.readouterr()
    lines = [line for line in done.out.splitlines() if not line.startswith(("_=", "OLDPWD="))]
    assert lines[:2] == [f"{path} 0", "/dev/null"]
    names = {line.partition("=")[0] for line in lines[2:]}
    # The others are the shell's own.
    assert {"HOME", "PATH", "LANG"} <= names <= {"HOME", "PATH", "LANG", "PWD", "SHLVL"}
    assert done.err == ""


def test_the_rules_file_has_no_signal_ignored_as_python_has(script: Callable[[str], Path]) -> None:
    """``yes | head`` in it would never end."""
    assert signal.getsignal(signal.SIGPIPE) == signal.SIG_IGN
    path = script("#!/bin/sh\ngrep SigIgn /proc/$$/status > $(dirname $0)/ignored\n")
    run_own(str(path), timeout=10)
    ignored = int((path.parent / "ignored").read_text().split()[1], 16)
    assert not ignored & 1 << (signal.SIGPIPE - 1)


def test_case_45_it_fails_as_the_rules_file_does(
    script: Callable[[str], Path], capfd: pytest.CaptureFixture[str]
) -> None:
    path = script("#!/bin/sh\nexit 3\n")
    assert refused(capfd) == f"{path} failed with exit code 3"
    script("#!/bin/sh\nkill -KILL $$\n")
    assert refused(capfd) == f"{path} was ended by signal 9"
    script("echo no interpreter named\n")
    assert refused(capfd) == f"run {path}: Exec format error (ENOEXEC)"
    script("#!/nosuch/interpreter\n")
    assert refused(capfd) == f"{path}: no such program, or what it is run by is missing"


def test_case_45_it_fails_where_there_is_no_rules_file(
    script: Callable[[str], Path], capfd: pytest.CaptureFixture[str]
) -> None:
    path = script("")
    path.unlink()
    assert refused(capfd) == f"{path}: no such file"
    path.mkdir()
    assert refused(capfd) == f"{path}: not a file"


def test_what_others_could_have_written_is_not_run(
    script: Callable[[str], Path], capfd: pytest.CaptureFixture[str]
) -> None:
    path = script("#!/bin/sh\ntouch $(dirname $0)/was-run\n")
    folder = path.parent
    for mode in (0o775, 0o757):
        path.chmod(mode)
        assert refused(capfd) == f"{path}: {path} can be written by others than root"
    path.chmod(0o644)
    assert refused(capfd) == f"{path}: not executable"
    path.chmod(0o755)
    os.chown(path, NOBODY, 0)
    assert refused(capfd) == f"{path}: {path} is not root's"
    os.chown(path, 0, 0)
    before = folder.stat().st_mode
    folder.chmod(0o777)
    assert refused(capfd) == f"{path}: {folder} can be written by others than root"
    folder.chmod(before)
    os.chown(folder, NOBODY, 0)
    assert refused(capfd) == f"{path}: {folder} is not root's"
    os.chown(folder, 0, 0)
    path.rename(folder / "elsewhere")
    path.symlink_to(folder / "elsewhere")
    assert refused(capfd) == f"{path}: {path} is a link, which is not followed"
    assert not (folder / "was-run").exists()


def test_without_a_firewall_it_is_not_run(
    namespace: Namespace,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    path = tmp_path / "user_rules.sh"
    path.write_text("#!/bin/sh\ntouch $(dirname $0)/was-run\n")
    path.chmod(0o755)
    monkeypatch.setattr(places, "USER_RULES", str(path))
    assert classic_run.run(["-A"]) == 1
    assert capfd.readouterr().out.startswith(classic_run.NOT_ENABLED)
    assert not (tmp_path / "was-run").exists()


def test_case_45_the_command_runs_it_in_its_place_and_it_runs_zfw(
    firewall: Firewall, network: Network
) -> None:
    """/opt is the command's own, in a mount namespace of its own."""
    rules = f"""#!/bin/sh
set -e
{ZFW} -x gw0
{ZFW} -e gw0
{ZFW} -6 gw0
{ZFW} -I -c 10.3.0.0 -m 16 -p tcp -l 1 -h 1 -t 0 -z egress -d
"""
    prepare = (
        "mount -t tmpfs none /opt && mkdir -p /opt/openziti/bin/user"
        ' && printf "%s" "$0" > /opt/openziti/bin/user/user_rules.sh'
        " && chmod 755 /opt/openziti/bin/user/user_rules.sh"
        ' && exec "$@"'
    )
    mounting = ("unshare", "--mount", "sh", "-c", prepare, rules)
    done = network.gateway.run(*mounting, str(ZFW), "-A", check=False)
    assert (done.returncode, done.stderr) == (0, "")
    (interface,) = firewall.status().interfaces
    assert (interface.settings["ssh"], interface.settings["icmp_echo"]) == (False, True)
    (rule,) = firewall.rules()
    assert (rule.key.direction, rule.action) == ("egress", "deny")


def test_an_unprivileged_user_runs_nothing(firewall: Firewall, network: Network) -> None:
    if network.gateway.run("test", "-x", str(ZFW), check=False, user=NOBODY).returncode:
        pytest.skip("the virtual environment is not readable for everybody")
    done = CommandLine(network.gateway)("-A", user=NOBODY, group=NOBODY, extra_groups=[])
    assert done.returncode == 1
    assert done.stdout.startswith(classic_run.NOT_ENABLED)
