# SPDX-License-Identifier: GPL-2.0-only
"""The options that the commands of zfw guard share, and the policy and target that they give."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from zfw_py.cli import output
from zfw_py.cli.documents import form_of, read
from zfw_py.cli.options import Option, switch
from zfw_py.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from zfw_py.errors import ZfwError
    from zfw_py.guard.model import Policy
    from zfw_py.guard.target import GuardTarget
    from zfw_py.guard.user import User

_TARGET = {
    "cgroup": Option("--cgroup", metavar="PATH", help="The cgroup at this path."),
    "pid": Option(
        "--pid", kind=int | None, metavar="PID", help="The cgroup that this process is in."
    ),
    "docker": Option("--docker", metavar="NAME", help="The cgroup that this container is in."),
    "move": switch(
        "--move",
        help="Move the process of --pid, with its descendants, into a cgroup of its own first.",
    ),
}
_POLICY = {
    "allow": Option(
        "--allow",
        kind=list[str],
        default=[],
        metavar="NAME|CIDR[:PORT]",
        help="Allow a name and all names below it, or a prefix; on one port, or on all.",
    ),
    "block": Option(
        "--block",
        kind=list[str],
        default=[],
        metavar="NAME|CIDR",
        help="Deny a name or a prefix. The longest match of --allow and --block decides."
        " Without --allow, everything else is allowed.",
    ),
    "default": Option(
        "--default",
        kind=Literal["deny", "allow"] | None,
        help="The action for everything else. Default: deny, but allow if there are only blocks.",
    ),
    "dns_upstream": Option(
        "--dns-upstream",
        kind=list[str],
        default=[],
        metavar="ADDR[:PORT]",
        help="A DNS server to ask, instead of those in /etc/resolv.conf. Repeatable.",
    ),
    "refuse": Option(
        "--refuse",
        kind=Literal["nxdomain", "refused"] | None,
        help="The DNS answer for a name that is not allowed. Default: nxdomain.",
    ),
    "min_ttl": Option(
        "--min-ttl",
        kind=int | None,
        metavar="SECONDS",
        help="Admit addresses of names for at least so long, whatever the record's time to live."
        " Default: 300.",
    ),
    "policy": Option(
        "--policy",
        metavar="FILE",
        help="Read the policy from a .toml or .json file; options add to it.",
    ),
    "no_loopback": switch(
        "--no-loopback", help="Do not allow 127.0.0.0/8 and ::1 unless the policy does."
    ),
}
_LOG = {
    "log": Option("--log", metavar="FILE", help="Append each decision to a file, as JSON lines."),
    "log_only": switch("--log-only", help="Evaluate and log, but let everything pass."),
}
_FOREGROUND = {
    "foreground": switch(
        "--foreground", help="Stay in the foreground and print decisions; Ctrl-C removes the guard."
    )
}
_RUN = {
    "user": Option(
        "--user", metavar="USER", help="Run the command as this user; root could leave the cgroup."
    ),
    "env": Option(
        "--env",
        kind=list[str],
        default=[],
        metavar="NAME[=VALUE]",
        help="With --user: keep or set a variable of the environment. Repeatable.",
    ),
    "allow_new_privileges": switch(
        "--allow-new-privileges",
        help="With --user: let set-user-ID programs and file capabilities have their effect.",
    ),
    "verbose": switch("--verbose", "-v", help="Print all decisions, not only denials."),
    "quiet": switch("--quiet", "-q", help="Print no decisions."),
}
RUN = _POLICY | _LOG | _RUN
ATTACH = _TARGET | _POLICY | _LOG | _FOREGROUND
REDIRECT = _TARGET | _FOREGROUND


def policy_of(values: Mapping[str, Any]) -> Policy:
    """The policy of the file, if any, and of the options. Raises UsageError, NotFound."""
    from zfw_py.guard.document import MAX_BYTES, decode
    from zfw_py.guard.model import Policy, check_min_ttl

    if values["min_ttl"] is not None:
        check_min_ttl(values["min_ttl"], "--min-ttl")
    policy = Policy.parse(
        allow=values["allow"],
        block=values["block"],
        default=values["default"],
        has_loopback=not values["no_loopback"],
        is_log_only=values["log_only"],
        dns_upstreams=values["dns_upstream"],
        refuse=values["refuse"],
        min_ttl=values["min_ttl"],
        options=("--allow", "--block", "--dns-upstream"),
    )
    file = values["policy"]
    if file is not None:
        form = form_of(file)
        policy = read(file, MAX_BYTES, lambda data: decode(data, form)).merged(policy)
    # Check its limits before anything is created.
    policy.flatten()
    return policy


def target_of(values: Mapping[str, Any]) -> GuardTarget:
    """The cgroup or process to guard. Raises UsageError unless there is exactly one, NotFound."""
    from zfw_py.guard.target import GuardTarget

    cgroup, pid, docker = values["cgroup"], values["pid"], values["docker"]
    if (cgroup, pid, docker).count(None) != 2:
        raise UsageError("give exactly one of --cgroup, --pid and --docker")
    if values["move"] and pid is None:
        raise UsageError("--move: needs --pid")
    if cgroup is not None:
        if not cgroup:
            raise UsageError("--cgroup: empty")
        return GuardTarget.of_cgroup(cgroup)
    if docker is not None:
        from zfw_py.containers import find

        return GuardTarget.of_process(find(docker).pid, is_moved=False)
    if pid <= 0:
        raise UsageError(f"--pid: not a process id: {pid}")
    return GuardTarget.of_process(pid, is_moved=values["move"])


def user_of(values: Mapping[str, Any]) -> User | None:
    """The user that the command runs as, if any. Raises UsageError, NotFound."""
    from zfw_py.guard.user import find_user

    if values["user"] is None:
        for name, option in (("env", "--env"), ("allow_new_privileges", "--allow-new-privileges")):
            if values[name]:
                raise UsageError(f"{option}: needs --user")
        return None
    variables = tuple(values["env"])
    for variable in variables:
        if variable.startswith("=") or not variable or "\0" in variable:
            raise UsageError(f"--env: not the name of a variable: '{variable}'")
    found = find_user(values["user"])
    return found._replace(variables=variables, may_gain=values["allow_new_privileges"])


def end_with(errors: Sequence[ZfwError]) -> None:
    """Report guards that could not be read or removed, if any, and raise the first error."""
    for error in errors[1:]:
        output.error(error.message, error.hint)
    if errors:
        raise errors[0]
