# SPDX-License-Identifier: GPL-2.0-only
"""Standard streams that are closed, full or not read: a line on stderr, a code, no traceback."""

from __future__ import annotations

import os
import subprocess
from typing import TYPE_CHECKING

import pytest

from tests.support.command import ZFW
from tests.support.netns import Network
from zfw_py import Firewall

if TYPE_CHECKING:
    from collections.abc import Iterator

INSERT = "insert -c 100.72.0.4 -p tcp -l 443"
CLASSIC_INSERT = "-I -c 100.72.0.4 -m 32 -p tcp -l 443 -h 443 -t 0"
LOST = 74
ENVIRONMENT = {name: each for name, each in os.environ.items() if name != "PYTHONUNBUFFERED"}


@pytest.fixture(scope="module")
def _installed(_private_bpffs: None) -> Iterator[Network]:
    """One firewall for all of the tests: the verifier takes seconds."""
    with Network() as network:
        with network.gateway.entered():
            Firewall().attach(network.interface)
        yield network


@pytest.fixture
def attached(_installed: Network) -> Iterator[None]:
    """The test runs where a firewall without rules is."""
    with _installed.gateway.entered():
        Firewall().flush()
        yield


def run(command: str, *, streams: str = "", **variables: str) -> subprocess.CompletedProcess[str]:
    """Run zfw by a shell, which sets up its streams."""
    return subprocess.run(
        ["sh", "-c", f"exec {ZFW} {command} {streams}"],
        capture_output=True,
        text=True,
        errors="surrogateescape",
        env=ENVIRONMENT | variables,
        timeout=60,
        check=False,
    )


def ports() -> list[int]:
    return [rule.key.low_port for rule in Firewall().rules()]


@pytest.mark.kernel
@pytest.mark.parametrize(
    ("streams", "why", "unbuffered"),
    [
        (">&-", "Bad file descriptor", ""),
        (">/dev/full", "No space left on device", ""),
        (">/dev/full", "No space left on device", "1"),
    ],
)
@pytest.mark.parametrize(
    ("command", "code"),
    [
        (INSERT, LOST),
        ("list", LOST),
        ("--help", LOST),
        (CLASSIC_INSERT, 0),
        ("-L", 1),
        ("-?", 1),
    ],
)
def test_output_that_cannot_be_written(
    attached: None, command: str, code: int, streams: str, why: str, unbuffered: str
) -> None:
    done = run(command, streams=streams, PYTHONUNBUFFERED=unbuffered)
    expected = f"zfw: cannot write to stdout: {why}; what the command changed stands\n"
    assert (done.returncode, done.stdout, done.stderr) == (code, "", expected)
    assert ports() == ([443] if "443" in command else [])


@pytest.mark.kernel
@pytest.mark.parametrize("command", [INSERT, "-L", CLASSIC_INSERT, "-?"])
def test_a_reader_that_is_gone_is_no_failure_to_report(attached: None, command: str) -> None:
    read_end, write_end = os.pipe()
    os.close(read_end)
    with os.fdopen(write_end, "w") as pipe:
        done = subprocess.run(
            [ZFW, *command.split()],
            stdout=pipe,
            stderr=subprocess.PIPE,
            env=ENVIRONMENT,
            timeout=60,
            check=False,
        )
    assert done.stderr == b""
    assert done.returncode == {INSERT: LOST, CLASSIC_INSERT: 0}.get(command, 1)
    assert ports() == ([443] if "443" in command else [])


@pytest.mark.kernel
@pytest.mark.parametrize("streams", ["<&-", "2>&-", "<&- >/dev/null 2>&-"])
def test_stdin_and_stderr_may_be_closed(attached: None, streams: str) -> None:
    for command, code in ((INSERT, 0), ("-L", 0), ("list --yaml", 2), ("--nosuch", 64)):
        done = run(command, streams=streams)
        assert done.returncode == code, (command, done)
        assert "Traceback" not in done.stderr
    done = run("batch -", streams=streams)
    assert (done.returncode, done.stdout) == (0, "" if "null" in streams else done.stdout)


@pytest.mark.kernel
@pytest.mark.parametrize("locale", ["POSIX", "en_US.ISO-8859-1", "C.UTF-8"])
def test_a_name_that_the_locale_cannot_encode(attached: None, locale: str) -> None:
    variables = {"LC_ALL": locale}
    for command in (f"{INSERT} -s dienst-ü-€", f"{CLASSIC_INSERT} -s dienst-ü-€", "list", "-L"):
        done = run(command, **variables)
        assert done.returncode == 0, done
        assert done.stderr == ""


@pytest.mark.kernel
@pytest.mark.parametrize("columns", ["1", "20"])
def test_a_narrow_terminal(attached: None, columns: str) -> None:
    assert run(INSERT).returncode == 0
    for command in ("--help", "guard run --help", "status"):
        done = run(command, COLUMNS=columns)
        assert (done.returncode, done.stderr) == (0, ""), command


@pytest.mark.parametrize(
    ("command", "code"),
    [
        ("insert -c {} -p tcp -l 443", 2),
        ("insert -c 100.72.0.4 -p {} -l 443", 2),
        ("insert -c 100.72.0.4 -p tcp -l {}", 2),
        ("insert -c 100.72.0.4 -p tcp -l 443 -s {}", 2),
        ("insert -c 100.72.0.4 -p tcp -l 443 -N {}", 5),
        ("{}", 2),
        ("list --{}", 2),
        ("restore {}", 5),
        ("guard run --allow {} true", 2),
        ("steer add {} 100.72.0.4 80 --to 127.0.0.1:1", 2),
        ("-I -c {} -m 32 -p tcp -l 443 -h 443 -t 0", 64),
        ("-I -c 100.72.0.4 -m 32 -p tcp -l {} -h 443 -t 0", 64),
        ("-{}", 64),
        ("--{}", 64),
    ],
)
def test_a_long_value_is_not_repeated_whole(command: str, code: int) -> None:
    done = run(command.format("ö" * 10_000))
    assert done.returncode in (code, 1, 2), done.stderr[:300]
    assert "Traceback" not in done.stderr
    assert 20 < len(done.stderr) < 1500, done.stderr[:2000]
