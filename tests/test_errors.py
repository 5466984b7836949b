# SPDX-License-Identifier: GPL-2.0-only
"""The error tree: exit codes, messages, what is what."""

from __future__ import annotations

import errno

import pytest

from zfw_py import errors
from zfw_py.firewall.model import RuleKey
from zfw_py.firewall.rules import RuleNotFound
from zfw_py.values.prefix import Prefix

EXIT_CODES = {
    "ZfwError": 1,
    "UsageError": 2,
    "NotInstalled": 3,
    "NotFound": 5,
    "Conflict": 6,
    "MapFull": 7,
    "LayoutMismatch": 8,
    "OutputLost": 74,
    "Busy": 75,
    "PermissionDenied": 77,
    "KernelError": 1,
    "VerifierError": 1,
}


def test_every_error_has_its_documented_exit_code() -> None:
    classes = {
        name: value.exit_code
        for name, value in vars(errors).items()
        if isinstance(value, type) and issubclass(value, errors.ZfwError)
    }
    assert classes == EXIT_CODES


def test_the_docstring_draws_the_tree_as_it_is() -> None:
    drawn = dict(
        line.replace("│", " ").replace("└──", "").replace("├──", "").split()[:2]
        for line in (errors.__doc__ or "").splitlines()
        if "Error " in line or "── " in line
    )
    assert drawn == {name: str(code) for name, code in EXIT_CODES.items()}


@pytest.mark.parametrize("name", EXIT_CODES)
def test_every_error_is_a_zfw_error(name: str) -> None:
    assert issubclass(getattr(errors, name), errors.ZfwError)


def test_an_error_is_its_message_and_perhaps_a_hint() -> None:
    error = errors.NotFound("no such rule", hint="zfw list shows them")
    assert str(error) == error.message == "no such rule"
    assert error.hint == "zfw list shows them"
    assert errors.NotFound("no such rule").hint is None


def test_a_kernel_error_is_an_os_error_with_its_number() -> None:
    error = errors.KernelError("write the rules", errno.ENOMEM, hint="free some")
    assert isinstance(error, OSError)
    assert error.errno == errno.ENOMEM
    assert str(error) == "write the rules: Cannot allocate memory (ENOMEM)"
    assert error.hint == "free some"


def test_a_kernel_error_of_a_number_without_a_name_tells_the_number() -> None:
    assert str(errors.KernelError("attach", 524)).endswith("(524)")


def test_a_verifier_error_tells_the_last_line_that_says_something_and_keeps_all() -> None:
    log = "0: R1=ctx\n\nR3 invalid mem access 'inv'\nprocessed 9 insns (limit 1000000)\n"
    error = errors.VerifierError("ingress", errno.EACCES, log)
    assert "load program ingress: R3 invalid mem access 'inv'" in str(error)
    assert error.errno == errno.EACCES
    assert error.log == log
    assert error.hint is not None
    assert "3 lines" in error.hint


@pytest.mark.parametrize("log", ["", "\n", "processed 9 insns\n"])
def test_a_verifier_error_without_a_telling_line_says_so(log: str) -> None:
    assert "load program ingress: no log" in str(errors.VerifierError("ingress", 1, log))


def test_a_rule_that_is_not_found_tells_whether_its_prefix_has_others() -> None:
    key = RuleKey(Prefix.parse("192.0.2.1"), "tcp", 1)
    error = RuleNotFound(key, "no rule", is_prefix_known=True)
    assert isinstance(error, errors.NotFound)
    assert (error.exit_code, error.key, error.is_prefix_known) == (5, key, True)


def test_a_message_keeps_the_begin_and_the_end_of_what_it_quotes() -> None:
    error = errors.UsageError(f"port: not a number: {'7' * 10_000}x")
    assert error.message.startswith("port: not a number: 777")
    assert error.message.endswith("777x")
    assert "[9421 characters]" in error.message
    assert len(error.message) < 700
    assert errors.shortened("short") == "short"
