# SPDX-License-Identifier: GPL-2.0-only
"""Carry out command lines of the classic grammar, as routers, boot scripts and cron run them. Hot.

Exit codes are 0, 1, and 64 for a command line that does not parse. Messages are short and
plain: callers write them into one line of a log. Errors go to stderr, and NOT_ENABLED, which
scripts look for, to stdout.
"""

from __future__ import annotations

import sys

from zfw_py.cli.classic import SETTINGS
from zfw_py.cli.classic.grammar import ClassicUsage, Request, parse
from zfw_py.errors import NotInstalled, OutputLost, PermissionDenied, ZfwError
from zfw_py.firewall.interfaces import index_of, names_of
from zfw_py.firewall.rules import RuleNotFound
from zfw_py.firewall.service import Firewall

NOT_ENABLED = (
    "Not enough privileges or ebpf not enabled!\n"
    'Run as "sudo" with ingress tc filter [filter -X, --set-tc-filter]'
    " set on at least one interface"
)

# Callers give -O the objects of the C program that zfw replaces: these names mean zfw's own.
_OBJECT_NAMES = ("zfw_tc_ingress.o", "zfw_tc_outbound_track.o")


def run(argv: list[str]) -> int:
    """Carry out a classic command line, and return the exit code."""
    code = 1
    try:
        code = _run(argv)
        sys.stdout.flush()
    except OutputLost as error:
        if error.message:
            print(f"zfw: {error}", file=sys.stderr)
        # After a change the code is that of the change, which the output only confirms.
    return code


def _run(argv: list[str]) -> int:
    try:
        request = parse(argv)
    except ClassicUsage as error:
        print(
            f"zfw: {error}\nTry `zfw --help' or `zfw --usage' for more information.",
            file=sys.stderr,
        )
        return error.exit_code
    except ZfwError as error:
        return _fail(error, argv)
    try:
        return _VERBS[request.verb](request)
    except OutputLost:
        raise
    except (NotInstalled, PermissionDenied) as error:
        print(NOT_ENABLED)
        return _fail(error, argv)
    except ZfwError as error:
        return _fail(error, argv)


def _fail(error: ZfwError, argv: list[str]) -> int:
    print(f"zfw: {error}", file=sys.stderr)
    if error.hint:
        print(f"hint: {error.hint}", file=sys.stderr)
    if any(word.startswith("--in") or (word[:2] != "--" and "I" in word) for word in argv[:1]):
        # A router drops the messages of a failed insert: syslog keeps them.
        import syslog

        syslog.openlog("zfw", syslog.LOG_PID, syslog.LOG_DAEMON)
        text = f"{error}: zfw {' '.join(argv)}"[:1000]
        # Arguments may be any bytes; syslog(3) here takes only text.
        syslog.syslog(syslog.LOG_ERR, text.encode("utf-8", "backslashreplace").decode())
    return 1


def _insert(request: Request) -> int:
    inserted = Firewall().insert(request.rule, route=request.route)
    # Callers insert egress rules before they turn the filter on (-b), and expect no warning.
    inserted.is_idle = False
    key = request.rule.key
    print(f"Adding {key.protocol.upper()} mapping")
    for warning in inserted.warnings():
        print(f"zfw: warning: {warning}", file=sys.stderr)
    return 0


def _delete(request: Request) -> int:
    try:
        Firewall().delete(request.key, request.interfaces, route=request.route)
    except RuleNotFound as error:
        if not error.is_prefix_known:
            raise
        # An earlier run may have deleted it: callers expect no failure.
        print(f"mapping[{request.key.low_port}] does not exist: {error}")
        return 0
    print(f"mapping[{request.key.low_port}] removed")
    return 0


def _flush(request: Request) -> int:
    if request.direction == "egress" and not _has_egress():
        raise ZfwError(
            "No egress maps exist: no interface has an egress filter",
            hint="zfw -X IF -O zfw_tc_outbound_track.o -z egress",
        )
    Firewall().flush(request.direction, routes=request.route)
    return 0


def _has_egress() -> bool:
    return any("egress" in interface.attachments for interface in Firewall().status().interfaces)


def _print(text: str) -> int:
    """Print what the caller asked for; an error where it cannot be written is the command's."""
    sys.stdout.write(text)
    sys.stdout.flush()
    return 0


def _list(request: Request) -> int:
    from zfw_py.cli.classic import listing

    firewall = Firewall()
    if request.what == "rules":
        rules = firewall.rules(request.direction or "ingress", request.destination, request.family)
        return _print(listing.rules_text(rules, request))
    # Cron runs these two because they bring addresses and interfaces up to date: what the follower
    # does at each change.
    firewall.follow()
    if request.what == "gc":
        firewall.expire_flows()
        return 0
    return _print(listing.settings_text(firewall.status().interfaces))


def _attach(request: Request) -> int:
    path = request.object_file
    name = path.rpartition("/")[2]
    if name not in _OBJECT_NAMES:
        import os

        if not os.path.exists(path):
            raise ZfwError(f"-O, --object-file: object file {path} not in path")
        raise ZfwError(
            f"-O, --object-file: {path} is not a program of zfw; {' and '.join(_OBJECT_NAMES)} are"
        )
    return _attach_all(request.interface, (str(request.direction),))


def _init(request: Request) -> int:
    return _attach_all(request.interface, ("ingress", "egress"))


def _attach_all(interface: str, directions: tuple[str, ...]) -> int:
    """Through clsact, so that `tc filter show`, which callers read, has a line to print."""
    for name in names_of(interface):
        for direction in directions:
            Firewall().attach(name, direction, mode="clsact")
            print(f"Set tc filter enable to 1 for {direction} on {name}")
    return 0


def _detach(request: Request) -> int:
    from zfw_py.errors import NotFound

    for name in names_of(request.interface):
        index_of(name)
        try:
            Firewall().detach(name, request.direction)
        except NotFound:
            pass  # detached already
        if request.direction == "egress":
            Firewall().set([name], "outbound_filter", False)
        print(f"Set tc filter enable to 0 for {request.direction} on {name}")
    return 0


def _uninstall(request: Request) -> int:
    for taken in Firewall().detach_all():
        print(f"removing {taken.mode} {taken.direction} filter of interface {taken.ifindex}")
    return 0


def _set(request: Request) -> int:
    for setting, interface, on in request.settings:
        names = names_of(interface)
        Firewall().set(names, setting, on)
        flag = SETTINGS[setting]
        for name in names:
            print(f"Set {flag.said} to {int(on != flag.turns_off)} for {name}")
        if setting == "outbound_filter" and on:
            for name in Firewall().without_egress(names):
                print(
                    f"zfw: warning: {name}: the outbound filter has no effect without an egress"
                    f" program: zfw -X {name} -O {_OBJECT_NAMES[1]} -z egress",
                    file=sys.stderr,
                )
    return 0


def _bind(request: Request) -> int:
    count = Firewall().bind(request.prefix)
    if count > 1:
        print(f"Key already exists: total add count={count}")
    else:
        print(f"binding route {request.prefix} to loopback")
    return 0


def _unbind(request: Request) -> int:
    from zfw_py.errors import NotFound

    try:
        left = Firewall().unbind(request.prefix)
    except NotFound:
        # An earlier run may have removed it: callers expect no failure.
        print(f"bind prefix does not exist: {request.prefix}")
        return 0
    if left:
        print(f"add count decremented to: {left}")
    else:
        print(f"unbinding route {request.prefix} from loopback")
    return 0


def _unbind_all(request: Request) -> int:
    Firewall().unbind_all()
    return 0


def _user_rules(request: Request) -> int:
    from zfw_py.compat import places
    from zfw_py.kernel.subprocesses import run_own

    # The commands in the file need one; fail here, with the usual message.
    if not Firewall().is_installed():
        raise NotInstalled("no firewall in this network namespace")
    run_own(places.USER_RULES, timeout=places.USER_RULES_TIMEOUT)
    return 0


def _later(request: Request) -> int:
    raise ZfwError(f"{request.feature}: not in this version of zfw")


def _version(request: Request) -> int:
    from zfw_py.version import __version__

    return _print(f"{__version__}\n")


def _help(request: Request) -> int:
    from zfw_py.cli.classic.grammar import help_text

    return _print(help_text())


def _usage(request: Request) -> int:
    from zfw_py.cli.classic.grammar import usage_text

    return _print(usage_text())


_VERBS = {
    "insert": _insert,
    "delete": _delete,
    "flush": _flush,
    "list": _list,
    "attach": _attach,
    "detach": _detach,
    "init": _init,
    "uninstall": _uninstall,
    "set": _set,
    "bind": _bind,
    "unbind": _unbind,
    "unbind_all": _unbind_all,
    "user_rules": _user_rules,
    "later": _later,
    "version": _version,
    "help": _help,
    "usage": _usage,
}
