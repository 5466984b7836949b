# SPDX-License-Identifier: GPL-2.0-only
"""The options that the commands of zfw guard share, and what they come to."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

import typer

from zfw_py.cli import files, output
from zfw_py.cli.documents import form_of
from zfw_py.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from zfw_py.errors import ZfwError
    from zfw_py.guard.model import Policy
    from zfw_py.guard.service import Target

Default = Literal["deny", "allow"]

Allow = Annotated[
    list[str],
    typer.Option(
        "--allow",
        metavar="NAME|CIDR[:PORT]",
        help="Let it reach a name and all below it, or a prefix; on one port, or on all.",
    ),
]
Block = Annotated[
    list[str],
    typer.Option(
        "--block",
        metavar="NAME|CIDR",
        help="Keep it from a name or a prefix. The longest of all that match decides. Without"
        " --allow, all else is allowed.",
    ),
]
DefaultOption = Annotated[
    Default | None,
    typer.Option("--default", help="What becomes of all else: deny, unless there are only blocks."),
]
DnsUpstream = Annotated[
    list[str],
    typer.Option(
        "--dns-upstream",
        metavar="ADDR[:PORT]",
        help="The server to ask, instead of those of /etc/resolv.conf. May be given again.",
    ),
]
PolicyFile = Annotated[
    str | None,
    typer.Option(
        "--policy", metavar="FILE", help="Read the policy from a file, .toml or .json; options add."
    ),
]
NoLoopback = Annotated[
    bool, typer.Option("--no-loopback", help="Judge 127.0.0.0/8 and ::1 like all else.")
]
Log = Annotated[
    str | None,
    typer.Option("--log", metavar="FILE", help="Append what is decided to a file, as JSON lines."),
]
LogOnly = Annotated[
    bool, typer.Option("--log-only", help="Decide and log, and let everything pass.")
]
CgroupPath = Annotated[
    str | None, typer.Option("--cgroup", metavar="PATH", help="A cgroup, by its directory.")
]
Pid = Annotated[
    int | None, typer.Option("--pid", metavar="PID", help="The cgroup that a process is in.")
]
Docker = Annotated[
    str | None,
    typer.Option("--docker", metavar="NAME", help="The cgroup that a container is in."),
]
Move = Annotated[
    bool,
    typer.Option("--move", help="Put the process of --pid into a cgroup of its own, and guard it."),
]
Foreground = Annotated[
    bool,
    typer.Option(
        "--foreground", help="Stay, and print what is decided; Ctrl-C takes the guard away."
    ),
]


def policy_of(
    allow: Sequence[str],
    block: Sequence[str],
    default: Default | None,
    dns_upstream: Sequence[str],
    policy_file: str | None,
    *,
    no_loopback: bool,
    log_only: bool,
) -> Policy:
    """The policy of a file, if there is one, and of the command line. Raises UsageError."""
    from zfw_py.guard.model import Policy, parse_entry
    from zfw_py.values.endpoint import parse_server

    policy = Policy(
        allow=tuple(parse_entry(text, "--allow") for text in allow),
        block=tuple(parse_entry(text, "--block", is_block=True) for text in block),
        default=default,
        has_loopback=not no_loopback,
        is_log_only=log_only,
        dns_upstreams=tuple(parse_server(text, "--dns-upstream") for text in dns_upstream),
    )
    if policy_file is not None:
        policy = _read(policy_file).merged(policy)
    # Its limits, before anything is made.
    policy.flatten()
    return policy


def _read(file: str) -> Policy:
    from zfw_py.guard.document import MAX_BYTES, decode
    from zfw_py.values.structured import DocumentError

    form = form_of(file)
    data = files.read_stdin(MAX_BYTES) if file == "-" else files.read(file, MAX_BYTES)
    try:
        return decode(data, form)
    except DocumentError as error:
        name = "stdin" if file == "-" else file
        where = name if error.line is None else f"{name}:{error.line}"
        raise UsageError(f"{where}: {error.message}") from None


def target_of(cgroup: str | None, pid: int | None, docker: str | None, *, move: bool) -> Target:
    """What is to be guarded. Raises UsageError unless it is named once, NotFound."""
    from zfw_py.guard import service as guard

    if sum(each is not None for each in (cgroup, pid, docker)) != 1:
        raise UsageError("one of --cgroup, --pid and --docker says what to guard")
    if move and pid is None:
        raise UsageError("--move goes with --pid")
    if cgroup is not None:
        if not cgroup:
            raise UsageError("--cgroup: empty")
        return guard.of_cgroup(cgroup)
    if docker is not None:
        from zfw_py.containers import find

        return guard.of_process(find(docker).pid, is_moved=False)
    assert pid is not None  # noqa: S101 - one of the three
    if pid <= 0:
        raise UsageError(f"--pid: not a process id: {pid}")
    return guard.of_process(pid, is_moved=move)


def end_with(errors: Sequence[ZfwError]) -> None:
    """Tell of guards that could not be dealt with, if there were any; the first one counts."""
    for error in errors[1:]:
        output.error(error.message, error.hint)
    if errors:
        raise errors[0]
