# SPDX-License-Identifier: GPL-2.0-only
"""Bad input: one line that names the option, exit code 2, and the kernel is not even entered."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from zfw_py.firewall.maps import Maps

if TYPE_CHECKING:
    from tests.cli.conftest import Zfw

SSH = ("-c", "100.72.0.4", "-m", "32", "-p", "tcp", "-l", "22")


@pytest.fixture(autouse=True)
def _no_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    def entered(self: Maps) -> None:
        pytest.fail("the kernel is entered")

    monkeypatch.setattr(Maps, "__init__", entered)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"-c": "300.1.1.1"},
            "-c, --destination: not an IPv4 or IPv6 address: '300.1.1.1'",
        ),
        ({"-c": "10.0.0.0/8"}, "-c, --destination: '10.0.0.0/8' contradicts the prefix length 32"),
        ({"-m": "33"}, "-c, --destination: prefix length 33 of '100.72.0.4' is not within 0 to 32"),
        ({"-m": ""}, "-m, --prefix-length: not a prefix length within 0 to 128: ''"),
        ({"-c": "own4"}, "-m, --prefix-length: not together with own4"),
        ({"-o": "own4"}, "-o, --source: not an IPv4 or IPv6 address: 'own4'"),
        ({"-o": "here"}, "-o, --source: not an IPv4 or IPv6 address: 'here'"),
        ({"-o": "fd00::5"}, "-o, --source: fd00::5/128 is not IPv4 as the destination is"),
        ({"-n": "8"}, "-o, --source: missing, -n, --source-length needs it"),
        ({"-p": "sctp"}, "-p, --protocol: not tcp or udp: 'sctp'"),
        ({"-l": "70000"}, "-l, --low-port: not a port within 0 to 65535: '70000'"),
        ({"-l": ""}, "-l, --low-port: not a port within 0 to 65535: ''"),
        ({"-h": "-1"}, "-h, --high-port: not a port within 0 to 65535: '-1'"),
        ({"-h": "5"}, "-h, --high-port: 5 is below the low port 22"),
        ({"-t": "x"}, "-t, --tproxy-port: not a port within 0 to 65535: 'x'"),
        (
            {"-t": "1", "-z": "egress"},
            "-t, --tproxy-port: an egress rule cannot intercept; use 0",
        ),
        ({"-z": "both"}, "-z, --direction: not ingress or egress: 'both'"),
        ({"-N": "a/b"}, "-N, --interface: not an interface name: 'a/b'"),
        ({"-s": "a b"}, "-s, --service-id: blanks or control characters in 'a b'"),
        ({"-q": "1"}, "No such option: -q Try 'zfw insert --help'."),
    ],
)
def test_bad_values_name_their_option(zfw: Zfw, options: dict[str, str], message: str) -> None:
    given = {"-c": "100.72.0.4", "-m": "32", "-p": "tcp", "-l": "22"} | options
    words = [word for option in given.items() for word in option]
    for verb in ("insert", "delete"):
        assert zfw(verb, *words) == (2, "", f"zfw: {message}\n".replace("insert", verb))


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (("-p", "tcp", "-l", "22"), 2, "Missing option '-c' / '--destination'."),
        ((*SSH, "extra"), 2, "Got unexpected extra argument(s) (extra)"),
        ((*SSH, "-t"), 2, "Option '-t' requires an argument."),
    ],
)
def test_usage_errors_are_one_line(
    zfw: Zfw, words: tuple[str, ...], code: int, message: str
) -> None:
    assert zfw("insert", *words) == (code, "", f"zfw: {message} Try 'zfw insert --help'.\n")


def test_deny_takes_no_port(zfw: Zfw) -> None:
    assert zfw("insert", *SSH, "--deny", "-t", "5") == (
        2,
        "",
        "zfw: -t, --tproxy-port: a deny rule cannot intercept; use 0\n",
    )


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("attach",), "Missing argument 'IFACE...'. Try 'zfw attach --help'."),
        (("attach", "lo", "a/b"), "IFACE: not an interface name: 'a/b'"),
        (("set", "a/b", "--ssh", "on"), "IFACE: not an interface name: 'a/b'"),
        (("list", "-c", "10/8"), "-c, --destination: not an IPv4 or IPv6 address: '10'"),
        (
            ("list", "--intercepts", "--passthrough"),
            "--intercepts: not together with --passthrough",
        ),
        (("batch", "/"), "/: Is a directory"),
        (("detach",), "give either IFACE... or --all"),
        (("detach", "gw0", "--all"), "give either IFACE... or --all"),
        (("set", "gw0"), "no setting given\nhint: zfw set --help lists them"),
        (
            ("set", "gw0", "--ssh", "maybe"),
            "Invalid value for '--ssh': 'maybe' is not one of 'on', 'off'. Try 'zfw set --help'.",
        ),
        (
            ("attach", "gw0", "--mode", "xdp"),
            "Invalid value for '--mode': 'xdp' is not one of 'auto', 'tcx', 'clsact'."
            " Try 'zfw attach --help'.",
        ),
        (("nosuch",), "No such command 'nosuch'. Try 'zfw --help'."),
    ],
)
def test_bad_input(zfw: Zfw, words: tuple[str, ...], message: str) -> None:
    assert zfw(*words) == (2, "", f"zfw: {message}\n")


@pytest.mark.parametrize(
    ("words", "likely"),
    [(("attachh", "eth0"), "attach"), (("guard", "lst"), "list"), (("stats",), "status")],
)
def test_a_command_with_a_typing_error_is_guessed(
    zfw: Zfw, words: tuple[str, ...], likely: str
) -> None:
    code, _, errors = zfw(*words)
    assert code == 2
    assert f"Did you mean {likely}?" in errors


@pytest.mark.parametrize(
    ("words", "option"),
    [
        (("guard", "run", "--allow", "--", "true"), "--allow"),
        (("insert", "-c", "--", "-p", "tcp", "-l", "1"), "--destination"),
        (("restore", "x.toml", "--format", "--"), "--format"),
    ],
)
def test_the_end_of_options_is_no_value(zfw: Zfw, words: tuple[str, ...], option: str) -> None:
    code, _, errors = zfw(*words)
    assert code == 2
    assert f"{option}" in errors
