# SPDX-License-Identifier: GPL-2.0-only
"""What all commands have in common: what they load, how they end, help and completion."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import pytest

from tests.support.command import captured
from zfw_py import Firewall
from zfw_py.cli.app import COMMANDS, main

if TYPE_CHECKING:
    from tests.cli.conftest import Zfw
    from tests.support.netns import Network

ROOT = Path(__file__).resolve().parents[2]
RUN = "import sys; from zfw_py.cli.app import main; sys.exit(main(sys.argv[1:]))"
# What is heavy and has no business in a plain command.
HEAVY = ("asyncio", "json", "netaddr", "pydantic", "pyroute2", "rich")
INSERT = ("insert", "-c", "10.0.0.1", "-p", "tcp", "-l", "22", "-t", "5000")


def loaded_by(*argv: str) -> set[str]:
    """The modules that a process with this command line has loaded in the end."""
    code = (
        "import sys; from zfw_py.cli.app import main; main(sys.argv[1:]);"
        "print(*sys.modules, file=sys.stderr)"
    )
    done = captured(sys.executable, "-c", code, *argv, check=True, cwd=ROOT)
    return set(done.stderr.split())


def commands_in(modules: set[str]) -> set[str]:
    return {name for name in COMMANDS if f"zfw_py.cli.commands.{name.replace('-', '_')}" in modules}


def test_a_command_loads_only_itself() -> None:
    modules = loaded_by("completion", "bash")
    assert commands_in(modules) == {"completion"}
    assert modules.isdisjoint(HEAVY)


def test_help_loads_nothing_heavy() -> None:
    modules = loaded_by("--help")
    assert commands_in(modules) == set(COMMANDS)
    assert modules.isdisjoint(HEAVY)


@pytest.mark.kernel
def test_insert_loads_nothing_heavy(firewall: Firewall) -> None:
    modules = loaded_by(*INSERT)
    assert len(firewall.rules()) == 1
    assert commands_in(modules) == {"insert"}
    assert modules.isdisjoint(HEAVY)


@pytest.mark.kernel
@pytest.mark.parametrize("mode", ["tcx", "clsact"])
def test_status_and_list_load_nothing_heavy(
    network: Network, firewall: Firewall, mode: Literal["tcx", "clsact"]
) -> None:
    """Typer alone takes four times the bare interpreter, and status may take six."""
    firewall.attach(network.interface, mode=mode)
    for command in ("status", "list"):
        modules = loaded_by(command)
        assert commands_in(modules) == {command}
        assert modules.isdisjoint({*HEAVY, "hashlib"})


def test_help(zfw: Zfw) -> None:
    everything = zfw("--help")
    assert zfw() == everything
    assert (everything.code, everything.err) == (0, "")
    for name in COMMANDS:
        assert f"  {name} " in everything.out
        result = zfw(name, "--help")
        assert (result.code, result.err) == (0, "")
        assert result.out.startswith(f"Usage: zfw {name} ")
    assert "-h, --high-port PORT" in zfw("insert", "--help").out


@pytest.mark.parametrize("group", [(), ("guard",), ("docker-dns",), ("steer",)])
def test_summaries_fit_their_column(
    zfw: Zfw, monkeypatch: pytest.MonkeyPatch, group: tuple[str, ...]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    summaries = zfw(*group, "--help").out.partition("Commands:\n")[2].splitlines()
    assert len(summaries) >= 4
    for summary in summaries:
        # A summary that does not fit ends in an ellipsis, or goes on in the next line.
        assert summary.startswith("  ")
        assert not summary.startswith("    ")
        assert summary.endswith(".")
        assert not summary.endswith("..")


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts(zfw: Zfw, shell: str) -> None:
    result = zfw("completion", shell)
    assert (result.code, result.err) == (0, "")
    assert f"_ZFW_COMPLETE=complete_{shell}" in result.out


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("zfw ins", ["insert"]),
        ("zfw insert --low", ["--low-port"]),
        ("zfw insert -p ", ["tcp", "udp"]),
        ("zfw attach --mode t", ["tcx"]),
        ("zfw attach l", ["lo"]),
        ("zfw set al", ["all"]),
    ],
)
def test_completion(words: str, expected: list[str]) -> None:
    environment = {
        **os.environ,
        "_ZFW_COMPLETE": "complete_bash",
        "COMP_WORDS": words,
        "COMP_CWORD": str(len(words.split(" ")) - 1),
    }
    done = captured(sys.executable, "-c", RUN, env=environment, cwd=ROOT)
    assert (done.returncode, done.stdout.split(), done.stderr) == (0, expected, "")


def test_a_reader_that_has_gone_is_no_error() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [sys.executable, "-c", RUN, "completion", "bash"],
        stdout=writer,
        stderr=subprocess.PIPE,
        cwd=ROOT,
    )
    os.close(writer)
    assert (done.returncode, done.stderr) == (1, b"")


def test_ctrl_c() -> None:
    batch = subprocess.Popen(
        [sys.executable, "-c", RUN, "batch"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=ROOT,
    )
    assert batch.stdin is not None
    # More than a pipe holds: written, it has begun to read.
    batch.stdin.write(b"\n" * (1 << 20))
    batch.stdin.flush()
    batch.send_signal(signal.SIGINT)
    out, err = batch.communicate(timeout=10)
    assert (batch.returncode, out, err) == (130, b"", b"")


def test_a_bug_shows_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(self: Firewall) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(Firewall, "status", broken)
    with pytest.raises(ZeroDivisionError):
        main(["status"])


@pytest.mark.kernel
def test_without_privileges(firewall: Firewall, network: Network) -> None:
    code = f"import os; os.setuid(65534); {RUN}"
    done = captured(sys.executable, "-c", code, *INSERT, cwd=ROOT)
    assert (done.returncode, done.stdout) == (77, "")
    assert done.stderr.startswith("zfw: cannot open ")
    assert done.stderr.count("\n") == 1


def test_the_documentation_is_up_to_date() -> None:
    done = captured(sys.executable, "scripts/gen-cli-docs", "--check", cwd=ROOT)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
